"""Streams with clocks of their own -> one clock: nearest, linear, held, and great arcs for quaternions. Seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

Rule = Literal["linear", "nearest", "hold"]
# Rates recorders aim at and miss by a little: one within this share of a whole number is that number.
NOMINAL = 0.03


def nearest(
    clock: Float[ndarray, " f"], times: Float[ndarray, " n"]
) -> tuple[Int[ndarray, " f"], Float[ndarray, " f"]]:
    """The sample nearest to each tick, and how far off it is. `times` ascend."""
    after = np.clip(np.searchsorted(times, clock), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        after = np.zeros(len(clock), dtype=np.int64)
        return after, np.abs(clock - times[0])
    chosen = np.where(clock - times[after - 1] <= times[after] - clock, after - 1, after)
    return chosen, np.abs(times[chosen] - clock)


def held(clock: Float[ndarray, " f"], times: Float[ndarray, " n"]) -> Int[ndarray, " f"]:
    """The last sample at or before each tick; -1 where there is none yet."""
    return np.searchsorted(times, clock, side="right") - 1


def resample(
    clock: Float[ndarray, " f"], times: Float[ndarray, " n"], values: Float[ndarray, " n"], rule: Rule
) -> Float[ndarray, " f"]:
    """One number at every tick; NaN where a held one has not come yet. Of samples at one time the last counts."""
    keep = np.append(np.diff(times) > 0, True)
    times, values = times[keep], values[keep]
    if rule == "linear":
        return np.interp(clock, times, values)
    if rule == "nearest":
        return values[nearest(clock, times)[0]]
    index = held(clock, times)
    return np.where(index < 0, np.nan, values[np.maximum(index, 0)])


def resample_quaternions(
    clock: Float[ndarray, " f"], times: Float[ndarray, " n"], xyzw: Float[ndarray, "n 4"]
) -> Float[ndarray, "f 4"]:
    """Rotations at every tick along the shortest arc; NaN where what is recorded is no quaternion."""
    from scipy.spatial.transform import Rotation, Slerp

    keep = np.append(np.diff(times) > 0, True)
    times, xyzw = times[keep], xyzw[keep]
    if not np.all(np.isfinite(xyzw)) or np.any(np.linalg.norm(xyzw, axis=1) < 1e-6):
        return np.full((len(clock), 4), np.nan)
    turns = Rotation.from_quat(xyzw)
    if len(times) == 1:
        return np.repeat(turns.as_quat(), len(clock), axis=0)
    return Slerp(times, turns)(np.clip(clock, times[0], times[-1])).as_quat()


def rate(times: Float[ndarray, " n"]) -> float:
    """Samples a second, by the median step (dropped ones do not slow it); 0 below two samples."""
    steps = np.diff(times)
    steps = steps[steps > 0]
    return float(1.0 / np.median(steps)) if len(steps) else 0.0


def nominal_rate(measured: float) -> float:
    """The whole number a measured rate means, else the measured one with two decimals."""
    whole = round(measured)
    return float(whole) if whole and abs(measured - whole) <= NOMINAL * whole else round(measured, 2)
