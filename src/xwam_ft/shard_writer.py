"""Writing a shard set: where segments end, the bytes of each, and the tars, byte-reproducible.

`prepare` cuts every episode with `segment_bounds`, encodes segments anywhere and in any order with `encode_segment`,
and hands the bytes to one `ShardSetWriter` in the order of episodes and frames. Equal input gives equal files: fixed
dates, owners and modes, one encoder thread a video. index.json is written last; a folder without it is unfinished.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from xwam_ft.contract import Contract, Timing
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, sha256, write_json_atomic
from xwam_ft.media import gray16_bytes, rgb_bytes
from xwam_ft.shard_index import (
    META,
    MOTION,
    MOTION_TABLES,
    EpisodeEntry,
    Index,
    SegmentEntry,
    SegmentMeta,
    ShardEntry,
    Split,
    depth_member,
    rgb_member,
)
from xwam_ft.shards import CONTRACT_FILE, INDEX_FILE, Segment, ShardSet

if TYPE_CHECKING:
    from numpy import ndarray

SHARD_BYTES = 128 << 20
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
Bounds = tuple[int, int, int, int]


def segment_bounds(num_frames: int, timing: Timing, segment_frames: int) -> list[Bounds]:
    """Cut an episode: (first_frame, num_frames, first_start, num_starts) of each segment.

    Every frame of the episode is a clip start of exactly one segment; a segment holds at most `segment_frames` frames
    and all that its clips touch up to the episode's end (past it, clips are padded).

    Raises:
        ValueError: `segment_frames` is shorter than a clip, or there are no frames.
    """
    if num_frames < 1 or segment_frames < timing.span:
        raise ValueError(f"{num_frames} frames in segments of {segment_frames}, with clips of {timing.span}")
    bounds: list[Bounds] = []
    start = 0
    while num_frames - start > segment_frames:
        owned = segment_frames - timing.span + 1
        bounds.append((start, segment_frames, start, owned))
        start += owned
    bounds.append((start, num_frames - start, start, num_frames - start))
    return bounds


def episode_key(episode: int) -> str:
    """The episode's name, a function of its number alone: equal recordings in two formats get equal keys."""
    return f"episode-{episode:06d}"


def segment_key(episode: int, first_frame: int) -> str:
    return f"{episode_key(episode)}-{first_frame:06d}"


def encode_segment(segment: Segment, cameras: Sequence[str], fps: float) -> dict[str, bytes]:
    """The files of one segment, by extension ("meta.json", "rgb.<camera>.mp4", ...).

    Args:
        cameras: their names, in the order of the segment's views (the contract's).
    """
    assert segment.rgb.shape[:2] == (len(cameras), segment.num_frames)
    meta = SegmentMeta(
        key=segment.key,
        episode=segment.episode,
        split=segment.split,
        first_frame=segment.first_frame,
        num_frames=segment.num_frames,
        first_start=segment.first_start,
        num_starts=segment.num_starts,
        instruction=segment.instruction,
        fps=fps,
        cameras=tuple(cameras),
        depth=segment.depth is not None,
    )
    members = {META: meta.model_dump_json().encode(), MOTION: _npz({n: getattr(segment, n) for n in MOTION_TABLES})}
    for view, camera in enumerate(cameras):
        members[rgb_member(camera)] = rgb_bytes(segment.rgb[view], fps)
        if segment.depth is not None:
            assert segment.depth.shape == segment.rgb.shape[:-1]
            members[depth_member(camera)] = gray16_bytes(segment.depth[view], fps)
    return members


