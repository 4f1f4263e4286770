"""What each choice is worth: a grid of recipes on a task the built-in prior has never seen, equal budgets, intervals.

    python benchmarks/ablations.py run WORK --question noise --question augment
    python benchmarks/ablations.py keep WORK docs/results/ablations
    python benchmarks/ablations.py page

A cell is a recipe: recipes/metaworld/full_prior.yaml with overrides of its own (_ablation_grid.py), trained on the
same 40 recordings of push with the same number of clips, once a seed. `run` records, prepares, encodes, trains,
exports and evaluates what is missing, and goes on where it was stopped; several of it may share WORK, each takes
cells that no other is at. `page` writes docs/results.md from the kept files alone. Needs `pip install 'xwam-ft[sim]'`
and a renderer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).parents[1] / "data_tools"))

from _ablation_grid import QUESTIONS, Cell, Question
from metaworld_table import CONSOLE, MAX_STEPS, Scaling, bundle_of, shards_of, told_of
from xwam_ft.bundled import bundled
from xwam_ft.encode.inputs import encode_shards
from xwam_ft.errors import EXIT_CODE, UserError, did_you_mean, listed
from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment
from xwam_ft.evaluate.late import MEANWHILE
from xwam_ft.evaluate.open_loop import open_loop
from xwam_ft.evaluate.world import world
from xwam_ft.files import write_json_atomic, write_text_atomic
from xwam_ft.locks import holder, sole_writer, waiting_lock
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.source import PolicySource
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import ShardSet

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs/results/ablations", ROOT / "docs/results.md"
TASK, DEMONSTRATIONS = "push", 40  # button-press and window-open saturate
EPISODES, EPISODE_SEED = 50, 0  # in closed loop; goals that no recording has
HELD_OUT_CLIPS = 64
BUDGET = ("trainer.max_steps=1250", "trainer.batch_size=16")  # 20,000 clips

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
Work = Annotated[Path, typer.Argument(help="Folder for recordings, shards and cells.")]
Kept = Annotated[Path, typer.Argument(help="Small files, one a cell and seed.")]


@app.command()
def run(
    work: Work,
    question: Annotated[list[str] | None, typer.Option(help="Repeatable; default all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of every cell.")] = 2,
    episodes: Annotated[int, typer.Option(min=1, help="In closed loop, of every cell.")] = EPISODES,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="For all cells, as in `xwam-ft train`.")
    ] = None,
    known: Annotated[Path, typer.Option(help="Kept files: what they answer is not made again.")] = KEPT,
) -> None:
    """Train and evaluate the cells of some questions, as far as they are not done, here or by whoever kept them."""
    work, chosen = work.absolute(), [_question(name) for name in question or QUESTIONS]
    busy: list[str] = []
    for seed in range(seeds):
        for one in chosen:
            for cell in one.cells:
                place = place_of(work, cell, seed)
                if _answered(known / f"{place.name}.json", cell, one, episodes, overrides or []):
                    CONSOLE.print(f"{place.name} is answered by a kept file", soft_wrap=True)
                    continue
                if holder(place) is not None:
                    busy.append(place.name)
                    continue
                with sole_writer(place, "making this cell"):
                    make(work, cell, seed, one, episodes, overrides or [])
    if busy:
        CONSOLE.print(f"left to another process: {listed(sorted(set(busy)), 60)}", soft_wrap=True)


@app.command()
def keep(work: Work, folder: Kept = KEPT) -> None:
    """Write what every cell gave so far to FOLDER/CELL_seedN.json."""
    places = [place_of(work, cell, seed) for cell in cells() for seed in _seeds(work, cell)]
    if not places:
        raise UserError("holds no cell", work, f"make some first: python benchmarks/ablations.py run {work}")
    folder.mkdir(parents=True, exist_ok=True)
    for place in places:
        write_json_atomic(folder / f"{place.name}.json", told(place))
        print(folder / f"{place.name}.json")


@app.command()
def page(folder: Kept = KEPT, out: Annotated[Path, typer.Option(help="The page.")] = PAGE) -> None:
    """Write the page and its plots, FOLDER/QUESTION.svg, from the kept files."""
    sys.path.append(str(Path(__file__).parent))
    from _ablations_page import page_of

    text, plots = page_of(folder, QUESTIONS, out)
    for path, plot in plots.items():
        write_text_atomic(path, plot)
    write_text_atomic(out, text)
    print(out)


def make(work: Path, cell: Cell, seed: int, question: Question, episodes: int, overrides: Sequence[str]) -> None:
    """Train a cell and answer a question of it, as far as it is not done.

    Raises:
        UserError: its run is of another recipe, or an evaluation of another number of episodes.
    """
    place = place_of(work, cell, seed)
    with waiting_lock(work / ".data.lock"):  # one process records and encodes for all
        shards = shards_of(work, DEMONSTRATIONS, (TASK,), Scaling.step, depth=cell.depth)
        recipe = recipe_of(cell, seed, shards, overrides)
        if not (place / "bundle").exists():
            encode_shards(shards, recipe, CONSOLE)
    asked = {"cell": cell.name, "seed": seed, "sets": list(cell.sets), "for_all": [*BUDGET, *overrides]}
    if not (place / "cell.json").exists():
        write_json_atomic(place / "cell.json", asked)
    bundle = bundle_of(recipe, place)
    _open_loop(bundle, shards, place, question.steps)
    for condition in _imagined(question, cell):
        _imagine(bundle, shards, place, condition)
    for steps in question.steps:
        for condition in question.conditions(cell):
            out = place / f"{TASK}_{key_of(steps, condition)}"
            if not out.exists():
                acts, asked = _asked(condition)
                evaluate_in_environment(
                    PolicySource.of(bundle).with_future() if acts else bundle,
                    f"metaworld:{TASK}",
                    episodes=episodes,
                    seed=EPISODE_SEED,
                    out=out,
                    max_steps=MAX_STEPS,
                    action_steps=steps,
                    console=CONSOLE,
                    **asked,
                )
            done = len(json.loads((out / "metrics.json").read_text())["runs"])
            if done != episodes:
                fix = f"give --episodes {done}, or another WORK"
                raise UserError(f"is of {done} episodes, and {episodes} are asked for", out, fix)


def key_of(steps: int, condition: str) -> str:
    """What an evaluation is called in a cell's folder and file."""
    return f"{steps}_{condition}" if condition else f"{steps}"


