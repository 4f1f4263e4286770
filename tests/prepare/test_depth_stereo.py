"""Stereo matching on a synthetic rectified pair of known disparity, and its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth import parse_depth
from xwam_ft.prepare.depth.stereo import stereo_depth
from xwam_ft.prepare.embodiment.cameras import CameraPlan
from xwam_ft.prepare.embodiment.schema import DepthRange, StereoPair
from xwam_ft.prepare.episode import Episode, EpisodeError
from xwam_ft.prepare.sources.lerobot_table import LeRobotTable

pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'xwam-ft[stereo]'")

HEIGHT, WIDTH = 96, 160
FOCAL, BASELINE = 120.0, 0.05
FAR_DISPARITY, NEAR_DISPARITY = 6, 15  # 1.0 m and 0.4 m


def pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right picture [1, H, W, 3] of a wall with a box before it, and the metres of the left one."""
    rng = np.random.default_rng(seed)
    wide = rng.integers(0, 256, (HEIGHT, WIDTH + 32), dtype=np.uint8)
    box = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    left, right = wide[:, :WIDTH].copy(), wide[:, FAR_DISPARITY : WIDTH + FAR_DISPARITY].copy()
    left[30:70, 60:110], right[30:70, 60 - NEAR_DISPARITY : 110 - NEAR_DISPARITY] = box, box
    disparity = np.full((HEIGHT, WIDTH), float(FAR_DISPARITY))
    disparity[30:70, 60:110] = NEAR_DISPARITY
    both = (np.repeat(picture[None, ..., None], 3, axis=3) for picture in (left, right))
    return *both, FOCAL * BASELINE / disparity  # pyright: ignore[reportReturnType]


class Frames:
    """A view of pictures in memory."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures

    def read_rgb(self, rows: Any) -> np.ndarray:
        return self.pictures[list(rows)]


def test_known_disparity_is_known_depth() -> None:
    left, right, metres = pair()
    found = stereo_depth(left, right, FOCAL * BASELINE, near=0.3)[0]
    valid = found > 0
    assert valid[:, FAR_DISPARITY:].mean() > 0.85
    error = np.abs(found[valid] - metres[valid]) / metres[valid]
    assert float(np.median(error)) < 0.01
    assert float(np.mean(error < 0.03)) > 0.93  # the rest lies at the box's border
    assert not valid[:, : FAR_DISPARITY - 1].any()  # their partners lie outside of the other picture
    assert float(np.median(found[35:65, 65:105])) == pytest.approx(0.4, rel=0.01)


def test_the_other_camera_may_stand_to_the_left() -> None:
    left, right, _ = pair()
    there = stereo_depth(left, right, FOCAL * BASELINE, near=0.3)
    mirrored = stereo_depth(left[:, :, ::-1], right[:, :, ::-1], -FOCAL * BASELINE, near=0.3)
    np.testing.assert_array_equal(mirrored[:, :, ::-1], there)


def test_the_stage_reads_the_pair_and_leaves_other_cameras_alone(tmp_path: Path) -> None:
    left, right, _ = pair()
    calibration = (FOCAL, FOCAL, 79.5, 47.5)
    stereo = StereoPair(source="right", baseline=BASELINE)
    camera = CameraPlan("front", "left", None, (0.3, 3.0), intrinsics=calibration, stereo=stereo)
    plan = parse_depth("stereo", [camera, CameraPlan("side", "side", None)], [], DepthRange())
    assert (plan.code.kind, plan.note) == ("metric", "side: no stereo pair, stored as invalid")
    views: Any = {"left": Frames(left), "right": Frames(right)}
    episode = Episode(tmp_path, 0, 1, views, LeRobotTable(tmp_path, 0, 1, None, ()))
    stage = plan.open()
    assert stage is not None
    found = stage.read(episode, camera, [0], left)
    np.testing.assert_array_equal(found, stereo_depth(left, right, FOCAL * BASELINE, 0.3))
    assert stage.read(episode, CameraPlan("side", "side", None), [0], left) is None
    views["right"] = Frames(right[:, ::2, ::2])
    with pytest.raises(EpisodeError, match=r"'front' is 96x160, the other of its stereo pair 48x80"):
        stage.read(episode, camera, [0], left)
    del views["right"]
    with pytest.raises(EpisodeError, match="camera 'right' was not recorded"):
        stage.read(episode, camera, [0], left)


def test_a_pair_without_what_it_needs_is_told() -> None:
    stereo = StereoPair(source="right", baseline=BASELINE)
    with pytest.raises(UserError, match="has a stereo pair and no intrinsics"):
        parse_depth("stereo", [CameraPlan("front", "left", None, stereo=stereo)], [], DepthRange())
    with pytest.raises(UserError, match="no camera of the embodiment names the other picture"):
        parse_depth("stereo", [CameraPlan("front", "left", None)], [], DepthRange())
    with pytest.raises(UserError, match="stereo takes nothing after it"):
        parse_depth("stereo:7", [], [], DepthRange())
