"""Jerk where chunks meet: closed forms, and policies whose seams are known."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.evaluate.report import print_table, seam_rows
from xwam_ft.evaluate.seams import at_seam, find_pairs, jerks, seam_table
from xwam_ft.observation import EncodedObservation
from xwam_ft.shards import ShardSet

from .fake_policy import FakePolicy

JUMP = 0.01  # metres
SEAM_OF_JUMP = np.sqrt((1 + 4 + 1) / 3)  # third differences of a step: 1, -2, 1


def test_a_cubic_has_one_jerk_and_a_step_in_it_is_the_seam_s(contract: Contract) -> None:
    period = contract.timing.action_period
    time = np.arange(12) * period
    table = np.zeros((12, contract.command_dim))
    table[:, 3] = 1.0  # no rotation
    table[:, 0] = 0.6 * time**3 / 6
    smooth = jerks(contract, table)["tool", "position", "m/s³"]
    np.testing.assert_allclose(smooth, 0.6, rtol=1e-6)
    table[5:, 0] += JUMP
    broken = jerks(contract, table)["tool", "position", "m/s³"]
    chosen = at_seam(broken, 5)
    assert np.flatnonzero(chosen).tolist() == [2, 3, 4]
    step = JUMP / period**3
    np.testing.assert_allclose(broken[chosen], np.abs(0.6 + step * np.array([1, -2, 1])), rtol=1e-6)
    np.testing.assert_allclose(broken[~chosen], 0.6, rtol=1e-6)


def test_a_turn_s_jerk_is_that_of_its_angle(contract: Contract) -> None:
    from scipy.spatial.transform import Rotation

    period = contract.timing.action_period
    time = np.arange(10) * period
    table = np.zeros((10, contract.command_dim))
    angle = 2.0 * time**3 / 6
    table[:, 3:7] = Rotation.from_rotvec(angle[:, None] * np.array([0, 0, 1.0])).as_quat(scalar_first=True)
    found = jerks(contract, table)
    np.testing.assert_allclose(found["tool", "rotation", "deg/s³"], np.rad2deg(2.0), rtol=1e-5)
    np.testing.assert_allclose(found["gripper", "command", "m/s³"], 0, atol=1e-9)


class Jumping(FakePolicy):
    """What was recorded; chunks asked for second are `JUMP` metres further along x, unless they go on from a prefix."""

    def infer_batch(
        self, inputs: Sequence[EncodedObservation], seeds: Sequence[int], prefix: np.ndarray | None = None
    ) -> np.ndarray:
        answers: list[np.ndarray] = []
        for row, (item, seed) in enumerate(zip(inputs, seeds, strict=True)):
            clip = self.clips[item.pictures.tobytes()]
            off = JUMP if seed % 2 and prefix is None else 0.0
            action = self.recorded_action(dataclasses.replace(clip, action=clip.action + off * np.eye(8)[0]))
            if prefix is not None:
                action[: prefix.shape[1]] = prefix[row]
            answers.append(action)
        return np.stack(answers)


def test_a_policy_s_seams_are_measured(shard_set: ShardSet) -> None:
    policy: Any = Jumping(shard_set)
    table = seam_table(policy, shard_set, clips=4)
    row = table["slots"]["tool"]["position"]
    assert (table["pairs"], table["execute"], table["prefix"]) == (4, 4, 0)
    jump = table["jumps"]["tool"]["position"]
    assert jump["unit"] == "mm"
    assert jump["seam"] == pytest.approx(1000 * JUMP, rel=1e-6)
    assert jump["inside"] == pytest.approx(jump["recorded"], rel=0.2)  # it answers what was recorded
    assert ["tool", "position, jump [mm]"] in [line[:2] for line in seam_rows({"seams": table})]
    step = JUMP / shard_set.contract.timing.action_period**3
    assert row["seam"] == pytest.approx(SEAM_OF_JUMP * step, rel=0.1)
    assert row["inside"] == pytest.approx(row["recorded"], rel=0.5)
    assert row["inside"] < row["seam"] / 5
    assert row["seam_prefix"] is None
    policy.action_prefix = 2
    again = seam_table(policy, shard_set, clips=4)
    assert again["prefix"] == 2
    assert again["slots"]["tool"]["position"]["seam"] == pytest.approx(row["seam"])
    assert again["slots"]["tool"]["position"]["seam_prefix"] < row["seam"] / 5
    rows = seam_rows({"seams": again})
    assert rows[0][2:] == ["seam", "seam, prefix of 2", "within a chunk", "recorded"]
    assert rows[1][:2] == ["tool", "position [m/s³]"]
    said = io.StringIO()
    metrics: dict[str, Any] = {"clips": 4, "split": "held_out", "slots": {}, "trained_backbone": True, "seams": again}
    print_table(metrics, Console(file=said, width=160, markup=False))
    assert "position [m/s³]" in said.getvalue()


def test_pairs_are_of_one_episode(shard_set: ShardSet) -> None:
    for first, second in find_pairs(shard_set, "train", 4, 50):
        assert first.entry.episode == second.entry.episode
        assert second.start - first.start == 4 * shard_set.contract.timing.action_skip


def test_changes_of_the_measured_state_have_no_seams(contract_with: Callable[..., Contract]) -> None:
    contract = contract_with("delta_to_state")
    found = jerks(contract, np.zeros((8, contract.command_dim)))
    assert {name for name, _, _ in found} == {"gripper"}
    assert conventions.command_slices(contract).keys() == {"tool", "gripper"}
