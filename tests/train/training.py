"""Training as tests call it: a recipe's file and `--set` strings."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from xwam_ft.recipe import load_recipe
from xwam_ft.train import smoke
from xwam_ft.train.train import resume_run, train_recipe


def train(recipe: Path, run: Path, overrides: list[str], console: Console) -> Path:
    train_recipe(load_recipe(recipe, overrides), run, console)
    return run


def resume(run: Path, console: Console, overrides: list[str] | None = None) -> None:
    resume_run(run, console, overrides)


def smoke_test(recipe: Path, overrides: list[str], console: Console) -> None:
    smoke.smoke_test(load_recipe(recipe, overrides), console)
