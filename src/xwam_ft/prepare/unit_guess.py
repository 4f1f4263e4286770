"""The unit of recorded numbers, told from their ranges: `inspect` proposes it, `prepare` doubts what is stated by it.

What decides, for joints: values beyond a turn in radians cannot be radians; values that reach exactly +-100, or stop at
them, are LeRobot's percentages; whole numbers of hundreds are servo ticks. For positions: an arm reaches a few metres,
so values in tens are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.action_semantics import Sure

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

TURN, HALF_TURN = 2 * np.pi, 3.3  # a little more than half of one
TURNS = 1.5 * TURN  # of a joint of an arm; more is a wheel, or another unit
REACH = 5.0  # m
PERCENT = 110.0  # what LeRobot's percentages reach beyond their calibrated range


@dataclass(frozen=True)
class UnitGuess:
    unit: str | None  # of the embodiment file's; None: none of them
    sure: Sure
    why: str


def guess_units(kind: str, values: Float[ndarray, "f n"], *, told: bool = True) -> UnitGuess:
    """The unit of a slot's columns (for a pose, of its position).

    Args:
        kind: joints, pose, gripper or vector.
        values: the columns over the episodes that were read (of a pose, x y z); not finite ones are left out.
        told: whether any episode could be read.
    """
    finite = values[np.isfinite(values).all(axis=1)]
    if not told:
        return UnitGuess(None, "unsure", "no numbers could be read")
    if not len(finite) or np.ptp(finite, axis=0).max() == 0:
        return UnitGuess(None, "unsure", "nothing moves")
    if kind == "pose":
        return _position(finite[:, :3])
    if kind == "joints":
        return _joints(finite)
    if kind == "gripper":
        return _gripper(finite)
    return UnitGuess(None, "unsure", "a vector's numbers may be anything")


@dataclass(frozen=True)
class Doubt:
    """Why a stated unit cannot be the recorded numbers' (`certain`), or hardly."""

    certain: bool
    why: str


def doubt_units(kind: str, unit: str, values: Float[ndarray, "f n"]) -> Doubt | None:
    """What speaks against the unit stated for recorded columns; None where nothing does.

    Args:
        kind: joints, position, or angles (of a pose).
        unit: as in the embodiment file, the same for all columns.
    """
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        return None
    rules = {"joints": _doubt_joints, "position": _doubt_position, "angles": _doubt_angles}
    return rules[kind](unit, finite)


def _doubt_joints(unit: str, values: np.ndarray) -> Doubt | None:
    guess, sizes = _joints(values), np.abs(values).max(axis=0)
    size, count, span = float(sizes.max()), len(sizes), float(np.median(np.ptp(values, axis=0)))
    seen = f"values reach {size:.4g}"
    small = size <= TURN and size > 1.2 and span > 0.2  # what an arm's radians look like
    if unit == "rad":
        beyond = int(np.sum(sizes > TURNS))
        if not beyond:
            return None
        also = "servo ticks" if size > 400 else "degrees" if guess.unit == "deg" and guess.sure == "sure" else ""
        also = also or "degrees, or a servo's -100..100"
        what = f"{seen}, beyond {TURNS / TURN:g} turns in {beyond} of {count} columns: they look like {also}"
        return Doubt(count >= 3 and beyond >= count / 2, what)
    if unit == "deg" and size > 400:
        whole = bool(np.all(values == np.round(values)))
        return Doubt(whole and size > 1000, f"{seen}: they look like {'servo ticks' if whole else 'several turns'}")
    if unit in ("deg", "range_m100_100", "range_0_100") and small:
        return Doubt(count >= 4 and span > 0.5, f"{seen} and span {span:.2g}: they look like radians")
    if unit in ("range_m100_100", "range_0_100") and size > PERCENT:
        return Doubt(True, f"{seen}: they look like {'servo ticks' if size > 400 else 'degrees'}")
    if unit == "range_0_100" and values.min() < 100.0 - PERCENT:
        return Doubt(True, f"values go down to {values.min():.4g}: they look like -100..100, or degrees")
    if unit == "ticks" and size <= 400 and np.mean(values == np.round(values)) < 0.5:
        return Doubt(True, f"{seen} and are no whole numbers: they look like degrees or radians")
    return None


