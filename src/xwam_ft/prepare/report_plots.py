"""The plots of report.html, as data URLs: distributions of every slot, end-effector paths, timing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.prepare.drawing import Drawing, step_outline, ticks

if TYPE_CHECKING:
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.quantiles import Motion

TURNS = ("dx", "dy", "dz", "rx", "ry", "rz")
REACH = 2.5  # of normalised values shown; what is beyond is counted in a number at the border
BINS = np.linspace(-REACH, REACH, 76)
INK, HELD, ACTION, AXIS, GRID, SOFT = "#3b6fb5", "#d1602b", "#4a9a68", "#999", "#ccc", "#555"
PATHS = 40  # episodes drawn
WIDE = 1144
TITLE, LABEL = 12.5, 11

# How paths are seen: from the right front, above (azimuth -60, elevation 30 degrees), without perspective.
AZIMUTH, ELEVATION = math.radians(-60), math.radians(30)
RIGHT = np.array([-math.sin(AZIMUTH), math.cos(AZIMUTH), 0.0])
UP = np.array([-math.sin(ELEVATION) * math.cos(AZIMUTH), -math.sin(ELEVATION) * math.sin(AZIMUTH), math.cos(ELEVATION)])
# The edge of the cube that an axis is written along: the places (-1 or 1) of the two other axes, in their order.
EDGES = {0: (-1, -1), 1: (1, -1), 2: (1, 1)}
BACK = (-1, 1, -1)  # the three sides of the cube that are seen from within


def distributions(contract: Contract, states: ndarray, actions: ndarray, masks: ndarray) -> str:
    """A violin a number, by slot: normalised training states, and normalised actions of all clip starts.

    Args:
        states, actions, masks: of `quantiles.all_states` and `quantiles.chunk_actions`.
    """
    states = conventions.normalise_proprio(contract, states)
    # One range a number, whatever the contract scales by: the steps of all chunks are one violin.
    actions = conventions.normalise_action(contract.model_copy(update={"action_scaling": "chunk"}), actions)
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
    cell, high = WIDE / 4, 210
    drawing = Drawing(WIDE, high * (places[-1][0] + 1))
    for (row, column, wide), (title, names, columns, colour) in zip(places, panels, strict=True):
        left, right = column * cell + 34, (column + wide) * cell - 6
        top, bottom = row * high + 24, row * high + 176
        middle, unit = (top + bottom) / 2, (bottom - top) / 2 / (REACH + 0.3)
        drawing.text(left, top - 8, title, TITLE)
        drawing.line(left, top, left, bottom, AXIS)
        drawing.line(left, bottom, right, bottom, AXIS)
        for value in (-1, 0, 1):
            if value:
                drawing.line(left, middle - value * unit, right, middle - value * unit, GRID)
            drawing.line(left - 4, middle - value * unit, left, middle - value * unit, AXIS)
            drawing.text(left - 7, middle - value * unit + 4, f"{value}".replace("-", "−"), LABEL, "end")
        spacing = (right - left) / (len(names) + 0.2)
        turned = max(len(_short(name)) for name in names) * 6.6 > spacing
        for at, (name, values) in enumerate(zip(names, columns, strict=True)):
            x = left + (at + 0.6) * spacing
            _violin(drawing, x, middle, unit, spacing, values, colour)
            drawing.line(x, bottom, x, bottom + 4, AXIS)
            if turned:
                drawing.text(x + 4, bottom + 14, _short(name), 10, "end", turn=-25)
            else:
                drawing.text(x, bottom + 17, _short(name), LABEL, "middle")
    return drawing.url()


def paths(contract: Contract, motions: Mapping[int, Motion], held_out: set[int]) -> str | None:
    """End-effector paths in 3D, a plot a pose slot; None without a pose slot."""
    slots = [slot for slot in contract.slots if slot.kind == "pose" and slot.present]
    if not slots:
        return None
    numbers = list(motions)
    shown = {numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), PATHS)).astype(int))}
    side = 500
    drawing = Drawing(min(2, len(slots)) * WIDE / 2, -(-len(slots) // 2) * side)
    for cell, slot in enumerate(slots):
        at = conventions.state_slices(contract)[slot.name]
        low, high = np.full(3, np.inf), np.full(3, -np.inf)
        drawn: list[tuple[np.ndarray, str]] = []
        for number in numbers:
            path = motions[number].state[:, at][:, :3]
            low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
            if number in shown:
                drawn.append((path, HELD if number in held_out else INK))
        middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-3) * 1.05
        left, top = (cell % 2) * WIDE / 2, (cell // 2) * side
        cube = _Cube(left + WIDE / 4 - 16, top + side / 2 - 4, 140, middle, half)
        drawing.text(left + 16, top + 18, f"{slot.name}" + (f", in {slot.frame}" if slot.frame else ""), TITLE)
        _grid(drawing, cube)
        for path, colour in drawn:
            points = cube.seen(path)
            drawing.path(points, colour, 1.2, 0.7)
            drawing.dot(float(points[0, 0]), float(points[0, 1]), 3.2, colour)
    return drawing.url()


def timing(
    fps: float, numbers: Sequence[int], frames: Sequence[int], apart: Sequence[Sequence[float]], held_out: set[int]
) -> str:
    """Length of every episode, and the recorded time between its frames: least, median, most."""
    drawing = Drawing(WIDE, 242)
    colours = [HELD if number in held_out else INK for number in numbers]
    seconds = [count / fps for count in frames]
    left = _Frame(drawing, 36, WIDE / 2 - 6, max(seconds) * 1.05, "length of the episodes, s", numbers)
    for i, (value, colour) in enumerate(zip(seconds, colours, strict=True)):
        x, y = left.place(i, value)
        drawing.box(x - 0.4 * left.step, y, 0.8 * left.step, left.bottom - y, colour)
    known = [(i, values) for i, values in enumerate(apart) if len(values) == 3]
    most = max([2000 / fps, *(1100 * values[2] for _, values in known)])
    title = f"recorded time between frames, ms ({1000 / fps:.3g} declared)"
    right = _Frame(drawing, WIDE / 2 + 36, WIDE - 6, most, title, numbers)
    declared = right.place(0, 1000 / fps)[1]
    drawing.line(right.left, declared, right.right, declared, GRID)
    for i, values in known:
        least, median, longest = (right.place(i, 1000 * value) for value in values)
        drawing.line(*least, *longest, colours[i], 1.6)
        drawing.dot(*median, 3, colours[i])
    if not known:
        middle = (right.left + right.right) / 2, (right.top + right.bottom) / 2
        drawing.text(*middle, "no timestamps were recorded", LABEL, "middle", SOFT)
    return drawing.url()


def action_names(slot: Slot) -> Sequence[str]:
    """Names of a slot's action numbers; a single command in its own units is another quantity than the state."""
    if slot.kind == "pose":
        return TURNS
    return ("command",) if slot.command_units is not None and slot.action_width == 1 else slot.elements


