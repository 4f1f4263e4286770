"""Clips in which nothing moves: which they are, and how often they are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from xwam_ft.encode.clip_source import ClipPool
from xwam_ft.encode.data_sets import DataSets
from xwam_ft.encode.still import still_clips
from xwam_ft.errors import UserError
from xwam_ft.recipe import DataSpec
from xwam_ft.shards import Segment, ShardSet

if TYPE_CHECKING:
    from xwam_ft.encode.cache import LatentCache
    from xwam_ft.shard_index import SegmentEntry

STILL = 15  # frames from the start of every episode


class WaitingSet(ShardSet):
    """Recordings that begin before the robot moves."""

    def read_motion(self, entry: SegmentEntry) -> Segment:
        segment = super().read_motion(entry)
        tables = {"proprio": segment.proprio.copy(), "action": segment.action.copy()}
        for table in tables.values():
            count = max(0, STILL - segment.first_frame)
            table[:count] = table[0]
        return replace(segment, **tables)


@pytest.fixture
def waiting(toy_set: ShardSet) -> DataSets:
    own = {name: getattr(toy_set, name) for name in ("folder", "contract", "index")}
    return DataSets((WaitingSet(**own),), ("set",), None)


def data(sets: DataSets, weight: float) -> DataSpec:
    return DataSpec(shards=str(sets.sets[0].folder), still_weight=weight)


def test_they_are_found_and_shown_as_often_as_the_recipe_says(
    toy_set: ShardSet, toy_cache: LatentCache, waiting: DataSets
) -> None:
    clips = toy_cache.of_split("train")
    assert not still_clips(toy_set, clips).any()
    timing = toy_set.contract.timing
    last = STILL - timing.action_steps * timing.action_skip
    starts = np.array([int(clip.key.rpartition("-")[2]) for clip in clips])
    found = still_clips(waiting.sets[0], clips)
    assert found.tolist() == (starts <= last).tolist()
    assert 0 < found.sum() < len(clips)

    assert ClipPool([toy_cache], waiting, data(waiting, 1.0)).weights is None
    for weight in (0.0, 0.1):
        pool = ClipPool([toy_cache], waiting, data(waiting, weight))
        assert pool.weights is not None
        np.testing.assert_allclose(pool.weights, np.where(found, weight, 1.0))


def test_where_nothing_moves_at_all_leaving_them_out_is_refused(
    toy_cache: LatentCache, waiting: DataSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.STILL", 1000)
    with pytest.raises(UserError, match=r"no clip of set would ever be shown.*raise data\.still_weight"):
        ClipPool([toy_cache], waiting, data(waiting, 0.0))
