"""Which episodes a policy was trained on, by a digest of how the robot moved: known again in any other set of them.

Recordings that are prepared, split or merged anew keep their states and commands, whatever they are numbered or held
out as. So a set's held-out episodes can be told from what a bundle has seen.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

    from xwam_ft.shard_index import Split
    from xwam_ft.shards import ShardSet

ROUNDED = 5  # decimals: what another machine's last bits do not change
FRAMES = 256
"""The first frames of an episode, or of its first segment where that is shorter."""


def digests(shards: ShardSet, split: Split, episodes: Collection[int] | None = None) -> dict[int, str]:
    """Episode -> the digest of its first states and commands; of all of a split, or of some of them."""
    found: dict[int, str] = {}
    for entry in shards.segments(split):
        if entry.first_frame or entry.episode in found or (episodes is not None and entry.episode not in episodes):
            continue
        motion = shards.read_motion(entry)
        hashed = hashlib.sha256()
        for table in (motion.proprio[:FRAMES], motion.action[:FRAMES] * motion.action_mask[:FRAMES]):
            hashed.update((np.round(table, ROUNDED) + 0.0).astype("<f4").tobytes())
        found[entry.episode] = hashed.hexdigest()[:16]
    return found
