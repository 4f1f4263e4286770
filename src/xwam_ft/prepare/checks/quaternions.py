"""Quaternions that change their sign along a path, as the model is shown them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xwam_ft.contract import Contract
    from xwam_ft.quantiles import Motion


def check_quaternions(contract: Contract, motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Episodes whose orientations pass where w >= 0 changes sign, and those that jump all the same."""
    found: dict[int, list[Finding]] = {}
    places = conventions.state_slices(contract)
    poses = [slot.name for slot in contract.slots if slot.kind == "pose" and slot.present]
    around = contract.recorded.hemispheres if contract.recorded else {}
    for number, motion in motions.items():
        shown = conventions.in_hemispheres(contract, motion.state)
        for name in poses:
            turns = slice(places[name].start + 3, places[name].stop)
            jumps, before = (int(np.sum(_signs(part[:, turns]))) for part in (shown, motion.state))
            if jumps:
                text = f"the quaternion of {name!r} changes its sign in {jumps} of {len(shown) - 1} steps"
                text += ", whichever half is chosen" if name in around else ", which the model sees as jumps"
                found.setdefault(number, []).append(Finding("quaternion-sign", "warning", text, name))
            elif before:
                text = (
                    f"the quaternion of {name!r} passes w = 0, where X-WAM's form (w >= 0) jumps; the model is shown "
                    f"the sign nearer to {', '.join(f'{part:g}' for part in around[name])} (w x y z) instead"
                )
                found.setdefault(number, []).append(Finding("quaternion-sign", "note", text, name))
    return found


def _signs(quaternions: np.ndarray) -> np.ndarray:
    return (quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0
