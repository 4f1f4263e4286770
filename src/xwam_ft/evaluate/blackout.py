"""How much a policy's actions lean on each camera: its open-loop error with that camera's pictures black.

A camera whose loss changes nothing is not looked at, or shows nothing the others do not. Black pictures are ones the
policy never saw, so the change bounds what a failing camera does rather than what the view is worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.open_loop import OpenLoopResult, open_loop

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.policy.policy import Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shards import ShardSet


def blackout(
    policy: Policy,
    shards: ShardSet,
    seen: OpenLoopResult,
    *,
    clips: int,
    mean: Float[ndarray, "ta da"] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Errors with each camera black in turn: {camera: {slot: {quantity: {"unit", "seen", "black"}}}}.

    Args:
        seen: the same clips with every camera; same noise, so that the camera is the only difference.
        clips, mean, advance: as in `open_loop`.
    """
    table: dict[str, Any] = {}
    before = seen.mean("policy")
    for camera in shards.contract.camera_names:
        result = open_loop(policy, shards, split=seen.split, clips=clips, advance=advance, mean=mean, black=camera)
        assert result.keys == seen.keys, "other clips than were seen"
        after = result.mean("policy")
        slots: dict[str, dict[str, Any]] = {}
        for index, measure in enumerate(seen.measures):
            if not measure.dimension and np.isfinite(before[index]):
                values = {"unit": measure.unit, "seen": float(before[index]), "black": float(after[index])}
                slots.setdefault(measure.slot, {})[measure.name] = values
        table[camera] = slots
    return table
