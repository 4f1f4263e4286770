"""Errors with a camera black and by action steps, against policies whose answers are known; the Chamfer distance."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft.evaluate.blackout import blackout
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.evaluate.latency import STEPS, latency_table
from xwam_ft.evaluate.open_loop import open_loop
from xwam_ft.evaluate.pointcloud import Cloud, chamfer
from xwam_ft.observation import EncodedObservation
from xwam_ft.policy.policy import Policy, Settings
from xwam_ft.shards import Clip, ShardSet

from .fake_policy import FakePolicy


class Leaning(FakePolicy):
    """Errs along x by `5 mm / action steps`, and by 20 mm more where the wrist camera is black."""

    def __init__(self, shards: ShardSet) -> None:
        super().__init__(shards)
        self.by_state = {clip.proprio[0].tobytes(): clip for clip in self.clips.values()}
        self.shapes: list[int] = []

    def infer_batch(
        self, inputs: Sequence[EncodedObservation], seeds: Sequence[int], settings: Settings | None = None
    ) -> np.ndarray:
        settings = settings or self.settings
        self.shapes.append(len(inputs))
        answers: list[np.ndarray] = []
        for item in inputs:
            off = 0.005 / settings.action_steps + 0.020 * (item.pictures[1].max() == 0)
            answers.append(self.off_by(self.by_state[item.state.tobytes()], off))
        return np.stack(answers)

    def off_by(self, clip: Clip, metres: float) -> np.ndarray:
        step = np.array([metres, 0, 0, 0, 0, 0, 0, 0])
        return self.recorded_action(dataclasses.replace(clip, action=clip.action + step))


@pytest.fixture(scope="module")
def leaning(shard_set: ShardSet) -> Any:
    return Leaning(shard_set)


def test_a_black_camera_costs_what_the_policy_leans_on_it(shard_set: ShardSet, leaning: Any) -> None:
    seen = open_loop(leaning, shard_set, clips=3)
    told: list[int] = []
    table = blackout(leaning, shard_set, seen, clips=3, advance=told.append)
    assert table.keys() == {"front", "wrist"}
    assert table["front"]["tool"]["position"]["seen"] == pytest.approx(0.5, abs=1e-3)
    assert table["front"]["tool"]["position"]["black"] == pytest.approx(0.5, abs=1e-3)
    assert table["wrist"]["tool"]["position"]["black"] == pytest.approx(20.5, abs=1e-3)
    assert table["wrist"]["tool"]["position"]["unit"] == "mm"
    assert table["wrist"]["gripper"]["opening"]["black"] == pytest.approx(0.0, abs=1e-6)
    assert sum(told) == 6


def test_fewer_steps_err_more_and_settings_stay(shard_set: ShardSet, leaning: Any) -> None:
    before = leaning.settings
    table = latency_table(leaning, shard_set, clips=2)
    assert leaning.settings is before
    assert [row["steps"] for row in table["rows"]] == list(STEPS) == list(range(1, 11))
    errors = [row["slots"]["tool"]["position"]["policy"] for row in table["rows"]]
    assert errors == pytest.approx([5 / steps for steps in STEPS], abs=1e-3)
    assert all(row["ms"] > 0 for row in table["rows"])
    assert table["chunk_ms"] == pytest.approx(800)
    assert table["clips"] == 2
    assert leaning.shapes[-4:] == [1] * 4  # timed one request at a time


@pytest.mark.slow
def test_both_tables_are_printed_and_on_the_page(
    shard_set: ShardSet, leaning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").mkdir()
    shard_set.contract.save(tmp_path / "bundle" / "contract.json")
    monkeypatch.setattr(Policy, "load", classmethod(lambda cls, path: leaning))
    said = io.StringIO()
    options: dict[str, Any] = {"latency": True, "camera_blackout": True, "split": "train"}
    where = tmp_path / "bundle", shard_set.folder, tmp_path / "out"
    result, _ = evaluate_bundle(*where, 2, Console(file=said, width=140, markup=False), **options)
    assert result.split == "train"
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("wrist black", "20.5", "tool position [mm]"):
        assert words in said.getvalue()
        assert words in page
    assert "a chunk lasts 800 ms" in page.replace("\n", " ")


def test_chamfer_of_shifted_grids_is_the_shift() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3)
    colours = np.zeros((len(grid), 3), np.uint8)
    here, there = Cloud(grid, colours), Cloud(grid + np.array([0.25, 0, 0]), colours)
    assert chamfer(here, here) == 0.0
    assert chamfer(here, there) == pytest.approx(0.25)
    assert chamfer(here, there, most=10) == pytest.approx(0.25)
    assert chamfer(here, there) == chamfer(there, here)
    one = Cloud(grid[:1], colours[:1])  # each of the others looks to it, it looks to itself
    assert chamfer(here, one) == pytest.approx(np.linalg.norm(grid, axis=1).mean() / 2)
    assert chamfer(here, Cloud(grid[:0], colours[:0])) is None
