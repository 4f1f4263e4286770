"""`xwam-ft runs`: the runs of a folder, how far each is and how good, and by what two of them differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xwam_ft.bundled import named_file, shipped_names
from xwam_ft.consoles import print_table
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.files import read_json
from xwam_ft.locks import holder
from xwam_ft.places import CHECKPOINTS, RECIPE_FILE
from xwam_ft.recipe import load_recipe
from xwam_ft.runs.checkpoint import kept_steps
from xwam_ft.runs.folder import CONTRACT_FILE, PLAN_FILE, by_key
from xwam_ft.runs.history import METRICS_FILE, History

if TYPE_CHECKING:
    from rich.console import Console

DEPTH = 3  # folders below the one that is given
SHOWN = 4  # held-out numbers in the table
EVERY = ("run", "step", "state", "held out", "written")
CHOICES = [
    (EVERY[:columns], numbers) for columns, numbers in ((5, SHOWN), (4, SHOWN), (5, 2), (4, 2), (4, 1), (3, 0), (2, 0))
]
"""Columns, and numbers in them: the first that fit are shown, so that no name is ever broken."""


@dataclass(frozen=True)
class RunSummary:
    """A run as its folder tells it; no weight is read.

    Args:
        name: its path below the folder that was looked in.
        step: of its newest checkpoint, 0 before the first; max_steps: as its recipe says.
        kept: steps of its checkpoints.
        state: running while a process holds it; finished, with its last look; stopped; or damaged, and then `trouble`
            says why.
        held_out: the last `held_out/...` numbers, by name, and the step they were taken at.
        written: when something of it was last written.
    """

    path: Path
    name: str
    step: int
    max_steps: int
    kept: tuple[int, ...]
    state: Literal["running", "finished", "stopped", "damaged"]
    held_out: dict[str, float]
    measured_at: int | None
    written: datetime
    trouble: str | None = None


def list_runs(folder: Path) -> list[RunSummary]:
    """Every run in a folder (or the one that it is), by name.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError("is not a folder", folder, "give the folder that your runs lie in")
    return [summary(run, folder) for run in sorted(_run_folders(folder))]


def summary(run: Path, above: Path) -> RunSummary:
    """What a run's folder says of it. What cannot be read makes a row that says so."""
    name = run.name if run == above else str(run.relative_to(above))
    written = max((_changed(path) for path in (run, run / CHECKPOINTS, run / METRICS_FILE)), default=0.0)
    when = datetime.fromtimestamp(written).astimezone()
    kept = tuple(kept_steps(run))
    step = kept[-1] if kept else 0
    try:
        recipe, history = load_recipe(run / RECIPE_FILE), History(run)
        steps = recipe.trainer.max_steps
        rows = [row for row in history.metrics() if "held_out/total" in row]
        done = step >= steps and not (_holds_out(run) and history.owed(step, recipe.validation, last=True))
    except (UserError, ValueError) as error:  # ValueError: a line of metrics.jsonl that is no JSON
        return RunSummary(run, name, step, 0, kept, "damaged", {}, None, when, str(error))
    last: Mapping[str, float] = rows[-1] if rows else {}
    held_out = {key.removeprefix("held_out/"): value for key, value in last.items() if key.startswith("held_out/")}
    state = "running" if holder(run) else "finished" if done else "stopped"
    at = int(last["step"]) if last else None
    return RunSummary(run, name, step, steps, kept, state, held_out, at, when)


def _holds_out(run: Path) -> bool:
    """Whether there is anything to look at, as the run's plan has it."""
    return (run / PLAN_FILE).is_file() and read_json(run / PLAN_FILE).get("held_out_clips", 0) > 0


def differences(first: Path, second: Path, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Keys of two recipes that differ, with both values; None where one lacks it.

    Args:
        first, second: each a run (its path, or its name below `folder`) or a recipe (its file, or the name of one).

    Raises:
        UserError: neither a run nor a recipe.
    """
    left, right = (by_key(load_recipe(_recipe_of(place, folder))) for place in (first, second))
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def print_runs(runs: list[RunSummary], folder: Path, console: Console) -> None:
    if not runs:
        console.print(f"no runs in {folder}", soft_wrap=True, markup=False)
        return
    rows = [_row(run) for run in runs]
    for columns, numbers in CHOICES:
        cells = [[row[name] for name in columns] for row in (_row(run, numbers) for run in runs)]
        if print_table(columns, cells, console):
            break
    else:  # not even a name and its step fit
        for row in rows:
            console.print(row.pop("run"), soft_wrap=True, markup=False)
            console.print(f"    {', '.join(row.values())}", soft_wrap=True, markup=False)
    for run in runs:
        if run.trouble is not None:
            console.print(f"{run.name}: {run.trouble}", soft_wrap=True, markup=False)


def _row(run: RunSummary, numbers: int = SHOWN) -> dict[str, str]:
    """The cells of a run's row, with so many of its held-out numbers."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in _main(run.held_out)[:numbers])
    at = "" if run.measured_at in (None, run.step) else f" (step {run.measured_at})"
    return {
        "run": run.name,
        "step": f"{run.step} of {run.max_steps}" if run.max_steps else str(run.step),
        "state": run.state,
        "held out": shown + at if shown else "–",
        "written": f"{run.written:%Y-%m-%d %H:%M}",
    }


def print_differences(first: Path, second: Path, found: Mapping[str, tuple[Any, Any]], console: Console) -> None:
    if not found:
        console.print(f"{first} and {second} have equal recipes", soft_wrap=True, markup=False)
        return
    rows = [(key, _shown(left), _shown(right)) for key, (left, right) in found.items()]
    if not print_table(("key", str(first), str(second)), rows, console):
        for key, left, right in rows:
            console.print(f"{key}\n    {first}: {left}\n    {second}: {right}", soft_wrap=True, markup=False)


def _main(held_out: Mapping[str, float]) -> list[tuple[str, float]]:
    """The total loss, and errors in physical units before the single losses."""
    losses = ("action", "proprio", "video", "depth")
    order = sorted(held_out, key=lambda name: (name != "total", name in losses))
    return [(name, held_out[name]) for name in order[:SHOWN]]


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _recipe_of(given: Path, folder: Path) -> Path:
    for place in (given, folder / given):
        if (place / RECIPE_FILE).is_file():
            return place / RECIPE_FILE
        if place.is_file():
            return place
    try:
        if (shipped := named_file(given, "recipes")).is_file():
            return shipped
    except UserError:
        pass
    names = [run.name if run == folder else str(run.relative_to(folder)) for run in sorted(_run_folders(folder))]
    runs = f"a run of {folder} ({listed(names)})" if names else f"a run ({folder} holds none)"
    recipes = shipped_names("recipes")
    raise UserError(
        f"is neither a run nor a recipe{did_you_mean(str(given), [*names, *recipes])}",
        given,
        f"give the path of a run or of a recipe, {runs}, or a recipe that ships ({listed(recipes, 20)})",
    )


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        here = Path(place)
        if RECIPE_FILE in files and CONTRACT_FILE in files:
            below.clear()
            yield here
        elif len(here.relative_to(folder).parts) >= DEPTH:
            below.clear()
        else:
            below[:] = [name for name in below if not name.startswith(".")]


def _changed(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
