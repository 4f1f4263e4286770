"""The Meta-World table: what the built-in prior is worth on tasks it has never seen.

    python data_tools/metaworld_table.py row lora_prior WORK
    python data_tools/metaworld_table.py row full_prior WORK --label push_by_step --task push --scaling step
    python data_tools/metaworld_table.py show WORK

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
from typing import Annotated

import typer

from xwam_ft.bundled import bundled
from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError, did_you_mean, listed
from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment
from xwam_ft.export.export import export_run
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.recipe import load_recipe
from xwam_ft.train.folder import open_run
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


def shards_of(work: Path, episodes: int, tasks: Sequence[str] = TASKS, scaling: Scaling = Scaling.chunk) -> Path:
    """The shard set of these tasks, recorded and prepared where it is missing."""
    mark = f"{episodes}" if tuple(tasks) == TASKS else "_".join([*tasks, f"{episodes}"])
    recordings, shards = work / f"recordings_{mark}", work / f"shards_{mark}"
    if not recordings.exists():
        command = [sys.executable, str(Path(__file__).with_name("record_metaworld.py")), str(recordings), "--no-depth"]
        command += [word for task in tasks for word in ("--task", task)]
        done = subprocess.run([*command, "--episodes", str(episodes), "--seed", str(RECORD_SEED)], check=False)
        if done.returncode:
            raise typer.Exit(done.returncode)  # it has said why
    embodiment = bundled("recipes/embodiments/metaworld_sawyer_rgb.yaml")
    if scaling is not Scaling.chunk:
        shards, changed = shards.with_name(f"{shards.name}_{scaling.value}"), work / f"embodiment_{scaling.value}.yaml"
        changed.write_text(f"{embodiment.read_text()}\naction_scaling: {scaling.value}\n")
        embodiment = changed
    options = {"depth": "none", "workers": 2, "strict": True, "urdf_dirs": [], "console": CONSOLE}
    prepare([recordings], shards, embodiment=embodiment, **options)
    return shards


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
    overrides: Overrides = None,
) -> None:
    """Make one row: recipe -> run -> bundle -> success rates."""
    known = sorted(path.stem for path in bundled("recipes/metaworld").glob("*.yaml"))
    if name not in known:
        raise UserError(f"unknown row {name!r}{did_you_mean(name, known)}", "row", f"choose one of: {listed(known)}")
    recipe, place = bundled(f"recipes/metaworld/{name}.yaml"), work / (label or name)
    tasks = tuple(task or TASKS)
    shards = shards_of(work, episodes, tasks, scaling)
    run, bundle = place / "run", place / "bundle"
    sets = [f"data.shards={json.dumps(str(shards))}", *(overrides or [])]
    if run.exists() and open_run(run).recipe != load_recipe(recipe, sets):
        raise UserError(
            "was made by another recipe or from other recordings", run, "give this one a --label of its own"
        )
    if not run.exists():
        train_recipe(load_recipe(recipe, sets), run, CONSOLE)
    elif not bundle.exists():
        resume_run(run, CONSOLE)
    if not bundle.exists():
        options = {"ema": True, "depth": False, "dtype": "float32", "prompts": [], "console": CONSOLE}
        export_run(run, bundle, format="bundle", **options)
    for steps in action_steps or ACTION_STEPS:
        for name in tasks:
            out = place / f"{name}_{steps}"
            if not out.exists():
                evaluate_in_environment(
                    bundle,
                    f"metaworld:{name}",
                    episodes=trials,
                    seed=SEED,
                    out=out,
                    max_steps=MAX_STEPS,
                    action_steps=steps,
                    films=1,
                    console=CONSOLE,
                )


@app.command()
def show(work: Work) -> None:
    """Print every row made so far as a Markdown table; a mean only where every cell is there."""
    if not work.is_dir():
        raise UserError("no such folder", work, "make a row first: metaworld_table.py row lora_prior WORK")
    print("| row | steps | " + " | ".join(TASKS) + " | mean |")
    print("|---|---|" + "---|" * (len(TASKS) + 1))
    for place in sorted(path for path in work.iterdir() if (path / "bundle").is_dir()):
        for steps in ACTION_STEPS:
            cells = [place / f"{task}_{steps}" / "metrics.json" for task in TASKS]
            if not any(cell.is_file() for cell in cells):
                continue
            found = [json.loads(cell.read_text()) if cell.is_file() else None for cell in cells]
            words = ["–" if metrics is None else _cell(metrics) for metrics in found]
            rates = [metrics["rate"] for metrics in found if metrics is not None]
            mean = f"{100 * sum(rates) / len(rates):.0f} %" if len(rates) == len(TASKS) else "–"
            print(f"| {place.name} | {steps} | " + " | ".join(words) + f" | {mean} |")


def _cell(metrics: dict[str, object]) -> str:
    low, high = metrics["interval_95"]  # pyright: ignore[reportGeneralTypeIssues]
    return f"{metrics['successes']} of {metrics['of']} ({100 * low:.0f}–{100 * high:.0f} %)"


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"metaworld_table: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
