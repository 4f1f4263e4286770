"""Training clips in whose actions nothing moves: which they are, so that they can be shown less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.checks.idle import stillness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool
    from numpy import ndarray

    from xwam_ft.encode.cache import CachedClip
    from xwam_ft.shards import Segment, ShardSet


def still_clips(shards: ShardSet, clips: Sequence[CachedClip]) -> Bool[ndarray, " n"]:
    """Of clips of one shard set, in which neither state nor command leaves where it is at the clip's start.

    Clips of a segment stand together, so that each segment is read once.
    """
    contract = shards.contract
    bounds, timing = stillness(contract), contract.timing
    span = timing.action_steps * timing.action_skip
    entries = {entry.key: entry for entry in shards.index.segments}
    found = np.zeros(len(clips), dtype=bool)
    segment: Segment | None = None
    for place, clip in enumerate(clips):
        key, _, start = clip.key.rpartition("-")
        if segment is None or segment.key != key:
            segment = shards.read_motion(entries[key])
        first = int(start) - segment.first_frame
        rows = slice(first, first + span)
        found[place] = not bounds.left(segment.proprio[rows], segment.action[rows]).any()
    return found