def _asked(condition: str) -> tuple[bool, dict[str, Any]]:
    """Whether a condition is to act with the future, and the other options of its evaluation."""
    words = condition.split(",") if condition else []
    late = [word.removeprefix("late=") for word in words if word.startswith("late=")]
    ways = [word for word in words if word in MEANWHILE]
    others = [word for word in words if word != "future" and word not in ways and not word.startswith("late=")]
    options: dict[str, Any] = {"perturb": others}
    if late:
        options |= {"answer_delay": int(late[0]), "meanwhile": ways[0]}
    return "future" in words, options


def _answered(kept: Path, cell: Cell, question: Question, episodes: int, overrides: Sequence[str]) -> bool:
    """Whether a small file holds all that a question asks of this cell, from the same recipe."""
    if not kept.is_file():
        return False
    found = json.loads(kept.read_text())
    if (found["sets"], found["for_all"]) != (list(cell.sets), [*BUDGET, *overrides]):
        return False
    done = {name for name, one in found["closed_loop"].items() if len(one["successes"]) == episodes}
    if not found.get("imagined", {}).keys() >= set(_imagined(question, cell)):
        return False
    return done >= {key_of(steps, condition) for steps in question.steps for condition in question.conditions(cell)}


def recipe_of(cell: Cell, seed: int, shards: Path, overrides: Sequence[str]) -> Recipe:
    sets = [f"data.shards={json.dumps(str(shards))}", *BUDGET, *cell.sets, f"seed={seed}", *overrides]
    return load_recipe(bundled("recipes/metaworld/full_prior.yaml"), sets)


