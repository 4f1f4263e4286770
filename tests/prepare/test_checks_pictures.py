"""The linter's eyes: black, frozen and swapped cameras, depth with holes and of another scale, calibration."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from xwam_ft.contract import Contract
from xwam_ft.depth_code import metres_to_code
from xwam_ft.prepare.checks import across, depth
from xwam_ft.prepare.checks.calibration import check_calibration, project
from xwam_ft.prepare.checks.pictures import check_pictures, robot_moves, signature
from xwam_ft.quantiles import Motion
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


@pytest.mark.parametrize("colour", [(0, 135, 0), (250, 250, 250), (128, 128, 128)])
def test_pictures_of_one_even_colour_show_nothing(colour: tuple[int, int, int]) -> None:
    pictures = film()
    pictures[20:24] = colour
    (found,) = check_pictures("a", pictures, MOVING, FPS)
    assert (found.check, found.severity, found.frame) == ("blank-camera", "warning", 20)
    assert found.text == "camera 'a' shows one even colour in 4 of 60 pictures, first in frame 20"
    noisy = np.minimum(colour + np.random.default_rng(0).integers(0, 4, pictures.shape), 255).astype(np.uint8)
    (found,) = check_pictures("a", noisy, MOVING, FPS)
    assert (found.check, found.severity) == ("blank-camera", "error")
    noisy[..., 2] = np.arange(noisy.shape[2])  # a little blue to one side: it shows something
    assert "blank-camera" not in {finding.check for finding in check_pictures("a", noisy, MOVING, FPS)}


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


def test_repeated_pictures_count_while_the_robot_moves_alone() -> None:
    """Every fifth of 40 moving steps repeats its picture, and then all 60 steps in which the robot rests."""
    random = np.random.default_rng(0)
    moving = np.arange(100) < 40
    repeats = (np.arange(100) % 5 == 4) | ~moving
    shown = [random.integers(60, 200, (32, 32, 3), dtype=np.uint8)]
    for repeat in repeats:
        shown.append(shown[-1] if repeat else random.integers(60, 200, (32, 32, 3), dtype=np.uint8))
    assert check_pictures("front", np.stack(shown), moving, 10.0) == []
    shown[:41] = [shown[at - at % 2] for at in range(41)]  # and now every second
    (found,) = check_pictures("front", np.stack(shown), moving, 10.0)
    assert "repeats its picture in 5" in found.text


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
    half = {n: views(1, swap=0 if n > 3 else None)[0] for n in range(8)}  # plugged in anew after lunch
    assert list(across.check_swapped(half)) == [4, 5, 6, 7]
    assert across.check_swapped(views(2, swap=1)) == {}  # which of two is right cannot be known
    alike = {n: {"left": signature(film(6, 1)), "right": signature(film(6, 1))} for n in range(4)}
    assert across.check_swapped(alike) == {}
    assert [f.check for f in across.check_same(alike)[3]] == ["same-pictures"]
    assert across.check_same(views(3)) == {}


def test_cameras_are_swapped_where_each_is_much_nearer_to_the_other() -> None:
    def told(left: float, right: float, odd: tuple[float, float]) -> list[int]:
        grey = {n: {"left": [left] * 8, "right": [right] * 8} for n in range(4)}
        grey[2] = {name: [value] * 8 for name, value in zip(("left", "right"), odd, strict=True)}
        return list(across.check_swapped(grey))

    assert told(50, 150, (150, 50)) == [2]
    assert told(50, 150, (120, 80)) == [2]  # 30 from the other's place and 70 from its own
    assert told(50, 150, (110, 90)) == []  # 40 and 60: another scene, as likely
    assert told(50, 150, (100, 100)) == []
    assert told(50, 57, (57, 50)) == [2]
    assert told(50, 55, (55, 50)) == []  # cameras that see nearly the same


def test_an_aspect_may_change_by_two_per_cent_without_a_word(contract: Contract) -> None:
    """Recorded at 64 x 32: 203 x 100 is 1.5 % wider, 206 x 100 3 %."""
    for width, notes in ((203, 0), (197, 0), (206, 2), (194, 2)):
        image = contract.image.model_copy(update={"height": 100, "width": width})
        assert len(across.check_aspect(contract.cameras, image)) == notes


def test_other_sizes() -> None:
    sizes = {0: {"a": [96, 128]}, 3: {"a": [96, 128]}, 4: {"a": [480, 640]}}
    found = across.check_sizes(sizes)
    assert list(found) == [4]
    assert found[4][0].text == "camera 'a' is 480x640, and 96x128 in the first episode"


def test_clips_that_mostly_reach_past_the_end() -> None:
    assert across.check_padding({0: (5, 10), 1: (5, 10)}) == {}
    found = across.check_padding({0: (9, 10), 1: (5, 10), 2: (0, 0)})
    assert list(found) == [0]
    assert (found[0][0].check, found[0][0].severity) == ("mostly-padded", "warning")
    assert found[0][0].text.startswith("14 of 20 clip starts reach past the end of their episode")


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


@pytest.mark.parametrize(
    ("share", "recorded", "estimated"),
    [(0.019, [], []), (0.021, ["note"], ["note"]), (0.49, ["note"], ["note"]), (0.51, ["error"], ["warning"])],
)
def test_depth_held_at_an_end_of_its_range(share: float, recorded: list[str], estimated: list[str]) -> None:
    for ends in ((share, 0.0), (0.0, share)):
        for how, said in ((True, recorded), (False, estimated)):
            found = depth.check_range("front", ends, 1.0, (0.2, 3.0), recorded=how)
            assert [finding.severity for finding in found] == said


@pytest.mark.parametrize(("metres", "unit"), [(1200.0, "mm"), (0.0012, "m")])
def test_depth_of_an_absurd_size_names_the_unit_that_would_fit(metres: float, unit: str) -> None:
    (found,) = depth.check_range("front", (0.0, 0.0), metres, (0.2, 3.0), recorded=True)
    assert found.severity == "error"
    assert found.text.endswith(f"write `unit: {unit}`")


def test_which_end_of_the_range_depth_is_held_at() -> None:
    codes = np.array([0, 1, 65535, 65535, 5], dtype=np.uint16).reshape(1, 1, 5)  # a hole, far, near, near, between
    assert depth.held_shares(codes) == (0.5, 0.25)


def test_the_scale_of_depth_between_episodes() -> None:
    grid = scene()
    assert grid[0] is None  # a hole
    assert grid[-1] == pytest.approx(2.4, abs=0.1)
    assert depth.check_drift("a", {n: scene(moved=n == 2) for n in range(5)}) == {}
    found = depth.check_drift("a", {n: scene(1.25 if n == 3 else 1.0, moved=n == 2) for n in range(5)})
    assert list(found) == [3]
    assert "depth of camera 'a' is 1.25 times that of the other episodes" in found[3].text


def scattered(episodes: int, seed: int = 0) -> np.ndarray:
    """Logs of grids [n, 48] of one scene with noise, holes, moved things and some other scales."""
    rng = np.random.default_rng(seed)
    logs = rng.uniform(0, 1, 48) + rng.normal(0, 0.01, (episodes, 48))
    logs[rng.random(logs.shape) < 0.1] += 0.3
    for row, scale in enumerate((-0.2, 0.05, 0.079, 0.3)):  # the second is within what is allowed
        logs[row::8] += scale
    logs[rng.random(logs.shape) < 0.2] = np.nan
    logs[:, 0] = np.nan
    return logs


def as_grids(logs: np.ndarray) -> dict[int, list[float | None]]:
    return {n: [None if np.isnan(v) else float(v) for v in row] for n, row in enumerate(np.exp(logs))}


@pytest.mark.parametrize("episodes", [3, 4, 11, 40])
def test_medians_of_others_are_those_of_a_set_without_one(episodes: int) -> None:
    values = scattered(episodes)
    values[: episodes // 2, 1] = values[0, 1]  # equal ones
    values[1:, 2] = np.nan  # a value without company
    values[0, 2] = 1.0
    medians, known = depth.medians_of_others(values)
    for row, column in np.ndindex(values.shape):
        others = np.delete(values[:, column], row)
        others = others[np.isfinite(others)]
        if np.isnan(values[row, column]) or not len(others):
            assert np.isnan(medians[row, column])
        else:
            assert medians[row, column] == np.median(others)
            assert known[row, column] == len(others)


@pytest.mark.parametrize("seed", range(6))
def test_drift_is_found_as_by_comparing_each_with_all_others(seed: int) -> None:
    logs = np.log(np.array(list(as_grids(scattered(12 + 5 * seed, seed)).values()), dtype=np.float64))
    expected: set[int] = set()
    for row in range(len(logs)):
        others = np.delete(logs, row, axis=0)
        shared = np.isfinite(logs[row]) & (2 * np.isfinite(others).sum(axis=0) >= len(others))
        ratios = logs[row, shared] - np.nanmedian(others[:, shared], axis=0)
        scale = np.median(ratios)
        one_ratio = np.mean(np.abs(ratios - scale) < abs(scale) / 2) > 0.7
        if shared.sum() >= depth.LEAST and abs(scale) > np.log1p(depth.DRIFT) and one_ratio:
            expected.add(row)
    assert set(depth.check_drift("a", as_grids(logs))) == expected
    assert expected


def test_thousands_of_episodes_are_compared_in_linear_time() -> None:
    """As many calls for few episodes as for thousands, none of them on more than some copies of the table."""
    calls: list[int] = []
    for episodes in (50, 5000):
        grids: dict[int, list[float | None]] = dict.fromkeys(range(episodes), scene())  # nothing to report
        count = 0

        def note(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        tracemalloc.start()
        sys.setprofile(note)
        try:
            assert depth.check_drift("a", grids) == {}
        finally:
            sys.setprofile(None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        calls.append(count)
        assert peak < 30 * episodes * 48 * 8 + 100_000
    assert calls[1] <= calls[0] + 10


def test_the_hand_is_projected_into_the_picture(contract: Contract, segment: Segment) -> None:
    camera = contract.cameras[0]  # one metre behind the base at a height of 0.3 m, looking along y
    column, row, ahead = project(camera, np.array([[0.0, 0.0, 0.3], [0.5, 1.0, 0.3]])).T
    np.testing.assert_allclose(ahead, [1.0, 2.0])
    np.testing.assert_allclose(column, [31.5, 31.5 + 40 * 0.25])
    np.testing.assert_allclose(row, [15.5, 15.5])
    motion = Motion(segment.proprio + np.array([0, 0, 0.3, 0, 0, 0, 0, 0]), segment.action, segment.action_mask)
    assert check_calibration(contract, motion) == []


def test_a_camera_pose_in_millimetres(contract_with: Callable[..., Contract], segment: Segment) -> None:
    cameras = list(contract_with().cameras)
    pose = np.array(cameras[0].pose)
    pose[:3, 3] = [-700.0, 200.0, 500.0]  # so far away that any hand is in the middle of the picture
    cameras[0] = cameras[0].model_copy(update={"pose": tuple(tuple(row) for row in pose.tolist())})
    motion = Motion(segment.proprio, segment.action, segment.action_mask)
    (found,) = check_calibration(contract_with(cameras=tuple(cameras)), motion)
    assert found.text == "camera 'front' stands 883 m away from the base: its pose looks like millimetres"
    assert "by 1000" in found.remedy


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
