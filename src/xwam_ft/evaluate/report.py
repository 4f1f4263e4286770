"""The open-loop result for people: a table on the console, a plot by horizon, one HTML page that plays from disk."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.consoles import marked
from xwam_ft.evaluate.familiar import NOVELTY_SAYS, novelty_rows, said_of_trained
from xwam_ft.evaluate.open_loop import METHODS, figure, summary_lines
from xwam_ft.evaluate.train_split import said_of
from xwam_ft.evaluate.world_report import sections, world_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from xwam_ft.contract import Contract

NAMES = {"policy": "policy", "mean_action": "mean action", "hold_still": "hold still"}
COLOURS = {"policy": "#1f5fbf", "mean_action": "#c77700", "hold_still": "#8a93a3"}
DASHES = {"policy": "-", "mean_action": "--", "hold_still": ":"}
LINES = {method: (DASHES[method], COLOURS[method]) for method in METHODS}
WORLD_NAMES = {"imagined": "imagined", "repeat_first_frame": "last picture repeated"}
WORLD_LINES = {"imagined": LINES["policy"], "repeat_first_frame": LINES["hold_still"]}
TEMPLATE = Path(__file__).with_name("report.html.jinja")
Rows = list[dict[str, Any]]


def table_rows(table: Mapping[str, Any]) -> Rows:
    """{slot: {quantity: {...}}} -> rows with figures written out; the best of each row is named."""
    rows: Rows = []
    for slot, quantities in table.items():
        for name, entry in quantities.items():
            known = {method: entry[method] for method in METHODS if entry[method] is not None}
            rows.append(
                {
                    "slot": slot,
                    "name": name,
                    "unit": "" if entry["unit"] == "1" else entry["unit"],
                    "figures": {method: figure(entry[method]) for method in METHODS},
                    "better": entry["better"],
                    "verdict": verdict(entry),
                    "best": min(known, key=lambda method: known[method]) if known else None,
                }
            )
    return rows


def verdict(entry: Mapping[str, Any]) -> str:
    """What the policy is, in a table's cell: `entry` as in `OpenLoopResult.metrics`."""
    if entry["better"] is None:
        return "not recorded" if entry["policy"] is None else "untested: never changes"
    return "better than both" if entry["better"] else "not better"


