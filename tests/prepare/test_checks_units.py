"""Stated units against recorded numbers, and episodes against each other; and that sound recordings pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Slot
from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.checks.units import check_episode_ranges, check_units
from xwam_ft.prepare.embodiment.joint_units import UNITS
from xwam_ft.prepare.embodiment.pose_forms import column_scales, column_units
from xwam_ft.prepare.embodiment.reading import Reading
from xwam_ft.prepare.embodiment.schema import DeltaSpec
from xwam_ft.prepare.embodiment.slots import SlotPlan
from xwam_ft.prepare.episode import Table
from xwam_ft.quantiles import Motion

DEG = 180 / np.pi


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def arm(columns: int = 6, frames: int = 200, seed: int = 0, size: float = 1.6) -> np.ndarray:
    """Joints in radians, each about a place of its own."""
    random = np.random.default_rng(seed)
    rates, places = np.random.default_rng(9).uniform(0.02, 0.05, columns), np.linspace(-size, size, columns)
    return places * 0.6 + 0.4 * size * np.sin(np.arange(frames)[:, None] * rates + random.uniform(0, 6, columns))


def joint_plan(unit: str, columns: int = 6, **more: Any) -> SlotPlan:
    names = tuple(f"j{i}" for i in range(columns))
    slot = Slot(
        name="arm", kind="joints", columns=names, elements=names, units=("rad",) * columns, convention="absolute"
    )
    scale = UNITS.get(unit, 1.0)
    return SlotPlan(slot, Reading(names, (scale,) * columns, units=(unit,) * columns), None, **more)


def said(plan: SlotPlan, values: np.ndarray, fps: float = 30.0) -> list[tuple[str, str]]:
    reading = plan.state or plan.command
    assert reading is not None
    table = Table(dict(zip(reading.columns, values.T, strict=True)), None, None)
    return [(found.severity, found.text) for found in check_units(table, [plan], fps)]


def test_degrees_stated_as_radians_and_the_reverse() -> None:
    ((severity, text),) = said(joint_plan("rad"), arm() * DEG)
    assert (severity, "stated in rad (`units`)" in text, "look like degrees" in text) == (
        "error",
        True,
        True,
    )
    ((severity, text),) = said(joint_plan("deg"), arm())
    assert (severity, text.endswith("they look like radians")) == ("error", True)
    assert "radians" in said(joint_plan("deg"), arm(size=1.0))[0][1]  # of a small motion
    assert said(joint_plan("rad"), arm()) == []
    assert said(joint_plan("deg"), arm() * DEG) == []


def test_servo_units_stated_wrongly() -> None:
    ticks = np.round(2048 + arm() * 600)
    assert said(joint_plan("ticks"), ticks) == []
    assert said(joint_plan("range_m100_100"), arm() * 60) == []
    assert said(joint_plan("range_m100_100"), arm())[0][0] == "error"
    assert "servo ticks" in said(joint_plan("range_m100_100"), ticks)[0][1]
    assert "servo ticks" in said(joint_plan("rad"), ticks)[0][1]
    assert said(joint_plan("ticks"), arm() * DEG)[0][0] == "error"
    assert said(joint_plan("range_0_100"), arm() * 60)[0][0] == "error"


@pytest.mark.parametrize("unit", ["rad", "deg"])
def test_sound_arms_that_look_odd_pass(unit: str) -> None:
    scale = 1.0 if unit == "rad" else DEG
    idle = arm()[:1] + np.random.default_rng(0).normal(0, 1e-3, (200, 6))
    hanging = np.random.default_rng(0).normal(0, 2e-3, (200, 6))  # at its zero, in nothing but noise
    turning = arm() + np.array([0, 0, 0, 0, 0, 6.0])  # a last joint that has turned nearly once
    for values in (idle, hanging, turning, arm(size=0.4)):
        assert [found for found in said(joint_plan(unit), values * scale) if found[0] == "error"] == []


def test_a_wheel_among_joints_is_doubted_and_not_refused() -> None:
    wheel = arm()
    wheel[:, 5] *= 30
    ((severity, _),) = said(joint_plan("rad"), wheel)
    assert severity == "warning"


def pose_plan(length: str, angle: str = "rad", form: str = "rpy", **more: Any) -> SlotPlan:
    slot = Slot(name="tool", kind="pose", columns=POSE_ELEMENTS, elements=POSE_ELEMENTS, units=POSE_UNITS,
                convention="relative_to_chunk_start")  # fmt: skip
    names = tuple(f"c{i}" for i in range(6))
    reading = Reading(
        names, column_scales(form, UNITS[length], UNITS[angle]), form, units=column_units(form, length, angle)
    )
    delta = more.pop("delta", None)
    return SlotPlan(slot, None if delta else reading, reading if delta else None, delta)


def tool() -> np.ndarray:
    """x y z in metres, roll pitch yaw in radians; the tool points down."""
    time = np.arange(200)[:, None]
    place = np.array([0.4, 0.0, 0.3]) + 0.1 * np.sin(time * np.array([0.03, 0.04, 0.05]))
    turn = np.array([np.pi - 0.01, 0.0, 0.5]) + 0.2 * np.sin(time * np.array([0.0, 0.03, 0.04]))
    return np.concatenate([place, turn], axis=1)


def test_poses_in_millimetres_and_degrees() -> None:
    mm, deg = np.array([1000.0] * 3 + [1] * 3), np.array([1.0] * 3 + [DEG] * 3)
    assert said(pose_plan("m"), tool()) == []
    assert said(pose_plan("mm", "deg"), tool() * mm * deg) == []
    ((severity, text),) = said(pose_plan("m"), tool() * mm)
    assert (severity, "they look like millimetres" in text) == ("error", True)
    ((severity, text),) = said(pose_plan("mm"), tool())
    assert (severity, "they look like metres" in text) == ("error", True)
    ((severity, text),) = said(pose_plan("m", "rad"), tool() * deg)
    assert (severity, "`rotation_units`" in text, "degrees" in text) == ("error", True, True)
    ((severity, text),) = said(pose_plan("m", "deg"), tool())
    assert (severity, "radians" in text) == ("error", True)


def test_recorded_changes_are_judged_by_their_speed() -> None:
    change = np.diff(tool(), axis=0)
    plan = pose_plan("m", delta=DeltaSpec(to="state"))
    assert said(plan, change) == []
    ((severity, text),) = said(plan, change * np.array([1000.0] * 3 + [1] * 3))
    assert (severity, text.endswith("they look like mm")) == ("error", True)
    ((severity, text),) = said(plan, change * np.array([1.0] * 3 + [DEG * 20] * 3))
    assert text.endswith("they look like deg")


def ranges(states: list[np.ndarray]) -> dict[int, list[tuple[str, str]]]:
    slots = [joint_plan("rad").slot]
    motions = {n: Motion(state, state, np.ones_like(state)) for n, state in enumerate(states)}
    return {n: [(f.severity, f.text) for f in found] for n, found in check_episode_ranges(slots, motions).items()}


def test_one_episode_of_four_in_another_unit() -> None:
    states = [arm(seed=seed, size=0.1) for seed in range(4)]  # so small that degrees might be radians
    assert ranges(states) == {}
    states[2] = states[2] * DEG
    ((severity, text),) = ranges(states)[2]
    assert (severity, "57.3 times what it is in the other episodes" in text) == ("error", True)
    assert list(ranges(states)) == [2]
    two = ranges([states[0], states[2]])
    assert {number: found[0][0] for number, found in two.items()} == {
        0: "warning",
        1: "warning",
    }  # which one, none says


def test_an_arm_that_is_used_in_one_episode_only_is_no_other_unit() -> None:
    random = np.random.default_rng(3)
    idle = [arm()[:1] + random.normal(0, 2e-3, (200, 6)) for _ in range(3)]
    assert ranges([*idle, arm()]) == {}
    hanging = [random.normal(0, 2e-3, (200, 6)) for _ in range(3)]
    assert ranges([*hanging, arm()]) == {}
    assert ranges([arm(seed=1), arm(seed=2), arm(seed=3), hanging[0]]) == {}


def test_the_episode_in_degrees_is_rejected_and_the_others_go_on(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    made = lerobot.recording([40] * 4)
    for number in range(4):
        wave = arm(2, 40, seed=number).astype(np.float32)
        made.states[number][:, :2], made.actions[number][:, :2] = wave, wave + 0.01
    made.states[1][:, :2] *= DEG
    made.actions[1][:, :2] *= DEG
    raw = lerobot.v21(tmp_path / "raw", made)
    embodiment = tmp_path / "three.yaml"  # with the hand as a third joint: two alone might be wheels
    slots = "slots:\n  arm: {kind: joints, columns: [j1, j2, grip], units: rad}\n"
    embodiment.write_text(toy.read_text().split("slots:")[0] + slots)
    options: Any = {"workers": 0, "urdf_dirs": [], "console": QUIET, "depth": "none"}
    with pytest.raises(UserError, match="stated in rad"):
        pipeline.prepare([raw], tmp_path / "s", embodiment=embodiment, strict=True, **options)
    made_of = pipeline.prepare([raw], tmp_path / "out", embodiment=embodiment, strict=False, **options)
    assert [(result.number, "they look like degrees" in (result.reason or "")) for result in made_of.rejected] == [
        (1, True)
    ]
    assert {episode["index"] for episode in read_json(tmp_path / "out" / "index.json")["episodes"]} == {0, 2, 3}


def test_a_joint_a_full_turn_beside_itself_and_one_that_nobody_wrote() -> None:
    slot = joint_plan("rad").slot

    def told(states: list[np.ndarray]) -> dict[int, list[tuple[str, str]]]:
        motions = {n: Motion(state, state, np.ones_like(state)) for n, state in enumerate(states)}
        found = check_episode_ranges([slot], motions)
        return {n: [(one.check, one.text) for one in findings] for n, findings in found.items()}

    states = [arm(seed=seed) for seed in range(6)]
    assert told(states) == {}
    for odd in ([1], [3, 4, 5]):
        wound = [state + (2 * np.pi * np.eye(6)[2] if n in odd else 0) for n, state in enumerate(states)]
        text = "'j2' of 'arm' is a full turn beside what it is in other episodes"
        assert told(wound) == {n: [("angle-wrap", text)] for n in odd}
    unread = [state * (1 - np.eye(6)[4] if n == 2 else 1) for n, state in enumerate(states)]
    text = "j4 of 'arm': exactly 0 throughout, and not in the other episodes"
    assert told(unread) == {2: [("failed-reads", text)]}
    assert told([state * (1 - np.eye(6)[4]) for state in states]) == {}  # locked in all of them
