"""The linter's eyes: black, frozen and swapped cameras, depth with holes and of another scale, calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xwam_ft.contract import Contract
from xwam_ft.depth_code import metres_to_code
from xwam_ft.prepare.checks import across, depth
from xwam_ft.prepare.checks.calibration import check_calibration, project
from xwam_ft.prepare.checks.pictures import check_pictures, robot_moves, signature
from xwam_ft.prepare.statistics import Motion
from xwam_ft.shards import Segment

FRAMES, FPS = 60, 10.0
MOVING = np.ones(FRAMES - 1, dtype=bool)


def film(frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """A still background, a bright square that moves, and noise such as an encoder leaves."""
    random = np.random.default_rng(seed)
    pictures = np.tile(random.integers(40, 200, (1, 6, 8, 3)).repeat(8, 1).repeat(8, 2), (frames, 1, 1, 1))
    for frame in range(frames):
        left = 2 + frame % 50
        pictures[frame, 20:30, left : left + 8] = 250
    return (pictures + random.integers(0, 2, pictures.shape)).astype(np.uint8)


def test_a_sound_film_is_silent() -> None:
    assert check_pictures("a", film(), MOVING, FPS) == []
    still = film()[:1].repeat(FRAMES, 0)  # nothing moves and the robot neither
    assert check_pictures("a", still, ~MOVING, FPS) == []


def test_black_pictures() -> None:
    pictures = film()
    pictures[20:24] = 3
    (found,) = check_pictures("a", pictures, MOVING, FPS)
    assert (found.check, found.severity, found.frame) == ("black-camera", "warning", 20)
    assert found.text == "camera 'a' is black in 4 of 60 pictures, first in frame 20"
    (found,) = check_pictures("a", np.zeros_like(pictures), ~MOVING, FPS)
    assert (found.check, found.severity) == ("black-camera", "error")


@pytest.mark.parametrize("how", ["pause", "every second", "throughout"])
def test_frozen_pictures_while_the_robot_moves(how: str) -> None:
    pictures = film()
    if how == "pause":
        pictures[30:42] = pictures[29]
    elif how == "every second":
        pictures[1::2] = pictures[::2]
    else:
        pictures[:] = pictures[0]
    (found,) = check_pictures("a", pictures, MOVING, FPS)
    assert found.check == "frozen-camera"
    assert found.severity == ("error" if how == "throughout" else "warning")
    if how == "pause":
        assert found.frame == 29
        assert "for 1.2 s from frame 29" in found.text
    if how == "every second":
        assert "repeats its picture in 51%" in found.text


def test_a_pause_of_the_robot_is_no_frozen_camera() -> None:
    pictures = film()
    pictures[30:42] = pictures[29]
    moving = MOVING.copy()
    moving[29:42] = False
    assert check_pictures("a", pictures, moving, FPS) == []


def test_when_the_robot_moves() -> None:
    state = np.zeros((50, 2))
    state[:, 0] = np.clip(np.arange(50) - 10, 0, 20) * 0.05
    state[:, 1] = 1e-5 * np.random.default_rng(0).normal(size=50)  # a joint that only trembles
    assert np.flatnonzero(robot_moves(state)).tolist() == list(range(10, 30))


def views(episodes: int, swap: int | None = None) -> dict[int, dict[str, list[float]]]:
    made = {n: {"left": signature(film(6, 1) // 2), "right": signature(film(6, 2))} for n in range(episodes)}
    if swap is not None:
        made[swap] = {"left": made[swap]["right"], "right": made[swap]["left"]}
    return made


def test_swapped_cameras() -> None:
    assert across.check_swapped(views(4)) == {}
    found = across.check_swapped(views(4, swap=2))
    assert list(found) == [2]
    assert (found[2][0].check, found[2][0].subject) == ("swapped-camera", "left, right")
    assert across.check_swapped(views(2, swap=1)) == {}  # which of two is right cannot be known
    alike = {n: {"left": signature(film(6, 1)), "right": signature(film(6, 1))} for n in range(4)}
    assert across.check_swapped(alike) == {}
    assert [f.check for f in across.check_same(alike)[3]] == ["same-pictures"]
    assert across.check_same(views(3)) == {}


def test_other_sizes() -> None:
    sizes = {0: {"a": [96, 128]}, 3: {"a": [96, 128]}, 4: {"a": [480, 640]}}
    found = across.check_sizes(sizes)
    assert list(found) == [4]
    assert found[4][0].text == "camera 'a' is 480x640, and 96x128 in the first episode"


def wander(seed: int, frames: int = 40) -> Motion:
    state = np.cumsum(np.random.default_rng(seed).normal(0, 0.05, (frames, 3)), axis=0)
    return Motion(state, state + 0.01, np.ones_like(state))


def test_duplicates() -> None:
    hashes = {n: across.content_hash(wander(seed)) for n, seed in enumerate((0, 1, 0, 2))}
    found = across.check_duplicates(hashes, views(4), {0: "a", 1: "b", 2: "a", 3: "b"}, held_out={2})
    assert {n: [f.check for f in findings] for n, findings in found.items()} == {
        2: ["duplicate-episode"],
        3: ["duplicate-pictures"],
    }
    assert found[2][0].text.endswith(
        "episode 0, and the same pictures; one of them is held out and the other trained on"
    )
    hashes = {n: across.content_hash(wander(n)) for n in range(3)}
    assert across.check_duplicates(hashes, views(3), {0: "a", 1: "b", 2: "c"}, set()) == {}
    nothing = Motion(np.ones((9, 3)), np.ones((9, 3)), np.ones((9, 3)))
    still = dict.fromkeys(range(2), across.content_hash(nothing))
    assert across.check_duplicates(still, views(2), {0: "a", 1: "b"}, set()) == {}  # two stills are not one recording


def test_holes_in_depth() -> None:
    assert depth.check_depth("a", [0.9] * 20) == []
    assert depth.check_depth("a", [0.4] * 20)[0].text == "camera 'a' has depth in 40% of its pixels"
    assert depth.check_depth("a", [0.0] * 20)[0].text == "camera 'a' has no depth at all"
    (found,) = depth.check_depth("a", [0.9] * 10 + [0.0] * 3 + [0.9] * 7)
    assert (found.check, found.frame) == ("depth-holes", 10)


def scene(scale: float = 1.0, moved: bool = False) -> list[float | None]:
    rows, columns = np.mgrid[:48, :64]
    metres = 1.0 + rows / 48 + columns / 128
    if moved:
        metres[10:30, 10:40] = 0.8
    metres[:8, :8] = 0.0
    codes = metres_to_code(np.stack([metres * scale] * 3), 0.1, 5.0)
    return depth.depth_grid(codes, 0.1, 5.0)


def test_the_scale_of_depth_between_episodes() -> None:
    grid = scene()
    assert grid[0] is None  # a hole
    assert grid[-1] == pytest.approx(2.4, abs=0.1)
    assert depth.check_drift("a", {n: scene(moved=n == 2) for n in range(5)}) == {}
    found = depth.check_drift("a", {n: scene(1.25 if n == 3 else 1.0, moved=n == 2) for n in range(5)})
    assert list(found) == [3]
    assert "depth of camera 'a' is 1.25 times that of the other episodes" in found[3].text


def test_the_hand_is_projected_into_the_picture(contract: Contract, segment: Segment) -> None:
    camera = contract.cameras[0]  # one metre behind the base at a height of 0.3 m, looking along y
    column, row, ahead = project(camera, np.array([[0.0, 0.0, 0.3], [0.5, 1.0, 0.3]])).T
    np.testing.assert_allclose(ahead, [1.0, 2.0])
    np.testing.assert_allclose(column, [31.5, 31.5 + 40 * 0.25])
    np.testing.assert_allclose(row, [15.5, 15.5])
    motion = Motion(segment.proprio + np.array([0, 0, 0.3, 0, 0, 0, 0, 0]), segment.action, segment.action_mask)
    assert check_calibration(contract, motion) == []


@pytest.mark.parametrize(("pose", "where"), [("behind", "behind the camera"), ("aside", "outside the picture")])
def test_a_camera_that_cannot_see_the_hand(
    contract_with: Callable[..., Contract], segment: Segment, pose: str, where: str
) -> None:
    cameras = list(contract_with().cameras)
    turned = np.array(cameras[0].pose)
    if pose == "behind":
        turned[:3, :3] = turned[:3, :3] @ np.diag([-1.0, 1.0, -1.0])  # looks the other way
    else:
        turned[0, 3] += 4.0
    cameras[0] = cameras[0].model_copy(update={"pose": tuple(tuple(row) for row in turned.tolist())})
    contract = contract_with(cameras=tuple(cameras))
    motion = Motion(segment.proprio, segment.action, segment.action_mask)
    (found,) = check_calibration(contract, motion)
    assert (found.check, found.subject) == ("camera-calibration", "front")
    assert "sees 'tool' in 0% of the frames" in found.text
    assert found.text.endswith(where)