def _doubt_position(unit: str, values: np.ndarray) -> Doubt | None:
    guess, size, span = _position(values), float(np.abs(values).max()), float(np.ptp(values, axis=0).max())
    if unit == "m" and size > REACH:
        sure = guess.sure == "sure" or size > 20 * REACH
        return Doubt(sure, f"{guess.why}: they look like {'millimetres' if sure else 'millimetres or centimetres'}")
    if unit == "mm" and guess.unit == "m" and span > 0.05:
        return Doubt(True, f"{guess.why}: they look like metres")
    return None


def _doubt_angles(unit: str, values: np.ndarray) -> Doubt | None:
    size, span = float(np.abs(values).max()), float(np.ptp(values, axis=0).max())
    if unit == "rad" and size > TURN + 0.2:
        return Doubt(size > 3 * TURN, f"angles reach {size:.4g}: they look like degrees")
    half = np.any(np.abs(np.median(np.abs(values), axis=0) - np.pi) < 0.05)  # a tool that points down
    if unit == "deg" and size <= np.pi + 0.01 and (half or span > 0.5):
        return Doubt(bool(half), f"angles reach {size:.4g} and span {span:.2g}: they look like radians")
    return None


def _position(values: np.ndarray) -> UnitGuess:
    size, span = float(np.abs(values).max()), float(np.ptp(values, axis=0).max())
    seen = f"positions of up to {size:.3g} that span {span:.3g}"
    if size <= REACH:
        return UnitGuess("m", "sure" if span > 0.05 else "likely", seen)
    return UnitGuess("mm", "sure" if span > 50 and size < 1000 * REACH else "likely", seen)


def _joints(values: np.ndarray) -> UnitGuess:
    size = float(np.abs(values).max())
    spans = np.ptp(values, axis=0)
    seen = f"values of up to {size:.3g}, spans of {spans.min():.3g} to {spans.max():.3g}"
    whole = bool(np.all(values == np.round(values)))
    if whole and size > 400:
        return UnitGuess(None, "sure", f"servo ticks? whole numbers, {seen}; calibrate them")
    if size > 400:
        return UnitGuess(None, "unsure", seen)
    if 99.0 <= size <= 100.0:
        return UnitGuess(None, "likely", f"percentages -100..100? {seen}; calibrate them")
    if size > 100.0:
        return UnitGuess("deg", "sure" if len(spans) > 1 else "likely", seen)
    if size > TURN:
        return UnitGuess("deg", "unsure", f"degrees, or LeRobot's -100..100? {seen}")
    if size > HALF_TURN:
        return UnitGuess(None, "unsure", f"radians beyond half a turn, or degrees of a small motion? {seen}")
    if size > 1.2 and np.median(spans) > 0.2:
        return UnitGuess("rad", "sure" if size > 1.6 and len(spans) >= 4 else "likely", seen)
    return UnitGuess("rad", "unsure", f"{seen}: radians of a small motion, or normalised numbers")


def _gripper(values: np.ndarray) -> UnitGuess:
    low, high = float(values.min()), float(values.max())
    seen = f"{low:.3g} to {high:.3g}"
    if values.shape[1] == 1 and 0.005 < high <= 0.2 and low >= -0.01:
        return UnitGuess("m", "likely", f"an opening of {seen}")
    if low >= -1e-3 and high <= 1.001:
        return UnitGuess("1", "likely", f"a share, {seen}")
    if low >= -1.0 and 10.0 < high <= 101.0:
        return UnitGuess("1", "likely", f"a percentage, {seen}")
    return UnitGuess(None, "unsure", seen)
