"""What a shard set holds of an episode, put together from its segments again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np

from xwam_ft.prepare.checks.across import content_hash
from xwam_ft.quantiles import Motion

if TYPE_CHECKING:
    from xwam_ft.shard_index import EpisodeEntry, SegmentEntry
    from xwam_ft.shards import ShardSet

Place = tuple["ShardSet", "EpisodeEntry"]


def segments_of(shards: ShardSet, episode: EpisodeEntry) -> list[SegmentEntry]:
    """The segments of an episode, in order."""
    return SegmentsByKey(shards)[episode]


class SegmentsByKey:
    """The segments of a set's episodes, looked up by key: made once a set."""

    def __init__(self, shards: ShardSet) -> None:
        self._entries = {entry.key: entry for entry in shards.index.segments}

    def __getitem__(self, episode: EpisodeEntry) -> list[SegmentEntry]:
        return [self._entries[key] for key in episode.segments]


class StoredMotions(Sequence[Motion]):
    """The motions of some episodes, of one set or several, each read when it is looked at and not kept."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)

    @cached_property
    def _segments(self) -> dict[int, SegmentsByKey]:
        sets = {id(shards): shards for shards, _ in self.places}
        return {key: SegmentsByKey(shards) for key, shards in sets.items()}

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Motion: ...

    @overload
    def __getitem__(self, index: slice) -> StoredMotions: ...

    def __getitem__(self, index: int | slice) -> Motion | StoredMotions:
        if isinstance(index, slice):
            return StoredMotions(self.places[index])
        shards, episode = self.places[index]
        parts = [shards.read_motion(entry) for entry in self._segments[id(shards)][episode]]
        frames = max(part.first_frame + part.num_frames for part in parts)
        contract = shards.contract
        state, command, mask = (
            np.zeros((frames, width)) for width in (contract.state_dim, contract.command_dim, contract.command_dim)
        )
        for part in parts:  # neighbours overlap, in equal rows
            rows = slice(part.first_frame, part.first_frame + part.num_frames)
            state[rows], command[rows], mask[rows] = part.proprio, part.action, part.action_mask
        return Motion(state, command, mask)


def members_of(shards: ShardSet, entry: SegmentEntry) -> dict[str, bytes]:
    """The files of a segment as they stand in its shard, by extension."""
    with (shards.folder / entry.shard).open("rb") as stream:
        found: dict[str, bytes] = {}
        for name, (offset, size) in entry.members.items():
            stream.seek(offset)
            found[name] = stream.read(size)
    return found


def content_of(shards: ShardSet, episode: EpisodeEntry, motion: Motion) -> str:
    """What tells an episode from every other: its numbers, and where nothing moves its videos."""
    if digest := content_hash(motion):
        return digest
    seen = hashlib.sha256()
    for entry in segments_of(shards, episode):
        for name, data in sorted(members_of(shards, entry).items()):
            if name.endswith((".mp4", ".mkv")):
                seen.update(data)
    return seen.hexdigest()
