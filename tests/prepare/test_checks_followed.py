"""One dead, exchanged or inverted column of commands or states is told, whatever the others are like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xwam_ft.contract import Slot
from xwam_ft.prepare.checks.followed import check_followed
from xwam_ft.quantiles import Motion

FRAMES, EPISODES = 120, 4
Change = Callable[[np.ndarray, np.ndarray, int], None]


def slots(**of_gripper: Any) -> list[Slot]:
    names = tuple(f"j{number}" for number in range(4))
    arm = Slot(
        name="arm", kind="joints", columns=names, elements=names, units=("rad",) * 4,
        convention="relative_to_chunk_start",
    )  # fmt: skip
    gripper = Slot(
        name="gripper", kind="gripper", columns=("g",), elements=("g",), units=("1",), convention="absolute",
        gripper_open=100.0, gripper_closed=0.0, **of_gripper,
    )  # fmt: skip
    return [arm, gripper]


def motions(change: Change) -> dict[int, Motion]:
    made: dict[int, Motion] = {}
    for episode in range(EPISODES):
        time = np.arange(FRAMES + 3) / 30
        path = np.stack([np.sin(0.9 * (k + 1) * time + episode + k) for k in range(4)], axis=1)
        gripper = 50 + 45 * np.sin(2 * time + episode)
        whole = np.concatenate([path, gripper[:, None]], axis=1)
        state, command = whole[:-3].copy(), whole[3:].copy()  # a state three frames behind
        change(state, command, episode)
        mask = np.ones_like(state, dtype=bool)
        made[episode] = Motion(state, command, mask)
    return made


def dead(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    command[:, 3] = 0


def dead_in_one(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    if episode == 1:
        command[:] = 0


def inverted_gripper(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    if episode == 1:
        command[:, 4] = 100 - command[:, 4]


def exchanged(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    if episode == 1:
        command[:, [0, 3]] = command[:, [3, 0]]


def flipped(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    if episode == 1:
        command[:, 0] *= -1


def flipped_everywhere(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    command[:, 1] *= -1


def no_state(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    state[:, :4] = 0


@pytest.mark.parametrize(
    ("change", "episodes", "columns", "words"),
    [
        (dead, {0, 1, 2, 3}, {"'arm', j3"}, "stands at 0 while its state moves by"),
        (dead_in_one, {1}, {"'arm', j0", "'arm', j3", "'gripper', g"}, "stands at 0"),
        (inverted_gripper, {1}, {"'gripper', g"}, "does not follow its command"),
        (exchanged, {1}, {"'arm', j0", "'arm', j3"}, "does not follow its command"),
        (flipped, {1}, {"'arm', j0"}, "does not follow its command"),
        (flipped_everywhere, {0, 1, 2, 3}, {"'arm', j1"}, "runs against its command"),
        (no_state, {0, 1, 2, 3}, {"'arm', j0", "'arm', j1", "'arm', j2", "'arm', j3"}, "its state stands at 0"),
    ],
)
def test_a_wrong_column_is_named_in_its_episodes(
    change: Change, episodes: set[int], columns: set[str], words: str
) -> None:
    found = check_followed(slots(), motions(change))
    assert set(found) == episodes
    told = {finding.text.partition(":")[0] for findings in found.values() for finding in findings}
    assert columns <= told
    assert told <= columns | ({"'arm', j1", "'arm', j2"} if change is dead_in_one else set())
    assert all(words in finding.text for findings in found.values() for finding in findings)


def nothing(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    pass


def late(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    state[:] = np.concatenate([np.repeat(state[:1], 6, axis=0), state[:-6]])


def late_and_quick(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    """Waves of 1.5 Hz, a third of a second late: each state runs against the command of its own frame."""
    waves = np.sin(3 * np.pi * (np.arange(len(state) + 10) / 30)[:, None] + np.arange(4) + episode)
    state[:, :4], command[:, :4] = waves[:-10], waves[10:]


def holds_something(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    state[:, 4] = np.maximum(state[:, 4], 60)


def still_joint(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    state[:, 2], command[:, 2] = 0.3, 0.301


def told_to_close(state: np.ndarray, command: np.ndarray, episode: int) -> None:
    command[:, 4] = 0


@pytest.mark.parametrize("change", [nothing, late, late_and_quick, holds_something, still_joint, told_to_close])
def test_sound_recordings_have_no_finding(change: Change) -> None:
    assert check_followed(slots(), motions(change)) == {}


def test_a_gripper_may_be_commanded_an_effort_which_rises_as_it_closes() -> None:
    def effort(state: np.ndarray, command: np.ndarray, episode: int) -> None:
        command[:, 4] = 100 - command[:, 4]

    def none_in_one(state: np.ndarray, command: np.ndarray, episode: int) -> None:
        effort(state, command, episode)
        if episode == 2:
            command[:, 4] = 0

    assert set(check_followed(slots(), motions(effort))) == {0, 1, 2, 3}
    assert check_followed(slots(command_units=("1",)), motions(effort)) == {}
    [[dead]] = check_followed(slots(command_units=("1",)), motions(none_in_one)).values()
    assert dead.text.startswith("'gripper', g: its command stands at 0 while its state moves")
