"""The Meta-World table: what the built-in prior is worth on tasks it has never seen.

    python data_tools/metaworld_table.py row lora_prior WORK
    python data_tools/metaworld_table.py row full_prior WORK --label push_by_step --task push --scaling step
    python data_tools/metaworld_table.py keep WORK docs/results/metaworld
    python data_tools/metaworld_table.py show docs/results/metaworld

A row is a recipe of recipes/metaworld: one model for all tasks, told by the instruction which. `row` records what is
missing, prepares, trains, exports and evaluates every task in closed loop, with 10 and with 2 action steps; what is
there already is kept. Needs `pip install 'xwam-ft[sim]'` and a renderer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from xwam_ft.bundled import bundled
from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError, did_you_mean, listed
from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment
from xwam_ft.export.export import export_run
from xwam_ft.files import read_json, write_json_atomic
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.runs.folder import open_run
from xwam_ft.runs.history import TIME_FILE, History
from xwam_ft.train.train import resume_run, train_recipe

TASKS = ("button-press-topdown", "drawer-open", "window-open", "push")
EPISODES = 30  # recorded of each task
RECORD_SEED, SEED = 11, 0
TRIALS = 50  # a cell
MAX_STEPS = 200  # the benchmark allows 500
ACTION_STEPS = (10, 2)

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
CONSOLE = plain_console()
Work = Annotated[Path, typer.Argument(help="Folder for recordings, shards and rows.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="As in `xwam-ft train`.")]


class Scaling(str, Enum):
    """`action_scaling` of the embodiment file."""

    chunk = "chunk"
    step = "step"


def shards_of(
    work: Path,
    episodes: int,
    tasks: Sequence[str] = TASKS,
    scaling: Scaling = Scaling.chunk,
    *,
    depth: bool = False,
) -> Path:
    """The shard set of these tasks, recorded and prepared where it is missing; `depth`: with rendered depth."""
    mark = f"{episodes}" if tuple(tasks) == TASKS else "_".join([*tasks, f"{episodes}"])
    mark += "_depth" if depth else ""
    recordings, shards = work / f"recordings_{mark}", work / f"shards_{mark}"
    if not recordings.exists():
        command = [sys.executable, str(Path(__file__).with_name("record_metaworld.py")), str(recordings)]
        command += [word for task in tasks for word in ("--task", task)] + ([] if depth else ["--no-depth"])
        done = subprocess.run([*command, "--episodes", str(episodes), "--seed", str(RECORD_SEED)], check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)  # it has said why
    name = "metaworld_sawyer" if depth else "metaworld_sawyer_rgb"
    embodiment = bundled(f"recipes/embodiments/{name}.yaml")
    if scaling is not Scaling.chunk:
        shards = shards.with_name(f"{shards.name}_{scaling.value}")
        changed = work / f"{name}_{scaling.value}.yaml"
        changed.write_text(f"{embodiment.read_text()}\naction_scaling: {scaling.value}\n")
        embodiment = changed
    options: dict[str, Any] = {"depth": "sensor" if depth else "none", "workers": 2, "strict": True, "urdf_dirs": []}
    prepare([recordings], shards, embodiment=embodiment, console=CONSOLE, **options)
    return shards


def bundle_of(recipe: Recipe, place: Path) -> Path:
    """PLACE/bundle of PLACE/run by this recipe: trained, gone on with and exported as far as it is missing.

    Raises:
        UserError: PLACE/run was made by another recipe.
    """
    run, bundle = place / "run", place / "bundle"
    if run.exists() and open_run(run).recipe != recipe:
        raise UserError("was made by another recipe or from other recordings", run, "give it a place of its own")
    if not run.exists():
        train_recipe(recipe, run, CONSOLE)
    elif not bundle.exists():
        resume_run(run, CONSOLE)
    if not bundle.exists():
        options: dict[str, Any] = {"ema": True, "depth": False, "dtype": "float32", "prompts": [], "console": CONSOLE}
        export_run(run, bundle, format="bundle", **options)
    return bundle


@app.command()
def row(
    name: Annotated[str, typer.Argument(help="Recipe of recipes/metaworld, without .yaml.")],
    work: Work,
    label: Annotated[str | None, typer.Option(help="Name of the row; default the recipe's.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Recorded of each task.")] = EPISODES,
    trials: Annotated[int, typer.Option(min=1, help="Closed-loop episodes a cell.")] = TRIALS,
    action_steps: Annotated[list[int] | None, typer.Option(help="Denoising steps; repeatable; default 10, 2.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Repeatable; default the four of the table.")] = None,
    scaling: Annotated[Scaling, typer.Option(help="A range a number of the action, or one a step.")] = Scaling.chunk,
    execute: Annotated[int | None, typer.Option(min=1, help="Commands before planning anew; default half.")] = None,
    overrides: Overrides = None,
) -> None:
    """Make one row: recipe -> run -> bundle -> success rates."""
    known = sorted(path.stem for path in bundled("recipes/metaworld").glob("*.yaml"))
    if name not in known:
        raise UserError(f"unknown row {name!r}{did_you_mean(name, known)}", "row", f"choose one of: {listed(known)}")
    recipe, place = bundled(f"recipes/metaworld/{name}.yaml"), work / (label or name)
    tasks = tuple(task or TASKS)
    shards = shards_of(work, episodes, tasks, scaling)
    sets = [f"data.shards={json.dumps(str(shards))}", *(overrides or [])]
    bundle = bundle_of(load_recipe(recipe, sets), place)
    for steps in action_steps or ACTION_STEPS:
        for name in tasks:
            out = place / (f"{name}_{steps}" if execute is None else f"{name}_{steps}x{execute}")
            if not out.exists():
                evaluate_in_environment(
                    bundle,
                    f"metaworld:{name}",
                    episodes=trials,
                    seed=SEED,
                    out=out,
                    max_steps=MAX_STEPS,
                    action_steps=steps,
                    execute=execute,
                    films=1,
                    console=CONSOLE,
                )


@app.command()
def keep(work: Work, folder: Annotated[Path, typer.Argument(help="Small files, as docs/results/metaworld.")]) -> None:
    """Write what every row made so far gave to FOLDER/ROW.json: what it was, clips, held-out errors, successes."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in _rows(work):
        write_json_atomic(folder / f"{row['row']}.json", row)
        print(folder / f"{row['row']}.json")