class _Cube:
    """The cube that paths are drawn in: `reach` pixels from its middle to a side, `half` metres."""

    def __init__(self, x: float, y: float, reach: float, middle: np.ndarray, half: float) -> None:
        self.x, self.y, self.reach, self.middle, self.half = x, y, reach, middle, half

    def seen(self, points: np.ndarray) -> np.ndarray:
        """Metres [n, 3] -> pixels [n, 2]."""
        return self.at((points - self.middle) / self.half)

    def at(self, places: np.ndarray) -> np.ndarray:
        """Places in the cube, -1..1 [n, 3] -> pixels [n, 2]."""
        return np.stack([self.x + self.reach * (places @ RIGHT), self.y - self.reach * (places @ UP)], axis=-1)


def _grid(drawing: Drawing, cube: _Cube) -> None:
    """The three sides behind the paths with their lines, and the numbers of the three axes."""
    for axis in range(3):
        low, high = cube.middle[axis] - cube.half, cube.middle[axis] + cube.half
        others = [other for other in range(3) if other != axis]
        edge = np.zeros(3)
        edge[others] = EDGES[axis]
        out = cube.at(edge[None] * 1.1)[0] - cube.at(edge[None])[0]  # away from the cube
        anchor = "end" if axis == 0 else "start"
        for value, words in ticks(float(low), float(high), 6):
            place = (value - cube.middle[axis]) / cube.half
            for other in others:  # on each of the two sides that a plane of this value cuts
                (third,) = [a for a in others if a != other]
                ends = np.zeros((2, 3))
                ends[:, axis], ends[:, third], ends[:, other] = place, BACK[third], (-1, 1)
                drawing.path(cube.at(ends), GRID, 0.8)
            edge[axis] = place
            (x, y), (dx, dy) = cube.at(edge[None])[0].tolist(), (out * 6 / np.linalg.norm(out)).tolist()
            drawing.line(x, y, x + dx, y + dy, AXIS)
            drawing.text(x + 2 * dx, y + 2 * dy + 4, words, 9.5, anchor)
        ends = np.tile(edge, (2, 1))
        ends[:, axis] = (-1, 1)
        drawing.path(cube.at(ends), AXIS)
        edge[axis] = 0
        x, y = (cube.at(edge[None])[0] + out * (62 if axis == 2 else 54) / np.linalg.norm(out)).tolist()
        drawing.text(x, y + 4, f"{'xyz'[axis]}, m", LABEL, anchor)


