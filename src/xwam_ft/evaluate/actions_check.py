"""Does an imagined future follow the actions it is imagined under?

One observation, one noise, several chunks of actions given clean: those that were recorded, the same in reversed order,
those of another clip; and the policy's own. A model that knows what actions do comes nearest to the recorded future
under the recorded actions. One that is blind to them imagines the same thing each time, and its ranks are chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.closed_loop import success_interval
from xwam_ft.evaluate.intervals import Episodes, chosen, mean_interval

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

GIVEN = ("recorded", "reversed", "other_clip")
"""Chunks that are ranked; the first is the right one."""
RIVALS = ("own", *GIVEN[1:])
CANDIDATES = (GIVEN[0], *RIVALS)
CHANCE = 1 / len(GIVEN)


def consistency(distances: Mapping[str, Float[ndarray, " n"]], episodes: Episodes = None) -> dict[str, Any]:
    """What distances to the recorded future say, a number a clip under each of `CANDIDATES`; NaN is not counted.

    Returns:
        {"clips", "first": share of clips where the recorded chunk is nearest (a tie counts as its share),
        "first_interval_95" (Wilson, of whole clips), "chance", "mean_rank" (1 is nearest), "mean_rank_interval_95"
        (bootstrap over episodes), "chance_rank", "beats": {rival: share of clips where the recorded chunk is nearer},
        "ranks": [n]}.
    """
    known = np.all([np.isfinite(distances[name]) for name in CANDIDATES], axis=0)
    rows = np.stack([distances[name] for name in GIVEN], axis=1)
    ranks, first = ranks_of_first(rows)
    right = distances[GIVEN[0]]
    beats = {name: np.where(right == distances[name], 0.5, right < distances[name]) for name in RIVALS}
    share = float(first[known].mean()) if known.any() else None
    return {
        "clips": int(known.sum()),
        "first": share,
        "first_interval_95": None if share is None else success_interval(round(share * known.sum()), int(known.sum())),
        "chance": CHANCE,
        "mean_rank": float(ranks[known].mean()) if known.any() else None,
        "mean_rank_interval_95": mean_interval(ranks[known], chosen(episodes, known)),
        "chance_rank": (len(GIVEN) + 1) / 2,
        "beats": {name: float(values[known].mean()) if known.any() else None for name, values in beats.items()},
        "ranks": [float(rank) if counted else None for rank, counted in zip(ranks, known, strict=True)],
    }


def ranks_of_first(rows: Float[ndarray, "n k"]) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
    """The rank of the first column in each row (1 is smallest, ties share), and its share of the first place."""
    from scipy.stats import rankdata

    ranks = rankdata(rows, axis=1)[:, 0]
    least = rows == rows.min(axis=1, keepdims=True)
    return ranks, np.where(least[:, 0], 1 / np.maximum(least.sum(axis=1), 1), 0.0)


def sentence(found: Mapping[str, Any], what: str) -> str:
    """What a `consistency` means, and whether to worry."""
    if found["first"] is None:
        return f"action -> {what}: no clip in which anything moves, so nothing can be said"
    low, high = found["first_interval_95"]
    head = (
        f"action -> {what}: in {100 * found['first']:.0f} % of {found['clips']} clips what is imagined under the "
        f"recorded actions is nearer to the recorded future than under reversed ones and another clip's (95 % interval "
        f"{100 * low:.0f} to {100 * high:.0f} %, chance {100 * CHANCE:.0f} %)"
    )
    # Answers that differ at random put the recorded chunk first less often than one in three, since reversed ones are
    # like it; its mean rank is chance then as well, so that decides.
    nearest, farthest = found["mean_rank_interval_95"] or (0.0, float("inf"))
    if low > CHANCE and farthest < found["chance_rank"]:
        return f"{head}: it follows the actions"
    if high < CHANCE and nearest > found["chance_rank"]:
        return f"{head}: below chance, so suspect units, signs or the time of the recorded actions"
    return f"{head}: no proof that it follows the actions; do not choose between actions by what is imagined"