@app.command()
def show(work: Work) -> None:
    """Print every row made so far, or kept in a folder of results, as a Markdown table.

    A mean stands only where every cell is there.
    """
    rows = _rows(work)
    done = {task for row in rows for task, _ in map(_parts, row["cells"])}
    tasks = [*TASKS, *sorted(done - {*TASKS})]
    print("| row | clips | steps | " + " | ".join(tasks) + " | mean |")
    print("|---|---|---|" + "---|" * (len(tasks) + 1))
    for row in rows:
        for how in sorted(
            {how for _, how in map(_parts, row["cells"])}, key=lambda how: [-int(n) for n in how.split("x")]
        ):
            found = [row["cells"].get(f"{task}_{how}") for task in tasks]
            words = ["–" if cell is None else _cell(cell) for cell in found]
            rates = [cell["rate"] for cell in found if cell is not None]
            mean = f"{100 * sum(rates) / len(rates):.0f} %" if len(rates) == len(tasks) else "–"
            clips = f"{row['clips']:,}" if row["clips"] else "–"
            print(f"| {row['row']} | {clips} | {how} | " + " | ".join(words) + f" | {mean} |")


def _parts(cell: str) -> tuple[str, str]:
    """Task, and how it was asked: `4` denoising steps, or `4x16` with 16 commands before planning anew."""
    task, how = cell.rsplit("_", 1)
    return task, how


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Rows by name: of a folder of work, or as `keep` wrote them."""
    if not folder.is_dir():
        raise UserError("no such folder", folder, "make a row first: metaworld_table.py row lora_prior WORK")
    kept = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return kept or [_row(place) for place in sorted(path for path in folder.iterdir() if (path / "bundle").is_dir())]


def _row(place: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"row": place.name, "clips": None, "recipe": None, "held_out": {}, "seconds": None}
    if (place / "run").is_dir():
        row |= told_of(place / "run")
    told = ("rate", "successes", "of", "interval_95", "execute", "max_steps", "seed", "seconds_a_chunk")
    cells = {path.parent.name: json.loads(path.read_text()) for path in sorted(place.glob("*_*/metrics.json"))}
    return row | {"cells": {cell: {key: found[key] for key in told if key in found} for cell, found in cells.items()}}


def told_of(run: Path) -> dict[str, Any]:
    """Of a run: clips it was shown, its recipe without places of this machine, held-out numbers, seconds by part."""
    opened = open_run(run)
    numbers = next((line for line in reversed(History(opened.path).metrics()) if "held_out/total" in line), {})
    recipe = yaml.safe_load(opened.recipe.to_yaml())
    del recipe["data"]["shards"]
    trainer = opened.recipe.trainer
    return {
        "clips": trainer.max_steps * trainer.batch_size * trainer.accumulate,
        "recipe": recipe,
        "action_scaling": opened.contract.action_scaling,
        "held_out": {name: value for name, value in numbers.items() if name.startswith("held_out/")},
        "seconds": read_json(opened.path / TIME_FILE),
    }


def _cell(metrics: dict[str, object]) -> str:
    low, high = metrics["interval_95"]  # pyright: ignore[reportGeneralTypeIssues]
    return f"{metrics['successes']} of {metrics['of']} ({100 * low:.0f}–{100 * high:.0f} %)"


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"metaworld_table: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
