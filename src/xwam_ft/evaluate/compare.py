"""`xwam-ft evaluate --compare A B`: two evaluations laid beside each other, with intervals of what differs.

An interval is a 95 % bootstrap over episodes and the clips of each; where both were measured on the same clips, of
each one's own difference, which is far narrower. Figures of which no value a clip is kept have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.evaluate.intervals import chosen, difference_interval
from xwam_ft.evaluate.open_loop import figure
from xwam_ft.evaluate.world_report import HIGHER_IS_BETTER, SCORES
from xwam_ft.files import write_json_atomic, write_text_atomic
from xwam_ft.locks import sole_folder

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = Path(__file__).with_name("compare.html.jinja")
SETTINGS = (
    *("shards", "split", "clips", "env", "seed", "of", "execute", "max_steps"),
    *("answer_delay", "meanwhile", "action_steps", "with_future"),
)
"""What two evaluations should have in common."""


@dataclass(frozen=True)
class Measured:
    """One number of an evaluation, and what it is the mean of."""

    section: str
    name: str
    unit: str
    value: float
    higher_is_better: bool = False
    keys: list[Any] = field(default_factory=list[Any])
    values: list[float | None] = field(default_factory=list["float | None"])
    episodes: list[Any] | None = None  # of each clip, where several may be of one


def compare(first: Path, second: Path, out: Path | None, console: Console) -> dict[str, Any]:
    """Print both side by side; with `out`, write compare.html and compare.json there. Returns what the latter holds.

    Raises:
        UserError: one of them is no evaluation's folder, or they are of two kinds; `out` is not empty.
    """
    metrics = [_read(folder) for folder in (first, second)]
    if ("env" in metrics[0]) != ("env" in metrics[1]):
        kinds = ["closed loop" if "env" in found else "open loop" for found in metrics]
        raise UserError(
            f"was evaluated in {kinds[1]}, and {first} in {kinds[0]}",
            second,
            "give two of one kind, see docs/evaluate.md",
        )
    found: dict[str, Any] = {
        "first": {"folder": str(first), "bundle": metrics[0]["bundle"]},
        "second": {"folder": str(second), "bundle": metrics[1]["bundle"]},
        "unlike": {
            name: [metrics[0].get(name), metrics[1].get(name)]
            for name in SETTINGS
            if metrics[0].get(name) != metrics[1].get(name)
        },
        "rows": _rows(*({(r.section, r.name): r for r in readings(table)} for table in metrics)),
    }
    with ExitStack() as stack:
        if out is not None:
            folder = stack.enter_context(sole_folder(out, "comparing into it"))
            write_json_atomic(folder / "compare.json", found)
            write_text_atomic(folder / "compare.html", _html(found))
    _tell(found, console)
    if out is not None:
        console.print(f"page: {out / 'compare.html'}", soft_wrap=True)
    return found


def readings(metrics: Mapping[str, Any]) -> Iterator[Measured]:
    """The figures of a metrics.json that two evaluations can be told apart by."""
    if "env" in metrics:
        episodes = metrics["runs"]
        keys, wins = [row["seed"] for row in episodes], [float(row["success"]) for row in episodes]
        yield Measured("closed loop", "episodes that succeed", "", metrics["rate"], True, keys, list(wins))
        yield Measured("closed loop", "time of a chunk", "s", metrics["seconds_a_chunk"])
        return
    kept = metrics.get("per_clip", {"keys": [], "slots": {}})
    for slot, table in metrics["slots"].items():
        for name, row in table.items():
            if row["policy"] is not None:
                values = kept["slots"].get(slot, {}).get(name, [])
                unit = "" if row["unit"] == "1" else row["unit"]
                what, keys, whose = f"{slot} {name}", kept["keys"], kept.get("episodes")
                yield Measured("error of commands", what, unit, row["policy"], False, keys, values, whose)
    for slot, table in metrics.get("seams", {"slots": {}})["slots"].items():
        for name, row in table.items():
            if row["seam"] is not None:
                yield Measured("jerk at seams", f"{slot} {name}", row["unit"], row["seam"])
    for row in metrics.get("latency", {"rows": []})["rows"][-1:]:
        yield Measured("time of a request", f"{row['steps']} action steps", "ms", row["ms"])
    if "world" in metrics:
        yield from _of_world(metrics["world"])


def _of_world(world: Mapping[str, Any]) -> Iterator[Measured]:
    keys, episodes = world["keys"], world.get("episodes")
    for score, row in world["scores"]["all"].items():
        if row["imagined"] is not None:
            name, unit = SCORES[score]
            values = world["per_clip"][score]
            better = score in HIGHER_IS_BETTER
            yield Measured("imagined", name, unit, row["imagined"], better, keys, values, episodes)
    for what in ("pictures", "states"):
        found = world["actions"][what]
        if found["mean_rank"] is not None:
            name = f"rank of the recorded actions, {what}"
            yield Measured("action -> video", name, "", found["mean_rank"], False, keys, found["ranks"], episodes)
    geometry, flicker = world.get("geometry", {"made": False}), world.get("flicker", {"imagined": None})
    if geometry["made"]:
        value, values = geometry["scores"]["chamfer"]["imagined"], geometry["per_clip"]["chamfer"]
        yield Measured("imagined", "distance of fused clouds", "m", value, False, keys, values, episodes)
    if flicker["imagined"] is not None:
        values = flicker["per_clip"]
        yield Measured("imagined", "flicker", "grey levels", flicker["imagined"], False, keys, values, episodes)
    for what, found in world["calibration"].items():
        if found["spearman"] is not None:
            yield Measured("spread tells error", f"rank correlation, {what}", "", found["spearman"], True)


def _rows(first: dict[tuple[str, str], Measured], second: dict[tuple[str, str], Measured]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        row: dict[str, Any] = {"section": key[0], "name": key[1], "unit": (a or b).unit}  # pyright: ignore[reportOptionalMemberAccess]
        row |= {"first": None if a is None else a.value, "second": None if b is None else b.value}
        if a is not None and b is not None:
            row |= _difference(a, b)
        rows.append(row)
    return rows


def _difference(first: Measured, second: Measured) -> dict[str, Any]:
    """{"difference": second less first, "interval_95", "paired", "better": "first", "second" or None}."""
    paired = bool(first.keys) and first.keys == second.keys and len(first.values) == len(second.values)
    a, b = (np.array([np.nan if v is None else v for v in reading.values], dtype=float) for reading in (first, second))
    of_a, of_b = np.isfinite(a), np.isfinite(b)
    if paired:
        of_a = of_b = of_a & of_b
    whose = chosen(first.episodes, of_a), chosen(second.episodes, of_b)
    interval = difference_interval(a[of_a], b[of_b], paired=paired, episodes=whose)
    better = None
    if interval is not None and not interval[0] <= 0 <= interval[1]:
        better = "second" if (interval[0] > 0) == first.higher_is_better else "first"
    return {"difference": second.value - first.value, "interval_95": interval, "paired": paired, "better": better}


def cells(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows as people read them, under a header."""
    table = [["figure of", "what", "unit", "A", "B", "B - A", "95 % interval", "better"]]
    words = {"first": "A", "second": "B", None: "no difference seen"}
    for row in found["rows"]:
        line = [row["section"], row["name"], row["unit"], figure(row["first"]), figure(row["second"])]
        if "difference" not in row:
            table.append([*line, "–", "–", "measured in one alone"])
            continue
        interval = row["interval_95"]
        shown = "–" if interval is None else f"{figure(interval[0])} to {figure(interval[1])}"
        verdict = "no interval" if interval is None else words[row["better"]]
        table.append([*line, figure(row["difference"]), shown, verdict])
    return table


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the two."""
    both = (("A", found["first"]), ("B", found["second"]))
    said = [f"{name}: {one['bundle']}, as evaluated in {one['folder']}" for name, one in both]
    said += [f"unlike: {name} is {a} in A and {b} in B" for name, (a, b) in found["unlike"].items()]
    if any(not row.get("paired", True) and row["interval_95"] is not None for row in found["rows"]):
        said.append("A and B were measured on other clips, so intervals are wide: they hold how clips differ as well")
    said.append("of 20 figures without any difference, one is told better by chance: believe what several of them say")
    return said


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    fix = "give the OUT folder of an earlier `xwam-ft evaluate ... --out OUT`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("holds no metrics.json", folder, fix) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", path, fix) from None
    if not isinstance(found, dict) or "bundle" not in found or not {"slots", "rate"} & found.keys():
        raise UserError("is not an evaluation's", path, fix)
    return found


def _html(found: Mapping[str, Any]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=cells(found), better=[row.get("better") for row in found["rows"]], notes=notes(found)
    )


def _tell(found: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table

    header, *body = cells(found)
    table = Table(*header[1:2], *header[3:], title="two evaluations", title_justify="left")
    for column in table.columns[1:5]:
        column.justify = "right"
    for _, name, unit, *figures in body:
        table.add_row(f"{name} [{unit}]" if unit else name, *figures)
    console.print(table)
    for text in notes(found):
        console.print(text, soft_wrap=True)
