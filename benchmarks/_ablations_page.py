"""docs/results.md and its plots, made of the small files of cells alone: the same files give the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import success_interval
from xwam_ft.evaluate.intervals import mean_interval
from xwam_ft.evaluate.late import MEANWHILE

if TYPE_CHECKING:
    from _ablation_grid import Cell, Question

INTRO = """# What each choice is worth

*Written by `python benchmarks/ablations.py page` from the files in [results](results/README.md)/ablations. Do not edit
it by hand.*

Every row is a model of its own: `recipes/metaworld/full_prior.yaml` with one thing changed, trained on the same 40
recordings of Meta-World's `push` by its scripted expert, with the same number of clips. The built-in prior has never
seen this task. Success is the benchmark's own criterion in closed loop, from starts and goals that no recording has.

- **Success** counts episodes over all trainings of a row, with Wilson's interval of 95 %. It says what these models do,
  not how much another training seed would change; the column beside it shows each seed.
- **Against the first** is the difference in success from the first row of the same number of action steps (in the last
  table: from the same model, nothing made harder; of an optional future: from the joint model under the same light or
  camera), in percentage points. Both met the same episodes, so episodes are paired, and the interval of 95 % is a
  bootstrap over them. An interval that holds 0 has told nothing apart.
- **Late** answers (`late=4`) are there after so many commands, of 16 a chunk at 80 a second.
- **What moves, imagined** is the PSNR of moving pixels of held-out clips, imagined with the actions a row gives.
- **Held out** is the error of commands on recordings that were not trained on, for position and rotation.
- **ms a chunk** was taken while other work ran, at another load in each row: it tells steps of one model apart at most.
- Fewer demonstrations are the first of the same 40. What numbers are normalised by is taken from all of them.
"""


SAID = ("future", *MEANWHILE)
"""Words of a condition that its cell's label has said."""


class Row(NamedTuple):
    """One line of a table. `outcomes`: of each training seed, success by episode; `pictures`: where they are judged."""

    label: str
    steps: int
    outcomes: dict[int, np.ndarray]
    against: dict[int, np.ndarray] | None
    milliseconds: float
    errors: str
    pictures: str | None = None


def page_of(folder: Path, questions: Mapping[str, Question], out: Path) -> tuple[str, dict[Path, str]]:
    """The page's text and each plot's, by where they belong.

    Raises:
        UserError: no such folder, or kept files of different budgets, recipes or episodes.
    """
    kept = _read(folder, questions)
    parts, plots = [INTRO], {}
    if kept:
        parts.append(_budget(next(iter(kept.values()))))
    for name, question in questions.items():
        parts.append(f"## {question.asks}\n")
        rows = list(_rows(question, kept))
        if len(rows) < 2:  # one row alone is compared with nothing
            parts.append(f"Not run yet: `python benchmarks/ablations.py run WORK --question {name}`.\n")
            continue
        plot = folder / f"{name}.svg"
        plots[plot] = _plot(rows)
        parts += [f"{question.read_as}\n"] if question.read_as else []
        parts += [_table(rows), f"![Success and its interval, row by row]({os.path.relpath(plot, out.parent)})\n"]
        if missing := [cell.label for cell in question.cells if not any(key[0] == cell.name for key in kept)]:
            parts.append(f"Not run yet: {'; '.join(missing)}.\n")
    return "\n".join(parts), plots


def _read(folder: Path, questions: Mapping[str, Question]) -> dict[tuple[str, int], dict[str, Any]]:
    """The kept files by cell and seed; refuses those that do not belong together."""
    if not folder.is_dir():
        raise UserError("no such folder", folder, "keep cells there first: ablations.py keep WORK FOLDER")
    known: dict[str, Cell] = {cell.name: cell for question in questions.values() for cell in question.cells}
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    first: tuple[Path, dict[str, Any]] | None = None
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        cell = known.get(found["cell"])
        if cell is None or list(cell.sets) != found["sets"]:
            fix = "run the cell again by the table in benchmarks/ablations.py, or remove the file"
            raise UserError("is of a recipe that no question asks for", path, fix)
        budget = _shared(found)
        first = first or (path, budget)
        for key, value in budget.items():
            if first[1].get(key, value) != value:
                what = f"has {key} {value}, and {first[0].name} has {first[1][key]}"
                raise UserError(what, path, "keep results of one budget in a folder")
            first[1][key] = value
        kept[found["cell"], found["seed"]] = found
    return kept


