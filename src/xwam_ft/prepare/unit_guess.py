"""The unit of recorded numbers, told from their names and ranges; for the starter file only, never for `prepare`.

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
REACH = 5.0  # m


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
