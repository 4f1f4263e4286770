"""Holes in depth, frames without any, and a scale that drifts between episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import depth_code
from xwam_ft.prepare.findings import Finding, Severity

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt16
    from numpy import ndarray

HOLES = 0.5  # share of valid pixels below which it is said
SAID, HELD = 0.02, 0.5  # shares at an end of the range: noted, and an error (of estimates: a warning)
PLAUSIBLE = (0.02, 60.0)  # metres a camera of a robot looks at, in the median
# What a wrong unit makes of the right one's metres.
UNITS = {"mm": 1e-3, "m": 1e3}
UNIT_WORDS = {
    "mm": "the numbers are millimetres read as metres: write `unit: mm`",
    "m": "the numbers are metres read as millimetres: write `unit: m`",
}
DRIFT = 0.08  # of the distance, from which it is said
GRID = (6, 8)
LEAST = 12  # cells two episodes must share


def check_depth(camera: str, valid: list[float]) -> list[Finding]:
    """`valid`: the share of valid pixels of each frame."""
    shares = np.array(valid)
    if not len(shares):
        return []
    if shares.max() == 0:
        return [Finding("depth-holes", "warning", f"camera {camera!r} has no depth at all", camera, camera, 0)]
    if shares.mean() < HOLES:
        text = f"camera {camera!r} has depth in {shares.mean():.0%} of its pixels"
        return [Finding("depth-holes", "warning", text, camera, camera, int(shares.argmin()))]
    empty = np.flatnonzero(shares == 0)
    if len(empty):
        text = f"camera {camera!r} has no depth in {len(empty)} of {len(shares)} frames, first in frame {empty[0]}"
        return [Finding("depth-holes", "warning", text, camera, camera, int(empty[0]))]
    return []


def level(metres: Float[ndarray, "*n"]) -> list[float]:
    """The median of the valid metres of a block; empty where there is none."""
    known = metres[np.isfinite(metres) & (metres > 0)]
    return [float(np.median(known))] if len(known) else []


def held_shares(codes: UInt16[ndarray, "n h w"]) -> tuple[float, float]:
    """Of the valid pixels, the shares held at the near and at the far end of the range."""
    near, far, valid = 0, 0, 0
    for frame in codes:
        near += int(np.count_nonzero(frame == depth_code.NEAREST))
        far += int(np.count_nonzero(frame == depth_code.FARTHEST))
        valid += int(np.count_nonzero(frame))
    return near / max(valid, 1), far / max(valid, 1)


def check_range(
    camera: str, ends: tuple[float, float], metres: float, near_far: tuple[float, float], *, recorded: bool
) -> list[Finding]:
    """Depth that is held at the ends of the coded range: a wrong unit, a wrong range, or something in the way.

    Args:
        ends: of the valid pixels, the shares at or nearer than `near`, and at or beyond `far`.
        metres: their median before they were coded.
        recorded: by a sensor or in files, whose unit somebody stated; estimates have no unit to mistake.
    """
    near, far = near_far
    share, end = max(zip(ends, (f"{near:g} m or nearer", f"{far:g} m or farther"), strict=True))
    absurd = not PLAUSIBLE[0] <= metres <= PLAUSIBLE[1]
    if share < SAID and not absurd:
        return []
    text = f"camera {camera!r} has {share:.0%} of its depth at {end} (median {metres:.3g} m)"
    if recorded and (absurd or share > HELD):
        fits = [unit for unit, factor in UNITS.items() if near < metres * factor < far]
        either = "mend `unit` (metres of one count, say) or `depth_range` of this camera"
        text += f"; {UNIT_WORDS[fits[0]] if fits else either}"
        return [Finding("depth-range", "error", text, camera, camera, 0)]
    severity: Severity = "warning" if absurd or share > HELD else "note"
    return [Finding("depth-range", severity, text, camera, camera, 0)]


def depth_grid(codes: UInt16[ndarray, "n h w"], near: float, far: float) -> list[float | None]:
    """The median distance in metres of 6 x 8 cells over a few frames; None where none is exact."""
    metres = np.where(depth_code.is_exact(codes), depth_code.code_to_metres(codes, near, far), np.nan)
    found: list[float | None] = []
    for band in np.array_split(metres, GRID[0], axis=1):
        for cell in np.array_split(band, GRID[1], axis=2):
            known = cell[np.isfinite(cell)]
            found.append(round(float(np.median(known)), 4) if 2 * len(known) >= cell.size else None)
    return found


def check_drift(camera: str, grids: dict[int, list[float | None]]) -> dict[int, Finding]:
    """Episodes whose depth of a *static* camera is another multiple of the same scene than in the other episodes.

    Each cell is compared with its median over the other episodes; what moves changes some cells, a scale changes all.
    """
    if len(grids) < 3:
        return {}
    numbers = list(grids)
    logs = np.log(np.array([grids[number] for number in numbers], dtype=np.float64))  # None becomes nan
    medians, known = medians_of_others(logs)
    shared = np.isfinite(medians) & (2 * known >= len(numbers) - 1)
    rows = np.flatnonzero(shared.sum(axis=1) >= LEAST)
    if not len(rows):
        return {}
    ratios = np.where(shared, logs - medians, np.nan)[rows]
    scales = np.nanmedian(ratios, axis=1)
    # A scene that was rearranged changes cells by different ratios; a scale changes all by one.
    alike = np.sum(np.abs(ratios - scales[:, None]) < np.abs(scales[:, None]) / 2, axis=1)
    flagged = (np.abs(scales) > np.log1p(DRIFT)) & (alike / shared[rows].sum(axis=1) > 0.7)
    found: dict[int, Finding] = {}
    for row, scale in zip(rows[flagged], scales[flagged], strict=True):
        text = (
            f"depth of camera {camera!r} is {np.exp(scale):.2f} times that of the other episodes, "
            f"in {int(shared[row].sum())} cells of the same scene"
        )
        found[numbers[row]] = Finding("depth-drift", "warning", text, camera, camera, 0)
    return found


def medians_of_others(values: Float[ndarray, "n c"]) -> tuple[Float[ndarray, "n c"], Int[ndarray, "n c"]]:
    """For every finite value, the median of its column's other finite values, and how many these are.

    Sorted once: without the value of rank r, the k-th smallest is the k-th where k < r, and the one after it elsewhere.

    Returns:
        nan where the value is not finite, or the only one.
    """
    ordered = np.sort(values, axis=0)  # nan last
    rank = np.argsort(np.argsort(values, axis=0), axis=0)
    known = np.isfinite(values)
    others = known.sum(axis=0) - known
    middle: list[np.ndarray] = []
    for k in ((others - 1) // 2, others // 2):
        k = np.clip(k, 0, None)
        middle.append(np.take_along_axis(ordered, np.minimum(k + (k >= rank), len(values) - 1), axis=0))
    return np.where(known & (others > 0), (middle[0] + middle[1]) / 2, np.nan), others
