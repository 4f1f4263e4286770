"""The shard format: what `prepare` writes and everything after it reads.

A shard set is a folder with `contract.json`, `index.json` and `shard-NNNNNN.tar`. One WebDataset sample is one
*segment*: a run of frames of one episode at the source's frame rate and the contract's resolution:

    <key>.meta.json              SegmentMeta
    <key>.rgb.<camera>.mp4       H.264, 8 bit
    <key>.depth.<camera>.mkv     FFV1, 16-bit inverse-depth codes, 0 = invalid (see depth_code.py); absent without depth
    <key>.motion.npz             proprio [F, P] state, action [F, Q] command, absolute, SI units, and their masks

Clip starts are partitioned between the segments of an episode: a segment owns the starts `first_start ..
first_start + num_starts - 1` (episode frames) and holds every frame those clips touch, so neighbours overlap by a
clip less a frame and each start belongs to exactly one segment.

`index.json` (an `Index`) says where each file of a segment stands in its tar, so that any segment is read alone; the
tars are ordinary WebDataset shards all the same. shard_writer.py writes them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload
from zipfile import BadZipFile

import numpy as np
from pydantic import ValidationError

from xwam_ft.arguments import checked
from xwam_ft.contract import Contract, Timing, load_contract, require_compatible
from xwam_ft.copies import LOCAL_GB
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.files import json_bytes, sha256
from xwam_ft.media import read_gray16, read_rgb
from xwam_ft.shard_files import AGAIN, CONTRACT_FILE, INDEX_FILE, ShardFiles, read_index
from xwam_ft.shard_index import (
    META,
    MOTION,
    MOTION_TABLES,
    EpisodeEntry,
    Index,
    SegmentEntry,
    SegmentMeta,
    Split,
    depth_member,
    rgb_member,
)

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

Pictures = Literal["all", "rgb", "depth", "none"]
RGB, DEPTH = ("all", "rgb"), ("all", "depth")


@dataclass(frozen=True)
class Segment:
    """A decoded segment. F frames, V views (the contract's order), P state and Q command numbers."""

    key: str
    episode: int
    split: Split
    first_frame: int  # episode frame of row 0
    first_start: int  # the clip starts this segment owns, in episode frames
    num_starts: int
    instruction: str
    rgb: UInt8[ndarray, "v f h w 3"]
    depth: UInt16[ndarray, "v f h w"] | None  # inverse-depth codes, 0 = invalid
    proprio: Float[ndarray, "f p"]
    proprio_mask: Float[ndarray, "f p"]
    action: Float[ndarray, "f q"]  # absolute commands
    action_mask: Float[ndarray, "f q"]

    @property
    def num_frames(self) -> int:
        return len(self.proprio)


@dataclass(frozen=True)
class Clip:
    """What one training sample shows. T frames, Ta actions; past the recording's end everything is held and masked."""

    key: str  # "<segment key>-<start, 6 digits>"
    start: int  # episode frame of the first picture
    instruction: str
    rgb: UInt8[ndarray, "v t h w 3"]
    depth: UInt16[ndarray, "v t h w"] | None
    frame_valid: Float[ndarray, " t"]  # 0 where the picture is the held last one
    proprio: Float[ndarray, "t p"]  # absolute states at the pictures' times (Tp = T)
    proprio_mask: Float[ndarray, "t p"]
    action: Float[ndarray, "ta q"]  # absolute commands at start + i * action_skip
    action_mask: Float[ndarray, "ta q"]
    action_states: Float[ndarray, "ta p"]  # the states at the actions' times (delta_to_state needs them)


def cut_clip(segment: Segment, start: int, timing: Timing) -> Clip:
    """Cut the clip that starts at episode frame `start` out of a decoded segment.

    Raises:
        ValueError: the segment does not own that start (an error of ours: ask the index).
    """
    _own(segment, start)
    frames = _picture_rows(segment, start, timing)
    return _assemble(segment, start, timing, segment.rgb[:, frames], _at(segment.depth, frames))


@dataclass(frozen=True)
class ClipRef:
    """One clip of a shard set: a segment and the episode frame the clip starts at."""

    entry: SegmentEntry
    start: int

    @property
    def key(self) -> str:
        return f"{self.entry.key}-{self.start:06d}"


@dataclass(frozen=True)
class ShardSet:
    """A shard set opened for reading, a sequence of its segments; holds no open files, so workers may share it."""

    folder: Path
    contract: Contract
    index: Index
    left_out: tuple[str, ...] = ()  # damaged shards of which nothing stands in `index`
    index_sha256: str | None = None  # of a set at a URL
    local_gb: float = LOCAL_GB  # of copies on this machine, of a set at a URL

    def __len__(self) -> int:
        return len(self.index.segments)

    @overload
    def __getitem__(self, number: int) -> Segment: ...

    @overload
    def __getitem__(self, number: slice) -> list[Segment]: ...

    def __getitem__(self, number: int | slice) -> Segment | list[Segment]:
        """A segment, decoded, or those of a slice; iterating goes through all of them, in the order of the index."""
        if isinstance(number, slice):
            return [self.read(entry) for entry in self.index.segments[number]]
        return self.read(self.index.segments[number])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of index.json and of what is left out."""
        whole = self.index_sha256 or sha256(self.folder / INDEX_FILE)
        return whole if not self.left_out else hashlib.sha256(json_bytes([whole, *self.left_out])).hexdigest()

    @classmethod
    @checked()
    def open(cls, folder: str | Path, *, sizes: bool = True, local_gb: float = LOCAL_GB) -> ShardSet:
        """Read contract and index, and check that every shard is there with its size.

        Args:
            folder: where the set lies; a URL too (remote.py).
            sizes: False leaves that check out (`damage` finds it).
            local_gb: of this machine's disk that copies of what is read from a URL may fill (copies.py).

        Raises:
            UserError: not a finished shard set, made by another version, or damaged; a URL that does not answer.
        """
        folder = Path(folder)
        tree, print_ = read_index(folder)
        contract = load_contract(folder / CONTRACT_FILE)
        try:
            index = Index.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(f"is not an index of this version ({reason})", folder / INDEX_FILE, AGAIN) from None
        if index.contract_sha256 != contract.sha256:
            raise UserError(
                f"belongs to the contract {index.contract_sha256[:12]}, and {folder / CONTRACT_FILE} is "
                f"{contract.sha256[:12]}",
                folder / INDEX_FILE,
                f"restore the contract these shards were made with, or {AGAIN}",
            )
        shards = cls(folder, contract, index, index_sha256=print_, local_gb=local_gb)
        for shard in index.shards if sizes else ():
            if (found := shards.files.missing_or_cut(shard)) is not None:
                raise UserError(found, folder / shard.name, f"copy the whole folder again, or {AGAIN}")
        return shards

    @cached_property
    def files(self) -> ShardFiles:
        """The tars, wherever they lie."""
        return ShardFiles(self.folder, self.local_gb)

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {shard.name: shard.sha256 for shard in self.index.shards}

    def verify(self) -> None:
        """Check the SHA-256 of every shard; a `UserError` names the first that is damaged."""
        for shard in self.index.shards:
            if (found := self.files.damage(shard)) is not None:
                raise UserError(found, self.files.place(shard.name), f"copy it again, or {AGAIN}")

    def under(self, contract: Contract, contract_at: Path | str) -> ShardSet:
        """The same shards with another preparation's contract, whose quantiles then normalise them.

        Raises:
            UserError: the contracts are not of one embodiment; names the field.
        """
        require_compatible(contract, contract_at, self.contract, self.folder / CONTRACT_FILE)
        return replace(self, contract=contract)

    def segments(self, split: Split | None = None) -> list[SegmentEntry]:
        """The segments of a split (None: all), in the order of the index: by episode, then by frame."""
        return [entry for entry in self.index.segments if split is None or entry.split == split]

    def episode(self, index: int) -> EpisodeEntry:
        """The episode with this number.

        Raises:
            UserError: there is none.
        """
        for episode in self.index.episodes:
            if episode.index == index:
                return episode
        known = [str(episode.index) for episode in self.index.episodes]
        hint = did_you_mean(str(index), known)
        raise UserError(f"there is no episode {index}{hint}", self.folder, f"choose one of: {listed(known)}")

    def read(self, entry: SegmentEntry) -> Segment:
        """Decode a whole segment."""
        return self._read(entry, None)

    def read_motion(self, entry: SegmentEntry) -> Segment:
        """A segment without its pictures (`rgb` is [V, F, 0, 0, 3], no depth): states and commands at little cost."""
        return self._read(entry, None, pictures="none")

    def clips(self, split: Split | None, stride: int) -> list[ClipRef]:
        """The clips that start at multiples of `stride` (episode frames), each with a real picture after its first."""
        skip = self.contract.timing.frame_skip
        found: list[ClipRef] = []
        for entry in self.segments(split):
            end = entry.first_frame + entry.num_frames  # a segment ends where its last clip or the episode does
            first = -(-entry.first_start // stride) * stride
            stop = min(entry.first_start + entry.num_starts, end - skip)
            found += [ClipRef(entry, start) for start in range(first, stop, stride)]
        return found

    def read_clip(self, ref: ClipRef, pictures: Pictures = "all") -> Clip:
        """Decode one clip: what `cut_clip` gives of its segment, but only the pictures it shows are decoded.

        Args:
            pictures: which are decoded; those left out have no pixels (`rgb` [V, T, 0, 0, 3]) or are None (`depth`).
        """
        timing = self.contract.timing
        _own(ref.entry, ref.start)
        rows = _picture_rows(ref.entry, ref.start, timing)
        segment = self._read(ref.entry, rows, pictures=pictures)
        rgb = segment.rgb if pictures in RGB else segment.rgb[:, : len(rows)]
        return _assemble(segment, ref.start, timing, rgb, segment.depth)

    def _read(self, entry: SegmentEntry, rows: np.ndarray | None, *, pictures: Pictures = "all") -> Segment:
        """Decode a segment; with `rows`, only those pictures."""
        frames = None if rows is None else rows.tolist()
        cameras = self.contract.camera_names
        wanted = [META, MOTION]
        wanted += [rgb_member(camera) for camera in cameras if pictures in RGB]
        wanted += [name for camera in cameras if pictures in DEPTH and (name := depth_member(camera)) in entry.members]
        member, videos = self.files.members(entry, wanted, self._versions[entry.shard])
        try:
            meta = SegmentMeta.model_validate_json(member[META])
            if not entry.key.endswith(meta.key):
                raise ValueError(f"it holds {meta.key}")
            with np.load(io.BytesIO(member[MOTION]), allow_pickle=False) as archive:
                tables = {name: np.asarray(archive[name], dtype=np.float64) for name in MOTION_TABLES}
            rgb, depth = np.zeros((len(cameras), len(tables["proprio"]), 0, 0, 3), dtype=np.uint8), None
            if pictures in RGB:
                rgb = np.stack([read_rgb(videos[rgb_member(camera)], frames) for camera in cameras])
            if pictures in DEPTH and meta.depth:
                depth = np.stack([read_gray16(videos[depth_member(camera)], frames) for camera in cameras])
        except (UserError, KeyError, ValueError, OSError, BadZipFile) as error:
            raise self.files.unreadable(entry, error.what if isinstance(error, UserError) else str(error)) from None
        return Segment(
            key=entry.key,  # of the index, which may be one of several sets joined
            episode=entry.episode,
            split=meta.split,
            first_frame=meta.first_frame,
            first_start=meta.first_start,
            num_starts=meta.num_starts,
            instruction=meta.instruction,
            rgb=rgb,
            depth=depth,
            **tables,
        )


def _own(segment: Segment | SegmentEntry, start: int) -> None:
    if not segment.first_start <= start < segment.first_start + segment.num_starts:
        raise ValueError(f"segment {segment.key} does not own clip start {start}")


def _picture_rows(segment: Segment | SegmentEntry, start: int, timing: Timing) -> np.ndarray:
    """Rows of the segment that the clip's pictures show; past the end the last one is held."""
    rows = start - segment.first_frame + np.arange(timing.clip_frames) * timing.frame_skip
    return np.minimum(rows, segment.num_frames - 1)


def _at(pictures: np.ndarray | None, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
    return None if pictures is None else pictures[:, rows]


def _assemble(segment: Segment, start: int, timing: Timing, rgb: np.ndarray, depth: np.ndarray | None) -> Clip:
    """A clip of the pictures it shows and the rows of its segment's tables."""
    first, last = start - segment.first_frame, segment.num_frames - 1
    frames = first + np.arange(timing.clip_frames) * timing.frame_skip
    actions = first + np.arange(timing.action_steps) * timing.action_skip
    frame_valid, action_valid = (frames <= last).astype(np.float64), (actions <= last).astype(np.float64)
    frames, actions = np.minimum(frames, last), np.minimum(actions, last)
    return Clip(
        key=f"{segment.key}-{start:06d}",
        start=start,
        instruction=segment.instruction,
        rgb=rgb,
        depth=depth,
        frame_valid=frame_valid,
        proprio=segment.proprio[frames],
        proprio_mask=segment.proprio_mask[frames] * frame_valid[:, None],
        action=segment.action[actions],
        action_mask=segment.action_mask[actions] * action_valid[:, None],
        action_states=segment.proprio[actions],
    )
