"""`report.html` of a run: how it learned, what it can do by now, what it was. One page that opens from disk.

A function of the run folder alone (history.py says which files), so it can be written again at any time. Plots are
inside the page; videos lie beside it and are linked by relative paths, so a copied run folder still plays.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.consoles import duration
from xwam_ft.evaluate.open_loop import METHODS, figure, summary_lines
from xwam_ft.evaluate.report import (
    COLOURS,
    DASHES,
    NAMES,
    blackout_rows,
    horizon_plot,
    set_margins,
    table_rows,
)
from xwam_ft.files import read_json, write_text_atomic
from xwam_ft.machine import gigabytes
from xwam_ft.runs.folder import PLAN_FILE, RECIPE_FILE
from xwam_ft.runs.history import IMAGINED, History, Validated
from xwam_ft.runs.longer import read_extensions

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT_FILE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
STREAMS = ("video", "action", "proprio", "depth")
SCORES = {
    "psnr": ("PSNR of the pictures", "dB", "higher"),
    "ssim": ("SSIM of the pictures", "", "higher"),
    "abs_rel": ("depth, mean relative error (AbsRel)", "", "lower"),
    "delta1": ("depth, share within 25 % (delta1)", "", "higher"),
    "chamfer_mm": ("point cloud, Chamfer distance", "mm", "lower"),
}
INK, TRAIN, HELD_OUT = "#1c2330", "#9db4d8", "#c2410c"


def write_report(run: Path) -> Path:
    """Write `run`/report.html."""
    history = History(run)
    validated = history.validated()
    tabled = [one for one in validated if one.tables is not None]
    imagined = [one for one in validated if one.imagined is not None]
    last = tabled[-1] if tabled else None
    open_loop = last.tables["open_loop"] if last is not None and last.tables is not None else None
    plots: dict[str, Callable[[], bytes | None]] = {
        "losses": lambda: _losses(history),
        "sigma": lambda: _by_sigma(tabled),
        "errors": lambda: _errors(tabled),
        "rates": lambda: _rates(history),
        "horizon": lambda: horizon_plot(open_loop) if open_loop is not None else None,
    }
    target = run / REPORT_FILE
    write_text_atomic(
        target,
        _render(
            run=run,
            history=history,
            longer=[f"from step {e.from_step} on: {e.said}" for e in read_extensions(run, history.last_step())],
            plan=read_json(run / PLAN_FILE) if (run / PLAN_FILE).is_file() else None,
            recipe=(run / RECIPE_FILE).read_text(encoding="utf-8"),
            plots={name: _uri(plot()) for name, plot in plots.items()},
            last=last,
            open_loop=open_loop,
            imagined=imagined,
        ),
    )
    return target


def _render(
    *,
    run: Path,
    history: History,
    longer: list[str],
    plan: dict[str, Any] | None,
    recipe: str,
    plots: dict[str, str | None],
    last: Validated | None,
    open_loop: dict[str, Any] | None,
    imagined: list[Validated],
) -> str:
    from jinja2 import Environment

    seconds = sorted(history.seconds().items(), key=lambda item: -item[1])
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = figure
    environment.filters["duration"] = duration
    environment.filters["size"] = gigabytes
    newest = imagined[-1] if imagined else None
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.name,
        folder=str(run),
        step=history.last_step(),
        longer=longer,
        plan=plan,
        recipe=recipe,
        plots=plots,
        last=last,
        open_loop=open_loop,
        quantities=table_rows(open_loop["slots"]) if open_loop else [],
        dimensions=table_rows(open_loop["dimensions"]) if open_loop else [],
        lines=summary_lines(open_loop) if open_loop else [],
        methods=[(method, NAMES[method]) for method in METHODS],
        films=[(one.step, _beside(run, one), one.imagined) for one in reversed(imagined)],
        scores=score_rows(newest.imagined) if newest is not None and newest.imagined is not None else [],
        newest=newest,
        blackout=blackout_rows(newest.imagined or {}) if newest is not None else [],
        seconds=seconds,
        total=sum(value for _, value in seconds),
    )


def score_rows(tables: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(score, unit and direction, imagined, repeated first frame), in words."""
    found: dict[str, dict[str, float | None]] = dict(tables["scores"]["all"])
    if "chamfer_mm" in tables["point_cloud"]:
        found["chamfer_mm"] = tables["point_cloud"]["chamfer_mm"]
    rows: list[tuple[str, str, str, str]] = []
    for name, (label, unit, better) in SCORES.items():
        if name in found:
            ours, still = (figure(found[name][which]) for which in ("imagined", "repeat_first_frame"))
            rows.append((label, ", ".join(filter(None, (unit, f"{better} is better"))), ours, still))
    return rows


def _beside(run: Path, one: Validated) -> str:
    """Where a validation's pictures lie, relative to the page."""
    return (one.folder / IMAGINED).relative_to(run).as_posix()


