"""Camera calibration against the arm: the end-effector, projected into a static camera, should be in its pictures.

Wrist cameras move with the end-effector, so that its projection says nothing about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Camera, Contract
    from xwam_ft.quantiles import Motion

MARGIN = 0.15  # of the picture's size, by which a hand may be out of it
MOST = 0.5
FARTHEST = 50.0  # m: beyond it every hand is in the middle of the picture
IN_METRES = "divide the last column of its pose by 1000, in the recordings' calibration or the embodiment file"


def check_calibration(contract: Contract, motion: Motion) -> list[Finding]:
    """Static cameras with intrinsics and pose that see no end-effector in most frames of an episode."""
    poses = [slot.name for slot in contract.slots if slot.kind == "pose" and slot.present]
    found: list[Finding] = []
    for camera in contract.cameras:
        if camera.kind != "static" or camera.intrinsics is None or camera.pose is None or not poses:
            continue
        if (away := float(np.linalg.norm(np.array(camera.pose)[:3, 3]))) > FARTHEST:
            text = f"camera {camera.name!r} stands {away:.3g} m away from the base: its pose looks like millimetres"
            found.append(Finding("camera-calibration", "warning", text, camera.name, camera.name, 0, IN_METRES))
            continue
        places = conventions.state_slices(contract)
        seen = {name: in_picture(camera, motion.state[:, places[name]][:, :3]) for name in poses}
        best = max(seen, key=lambda name: float(seen[name][0].mean()))
        inside, behind = seen[best]
        if inside.mean() < MOST:
            where = "behind the camera" if behind.mean() > 0.5 else "outside the picture"
            text = (
                f"by its calibration camera {camera.name!r} sees {best!r} in {inside.mean():.0%} of the frames; "
                f"it is projected {where}"
            )
            found.append(Finding("camera-calibration", "warning", text, camera.name, camera.name, 0))
    return found


def project(camera: Camera, points: Float[ndarray, "n 3"]) -> Float[ndarray, "n 3"]:
    """Points in the base frame -> column, row in source pixels, and depth in metres, of a static camera."""
    assert camera.pose is not None
    assert camera.intrinsics is not None
    pose = np.array(camera.pose)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    fx, fy, cx, cy = camera.intrinsics
    depth = np.where(np.abs(local[:, 2]) < 1e-9, 1e-9, local[:, 2])
    return np.stack([fx * local[:, 0] / depth + cx, fy * local[:, 1] / depth + cy, local[:, 2]], axis=1)


def in_picture(camera: Camera, points: Float[ndarray, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    """Which points are in the picture, with its margin, and which are behind the camera; [N] booleans each."""
    column, row, depth = project(camera, points).T
    wide, high = MARGIN * camera.source_width, MARGIN * camera.source_height
    inside = (column > -wide) & (column < camera.source_width + wide)
    inside &= (row > -high) & (row < camera.source_height + high)
    return inside & (depth > 0), depth <= 0