def print_table(metrics: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table

    title = f"mean error over {metrics['clips']} {metrics['split'].replace('_', '-')} clips"
    table = Table(title=title, title_justify="left")
    for header in ("slot", "error", "unit"):
        table.add_column(header)
    for method in METHODS:
        table.add_column(NAMES[method], justify="right")
    table.add_column("policy is")
    for row in table_rows(metrics["slots"]):
        style = {True: "green", False: "yellow", None: "dim"}[row["better"]]
        word = marked(row["verdict"], style=style)
        table.add_row(row["slot"], row["name"], row["unit"], *row["figures"].values(), word)
    console.print(table)
    for text in said_of_trained(metrics):
        console.print(marked("not new: ", text, "bold yellow"), soft_wrap=True)
    tables = {
        "train_split": train_split_rows(metrics),
        "latency": latency_rows(metrics),
        "blackout": blackout_rows(metrics),
        "seams": seam_rows(metrics),
        "novelty": novelty_rows(metrics["novelty"]) if "novelty" in metrics else [],
    }
    for name, rows in tables.items():
        if rows:
            header, *body = rows
            other = Table(*header, title=TITLES[name], title_justify="left")
            for column in other.columns[{"latency": 0, "novelty": 1}.get(name, 2) :]:
                column.justify = "right"
            for line in body:
                other.add_row(*line)
            console.print(other)
            for text in {"train_split": said_of(metrics), "novelty": [NOVELTY_SAYS]}.get(name, []):
                console.print(text, soft_wrap=True, markup=False)
    for section in sections(metrics):
        header, *body = section.rows
        other = Table(*header, title=section.title, title_justify="left")
        for column in other.columns[section.words :]:
            column.justify = "right"
        for line in body:
            other.add_row(*line)
        console.print(other)
        for text in section.says:
            console.print(text, soft_wrap=True)
    if not metrics["trained_backbone"]:
        console.print(marked("untrained backbone", ": these numbers show that the job runs, not how well X-WAM acts"))


TITLES = {
    "train_split": "mean error on clips it was trained on, and on held-out ones",
    "latency": "action steps: error and time of a request",
    "blackout": "error with a camera's pictures black",
    "seams": "jerk and jump of commands where one chunk follows another",
    "novelty": "how unlike the training pictures these are",
}


def train_split_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A line a quantity: error on the train split, on the held-out one, and their ratio, with a header."""
    if not metrics.get("train_split"):
        return []
    rows = [["slot", "error", "trained on", "held out", "ratio"]]
    for slot, table in metrics["train_split"]["slots"].items():
        for name, cell in table.items():
            ratio = f"{cell['held_out'] / cell['train']:.1f}" if cell["train"] > 0 else "–"
            errors = (figure(cell["train"]), figure(cell["held_out"]))
            rows.append([slot, f"{name}{_unit(cell['unit'])}", *errors, ratio])
    return rows


def latency_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Steps, milliseconds and the error of each quantity, with a header; nothing where it was not measured."""
    if "latency" not in metrics:
        return []
    rows = metrics["latency"]["rows"]
    names = [(slot, name, cell["unit"]) for slot, table in rows[0]["slots"].items() for name, cell in table.items()]
    header = ["steps", "ms", *(f"{slot} {name}{_unit(unit)}" for slot, name, unit in names)]
    body = [
        [
            str(row["steps"]),
            f"{row['ms']:.0f}",
            *(figure(row["slots"][slot][name]["policy"]) for slot, name, _ in names),
        ]
        for row in rows
    ]
    return [header, *body]


def blackout_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A line a quantity: the error with all cameras, then with each black; nothing where it was not measured."""
    if not metrics.get("blackout"):
        return []
    cameras = metrics["blackout"]
    first = next(iter(cameras.values()))
    rows = [["slot", "error", "all cameras", *(f"{camera} black" for camera in cameras)]]
    for slot, table in first.items():
        for name, cell in table.items():
            black = [figure(tables[slot][name]["black"]) for tables in cameras.values()]
            rows.append([slot, f"{name}{_unit(cell['unit'])}", figure(cell["seen"]), *black])
    return rows


def seam_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A line a quantity: jerk at seams, with a prefix where the bundle takes one, within chunks, recorded."""
    found = metrics.get("seams")
    if not found or not found["slots"]:
        return []
    with_prefix = found["prefix"] > 0
    prefix = [f"seam, prefix of {found['prefix']}"] if with_prefix else []
    rows = [["slot", "jerk", "seam", *prefix, "within a chunk", "recorded"]]
    names = ("seam", *(("seam_prefix",) if with_prefix else ()), "inside", "recorded")
    for slot, table in found["slots"].items():
        for name, cell in table.items():
            rows.append([slot, f"{name}{_unit(cell['unit'])}", *(figure(cell[column]) for column in names)])
    for slot, table in found.get("jumps", {}).items():
        for name, cell in table.items():
            values = [figure(cell[column]) if column in cell else "–" for column in names]
            rows.append([slot, f"{name}, jump{_unit(cell['unit'])}", *values])
    return rows


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" [{unit}]"


def horizon_plot(metrics: Mapping[str, Any]) -> bytes:
    """PNG: error against time in the chunk, one small plot a quantity."""
    cells = [
        (f"{slot} {name}{_unit(entry['unit'])}", {method: entry[method] for method in METHODS})
        for slot, table in metrics["by_horizon"].items()
        for name, entry in table.items()
    ]
    return _panels(cells, metrics["horizon_seconds"], NAMES, LINES, "time in the chunk [s]", from_zero=True)


def world_plot(metrics: Mapping[str, Any]) -> bytes:
    """PNG: scores of imagined frames against how far ahead they are."""
    seconds = metrics["world"]["horizon_seconds"]
    return _panels(world_curves(metrics), seconds, WORLD_NAMES, WORLD_LINES, "ahead [s]", from_zero=False)


def _panels(
    cells: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]],
    seconds: Sequence[float],
    names: Mapping[str, str],
    lines: Mapping[str, tuple[str, str]],
    axis: str,
    *,
    from_zero: bool,
) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure_ = Figure(figsize=(4.1 * columns, 2.7 * rows))
        FigureCanvasAgg(figure_)
        set_margins(figure_, rows, columns)
        for index, (title, curves) in enumerate(cells):
            axes = figure_.add_subplot(rows, columns, index + 1)
            for name, curve in curves.items():
                values = [float("nan") if value is None else value for value in curve]
                dash, colour = lines[name]
                axes.plot(seconds, values, dash, color=colour, label=names[name], linewidth=1.8)
            axes.set_title(title, loc="left")
            if from_zero:
                axes.set_ylim(bottom=0)
            axes.set_xlabel(axis)
            if index == 0:
                axes.legend(frameon=False)
        buffer = io.BytesIO()
        figure_.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def set_margins(figure: Figure, rows: int, columns: int) -> None:
    """Place for titles, ticks and axes' names around equal panels, in inches whatever the figure's size.

    A layout engine would draw every label twice more to measure it, which was three quarters of a report's time.
    """
    left, right, bottom, top = 0.62, 0.12, 0.5, 0.32
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / (width / columns - left - right),
        hspace=(bottom + top) / (height / rows - bottom - top),
    )


def data_url(png: bytes) -> str:
    """A picture as a page holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def html(metrics: Mapping[str, Any], contract: Contract, plot: bytes, sheet: bytes | None = None) -> str:
    """report.html as text; pictures are inside it. `sheet`: a clip under other actions, where the world was judged."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    slots = [contract.slot(name) for name in metrics["slots"]]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metrics=metrics,
        contract=contract,
        slots=slots,
        methods=[(method, NAMES[method]) for method in METHODS],
        quantities=table_rows(metrics["slots"]),
        dimensions=table_rows(metrics["dimensions"]),
        lines=summary_lines(metrics),
        train_split=train_split_rows(metrics),
        said_of_train_split=said_of(metrics),
        said_of_trained=said_of_trained(metrics),
        latency=latency_rows(metrics),
        blackout=blackout_rows(metrics),
        seams=seam_rows(metrics),
        novelty=novelty_rows(metrics["novelty"]) if "novelty" in metrics else [],
        said_of_novelty=NOVELTY_SAYS,
        world=sections(metrics),
        world_plot=data_url(world_plot(metrics)) if "world" in metrics else "",
        sheet="" if sheet is None else data_url(sheet),
        plot=data_url(plot),
        unstated=[slot.name for slot in slots if slot.convention == "absolute" and slot.command_units is not None],
    )
