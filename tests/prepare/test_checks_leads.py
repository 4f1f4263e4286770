"""Commands that come late, stand beside their states, or are changes that the states do not go by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Slot
from xwam_ft.prepare.checks.changes import check_changes
from xwam_ft.prepare.checks.commands import check_mixed_commands
from xwam_ft.prepare.checks.leads import check_leads
from xwam_ft.prepare.embodiment.schema import DeltaSpec
from xwam_ft.prepare.embodiment.slots import SlotPlan
from xwam_ft.quantiles import Motion

FPS, FRAMES, LEAD = 30, 150, 4
ARM = Slot(name="arm", kind="joints", columns=tuple("abcd"), elements=tuple("abcd"), units=("rad",) * 4,
           convention="relative_to_chunk_start")  # fmt: skip
TOOL = Slot(name="tool", kind="pose", columns=POSE_ELEMENTS, elements=POSE_ELEMENTS, units=POSE_UNITS,
            convention="relative_to_chunk_start")  # fmt: skip
Change = Callable[[np.ndarray], np.ndarray]


def path(slot: Slot, seed: int) -> np.ndarray:
    """[FRAMES, n]: a motion of joints, or of a tool that turns by some degrees."""
    random = np.random.default_rng(seed)
    time = np.arange(FRAMES)[:, None] / FPS
    waves = np.sin(time * random.uniform(0.8, 2, 6) + random.uniform(0, 6, 6)) + random.normal(0, 1e-3, (FRAMES, 6))
    if slot.kind == "joints":
        return 0.5 * waves[:, :4]
    quaternion = Rotation.from_rotvec([0, np.pi, 0] + 0.2 * waves[:, 3:]).as_quat(scalar_first=True)
    return np.concatenate([0.2 * waves[:, :3] + [0.5, 0, 0.3], quaternion], axis=1)


def motions(slot: Slot, lead: int, change: Change = lambda command: command) -> dict[int, Motion]:
    """Four episodes whose commands are what the state is `lead` frames later, changed."""
    made: dict[int, Motion] = {}
    for seed in range(4):
        state = path(slot, seed)
        command = change(state[np.clip(np.arange(FRAMES) + lead, 0, FRAMES - 1)])
        made[seed] = Motion(state, command, np.ones_like(command))
    return made


def plan(slot: Slot, delta: DeltaSpec | None = None) -> SlotPlan:
    return SlotPlan(slot, None, None, delta)


def said(slot: Slot, of: dict[int, Motion]) -> list[tuple[str, str]]:
    found = check_leads([plan(slot)], of)
    assert not found or set(found) == set(of)
    return [(finding.check, finding.text) for finding in found.get(0, [])]


@pytest.mark.parametrize("slot", [ARM, TOOL])
def test_commands_ahead_of_their_states_are_left_alone(slot: Slot) -> None:
    for lead in (0, 1, LEAD, 12):
        assert said(slot, motions(slot, lead)) == []
    sagging = motions(ARM, LEAD, lambda command: command + np.array([0, 0.12, 0, 0]))
    assert said(ARM, sagging) == []


@pytest.mark.parametrize("slot", [ARM, TOOL])
def test_commands_that_come_after_their_states_are_told_with_the_frames(slot: Slot) -> None:
    for late in (1, 3, 10):
        ((check, text),) = said(slot, motions(slot, -late))
        assert (check, f"come {late} frame{'s' * (late > 1)} after its states" in text) == ("late-commands", True)
    assert check_leads([plan(slot, DeltaSpec(to="state", frame="base"))], motions(slot, -3)) == {}


def turned(command: np.ndarray) -> np.ndarray:
    quarter = Rotation.from_euler("z", 90, degrees=True)
    whole = Rotation.from_quat(command[:, 3:], scalar_first=True) * quarter
    return np.concatenate([command[:, :3], whole.as_quat(scalar_first=True)], axis=1)


@pytest.mark.parametrize(
    ("slot", "change", "told"),
    [
        (ARM, lambda command: command + np.array([0, 0, -0.35, 0]), "c by -0.35 rad"),
        (ARM, lambda command: command + np.array([2 * np.pi, 0, 0, 0]), "a by a full turn"),
        (TOOL, lambda command: command + np.array([0, 0, 0.14, 0, 0, 0, 0]), "by 0.14 m"),
        (TOOL, turned, "turned by 90 degrees"),
    ],
)
def test_commands_beside_their_states_are_told_with_how_far(slot: Slot, change: Change, told: str) -> None:
    ((check, text),) = said(slot, motions(slot, LEAD, change))
    assert (check, text.endswith(f"follow them: {told}")) == ("offset-commands", True)


def changed(slot: Slot, make: Change, gain: float = 1.0) -> dict[int, Motion]:
    """Episodes whose recorded changes are what the state does next, over `gain`, and then changed by `make`."""
    made: dict[int, Motion] = {}
    for seed in range(4):
        state = path(slot, seed)
        change = make(np.diff(state, axis=0, append=state[-1:]) / gain)
        command = state + change
        if slot.kind == "pose":
            command[:, 3:] = state[:, 3:]
        made[seed] = Motion(state, command, np.ones_like(command))
    return made


@pytest.mark.parametrize(
    ("slot", "make", "severity", "told"),
    [
        (ARM, lambda change: change * 20, "warning", "a, b, c, d go 0.05 times as far as they say"),
        (ARM, lambda change: change * 180 / np.pi, "error", "0.017 times as far"),
        (ARM, lambda change: change / 10, "warning", "10 times as far"),
        (TOOL, lambda change: change * [1, -1, 1, 0, 0, 0, 0], "warning", "y goes the other way"),
        (TOOL, lambda change: change[:, [1, 0, 2, 3, 4, 5, 6]], "warning", "x goes by the changes of y"),
    ],
)
def test_changes_that_the_state_does_not_go_by(slot: Slot, make: Change, severity: str, told: str) -> None:
    found = check_changes([plan(slot, DeltaSpec(to="state", frame="base"))], changed(slot, make), FPS)
    assert set(found) == {0, 1, 2, 3}
    assert [(one.check, one.severity, told in one.text) for one in found[0]] == [("wrong-changes", severity, True)]


def test_changes_of_soft_controllers_are_left_alone() -> None:
    for slot in (ARM, TOOL):
        for gain in (1.0, 0.3):
            right = changed(slot, lambda change: change, gain)
            assert check_changes([plan(slot, DeltaSpec(to="state", frame="base"))], right, FPS) == {}
        assert check_changes([plan(slot)], changed(slot, lambda change: -change), FPS) == {}


def test_targets_that_are_read_as_changes_are_an_error() -> None:
    made = {n: Motion(m.state, m.state + m.command, m.command_mask) for n, m in motions(ARM, LEAD).items()}
    found = check_changes([plan(ARM, DeltaSpec(to="state", frame="base"))], made, FPS)
    assert [(one.severity, "they are targets" in one.text) for one in found[0]] == [("error", True)]


def test_changes_in_some_episodes_alone_are_errors_of_these() -> None:
    made = motions(ARM, LEAD)
    assert check_mixed_commands([plan(ARM)], made) == {}
    for number in (1, 2):
        made[number] = Motion(made[number].state, made[number].command - made[number].state, made[number].command_mask)
    found = check_mixed_commands([plan(ARM)], made)
    assert {number: [one.severity for one in findings] for number, findings in found.items()} == {
        1: ["error"],
        2: ["error"],
    }
    assert "targets in other episodes" in found[1][0].text
    assert "shards merge" in found[1][0].remedy
