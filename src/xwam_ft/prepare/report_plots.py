"""The plots of report.html, as data URLs: distributions of every slot, end-effector paths, timing."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xwam_ft import conventions, quantiles

if TYPE_CHECKING:
    from xwam_ft.contract import Contract, Slot
    from xwam_ft.quantiles import Motion

TURNS = ("dx", "dy", "dz", "rx", "ry", "rz")
REACH = 2.5  # of normalised values shown; what is beyond is counted in a number at the border
BINS = np.linspace(-REACH, REACH, 76)
STYLE: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "0.6"}
INK, HELD, ACTION = "#3b6fb5", "#d1602b", "#4a9a68"
PATHS = 40  # episodes drawn


def distributions(contract: Contract, train: Sequence[Motion]) -> str:
    """A violin a number: normalised training states, and normalised actions of all clip starts, by slot."""
    states = conventions.normalise_proprio(contract, quantiles.all_states(train))
    raw, masks = quantiles.chunk_actions(contract, train)
    # One range a number, whatever the contract scales by: the steps of all chunks are one violin.
    actions = conventions.normalise_action(contract.model_copy(update={"action_scaling": "chunk"}), raw)
    state_at, action_at = conventions.state_slices(contract), conventions.action_slices(contract)
    panels: list[tuple[str, Sequence[str], list[np.ndarray], str]] = []
    for slot in contract.slots:
        if not slot.present:
            continue
        at = state_at[slot.name]
        panels.append((f"{slot.name}: state", slot.elements, [states[:, i] for i in range(at.start, at.stop)], INK))
        if slot.name in action_at:
            at = action_at[slot.name]
            columns = [actions[masks[:, i] > 0, i] for i in range(at.start, at.stop)]
            panels.append((f"{slot.name}: action ({_words(slot)})", action_names(slot), columns, ACTION))
    places = _flow([1 if len(names) <= 2 else 2 for _, names, _, _ in panels], 4)
    down = places[-1][0] + 1
    with mpl.rc_context(STYLE):
        figure = _figure(10.4, 1.9 * down)
        grid = figure.add_gridspec(down, 4)
        for (row, left, wide), (title, names, columns, colour) in zip(places, panels, strict=True):
            axes = figure.add_subplot(grid[row, left : left + wide])
            for border in (-1, 1):
                axes.axhline(border, color="0.8", linewidth=0.8, zorder=0)
            for place, column in enumerate(columns):
                _violin(axes, place, column, colour)
            axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=30 if len(names) > 4 else 0)
            axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(-REACH - 0.3, REACH + 0.3), yticks=(-1, 0, 1))
            axes.set_title(title, loc="left", fontsize=8.5)
    return _png(figure)


def paths(contract: Contract, motions: Mapping[int, Motion], held_out: set[int]) -> str | None:
    """End-effector paths in 3D, a plot a pose slot, with the static cameras; None without a pose slot."""
    slots = [slot for slot in contract.slots if slot.kind == "pose" and slot.present]
    if not slots:
        return None
    numbers = list(motions)
    shown = {numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), PATHS)).astype(int))}
    with mpl.rc_context(STYLE):
        figure = _figure(min(10.4, 5.2 * len(slots)), 4.4 * -(-len(slots) // 2))
        for cell, slot in enumerate(slots):
            axes: Any = figure.add_subplot(-(-len(slots) // 2), min(2, len(slots)), cell + 1, projection="3d")
            at = conventions.state_slices(contract)[slot.name]
            low, high = np.full(3, np.inf), np.full(3, -np.inf)
            for number in numbers:
                path = motions[number].state[:, at][:, :3]
                low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
                if number in shown:
                    colour = HELD if number in held_out else INK
                    axes.plot(*path.T, color=colour, linewidth=0.9, alpha=0.7)
                    axes.scatter(*path[0], color=colour, s=9, depthshade=False)
            middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-3) * 1.05
            axes.set(**{f"{axis}lim": (middle[i] - half, middle[i] + half) for i, axis in enumerate("xyz")})
            axes.set(xlabel="x, m", ylabel="y, m", zlabel="z, m")
            axes.set_box_aspect((1, 1, 1), zoom=0.86)
            axes.set_title(f"{slot.name}" + (f", in {slot.frame}" if slot.frame else ""), loc="left", fontsize=8.5)
            axes.tick_params(labelsize=6)
            for pane in (axes.xaxis, axes.yaxis, axes.zaxis):
                pane.set_pane_color((0.97, 0.97, 0.98, 1.0))
        return _png(figure)


def timing(
    fps: float, numbers: Sequence[int], frames: Sequence[int], apart: Sequence[Sequence[float]], held_out: set[int]
) -> str:
    """Length of every episode, and the recorded time between its frames: least, median, most."""
    with mpl.rc_context(STYLE):
        figure = _figure(10.4, 2.2)
        axes = figure.add_subplot(1, 2, 1)
        colours = [HELD if number in held_out else INK for number in numbers]
        axes.bar(range(len(numbers)), [count / fps for count in frames], color=colours, width=0.8)
        axes.set_title("length of the episodes, s", loc="left", fontsize=8.5)
        _episode_ticks(axes, numbers)
        axes = figure.add_subplot(1, 2, 2)
        axes.axhline(1000 / fps, color="0.8", linewidth=0.8, zorder=0)
        known = [(i, values) for i, values in enumerate(apart) if len(values) == 3]
        for i, (least, median, most) in known:
            axes.plot([i, i], [1000 * least, 1000 * most], color=colours[i], linewidth=1.2)
            axes.plot([i], [1000 * median], "o", color=colours[i], markersize=3)
        axes.set_title(f"recorded time between frames, ms ({1000 / fps:.3g} declared)", loc="left", fontsize=8.5)
        axes.set_ylim(0, max([2000 / fps, *(1100 * values[2] for _, values in known)]))
        if not known:
            axes.text(0.5, 0.5, "no timestamps were recorded", transform=axes.transAxes, ha="center", color="0.5")
        _episode_ticks(axes, numbers)
        return _png(figure)


def action_names(slot: Slot) -> Sequence[str]:
    """Names of a slot's action numbers; a single command in its own units is another quantity than the state."""
    if slot.kind == "pose":
        return TURNS
    return ("command",) if slot.command_units is not None and slot.action_width == 1 else slot.elements