class ShardSetWriter:
    """Writes one shard set; segments must come by episode and frame.

    with ShardSetWriter(folder) as writer:
        writer.add(members)      # of encode_segment, once a segment
        writer.finish(contract, [EpisodeEntry(...), ...])

    Each tar appears under its final name when it is full; what a killed run left is written over.

    Raises:
        UserError: the folder holds a finished shard set already.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        if (folder / INDEX_FILE).exists():
            raise UserError("holds a finished shard set already", folder, "choose another folder or remove this one")
        folder.mkdir(parents=True, exist_ok=True)
        for remains in folder.glob(".shard-*.tmp.tar"):
            remains.unlink()
        self.folder = folder
        self._limit = shard_bytes
        self._tar: _Tar | None = None  # the one being written: segments go to disk as they come
        self._shards: list[ShardEntry] = []
        self._segments: list[SegmentEntry] = []
        self._last = (-1, -1)

    def __enter__(self) -> ShardSetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar is not None:  # without finish() the folder stays unfinished, whole tars at most
            self._tar.drop()

    def add(self, members: dict[str, bytes]) -> None:
        """Append a segment: the files `encode_segment` made, read back from wherever they were kept."""
        meta = SegmentMeta.model_validate_json(members[META])
        if (meta.episode, meta.first_frame) <= self._last:
            raise ValueError(f"segment {meta.key} comes out of order")
        self._last = (meta.episode, meta.first_frame)
        size = sum(len(data) for data in members.values())
        if self._tar is not None and self._tar.size + size > self._limit:
            self._close_shard(self._tar)
        if self._tar is None:
            self._tar = _Tar(self.folder / f"shard-{len(self._shards):06d}.tar")
        self._segments.append(
            SegmentEntry(
                key=meta.key,
                episode=meta.episode,
                shard=self._tar.path.name,
                first_frame=meta.first_frame,
                num_frames=meta.num_frames,
                first_start=meta.first_start,
                num_starts=meta.num_starts,
                split=meta.split,
                members={name: self._tar.add(f"{meta.key}.{name}", members[name]) for name in sorted(members)},
                crc32c={name: google_crc32c.value(members[name]) for name in sorted(members)},
            )
        )

    def finish(self, contract: Contract, episodes: Iterable[EpisodeEntry]) -> ShardSet:
        """Write the last tar, contract.json and index.json; return the set, opened."""
        if self._tar is not None:
            self._close_shard(self._tar)
        episodes = tuple(episodes)
        named = [key for episode in episodes for key in episode.segments]
        if named != [segment.key for segment in self._segments]:
            raise ValueError("the episodes do not name the segments that were added, in order")
        written = {shard.name for shard in self._shards}
        for stale in self.folder.glob("shard-*.tar"):
            if stale.name not in written:
                stale.unlink()
        contract.save(self.folder / CONTRACT_FILE)
        index = Index(
            contract_sha256=contract.sha256,
            shards=tuple(self._shards),
            episodes=episodes,
            segments=tuple(self._segments),
        )
        write_json_atomic(self.folder / INDEX_FILE, json.loads(index.model_dump_json()))
        return ShardSet.open(self.folder)

    def _close_shard(self, tar: _Tar) -> None:
        tar.close()
        self._shards.append(ShardEntry(name=tar.path.name, bytes=tar.path.stat().st_size, sha256=sha256(tar.path)))
        self._tar = None


class _Tar:
    """A tar written file by file, as webdataset's TarWriter writes it (which would load torch); fixed dates, no owner.

    It appears under its name when it is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of the files in it
        self._stack = ExitStack()
        enter = self._stack.enter_context
        stream = enter(enter(atomic_path(path)).open("wb"))
        self._tar = enter(tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT))  # noqa: SIM115

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a file; where it stands in the tar, and its size."""
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(data), 0o644, 0
        self._tar.addfile(member, io.BytesIO(data))
        self.size += len(data)
        return self._tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)

    def close(self) -> None:
        self._stack.close()

    def drop(self) -> None:
        """Remove what was written."""
        with suppress(_Dropped):
            self._stack.__exit__(_Dropped, _Dropped(), None)


class _Dropped(Exception):
    pass


def episode_entry(
    index: int,
    segments: Sequence[str],
    *,
    frames: int,
    split: Split,
    instructions: Sequence[str],
    source: str,
    success: bool | None = None,
) -> EpisodeEntry:
    """The index's line for one episode.

    Args:
        segments: keys of its segments in order.
        instructions: wordings of what it was told, the usual one first; none where nothing was recorded.
    """
    return EpisodeEntry(
        index=index,
        key=episode_key(index),
        frames=frames,
        split=split,
        instruction=instructions[0] if instructions else "",
        instructions=tuple(instructions) if len(instructions) > 1 else (),
        success=success,
        source=source,
        segments=tuple(segments),
    )


def _npz(tables: dict[str, ndarray]) -> bytes:
    """What np.savez writes, with a fixed date and uncompressed, so that equal tables give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, table in tables.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(table, dtype=np.float64), allow_pickle=False)
            place = zipfile.ZipInfo(f"{name}.npy", date_time=ZIP_DATE)
            place.create_system, place.external_attr = 3, 0o644 << 16
            archive.writestr(place, content.getvalue())
    return buffer.getvalue()
