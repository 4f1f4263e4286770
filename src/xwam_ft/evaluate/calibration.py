"""Does a policy know when it does not know: the spread of its samples against their error, clip by clip.

Of several samples the first one's error (root mean square to what was recorded) is compared with how far the *others*
lie from each other. The first takes no part in the spread, so samples that differ by chance alone give no correlation.
Were the recorded future one more sample, error and spread would be equal: a ratio above 1 is too sure of itself.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.intervals import Episodes, chosen, spearman

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray


def error_and_spread(samples: Sequence[ndarray], recorded: ndarray) -> tuple[float, float]:
    """Of one clip: at least three samples, of the shape of what was recorded (NaN there does not count)."""
    known = np.isfinite(recorded)
    if not known.any():
        return float("nan"), float("nan")
    first, *others = (sample[known] for sample in samples)
    apart = [np.mean((a - b) ** 2) for a, b in combinations(others, 2)]
    return float(np.sqrt(np.mean((first - recorded[known]) ** 2))), float(np.sqrt(np.mean(apart)))


def calibration(
    errors: Float[ndarray, " n"], spreads: Float[ndarray, " n"], episodes: Episodes = None
) -> dict[str, Any]:
    """{"spearman", "interval_95", "ratio", "errors", "spreads"}; None where it cannot be told. `ratio` is error over
    spread, both as root mean squares over clips."""
    known = np.isfinite(errors) & np.isfinite(spreads)
    found = spearman(errors[known], spreads[known], chosen(episodes, known))
    wide = float(np.mean(spreads[known] ** 2)) if known.any() else 0.0
    return {
        "spearman": None if found is None else found[0],
        "interval_95": None if found is None else found[1],
        "ratio": float(np.sqrt(np.mean(errors[known] ** 2) / wide)) if wide > 0 else None,
        "errors": [float(value) if np.isfinite(value) else None for value in errors],
        "spreads": [float(value) if np.isfinite(value) else None for value in spreads],
    }
