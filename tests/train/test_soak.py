"""Hammering: a run that is killed again and again ends as one that never was. `make soak`; minutes."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import tiny_training
from shared import QUIET
from xwam_ft.encode.cache import LatentCache

KILLS = 20
STEPS = 24


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Losses, gradient norms and rates by step; not the speed, which no run repeats."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: {k: v for k, v in row.items() if "per_second" not in k} for row in rows}


@pytest.mark.soak
def test_a_run_killed_twenty_times_ends_as_one_that_never_was(
    recipe_file: Path, tmp_path: Path, cache: LatentCache
) -> None:
    tree = yaml.safe_load(recipe_file.read_text())
    tree["trainer"] |= {"max_steps": STEPS, "batch_size": 1, "accumulate": 1}
    tree["checkpoint"] = {"every_steps": 2, "keep": 2}
    tree["logging"] = {"every_steps": 1}
    recipe_file.write_text(yaml.safe_dump(tree))
    run, chance = tmp_path / "killed", random.Random(0)
    fork = multiprocessing.get_context("fork")  # torch is imported already: a start takes seconds less
    kills, at = 0, []
    while kills < KILLS:
        begins = run.exists()
        target, args = (
            (tiny_training.resume, (run, QUIET)) if begins else (tiny_training.train, (recipe_file, run, [], QUIET))
        )
        start = max(losses(run), default=0) if begins else 0
        process = fork.Process(target=target, args=args)
        process.start()
        wanted = min(start + chance.randint(-2, 3), STEPS - 4)  # below the start: while it sets itself up
        while process.is_alive() and max(losses(run), default=0) < wanted:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.5))  # anywhere in a step, or in the writing of a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -9
        kills, at = kills + 1, [*at, max(losses(run), default=0)]
    tiny_training.resume(run, QUIET)
    whole = tiny_training.train(recipe_file, tmp_path / "whole", [], QUIET)
    print(f"{kills} kills, after steps {at}")
    assert losses(run) == losses(whole)
    for name in ("trainable", "ema", "optimizer"):
        ours, theirs = (
            load_file(folder / f"checkpoints/step-{STEPS:06d}/{name}.safetensors") for folder in (run, whole)
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours), name
