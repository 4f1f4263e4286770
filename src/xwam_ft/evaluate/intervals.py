"""95 % intervals of what a few clips say: percentile bootstrap, always with the same draws.

Clips of one episode are alike, so where it is known whose they are, episodes are drawn, and of each its clips: the
first holds how episodes differ, the second keeps an interval of two or three episodes from being next to nothing. Of a
single episode nothing is known of others: then clips alone are drawn, and the interval is rather too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

DRAWS = 2000
LEAST = 2  # clips, for an interval at all
Interval = tuple[float, float]


Episodes = Sequence[object] | None
"""The episode of each clip; None where every clip is of its own."""


def drawn(episodes: Episodes) -> str:
    """What is drawn: "episodes", or "clips" where there is but one of those."""
    return "clips" if episodes is None or len(set(episodes)) < LEAST else "episodes"


def chosen(episodes: Episodes, kept: Bool[ndarray, " n"]) -> Episodes:
    """The episodes of the clips that are kept."""
    return None if episodes is None else [one for one, counted in zip(episodes, kept, strict=True) if counted]


def mean_interval(values: Float[ndarray, " n"], episodes: Episodes = None) -> Interval | None:
    """Of the mean; None of fewer than two clips."""
    return None if len(values) < LEAST else _bounds(_resampled_means(values, 0, episodes))


def difference_interval(
    first: Float[ndarray, " n"],
    second: Float[ndarray, " m"],
    *,
    paired: bool,
    episodes: tuple[Episodes, Episodes] = (None, None),
) -> Interval | None:
    """Of the mean of `second` less that of `first`; `paired`: the same clips in the same order."""
    if paired:
        return mean_interval(second - first, episodes[0])
    if min(len(first), len(second)) < LEAST:
        return None
    return _bounds(_resampled_means(second, 1, episodes[1]) - _resampled_means(first, 0, episodes[0]))


def spearman(
    first: Float[ndarray, " n"], second: Float[ndarray, " n"], episodes: Episodes = None
) -> tuple[float, Interval] | None:
    """Rank correlation and its interval; None where one of them does not vary, or of fewer than four clips."""
    if len(first) < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    if drawn(episodes) == "clips":
        draws = _draws(len(first), 0)
        found = _correlation(first[draws], second[draws])
    else:  # draws are of unequal lengths
        rows = _draws_of_episodes(tuple(episodes or ()), 0)
        found = np.array([_correlation(first[None, row], second[None, row])[0] for row in rows])
    return float(_correlation(first[None], second[None])[0]), _bounds(found)


def _correlation(first: Float[ndarray, "k n"], second: Float[ndarray, "k n"]) -> Float[ndarray, " k"]:
    from scipy.stats import rankdata

    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (first, second))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(scale > 0, (a * b).sum(axis=1) / np.where(scale > 0, scale, 1.0), np.nan)


def _resampled_means(values: Float[ndarray, " n"], seed: int, episodes: Episodes = None) -> Float[ndarray, " k"]:
    if drawn(episodes) == "clips":
        return values[_draws(len(values), seed)].mean(axis=1)
    return np.array([values[row].mean() for row in _draws_of_episodes(tuple(episodes or ()), seed)])


@lru_cache(maxsize=8)
def _draws_of_episodes(episodes: tuple[object, ...], seed: int) -> list[ndarray]:
    """Places of clips: as many episodes as there are, drawn with replacement, of each as many clips as it has."""
    found: dict[object, list[int]] = {}
    for place, episode in enumerate(episodes):
        found.setdefault(episode, []).append(place)
    members = [np.array(places) for places in found.values()]
    within = np.random.default_rng([seed, 1])
    return [
        np.concatenate([members[index][within.integers(0, len(members[index]), len(members[index]))] for index in row])
        for row in _draws(len(members), seed)
    ]


def _draws(count: int, seed: int) -> ndarray:
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _bounds(found: ndarray) -> Interval:
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)
