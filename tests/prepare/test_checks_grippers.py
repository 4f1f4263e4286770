"""Grippers whose numbers contradict each other or what is stated, and grippers that are as they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xwam_ft.contract import Slot
from xwam_ft.prepare.checks.grippers import check_grippers
from xwam_ft.prepare.findings import Finding
from xwam_ft.quantiles import Motion

Found = dict[str, tuple[str, str]]


def told(frames: int = 300, seed: int = 0) -> np.ndarray:
    """A command that is 1 (open) or 0 (closed), for some 40 frames each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(30, 50, frames // 20)
    return np.repeat(np.arange(len(lengths)) % 2, lengths)[:frames].astype(float)


def follows(command: np.ndarray, speed: float = 0.1, lag: int = 4, held: float = 0.0) -> np.ndarray:
    """An opening that goes to its command at some speed, some frames later; what it grips holds it at `held`."""
    state, at = [], command[0]
    for target in np.concatenate([command[:1].repeat(lag), command[:-lag]]):
        at += np.clip(target - at, -speed, speed)
        at = max(at, held)
        state.append(at)
    return np.array(state)


def found(pairs: list[tuple[np.ndarray, np.ndarray]], **more: Any) -> list[Found]:
    return [{f.check: (f.severity, f.text) for f in findings} for findings in findings_of(pairs, **more)]


def findings_of(pairs: list[tuple[np.ndarray, np.ndarray]], **more: Any) -> list[list[Finding]]:
    columns = (more.pop("column", "gripper.pos"),)
    fields = {"units": ("1",), "convention": "absolute", "gripper_open": 1.0, "gripper_closed": 0.0, **more}
    slot = Slot(name="hand", kind="gripper", columns=columns, elements=columns, **fields)
    motions = {n: Motion(s[:, None], c[:, None], np.ones((len(s), 1))) for n, (s, c) in enumerate(pairs)}
    said = check_grippers([slot], motions)
    return [said.get(n, []) for n in motions]


def grips(**more: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(follows(told(seed=seed), **more), told(seed=seed)) for seed in range(4)]


@pytest.mark.parametrize("more", [{}, {"held": 0.6}, {"speed": 0.02, "lag": 8}, {"speed": 1.0, "lag": 1}])
def test_sound_grippers_pass(more: Any) -> None:
    assert found(grips(**more)) == [{}] * 4
    analog = [(follows(s, 0.05), s) for s in (0.5 + 0.4 * np.sin(np.arange(300) / (9 + n)) for n in range(3))]
    assert found(analog) == [{}] * 3
    turned = [(1 - s, 1 - c) for s, c in grips(**more)]
    assert found(turned, gripper_open=0.0, gripper_closed=1.0) == [{}] * 4
    metres = [(0.08 * s, 0.08 * c) for s, c in grips(**more)]
    assert found(metres, gripper_open=0.08, gripper_closed=0.0, units=("m",)) == [{}] * 4


def test_commands_against_the_state_and_in_another_range() -> None:
    width = [(0.08 * s, 1 - 2 * c) for s, c in grips()]  # open is -1, closed 1
    for of_it in found(width, gripper_open=0.08):
        assert of_it["gripper-sense"] == (
            "warning",
            "gripper 'hand': its commands run against its state: one rises where the other falls",
        )
        severity, text = of_it["gripper-range"]
        assert (severity, "commands go from -1 to 1 and its states from 0 to 0.08" in text) == ("warning", True)
    stated = found(width, gripper_open=0.08, command_units=("1",))
    assert {severity for severity, _ in stated[0].values()} == {"note"}  # another quantity, and it says so
    assert stated[0]["gripper-sense"][1].endswith(
        "; that is right where they are another quantity, as `command_units` says"
    )
    for finding in findings_of(width, gripper_open=0.08, command_units=("1",))[0]:
        assert finding.fix.startswith("nothing needs to be done where they are")
    relative = found(width, gripper_open=0.08, convention="relative_to_chunk_start")
    assert {severity for severity, _ in relative[0].values()} == {"error"}
    (percent, *_) = found([(s, 100 * c) for s, c in grips()])
    assert list(percent) == ["gripper-range"]


@pytest.mark.parametrize(("beyond", "says"), [(0.2, False), (0.3, True)])
def test_states_may_leave_the_stated_range_by_a_quarter(beyond: float, says: bool) -> None:
    pairs = [((1 + beyond) * s, (1 + beyond) * c) for s, c in grips()]
    assert [list(of_it) for of_it in found(pairs)] == [["gripper-range"] if says else []] * 4


@pytest.mark.parametrize(("beyond", "says"), [(0.5, False), (0.7, True)])
def test_commands_may_push_beyond_the_range_by_six_tenths(beyond: float, says: bool) -> None:
    pairs = [(s, (1 + 2 * beyond) * c - beyond) for s, c in grips()]
    assert [list(of_it) for of_it in found(pairs)] == [["gripper-range"] if says else []] * 4


def test_one_episode_whose_commands_run_the_other_way() -> None:
    pairs = grips()
    pairs[2] = (pairs[2][0], 1 - pairs[2][1])
    assert [list(of_it) for of_it in found(pairs)] == [[], [], ["gripper-sense"], []]


def test_a_stated_range_that_the_states_do_not_have() -> None:
    small = [(0.08 * s, 0.08 * c) for s, c in grips()]
    severity, text = found(small)[0]["gripper-range"]
    assert (severity, "states go from 0 to 0.08, and `gripper_closed: 0` and `gripper_open: 1`" in text) == (
        "warning",
        True,
    )
    assert "gripper-range" in found([(100 * s, 100 * c) for s, c in grips()])[0]


@pytest.mark.parametrize(
    ("pairs", "more", "why"),
    [
        (grips(held=0.4), {"gripper_open": 0.0, "gripper_closed": 1.0}, "its smallest commands it is held apart"),
        ([(1 - s, 1 - c) for s, c in grips(held=0.4)], {}, "its largest commands it is held apart"),
        (
            [(0.08 * s, 0.08 * c) for s, c in grips()],
            {"gripper_open": 0.0, "gripper_closed": 0.08, "units": ("m",)},
            "an opening in metres is the larger the wider",
        ),
        (
            [(0.08 * s, 0.08 * c) for s, c in grips()],
            {"gripper_open": 0.0, "gripper_closed": 0.08},
            "an opening in metres is the larger the wider",
        ),
        (grips(), {"gripper_open": 0.0, "gripper_closed": 1.0, "column": "gripper_width"}, "named after what grows"),
        (grips(), {"column": "gripper_closure"}, "named after what grows as it closes"),
    ],
)
def test_open_and_closed_swapped(pairs: Any, more: Any, why: str) -> None:
    severity, text = found(pairs, **more)[0]["gripper-sense"]
    assert (severity, "look swapped" in text, why in text) == ("warning", True, True)
