"""Two predictors that see no picture; a policy that does not beat them has learned nothing of use.

    mean_action   at every step the mean action of the training split, decoded from the clip's state
    hold_still    relative slots: action 0, so the command is the state the convention refers to (for `delta_to_state`
                  the measured state of that very step, which the policy's own action is added to as well); absolute
                  slots commanded in the state's quantity: the state the chunk starts from; absolute slots commanded in
                  another quantity (`command_units`, an effort say): the mean action, since the state says nothing there
Both give normalised actions, decoded by the code that decodes the policy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.shards import cut_clip

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.shards import ShardSet

MEAN_CLIPS = 2000
"""Training clips the mean is taken over, at most about; enough for a mean, and seconds of work."""


def mean_action(shards: ShardSet) -> Float[ndarray, "ta da"]:
    """The training split's mean action, normalised, step by step over its clips on an even stride; invalid steps do not
    count, and a number never recorded is 0."""
    contract = shards.contract
    shape = (contract.timing.action_steps, contract.action_dim)
    total, count = np.zeros(shape), np.zeros(shape)
    stride = max(1, sum(entry.num_starts for entry in shards.segments("train")) // MEAN_CLIPS)
    starts: dict[str, list[int]] = {}
    for ref in shards.clips("train", stride):
        starts.setdefault(ref.entry.key, []).append(ref.start)
    for entry in shards.segments("train"):
        if entry.key not in starts:
            continue
        segment = shards.read_motion(entry)
        for start in starts[entry.key]:
            clip = cut_clip(segment, start, contract.timing)
            action = conventions.encode_actions(contract, clip.action, clip.proprio[0], clip.action_states)
            mask = conventions.command_to_action_mask(contract, clip.action_mask)
            total += np.where(mask > 0, action, 0.0)
            count += mask
    return conventions.normalise_action(contract, total / np.maximum(count, 1.0))


def hold_still(
    contract: Contract, state: Float[ndarray, " p"], mean: Float[ndarray, "ta da"]
) -> Float[ndarray, "ta da"]:
    """Normalised actions that change nothing; see the module's head.

    Args:
        state: absolute, at the start of the chunk.
        mean: what `mean_action` gave.
    """
    raw = conventions.denormalise_action(contract, mean)
    state_at = conventions.state_slices(contract)
    for name, place in conventions.action_slices(contract).items():
        slot = contract.slot(name)
        if slot.for_controller and slot.kind == "gripper":
            continue  # its input is an effort, so the mean action: the state says nothing there
        if slot.convention != "absolute":
            raw[:, place] = 0.0
        elif slot.command_units is None:
            raw[:, place] = state[state_at[name]]
    return conventions.normalise_action(contract, raw)
