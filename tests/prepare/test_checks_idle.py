"""Starts at which nothing moves for longer than a chunk: told where they are many, of encoders that flicker too."""

from __future__ import annotations

import numpy as np
import pytest
from tests.conftest import make_motion

from xwam_ft.contract import Contract
from xwam_ft.prepare.checks.idle import check_idle_starts, stillness
from xwam_ft.quantiles import Motion


def episode(idle: int, seed: int, flicker: float = 2e-4) -> Motion:
    """60 moving frames after `idle` still ones."""
    state, command = make_motion(60, seed=seed)
    state = np.concatenate([np.repeat(state[:1], idle, axis=0), state])
    command = np.concatenate([np.repeat(command[:1], idle, axis=0), command])
    state[:, :3] += np.random.default_rng(seed).normal(0, flicker, (len(state), 3))
    return Motion(state, command, np.ones_like(command))


def test_many_idle_starts_are_told_and_a_few_or_short_ones_are_not(contract: Contract) -> None:
    chunk = contract.timing.action_steps * contract.timing.action_skip
    idle = {number: episode(25 if number < 3 else 0, number) for number in range(6)}
    found = check_idle_starts(contract, idle)
    assert sorted(found) == [0, 1, 2]
    (finding,) = found[0]
    assert (finding.check, finding.severity) == ("idle-start", "warning")
    assert f"a chunk of actions lasts {chunk / contract.timing.fps:.2g} s" in finding.text
    assert "data.still_weight=0" in finding.remedy
    assert check_idle_starts(contract, {number: episode(chunk - 3, number) for number in range(6)}) == {}
    assert check_idle_starts(contract, {number: episode(25 if number < 1 else 0, number) for number in range(6)}) == {}
    assert check_idle_starts(contract, {0: Motion(*(np.ones((60, 8)) for _ in range(3)))}) == {}  # told elsewhere


@pytest.mark.parametrize("what", ["state position", "state rotation", "gripper command"])
def test_any_part_that_moves_is_no_standing_still(contract: Contract, what: str) -> None:
    motion = episode(30, 0, flicker=0.0)
    state, command = motion.state[:30].copy(), motion.command[:30].copy()
    bounds = stillness(contract)
    assert not bounds.left(state, command).any()
    table, column, by = {
        "state position": (state, 0, 0.03),
        "state rotation": (state, 4, 0.02),
        "gripper command": (command, 7, 0.01),
    }[what]
    table[10:, column] += by
    assert bounds.left(state, command).nonzero()[0].tolist() == list(range(10, 30))