def _uri(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()


class _Panels:
    """A grid of small plots of one look, as a PNG."""

    def __init__(self, count: int, columns: int = 3) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.columns = min(columns, count)
        self.rows = -(-count // self.columns)
        across = 4.1 if self.columns < 4 else 3.0  # the page is as wide either way, and writing should stay readable
        self.figure = Figure(figsize=(across * self.columns, 2.7 * self.rows))
        FigureCanvasAgg(self.figure)
        set_margins(self.figure, self.rows, self.columns)
        self.used = 0

    def next(self, title: str, x: str = "step") -> Any:
        from matplotlib.ticker import MaxNLocator

        self.used += 1
        axes: Any = self.figure.add_subplot(self.rows, self.columns, self.used)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(x)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if x == "step":
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return axes

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        return buffer.getvalue()


def _losses(history: History) -> bytes | None:
    """Training loss of each stream, a line through it, and the held-out loss at fixed noise."""
    known = [name for name in STREAMS if history.series(f"train/loss_{name}")[0]]
    if not known:
        return None
    panels = _Panels(len(known), columns=2)
    for name in known:
        axes = panels.next(name)
        steps, values = _counted(*history.series(f"train/loss_{name}"))
        axes.plot(steps, values, color=TRAIN, linewidth=0.8, alpha=0.7)
        axes.plot(steps, smooth(values), color=COLOURS["policy"], linewidth=1.8, label="training, smoothed")
        held_steps, held = history.series(f"held_out/{name}")
        axes.plot(held_steps, held, "o-", color=HELD_OUT, markersize=4, linewidth=1.2, label="held out")
        axes.set_yscale("log")
        _plain_ticks(axes)
        if panels.used == 1:
            axes.legend(frameon=False, fontsize=8)
    return panels.png()


def _counted(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Without the steps whose loss is exactly 0: all their actions were given clean, so nothing was measured."""
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if value != 0.0]
    return [step for step, _ in kept], [value for _, value in kept]


def _by_sigma(validated: list[Validated]) -> bytes | None:
    """Held-out loss by noise level, at the first and the last validation."""
    chosen = [validated[0], validated[-1]] if len(validated) > 1 else validated
    tables = [(one.step, sigma_table(one.tables["losses"])) for one in chosen if one.tables is not None]
    names = [name for name in STREAMS if any(name in table for _, table in tables)]
    if not names:
        return None
    panels = _Panels(len(names), columns=4)
    for name in names:
        axes = panels.next(name, "noise level (1 is noise)")
        for index, (step, table) in enumerate(tables):
            bins = table.get(name, [])
            latest = index == len(tables) - 1
            axes.plot(
                [(low + high) / 2 for low, high, _ in bins],
                [loss for _, _, loss in bins],
                "o-" if latest else "o--",
                color=HELD_OUT if latest else "#8a93a3",
                markersize=4,
                label=f"step {step}",
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        if panels.used == 1:
            axes.legend(frameon=False, fontsize=8)
    return panels.png()


def sigma_table(losses: dict[str, float]) -> dict[str, list[tuple[float, float, float]]]:
    """{stream: [(low, high, loss)]}, by noise level, from `held_out_sigma/<stream>_<low>_<high>`."""
    table: dict[str, list[tuple[float, float, float]]] = {}
    for name, loss in losses.items():
        if name.startswith("held_out_sigma/"):
            stream, low, high = name.removeprefix("held_out_sigma/").rsplit("_", 2)
            table.setdefault(stream, []).append((float(low), float(high), loss))
    return {stream: sorted(rows) for stream, rows in table.items()}


def _errors(validated: list[Validated]) -> bytes | None:
    """Open-loop error of each quantity over steps, beside both baselines."""
    tables = [(one.step, one.tables["open_loop"]["slots"]) for one in validated if one.tables is not None]
    cells = [(slot, name) for slot, rows in (tables[-1][1] if tables else {}).items() for name in rows]
    if not cells:
        return None
    panels = _Panels(len(cells))
    for slot, name in cells:
        unit = tables[-1][1][slot][name]["unit"]
        axes = panels.next(f"{slot} {name}" + ("" if unit == "1" else f" [{unit}]"))
        for method in METHODS:
            points = [(step, table[slot][name][method]) for step, table in tables]
            known = [(step, value) for step, value in points if value is not None]
            marker = "o" if method == "policy" else ""
            axes.plot(
                [step for step, _ in known],
                [value for _, value in known],
                marker + DASHES[method],
                color=COLOURS[method],
                label=NAMES[method],
                markersize=4,
            )
            if method != "policy" and len(known) == 1:
                axes.axhline(known[0][1], linestyle=DASHES[method], color=COLOURS[method])
        axes.set_ylim(bottom=0)
        if panels.used == 1:
            axes.legend(frameon=False, fontsize=8)
    return panels.png()


def _rates(history: History) -> bytes | None:
    """Learning rates by group, the gradient's norm before clipping, clips a second."""
    rows = history.metrics()
    groups = sorted({name for row in rows for name in row if name.startswith("lr/") and "no_decay" not in name})
    if not groups:
        return None
    panels = _Panels(3)
    axes = panels.next("learning rate")
    for group in groups:
        axes.plot(*history.series(group), label=group.removeprefix("lr/"), linewidth=1.4)
    axes.legend(frameon=False, fontsize=8)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for title, name in (
        ("gradient norm before clipping", "train/grad_norm"),
        ("clips a second", "train/samples_per_second"),
    ):
        panels.next(title).plot(*history.series(name), color=INK, linewidth=1.2)
    return panels.png()


def smooth(values: list[float], keep: float = 0.9) -> list[float]:
    """Exponential average whose early values are not pulled towards the first (debiased, as Adam's moments are)."""
    total, weight, out = 0.0, 0.0, list[float]()
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def _plain_ticks(axes: Any) -> None:
    """Plain numbers on a logarithmic axis, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