def _open_loop(bundle: Path, shards: Path, place: Path, steps: Sequence[int]) -> None:
    """Held-out action errors at several numbers of steps, to PLACE/held_out_STEPS.json."""
    missing = [count for count in steps if not (place / f"held_out_{count}.json").exists()]
    if not missing:
        return
    policy = Policy.load(bundle)
    shard_set = ShardSet.open(shards).under(policy.contract, bundle / "contract.json")
    for count in missing:
        settings = replace(policy.settings, action_steps=count)
        found = open_loop(policy, shard_set, clips=HELD_OUT_CLIPS, settings=settings).metrics()
        slots = {
            slot: {name: {"unit": row["unit"], "error": row["policy"]} for name, row in table.items()}
            for slot, table in found["slots"].items()
        }
        write_json_atomic(place / f"held_out_{count}.json", {"clips": found["clips"], "slots": slots})


def _imagined(question: Question, cell: Cell) -> list[str]:
    """The conditions of a cell under which its pictures are judged: those that change how it imagines, alone."""
    return [one for one in question.conditions(cell) if one in ("", "future")] if question.imagines else []


def _imagine(bundle: Path, shards: Path, place: Path, condition: str) -> None:
    """How good imagined pictures of held-out clips are, to PLACE/imagined_CONDITION.json."""
    path = place / f"imagined_{condition}.json"
    if path.exists():
        return
    policy = Policy.load(bundle)
    if condition == "future":
        policy.show_future()
    shard_set = ShardSet.open(shards).under(policy.contract, bundle / "contract.json")
    found = world(policy, shard_set, clips=HELD_OUT_CLIPS).metrics
    scores = {name: row["imagined"] for name, row in found["scores"]["all"].items()}
    write_json_atomic(path, {"clips": found["clips"], "scores": scores})


def told(place: Path) -> dict[str, Any]:
    """What a cell and its evaluations were and gave, for its small file."""
    held_out = {
        path.stem.removeprefix("held_out_"): json.loads(path.read_text())
        for path in sorted(place.glob("held_out_*.json"))
    }
    closed: dict[str, Any] = {}
    for path in sorted(place.glob(f"{TASK}_*/metrics.json")):
        found = json.loads(path.read_text())
        kept = {key: found[key] for key in ("seed", "execute", "max_steps", "action_steps", "seconds_a_chunk")}
        kept["perturb"] = " ".join(found["perturb"])
        kept["successes"] = "".join(str(int(run["success"])) for run in found["runs"])  # one digit an episode
        closed[path.parent.name.removeprefix(f"{TASK}_")] = kept
    asked = json.loads((place / "cell.json").read_text())
    found = {**asked, "task": TASK, **told_of(place / "run"), "open_loop": held_out, "closed_loop": closed}
    paths = sorted(place.glob("imagined_*.json"))
    pictures = {path.stem.removeprefix("imagined_"): json.loads(path.read_text()) for path in paths}
    return {**found, "imagined": pictures} if pictures else found


def cells() -> list[Cell]:
    """Every cell once, in the order of the questions."""
    return list({cell.name: cell for question in QUESTIONS.values() for cell in question.cells}.values())


def place_of(work: Path, cell: Cell, seed: int) -> Path:
    return work / f"{cell.name}_seed{seed}"


def _seeds(work: Path, cell: Cell) -> list[int]:
    found = [path.parent.name.removeprefix(f"{cell.name}_seed") for path in work.glob(f"{cell.name}_seed*/bundle")]
    return sorted(int(number) for number in found if number.isdigit())


def _question(name: str) -> Question:
    if name not in QUESTIONS:
        hint = did_you_mean(name, QUESTIONS)
        raise UserError(f"unknown question {name!r}{hint}", "--question", f"choose of: {listed(QUESTIONS)}")
    return QUESTIONS[name]


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"ablations: {error}", file=sys.stderr)
        sys.exit(EXIT_CODE)
