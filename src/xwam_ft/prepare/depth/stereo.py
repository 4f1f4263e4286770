"""Depth from rectified stereo pairs: OpenCV's semi-global matching, metres = fx * baseline / disparity.

The embodiment's camera names the other picture of its pair and the distance between the two:

    cameras:
      front: {source: left, intrinsics: [fx, fy, cx, cy], stereo: {source: right, baseline: 0.12}}

`baseline` is in metres, positive where the other camera stands to the right of this one, negative to the left. Both
pictures must be rectified (rows correspond), as the makers' drivers give them. A pixel whose partner lies outside of
the other picture, or does not point back at it, has no depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError, require
from xwam_ft.prepare.depth.estimator import DepthStage
from xwam_ft.prepare.depth.views import require_length
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode

BLOCK = 5  # pixels a side that are compared
STEPS = 16  # a pixel of disparity; OpenCV gives sixteenths


def require_pairs(cameras: Sequence[CameraPlan]) -> list[str]:
    """Names of the cameras with a pair.

    Raises:
        UserError: OpenCV is not installed, no camera names a pair, or one with a pair lacks intrinsics.
    """
    _opencv()
    paired = [camera for camera in cameras if camera.stereo is not None]
    if not paired:
        raise UserError(
            "is `stereo` and no camera of the embodiment names the other picture of a pair",
            "--depth",
            "add `stereo: {source: ..., baseline: METRES}` to a camera",
        )
    for camera in paired:
        if camera.intrinsics is None:
            raise UserError(
                "has a stereo pair and no intrinsics, so disparity has no metres",
                f"camera {camera.name}",
                "add `intrinsics: [fx, fy, cx, cy]` in pixels of the rectified pictures",
            )
    return [camera.name for camera in paired]


class Stereo(DepthStage):
    """`near`: metres below which nothing is looked for, where a camera has no `depth_range` of its own."""

    def __init__(self, near: float) -> None:
        self.near = near

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h w"] | None:
        if camera.stereo is None:
            return None
        others = require_length(episode, camera.stereo.source).read_rgb(rows)
        if others.shape != pictures.shape:
            raise EpisodeError(
                f"camera {camera.name!r} is {pictures.shape[1]}x{pictures.shape[2]}, the other of its stereo pair "
                f"{others.shape[1]}x{others.shape[2]}"
            )
        assert camera.intrinsics is not None
        near = camera.depth_range[0] if camera.depth_range else self.near
        return stereo_depth(pictures, others, camera.intrinsics[0] * camera.stereo.baseline, near)


def stereo_depth(
    pictures: UInt8[ndarray, "n h w 3"], others: UInt8[ndarray, "n h w 3"], strength: float, near: float
) -> Float[ndarray, "n h w"]:
    """Metres of `pictures`, float32, 0 where there is none.

    Args:
        others: of the camera beside; to the right where `strength` is positive, else to the left.
        strength: fx times baseline, pixels times metres.
    """
    cv2 = _opencv()
    width = pictures.shape[2]
    # Matching looks for partners to the left; mirrored, a partner to the right is one to the left.
    turn = slice(None, None, -1) if strength < 0 else slice(None)
    least = min(abs(strength) / near, width / 2)
    count = max(STEPS, STEPS * math.ceil(least / STEPS))
    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=count,
        blockSize=BLOCK,
        P1=8 * BLOCK**2,  # OpenCV's advice for one channel
        P2=32 * BLOCK**2,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM,
    )
    found = np.zeros(pictures.shape[:3], dtype=np.float32)
    for depth, picture, other in zip(found, pictures, others, strict=True):
        # OpenCV leaves the first `count` columns without an answer; a margin keeps them for those that have one.
        gray = [cv2.cvtColor(np.ascontiguousarray(side[:, turn]), cv2.COLOR_RGB2GRAY) for side in (picture, other)]
        padded = [cv2.copyMakeBorder(side, 0, 0, count, 0, cv2.BORDER_REPLICATE) for side in gray]
        disparity = matcher.compute(*padded)[:, count:].astype(np.float32) / STEPS
        seen = (disparity > 0) & (disparity <= np.arange(width, dtype=np.float32))  # the partner is in the picture
        depth[:, turn] = np.where(seen, abs(strength) / np.where(seen, disparity, 1.0), 0.0)
    return found


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise require("opencv-python-headless", "stereo", "--depth stereo") from None
    return cv2
