"""W&B's own package, offline: one id a run wherever it lies, names from recipe or variables, nothing told twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xwam_ft.recipe import Recipe, overridden
from xwam_ft.train.loggers import WANDB_FILE, run_loggers

wandb = pytest.importorskip("wandb", reason="the [wandb] extra is not installed")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def session(run: Path, recipe: Recipe, first_step: int, steps: range) -> dict[str, Any]:
    """Log these steps; what W&B says of the run, and the steps that it was told of."""
    chosen = overridden(recipe, {"logging.to": ["wandb"], **recipe_names(recipe)})
    loggers = run_loggers(run, first_step, chosen)
    told: list[float] = []
    ours: Any = loggers[-1]
    experiment = ours.experiment
    honest = experiment.log

    def log(metrics: dict[str, float], *args: Any, **options: Any) -> None:
        told.append(metrics["trainer/global_step"])
        honest(metrics, *args, **options)

    experiment.log = log
    for step in steps:
        for logger in loggers:
            logger.log_metrics({"train/loss_total": 1.0 / step}, step)
    said = {"id": experiment.id, "project": experiment.project, "entity": experiment.entity, "name": experiment.name}
    wandb.finish()
    return {**said, "told": told}


def recipe_names(recipe: Recipe) -> dict[str, object]:
    return {f"logging.wandb.{key}": value for key, value in recipe.logging.wandb.model_dump().items()}


def test_a_run_keeps_its_id_where_it_is_moved_and_tells_nothing_twice(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "my [run]: 1"
    run.mkdir()
    first = session(run, recipe, 0, range(1, 5))
    assert first["told"] == [1, 2, 3, 4]
    assert (first["project"], first["name"]) == ("xwam-ft", run.name)
    moved = run.rename(tmp_path / "elsewhere")
    again = session(moved, recipe, 2, range(3, 7))
    assert again["told"] == [5, 6]
    assert first["id"] == again["id"] == json.loads((moved / WANDB_FILE).read_text())["id"]
    folders = [path.name for path in (moved / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name.endswith(first["id"]) for name in folders)
    other = tmp_path / run.name
    other.mkdir()
    assert session(other, recipe, 0, range(1, 2))["id"] != first["id"]  # another run at the old place


def test_names_are_the_recipe_s_then_the_variables(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of-variable")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    monkeypatch.setenv("WANDB_NAME", "named")
    said = session(tmp_path, recipe, 0, range(1, 2))
    assert (said["project"], said["entity"], said["name"]) == ("of-variable", "lab", "named")
    (tmp_path / "b").mkdir()
    stated = overridden(recipe, {"logging.wandb.project": "stated", "logging.wandb.name": "a b"})
    said = session(tmp_path / "b", stated, 0, range(1, 2))
    assert (said["project"], said["entity"], said["name"]) == ("stated", "lab", "a b")
