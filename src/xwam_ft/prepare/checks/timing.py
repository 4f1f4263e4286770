"""Dropped frames, jitter and the wrong rate, from the recorded timestamps. Frame number / fps is used in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

DROPPED = 1.6  # periods between two frames from which one is missing
JITTER = 0.25  # of a period, standard deviation of the steps without the drops
OFF = 0.05  # of the rate
EXACT = 1e-3  # s; a step within it of a whole period is a clock of such a resolution, not jitter


def check_time(timestamps: Float[ndarray, " f"] | None, fps: float) -> list[Finding]:
    """Oddities of the timestamps in seconds, at a declared rate of `fps`."""
    if timestamps is None:
        return [Finding("time-missing", "note", "no timestamps were recorded; frame number / fps is used")]
    if len(timestamps) < 2:
        return []
    steps = np.diff(timestamps) * fps  # in periods
    if not np.all(np.isfinite(steps)):
        return [Finding("time-missing", "warning", "some timestamps are no numbers; frame number / fps is used")]
    if not np.any(steps):
        return [Finding("time-missing", "warning", "all timestamps are equal; frame number / fps is used")]
    if np.any(steps < 0):
        at = int(np.flatnonzero(steps < 0)[0]) + 1
        return [Finding("time-backwards", "warning", f"time runs backwards at frame {at}", frame=at)]
    found: list[Finding] = []
    usual = float(np.median(steps))
    if abs(usual - 1) > OFF and len(steps) >= 5:
        text = f"a frame lasts {1000 * usual / fps:.3g} ms, and {fps:g} fps are declared ({1000 / fps:.3g} ms)"
        fix = ""
        if abs(usual / 1000 - 1) < OFF:
            text += ": the timestamps look like milliseconds"
            fix = "divide the timestamps by 1000"
        found.append(Finding("wrong-rate", "warning", text, fix=fix))
    usual = max(usual, 1e-9)
    gaps = steps / usual > DROPPED
    if np.any(gaps):
        missing = int(np.sum(np.round(steps[gaps] / usual) - 1))
        at = int(np.argmax(steps))
        text = (
            f"{missing} frames are missing in {int(gaps.sum())} gaps; {steps[at] / fps:.2f} s pass between frames "
            f"{at} and {at + 1}, at {fps:g} fps"
        )
        found.append(Finding("dropped-frames", "warning", text, frame=at + 1))
    spread = float(np.std(steps[~gaps])) if np.any(~gaps) else 0.0
    if spread / usual > JITTER and spread / fps > EXACT:
        text = f"frames come unevenly: steps of {1000 * usual / fps:.3g} ms vary by {1000 * spread / fps:.2g} ms"
        found.append(Finding("jittered-time", "warning", text))
    return found


def seconds_apart(timestamps: Float[ndarray, " f"] | None) -> list[float]:
    """Least, median and most seconds between two frames, for the report; empty where no times were recorded."""
    if timestamps is None or len(timestamps) < 2 or not np.all(np.isfinite(timestamps)):
        return []
    steps = np.diff(timestamps)
    return [round(float(value), 6) for value in (steps.min(), np.median(steps), steps.max())]
