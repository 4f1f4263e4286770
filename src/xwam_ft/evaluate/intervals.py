"""95 % intervals of what a few clips say: percentile bootstrap over clips, always with the same draws.

Clips of one episode are alike, so these intervals are rather too narrow than too wide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

DRAWS = 2000
LEAST = 2  # clips, for an interval at all
Interval = tuple[float, float]


def mean_interval(values: Float[ndarray, " n"]) -> Interval | None:
    """Of the mean; None of fewer than two clips."""
    return None if len(values) < LEAST else _bounds(_resampled_means(values, 0))


def difference_interval(first: Float[ndarray, " n"], second: Float[ndarray, " m"], *, paired: bool) -> Interval | None:
    """Of the mean of `second` less that of `first`; `paired`: the same clips in the same order."""
    if paired:
        return mean_interval(second - first)
    if min(len(first), len(second)) < LEAST:
        return None
    return _bounds(_resampled_means(second, 1) - _resampled_means(first, 0))


def spearman(first: Float[ndarray, " n"], second: Float[ndarray, " n"]) -> tuple[float, Interval] | None:
    """Rank correlation and its interval; None where one of them does not vary, or of fewer than four clips."""
    if len(first) < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    draws = _draws(len(first), 0)
    return float(_correlation(first[None], second[None])[0]), _bounds(_correlation(first[draws], second[draws]))


def _correlation(first: Float[ndarray, "k n"], second: Float[ndarray, "k n"]) -> Float[ndarray, " k"]:
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (first, second))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(scale > 0, (a * b).sum(axis=1) / np.where(scale > 0, scale, 1.0), np.nan)


def _resampled_means(values: Float[ndarray, " n"], seed: int) -> Float[ndarray, " k"]:
    return values[_draws(len(values), seed)].mean(axis=1)


def _draws(count: int, seed: int) -> ndarray:
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _bounds(found: ndarray) -> Interval:
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)
