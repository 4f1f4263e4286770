"""What the server answers over a WebSocket is what the policy answers in process, on recorded observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.policy.request import command_table, example_observation

if TYPE_CHECKING:
    from pathlib import Path

    from xwam_ft.policy.policy import Policy
    from xwam_ft.shards import ShardSet

CLIPS = 2


def recorded_requests(shards: ShardSet, count: int = CLIPS) -> list[dict[str, Any]]:
    """Raw observations at the start of recorded clips, held-out ones where there are any.

    States that the robot reports in another form than they are stored in (joints of a chain, reduced columns) are those
    of an example: what was reported is not stored.
    """
    contract, places = shards.contract, conventions.state_slices(shards.contract)
    refs = shards.clips("held_out", 1) or shards.clips(None, 1)
    requests: list[dict[str, Any]] = []
    for index in np.unique(np.linspace(0, len(refs) - 1, count).round().astype(int)):
        clip = shards.read_clip(refs[index])
        request = example_observation(contract, clip.instruction)
        request["images"] = {name: clip.rgb[view, 0] for view, name in enumerate(contract.camera_names)}
        for slot in contract.slots:
            if slot.present and slot.transform == "identity":
                request["state"][slot.name] = np.asarray(clip.proprio[0][places[slot.name]], dtype=np.float64)
        requests.append(request)
    return requests


def prove(policy: Policy, shards: ShardSet, where: Path) -> tuple[str, str]:
    """Ask both ways with the same seeds; returns a row for the table of proofs.

    Raises:
        UserError: they differ in a single bit.
    """
    what = "served over a WebSocket, it answers"
    for slot in policy.contract.slots:
        if slot.convention == "delta_to_state" and slot.present:
            return what, f"not run: slot {slot.name!r} commands changes of the measured state, which no server decodes"
    try:
        from xwam_ft.policy.client import PolicyClient
        from xwam_ft.policy.server import serving
    except (ImportError, UserError):
        return what, "not run: websockets is not installed (pip install 'xwam-ft[serve]')"
    requests = recorded_requests(shards)
    expected = [policy.infer(request, seed=index) for index, request in enumerate(requests)]
    with serving(policy, port=0) as address, PolicyClient(address, timeout=600.0) as client:
        answers = [client.infer(request, seed=index) for index, request in enumerate(requests)]
    for ours, answer in zip(expected, answers, strict=True):
        if not np.array_equal(command_table(policy.contract, ours.commands.slots), np.asarray(answer["actions"])):
            raise UserError(
                "a served answer is not the one given in process", where, "do not serve it; report this with the bundle"
            )
    return what, f"as in process ({len(requests)} recorded observations)"
