"""What a robot sends is read as training read it, and a server answers it as the policy does in process.

Both are asked of recorded observations, in the form a robot sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, observation
from xwam_ft.errors import UserError
from xwam_ft.pictures import turn_back
from xwam_ft.policy.policy import clip_observation
from xwam_ft.policy.request import command_table, example_observation

if TYPE_CHECKING:
    from pathlib import Path

    from xwam_ft.contract import Contract
    from xwam_ft.policy.policy import Policy
    from xwam_ft.shards import Clip, ShardSet

CLIPS = 2
STATE_TOLERANCE = 1e-4
"""Of the normalised range, by which a state may differ: quaternions are normalised once more on the way."""


def recorded_clips(shards: ShardSet, count: int = CLIPS) -> list[Clip]:
    """Clips spread over the recordings, held-out ones where there are any."""
    refs = shards.clips("held_out", 1) or shards.clips(None, 1)
    return [shards.read_clip(refs[i]) for i in np.unique(np.linspace(0, len(refs) - 1, count).round().astype(int))]


def recorded_request(shards: ShardSet, clip: Clip) -> dict[str, Any]:
    """What a robot would send at the start of a clip.

    States that were not recorded there, or that the robot reports in another form than they are stored in (joints of a
    chain, reduced columns), are those of an example.
    """
    contract, places = shards.contract, conventions.state_slices(shards.contract)
    request = example_observation(contract, clip.instruction)
    request["images"] = {  # as the robot's cameras give them, where they are turned
        camera.name: turn_back(clip.rgb[view, 0], camera.rotate, mirror=camera.mirror)
        for view, camera in enumerate(contract.cameras)
    }
    for name in _recorded_slots(contract, clip):
        request["state"][name] = np.asarray(clip.proprio[0][places[name]], dtype=np.float64)
    return request


def prove(policy: Policy, shards: ShardSet, where: Path) -> list[tuple[str, str]]:
    """Read and ask both ways, with the same seeds; returns rows for the table of proofs.

    Raises:
        UserError: a camera or a state is read otherwise than in training, or an answer differs in a single bit.
    """
    clips = recorded_clips(shards)
    requests = [recorded_request(shards, clip) for clip in clips]
    for clip, request in zip(clips, requests, strict=True):
        _require_read_as_trained(policy, shards, clip, request, where)
    read = ("a robot's cameras and state are read", f"as in training ({len(clips)} recorded observations)")
    return [read, ("served over a WebSocket, it answers", _served(policy, requests, where))]


def _recorded_slots(contract: Contract, clip: Clip) -> list[str]:
    """Slots whose state at the start of a clip is what the robot reported."""
    places = conventions.state_slices(contract)
    reported = [slot.name for slot in contract.slots if slot.present and slot.transform == "identity"]
    return [name for name in reported if np.all(clip.proprio_mask[0][places[name]])]


def _require_read_as_trained(
    policy: Policy, shards: ShardSet, clip: Clip, request: dict[str, Any], where: Path
) -> None:
    contract, trained = shards.contract, clip_observation(shards.contract, clip)
    inputs, places = observation.encode(policy.contract, request), conventions.state_slices(contract)
    pairs: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
    for view, name in enumerate(contract.camera_names):
        pairs[f"camera {name!r}"] = (inputs.pictures[view], trained.pictures[view], 0.0)
    for name in _recorded_slots(contract, clip):
        pairs[f"slot {name!r}"] = (inputs.proprio[places[name]], trained.proprio[places[name]], STATE_TOLERANCE)
    for what, (ours, theirs, tolerance) in pairs.items():
        if not np.allclose(ours, theirs, rtol=0, atol=tolerance):
            raise UserError(
                f"a robot's {what} is not read as in training", where, "do not use it; report this with the bundle"
            )


def _served(policy: Policy, requests: list[dict[str, Any]], where: Path) -> str:
    for slot in policy.contract.slots:
        if slot.convention == "delta_to_state" and slot.present:
            return f"not run: slot {slot.name!r} commands changes of the measured state, which no server decodes"
    try:
        from xwam_ft.policy.client import PolicyClient
        from xwam_ft.policy.server import serving
    except (ImportError, UserError):
        return "not run: websockets is not installed (pip install 'xwam-ft[serve]')"
    expected = [policy.infer(request, seed=index) for index, request in enumerate(requests)]
    with serving(policy, port=0) as address, PolicyClient(address, timeout=600.0) as client:
        answers = [client.infer(request, seed=index) for index, request in enumerate(requests)]
    for ours, answer in zip(expected, answers, strict=True):
        slots = ours.commands.slots
        wanted = {"actions": command_table(policy.contract, slots)} | {
            f"commands.{name}": slots[name] for name in slots
        }
        given = {"actions": answer["actions"]} | {f"commands.{name}": x for name, x in answer["commands"].items()}
        for name in wanted.keys() | given.keys():
            if name not in wanted or name not in given or not np.array_equal(wanted[name], np.asarray(given[name])):
                raise UserError(
                    f"a served answer is not the one given in process: they differ in {name}",
                    where,
                    "do not serve it; report this with the bundle",
                )
    return f"as in process ({len(requests)} recorded observations)"
