"""Several datasets of one robot against each other: what contradicts is named, other tasks and other scenes are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Slot
from xwam_ft.prepare.checks.datasets import (
    READINGS,
    SampledDataset,
    check_datasets,
    check_halves,
    check_turned,
    spread_evenly,
)

ARM = Slot(name="arm", kind="joints", columns=tuple("abcdef"), elements=tuple("abcdef"), units=("rad",) * 6,
           convention="absolute")  # fmt: skip
HAND = Slot(name="hand", kind="gripper", columns=("g",), elements=("g",), units=("1",), convention="absolute")
TOOL = Slot(name="tool", kind="pose", columns=POSE_ELEMENTS, elements=POSE_ELEMENTS, units=POSE_UNITS,
            convention="relative_to_chunk_start")  # fmt: skip
CENTRE = np.array([0.0, -1.0, 1.4, 0.6, -0.5, 2.0, 0.5])
SWING = np.array([0.5, 0.4, 0.3, 0.3, 0.4, 0.2, 0.5])


def episodes(seed: int, centre: np.ndarray = CENTRE, count: int = 4) -> list[np.ndarray]:
    """[F, 7] each: six joints and a gripper, around `centre`."""
    random = np.random.default_rng(seed)
    time = np.arange(200)[:, None] / 30
    return [centre + SWING * np.sin(time * random.uniform(1, 2, 7) + random.uniform(0, 6, 7)) for _ in range(count)]


def scene(seed: int) -> np.ndarray:
    """A picture as coarse as what is compared: a table of one colour, a wall of another, something on it."""
    random = np.random.default_rng(seed)
    picture = np.empty((6, 8, 3))
    picture[:3], picture[3:] = random.uniform(60, 200, 3), random.uniform(60, 200, 3)
    picture[4, 2:4] = random.uniform(0, 255, 3)
    return picture


def dataset(name: str, states: list[np.ndarray], **pictures: np.ndarray) -> SampledDataset:
    random = np.random.default_rng(len(name))
    seen = {camera: [(one + random.normal(0, 1, one.shape)).reshape(-1).tolist() for _ in range(3)]
            for camera, one in pictures.items()}  # fmt: skip
    return SampledDataset(name, states, seen)


def said(*datasets: SampledDataset) -> list[tuple[int, str, str]]:
    found = check_datasets((ARM, HAND), datasets)
    assert all(finding.severity == "warning" and finding.sentence for _, finding in found)
    return [(place, finding.check, finding.subject) for place, finding in found]


def test_the_same_robot_on_two_days_and_at_two_tasks_is_left_alone() -> None:
    first = dataset("monday", episodes(0), front=scene(0), wrist=scene(1))
    assert said(first, dataset("friday", episodes(1), front=scene(0), wrist=scene(1))) == []
    other = CENTRE + np.array([1.2, -0.5, 0.4, -0.6, 0.9, -0.4, 0.0])  # the other half of the table
    assert said(first, dataset("left", episodes(1, other), front=scene(0), wrist=scene(1))) == []
    for seed in range(2, 30):  # other rooms
        assert said(first, dataset("room", episodes(seed), front=scene(seed), wrist=scene(seed + 100))) == []


def test_degrees_beside_radians_are_named_once() -> None:
    degrees = [state * np.array([180 / np.pi] * 6 + [1]) for state in episodes(1)]
    days = dataset("monday", episodes(0)), dataset("friday", degrees), dataset("sunday", episodes(2))
    assert said(*days) == [(1, "other-range", "arm"), (2, "other-range", "arm")]  # of which one is odd nobody knows
    assert said(days[0], days[2]) == []
    (_, finding), *_ = check_datasets((ARM, HAND), days[:2])
    assert finding.text == (
        "the state of 'arm' in friday is about 57.3 times what it is in monday: degrees beside radians?"
    )


def test_columns_in_another_order_are_named() -> None:
    order = [0, 1, 3, 2, 4, 5, 6]
    days = dataset("monday", episodes(0)), dataset("friday", [state[:, order] for state in episodes(1)])
    assert said(*days) == [(1, "exchanged-columns", "arm")]
    (_, finding), *_ = check_datasets((ARM, HAND), days)
    assert finding.text.endswith("in friday 'c' looks like 'd', 'd' looks like 'c' of monday")
    poses = [np.pad(state[:, 1:4] / 3, ((0, 0), (0, 4))) for state in episodes(0)]
    turned = [pose[:, [1, 0, 2, 3, 4, 5, 6]] for pose in poses]
    found = check_datasets((TOOL,), [dataset("a", poses), dataset("b", turned)])
    assert [finding.check for _, finding in found] == ["exchanged-columns"]


def test_columns_that_change_their_order_half_way_through_a_dataset_are_named() -> None:
    order = [0, 1, 3, 2, 4, 5, 6]
    states = dict(enumerate([*episodes(0), *episodes(1)]))
    assert check_halves((ARM, HAND), states) == {}
    mixed = {n: state[:, order] if n > 3 else state for n, state in states.items()}
    found = check_halves((ARM, HAND), mixed)
    assert {n: [one.check for one in findings] for n, findings in found.items()} == {
        n: ["exchanged-columns"] for n in (4, 5, 6, 7)
    }
    assert "in the later half of the episodes 'c' looks like 'd', 'd' looks like 'c' of the earlier" in found[4][0].text
    assert check_halves((ARM, HAND), {0: states[0], 1: states[1]}) == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda picture: picture[..., ::-1], "red and blue exchanged"),
        (lambda picture: picture[::-1, ::-1], "turned by 180 degrees"),
        (lambda picture: picture[:, ::-1], "mirrored"),
    ],
)
def test_pictures_in_another_form_are_named(change: Callable[[np.ndarray], np.ndarray], told: str) -> None:
    seen = scene(3)
    seen[:, :4] = np.array([150, 110, 60])
    days = dataset("monday", episodes(0), front=seen), dataset("friday", episodes(1), front=change(seen))
    assert said(*days) == [(1, "other-pictures", "front")]
    (_, finding), *_ = check_datasets((ARM, HAND), days)
    assert told in finding.text
    assert ("channels: bgr" in finding.remedy) == (told == "red and blue exchanged")


def seen_by(camera: str, pictures: list[np.ndarray]) -> dict[int, dict[str, list[float]]]:
    """Signatures of episodes: a little noise, and something of three cells that lies elsewhere in each."""
    made: dict[int, dict[str, list[float]]] = {}
    for number, picture in enumerate(pictures):
        random = np.random.default_rng(number)
        own = picture + random.normal(0, 1, picture.shape)
        own[random.integers(3, 6), random.integers(0, 8)] = random.uniform(0, 255, 3)
        made[number] = {camera: own.reshape(-1).tolist()}
    return made


@pytest.mark.parametrize("how", list(READINGS))
@pytest.mark.parametrize("odd", [[2], [0, 3], [4, 5, 6, 7]])
def test_episodes_with_pictures_in_another_form_are_named(how: str, odd: list[int]) -> None:
    usual = scene(3)
    usual[:, :4] = np.array([150, 110, 60])
    change = READINGS[how][1]
    found = check_turned(seen_by("front", [change(usual) if n in odd else usual for n in range(8)]))
    assert sorted(found) == odd
    for (finding,) in found.values():
        assert (finding.check, finding.subject, how in finding.text) == ("other-pictures", "front", True)
        assert ("colorchannelmixer" in finding.remedy) == (how == "with red and blue exchanged")


def test_things_that_lie_left_or_right_in_a_scene_that_is_the_same_on_both_sides_are_left_alone() -> None:
    wall = np.full((6, 8, 3), 128.0)
    left, right = wall.copy(), wall.copy()
    left[2:5, :3], right[2:5, 5:] = (220, 40, 40), (220, 40, 40)
    assert check_turned(seen_by("top", [left, right] * 4)) == {}
    blue = left[..., ::-1]  # a blue thing where the others have a red one
    assert check_turned(seen_by("top", [left, blue] * 4)) == {}
    rooms = [scene(seed) for seed in range(30)]
    assert check_turned(seen_by("front", rooms)) == {}


def test_exchanged_cameras_are_named() -> None:
    days = dataset("monday", [], front=scene(0), wrist=scene(1)), dataset("friday", [], front=scene(1), wrist=scene(0))
    assert said(*days) == [(1, "swapped-camera", "front, wrist")]


def test_first_and_last_are_among_those_that_are_looked_at() -> None:
    assert spread_evenly(range(10), 3) == [0, 4, 9]
    assert spread_evenly([5], 3) == [5]