def _shared(found: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be equal in all files, or rows could not be compared."""
    shared = {key: found[key] for key in ("task", "clips", "for_all")}
    for name, cell in found["closed_loop"].items():
        own = {"episodes": len(cell["successes"]), **{key: cell[key] for key in ("seed", "execute", "max_steps")}}
        for key, value in own.items():
            if shared.setdefault(key, value) != value:
                what = f"has {key} {value} in {name}, and {shared[key]} elsewhere"
                raise UserError(what, f"{found['cell']}, seed {found['seed']}", "evaluate it again")
    return shared


def _budget(found: Mapping[str, Any]) -> str:
    shared = _shared(found)
    if "episodes" not in shared:
        return ""
    return (
        f"Here: {shared['clips']:,} clips a model, {shared['episodes']} episodes of at most {shared['max_steps']} "
        f"steps a row and training seed, {shared['execute']} commands carried out before the policy looks again.\n"
    )


def _rows(question: Question, kept: Mapping[tuple[str, int], dict[str, Any]]) -> Iterable[Row]:
    reference: dict[str, dict[int, np.ndarray]] = {}
    for cell in question.cells:
        trained = {seed: found for (name, seed), found in kept.items() if name == cell.name}
        for steps in question.steps:
            for condition in question.conditions(cell):
                key = f"{steps}_{condition}" if condition else f"{steps}"
                done = {seed: found for seed, found in trained.items() if key in found["closed_loop"]}
                if not done:
                    continue
                outcomes = {
                    seed: np.array([int(digit) for digit in found["closed_loop"][key]["successes"]])
                    for seed, found in sorted(done.items())
                }
                said = [word for word in condition.split(",") if word and word not in SAID]
                own = {"first": "", "itself": cell.name, "alike": ",".join(said)}[question.against]
                place = f"{own} {steps}"
                against = reference.get(place)
                if (against is None and cell is question.cells[0]) or (question.against == "itself" and not condition):
                    reference[place] = outcomes
                slow = np.median([found["closed_loop"][key]["seconds_a_chunk"] for found in done.values()])
                label = ", ".join([cell.label, *said])
                pictures = _pictures(done.values(), condition) if question.imagines else None
                yield Row(label, steps, outcomes, against, 1000 * float(slow), _errors(done.values(), steps), pictures)


def _pictures(done: Iterable[Mapping[str, Any]], condition: str) -> str:
    """PSNR of what moves, the mean over seeds, as the cell acts under this condition; where that was judged."""
    judged = [cell.get("imagined", {}).get(condition) for cell in done]
    found = [one["scores"]["psnr_moving"] for one in judged if one is not None]
    return f"{np.mean(found):.1f} dB" if found else "–"


def _errors(done: Iterable[Mapping[str, Any]], steps: int) -> str:
    """Position and rotation, the mean over seeds."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in done:
        for slot, table in cell["open_loop"].get(str(steps), {"slots": {}})["slots"].items():
            for name, row in table.items():
                if row["unit"] in ("mm", "deg") and row["error"] is not None:
                    found.setdefault((slot, name, row["unit"]), []).append(row["error"])
    return ", ".join(f"{np.mean(values):.2f} {unit}" for (_, _, unit), values in found.items()) or "–"


def _table(rows: list[Row]) -> str:
    judged = any(row.pictures is not None for row in rows)
    lines = [
        "| | action steps | success | by seed | against the first | ms a chunk | held out |",
        "|---|---|---|---|---|---|---|",
    ]
    if judged:
        lines = [f"{lines[0]} what moves, imagined |", f"{lines[1]}---|"]
    for row in rows:
        each = ", ".join(f"{100 * np.mean(found):.0f} %" for found in row.outcomes.values())
        cells = [
            row.label,
            str(row.steps),
            _success(row),
            each,
            _difference(row),
            f"{row.milliseconds:.0f}",
            row.errors,
            *([row.pictures or "–"] if judged else []),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _success(row: Row) -> str:
    everything = np.concatenate([*row.outcomes.values()])
    low, high = success_interval(int(everything.sum()), len(everything))
    return f"{everything.sum()} of {len(everything)} ({100 * low:.0f} to {100 * high:.0f} %)"


def _difference(row: Row) -> str:
    difference = paired(row.against, row.outcomes) if row.against is not None else None
    if difference is None:
        return "–"
    mean, (low, high) = difference
    return f"{mean:+.0f} ({low:+.0f} to {high:+.0f})"


def paired(
    first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray]
) -> tuple[float, tuple[float, float]] | None:
    """Success of `second` less that of `first`, in points, and its interval; None with no training seed in common.

    An episode counts once: its difference is the mean over the seeds that both have. Episodes are what is drawn anew.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    each = 100 * np.mean([second[seed].astype(float) - first[seed] for seed in seeds], axis=0)
    interval = mean_interval(each)
    return None if interval is None else (float(each.mean()), interval)


ROW, WIDTH, TOP, LETTER = 22, 420, 26, 7
"""Pixels: a row's height, how wide the scale is, the room above the rows, and that of a wide letter of a label."""


def _plot(rows: list[Row]) -> str:
    """Dots and intervals, a row each, on a scale from 0 to 100 %."""
    height = TOP + ROW * len(rows) + 12
    several = len({row.steps for row in rows}) > 1
    labels = [f"{row.label}, {row.steps} steps" if several else row.label for row in rows]
    left = 20 + LETTER * max(map(len, labels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + WIDTH + 30}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for percent in range(0, 101, 25):
        x = left + WIDTH * percent / 100
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{TOP - 6}" y2="{height - 8}" stroke="#dfe3ea"/>')
        parts.append(f'<text x="{x:g}" y="14" text-anchor="middle" fill="#5b6577">{percent} %</text>')
    for index, (row, words) in enumerate(zip(rows, labels, strict=True)):
        y = TOP + ROW * (index + 0.5)
        everything = np.concatenate([*row.outcomes.values()])
        low, high = (left + WIDTH * edge for edge in success_interval(int(everything.sum()), len(everything)))
        dot = left + WIDTH * everything.mean()
        parts.append(f'<text x="{left - 12}" y="{y + 4:g}" text-anchor="end" fill="#1c2330">{escape(words)}</text>')
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y:g}" y2="{y:g}" stroke="#9db7e4" stroke-width="6" '
            'stroke-linecap="round"/>'
        )
        parts.append(f'<circle cx="{dot:.1f}" cy="{y:g}" r="4.5" fill="#1f5fbf"/>')
    return "\n".join([*parts, "</svg>", ""])