def _violin(axes: Any, place: int, column: np.ndarray, colour: str) -> None:
    if not len(column):
        return
    counts, _ = np.histogram(column, BINS)
    middle = (BINS[:-1] + BINS[1:]) / 2
    width = 0.4 * np.sqrt(counts / max(1, counts.max()))  # the root, so that rare values can be seen
    axes.fill_betweenx(middle, place - width, place + width, step="mid", color=colour, alpha=0.55, linewidth=0)
    axes.plot([place - 0.12, place + 0.12], [np.median(column)] * 2, color=colour, linewidth=1.4)
    for beyond, height, word in ((column > REACH, REACH, "bottom"), (column < -REACH, -REACH, "top")):
        if np.any(beyond):
            axes.text(place, height, f"{int(beyond.sum())} beyond", ha="center", va=word, fontsize=5.5, color="0.35")


def _flow(widths: Sequence[int], across: int) -> list[tuple[int, int, int]]:
    """Row, first column and width of each panel, filling rows of `across` columns in order."""
    found: list[tuple[int, int, int]] = []
    row = left = 0
    for width in widths:
        if left + width > across:
            row, left = row + 1, 0
        found.append((row, left, width))
        left += width
    return found


def _episode_ticks(axes: Any, numbers: Sequence[int]) -> None:
    places = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), 12)).round().astype(int))
    axes.set_xticks(places, [str(numbers[i]) for i in places])
    axes.set_xlabel("episode")
    axes.set_xlim(-0.8, len(numbers) - 0.2)


def _words(slot: Slot) -> str:
    return (slot.convention or "").replace("_", " ")


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:6] + "…" + name[-7:]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
