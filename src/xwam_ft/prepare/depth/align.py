"""Relative depth of a video, estimated picture by picture: every frame has its own scale and shift, which are undone.

Where a picture shows the same thing as the one before it (its colours stayed), its depth stayed too. So each frame is
fitted to what is known of those pixels, the mean of their aligned values since they last changed: frame = a known + c,
by least squares with Tukey's weights (the known mean is the regressor, since it is the less noisy of the two; the
other way round every fit would shrink the range a little). Where too little stands still, as on a moving wrist, median
and spread of the whole frame are matched instead. The first frame keeps its scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from numpy import ndarray

SAME_COLOUR = 8  # largest difference of a channel (0..255) of a pixel that stands still; video noise stays below
LEAST_SHARE = 0.02  # of the pixels that must stand still for a fit
MOST_PIXELS = 16384  # of a frame that a fit uses
ITERATIONS = 10
PAIRS = 64  # of points whose lines a fit may start from
MEDIAN_PIXELS = 1024  # by which those lines are compared
TUKEY = 4.685  # robust standard deviations beyond which a pixel counts nothing
LARGEST_CHANGE = 20.0  # of scale from one frame to the next; more is a failed fit


@dataclass(frozen=True)
class Flicker:
    """Mean change of what stands still from one frame to the next, as a share of the episode's range (2 % to 98 %).

    None where nothing stands still. `raw`: before alignment.
    """

    raw: float | None
    aligned: float | None


def align_video(inverse: Float[ndarray, "f h w"], pictures: UInt8[ndarray, "f h w 3"]) -> Flicker:
    """Undo each frame's own scale and shift of `inverse` (NaN = none), in place; both may be memory maps.

    Reads and writes one frame at a time.
    """
    step = max(1, round((inverse.shape[1] * inverse.shape[2] / MOST_PIXELS) ** 0.5))
    raw, changed = _Change(), _Change()
    known: np.ndarray | None = None
    count = np.zeros(inverse.shape[1:], dtype=np.int64)
    before_raw = before = picture_before = None
    for at in range(len(inverse)):
        frame, picture = np.array(inverse[at], dtype=np.float64), np.asarray(pictures[at])
        finite = np.isfinite(frame)
        still = np.zeros(frame.shape, dtype=bool)
        if picture_before is not None:
            still = _still(picture_before, picture)
        aligned = frame
        if known is not None and finite.any() and count.any():
            scale, shift = _fit(frame, known, count > 0, still & (count > 0) & finite, step)
            aligned = frame * scale + shift
        keep = still & (count > 0) & finite
        if known is None:
            known = np.zeros_like(frame)
        count = np.where(keep, count + 1, np.where(finite, 1, np.where(still, count, 0)))
        weight = 1.0 / np.maximum(count, 1)
        known = np.where(finite, np.where(keep, known + (aligned - known) * weight, aligned), known)
        raw.add(frame, before_raw, still)
        changed.add(aligned, before, still)
        inverse[at] = aligned
        before_raw, before, picture_before = frame, aligned, picture
    return Flicker(raw.share(), changed.share())


def flicker(values: ndarray, pictures: UInt8[ndarray, "f h w 3"]) -> float | None:
    """`Flicker.aligned` of depth codes [F, H, W] (0 = none), which are linear in inverse depth."""
    change = _Change()
    before = picture_before = None
    for frame, picture in zip(values, pictures, strict=True):
        value = np.where(np.asarray(frame) == 0, np.nan, np.asarray(frame, dtype=np.float64))
        if picture_before is not None:
            change.add(value, before, _still(picture_before, picture))
        else:
            change.add(value, None, np.zeros(value.shape, dtype=bool))
        before, picture_before = value, np.asarray(picture)
    return change.share()


def robust_line(
    x: Float[ndarray, " n"], y: Float[ndarray, " n"], iterations: int = ITERATIONS
) -> tuple[float, float] | None:
    """(a, c) of y = a x + c by iteratively reweighted least squares (Tukey's biweight); None where x is one value.

    It starts from the line with the least median residual among those through `PAIRS` pairs of points, since points
    far off on one side (in x too) would bend a start by plain least squares so far that it holds on to them.
    """
    if float(np.ptp(x)) <= 1e-6 * float(np.abs(x).max(initial=1e-300)):
        return None
    slope, intercept = _start(x, y)
    for _ in range(iterations):
        residual = y - (slope * x + intercept)
        deviation = 1.4826 * float(np.median(np.abs(residual)))
        # Where more than half lie on the line, what rounding leaves of them is the deviation.
        deviation = max(deviation, 1e-9 * float(np.abs(y).max()))
        weights = np.square(np.clip(1.0 - np.square(residual / (TUKEY * deviation)), 0.0, None))
        total = weights.sum()
        mean_x, mean_y = float(weights @ x / total), float(weights @ y / total)
        spread = float(weights @ (x - mean_x) ** 2)
        if spread <= 1e-12 * float(weights @ x**2):
            return None
        before, slope = slope, float(weights @ ((x - mean_x) * (y - mean_y))) / spread
        intercept = mean_y - slope * mean_x
        if abs(slope - before) <= 1e-9 * abs(slope):
            break
    return slope, intercept


def _start(x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> tuple[float, float]:
    random = np.random.default_rng(0)  # the same pairs every time
    some = slice(None, None, -(-len(x) // MEDIAN_PIXELS))
    first, second = random.integers(0, len(x), (2, PAIRS))
    apart = np.abs(x[second] - x[first]) > 1e-3 * float(np.ptp(x))
    if not apart.any():
        first, second, apart = np.array([x.argmin()]), np.array([x.argmax()]), np.array([True])
    first, second = first[apart], second[apart]
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    intercepts = y[first] - slopes * x[first]
    residuals = np.abs(y[some] - (slopes[:, None] * x[some] + intercepts[:, None]))
    best = int(np.argmin(np.median(residuals, axis=1, overwrite_input=True)))
    return float(slopes[best]), float(intercepts[best])


def _fit(frame: ndarray, known: ndarray, seen: ndarray, still: ndarray, step: int) -> tuple[float, float]:
    """Scale and shift that take `frame` to what is known (where `seen`), by the pixels that stand `still`."""
    chosen = still[::step, ::step]
    if chosen.mean() >= LEAST_SHARE:
        line = robust_line(known[::step, ::step][chosen], frame[::step, ::step][chosen])
        if line is not None and 1 / LARGEST_CHANGE < line[0] < LARGEST_CHANGE:
            return 1.0 / line[0], -line[1] / line[0]
    ours, theirs = frame[np.isfinite(frame)], known[seen]
    (low, middle, high), (low0, middle0, high0) = (np.quantile(v, [0.1, 0.5, 0.9]) for v in (ours, theirs))
    scale = float((high0 - low0) / (high - low)) if high > low and high0 > low0 else 1.0
    return scale, float(middle0 - scale * middle)


def _still(before: UInt8[ndarray, "h w 3"], now: UInt8[ndarray, "h w 3"]) -> Bool[ndarray, "h w"]:
    return np.abs(before.astype(np.int16) - now.astype(np.int16)).max(axis=2) <= SAME_COLOUR


class _Change:
    """Mean change of still pixels, and the range it is compared with, gathered frame by frame."""

    def __init__(self) -> None:
        self.changes: list[float] = []
        self.ends: list[tuple[float, float]] = []

    def add(self, value: ndarray, before: ndarray | None, still: ndarray) -> None:
        finite = np.isfinite(value)
        if finite.any():
            low, high = np.quantile(value[finite], [0.02, 0.98])
            self.ends.append((float(low), float(high)))
        if before is not None:
            both = still & finite & np.isfinite(before)
            if both.mean() >= LEAST_SHARE:
                self.changes.append(float(np.abs(value[both] - before[both]).mean()))

    def share(self) -> float | None:
        if not self.changes:
            return None
        lows, highs = np.array(self.ends).T
        span = float(np.median(highs) - np.median(lows))
        return float(np.mean(self.changes)) / span if span > 0 else None
