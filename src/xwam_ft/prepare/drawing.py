"""A drawing as SVG text, and the ticks of an axis: what the report's plots need, without a plotting library."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal
from xml.sax.saxutils import escape, quoteattr

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
HALF_PIXELS = 2.0  # points of a path nearer than that share of a pixel are one

Anchor = Literal["start", "middle", "end"]


class Drawing:
    """Shapes in pixels, y downwards, in the order in which they were added."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._shapes: list[str] = []

    def line(
        self, x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1.0, opacity: float = 1.0
    ) -> None:
        ends = f'x1="{_n(x0)}" y1="{_n(y0)}" x2="{_n(x1)}" y2="{_n(y1)}"'
        self._shapes.append(f'<line {ends} stroke="{colour}" stroke-width="{_n(width)}" opacity="{_n(opacity)}"/>')

    def path(self, points: Float[ndarray, "n 2"], colour: str, width: float = 1.0, opacity: float = 1.0) -> None:
        """A line through points; those that fall on one spot are drawn once."""
        spots = np.round(np.asarray(points) * HALF_PIXELS) / HALF_PIXELS
        spots = spots[np.concatenate([[True], np.any(np.diff(spots, axis=0) != 0, axis=1)])]
        text = " ".join(f"{x:g},{y:g}" for x, y in spots.tolist())
        style = f'fill="none" stroke="{colour}" stroke-width="{_n(width)}" opacity="{_n(opacity)}"'
        self._shapes.append(f'<polyline points="{text}" {style}/>')

    def area(self, outline: str, colour: str, opacity: float = 1.0) -> None:
        """A filled outline, given as SVG path data."""
        self._shapes.append(f'<path d="{outline}" fill="{colour}" opacity="{_n(opacity)}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
        self._shapes.append(f'<rect {place} fill="{colour}"/>')

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self._shapes.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{colour}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        anchor: Anchor = "start",
        colour: str = "#222",
        turn: float = 0.0,
    ) -> None:
        """One line of text, its baseline's start, middle or end at (x, y); `turn` in degrees, clockwise."""
        place = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" text-anchor="{anchor}" fill="{colour}"'
        turned = f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"' if turn else ""
        self._shapes.append(f"<text {place}{turned}>{escape(words)}</text>")

    def svg(self) -> str:
        size = f'width="{_n(self.width)}" height="{_n(self.height)}" viewBox="0 0 {_n(self.width)} {_n(self.height)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family={quoteattr(FONT)}>'
        return "\n".join([head, *self._shapes, "</svg>\n"])

    def url(self) -> str:
        """The drawing as a data URL, for an <img>."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg().encode()).decode()}"


def ticks(low: float, high: float, about: int) -> list[tuple[float, str]]:
    """Round numbers within [low, high], `about` as many, and how they are written: all with the same decimals."""
    least = (high - low) / max(1, about)
    if not (math.isfinite(least) and least > 0):
        return []
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in STEPS if factor * power >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = next(d for d in range(20) if abs(round(step, d) - step) < step * 1e-6)
    values = [number * step for number in range(first, last + 1)]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


def step_outline(middle: float, tops: Sequence[float], height: float, halves: Sequence[float]) -> str:
    """Path data of bars `height` pixels high around a vertical line: a violin with steps.

    Args:
        middle: x of the line.
        tops: y of each bar's upper edge, one below the other.
        halves: half the width of each bar.
    """
    down = "".join(f"H{_n(middle + half)}v{_n(height)}" for half in halves)
    up = "".join(f"H{_n(middle - half)}v{_n(-height)}" for half in reversed(halves))
    return f"M{_n(middle)} {_n(tops[0])}{down}{up}z"


def _n(value: float) -> str:
    """A number of pixels, as short as it goes."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