class _Frame:
    """Axes with the episodes across and 0..`most` up."""

    top, bottom = 26.0, 196.0

    def __init__(
        self, drawing: Drawing, left: float, right: float, most: float, title: str, numbers: Sequence[int]
    ) -> None:
        self.left, self.right, self.most = left, right, most
        self.step = (right - left) / (len(numbers) + 0.6)
        drawing.text(left, self.top - 10, title, TITLE)
        drawing.line(left, self.top, left, self.bottom, AXIS)
        drawing.line(left, self.bottom, right, self.bottom, AXIS)
        for value, words in ticks(0.0, most, 5):
            y = self.place(0, value)[1]
            drawing.line(left - 4, y, left, y, AXIS)
            drawing.text(left - 7, y + 4, words, LABEL, "end")
        for i in np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), 12)).round().astype(int)).tolist():
            x = self.place(i, 0.0)[0]
            drawing.line(x, self.bottom, x, self.bottom + 4, AXIS)
            drawing.text(x, self.bottom + 17, str(numbers[i]), LABEL, "middle")
        drawing.text((left + right) / 2, self.bottom + 36, "episode", LABEL, "middle")

    def place(self, episode: int, value: float) -> tuple[float, float]:
        """Pixels of a value of the n-th episode."""
        x = self.left + (episode + 0.8) * self.step
        return x, self.bottom - (self.bottom - self.top) * value / self.most


def _violin(
    drawing: Drawing, x: float, middle: float, unit: float, spacing: float, column: np.ndarray, colour: str
) -> None:
    if not len(column):
        return
    counts, _ = np.histogram(column, BINS)
    width = 0.4 * spacing * np.sqrt(counts / max(1, counts.max()))  # the root, so that rare values can be seen
    tops, widths = (middle - BINS[:0:-1] * unit).tolist(), width[::-1].tolist()  # from the largest value down
    drawing.area(step_outline(x, tops, (BINS[1] - BINS[0]) * unit, widths), colour, 0.55)
    half, y = 0.12 * spacing, middle - float(np.median(column)) * unit
    drawing.line(x - half, y, x + half, y, colour, 2)
    for beyond, value, lower in ((column > REACH, REACH, -3), (column < -REACH, -REACH, 10)):
        if np.any(beyond):
            drawing.text(x, middle - value * unit + lower, f"{int(beyond.sum())} beyond", 8, "middle", SOFT)


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


def _words(slot: Slot) -> str:
    return (slot.convention or "").replace("_", " ")


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:6] + "…" + name[-7:]
