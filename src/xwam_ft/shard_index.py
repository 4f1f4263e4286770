"""What a shard set says of its files: entries of index.json, each segment's meta.json, names inside the tars."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Split = Literal["train", "held_out"]

INDEX_VERSION = 1
META = "meta.json"
MOTION = "motion.npz"
MOTION_TABLES = ("proprio", "proprio_mask", "action", "action_mask")


def rgb_member(camera: str) -> str:
    return f"rgb.{camera}.mp4"


def depth_member(camera: str) -> str:
    return f"depth.{camera}.mkv"


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SegmentMeta(Entry):
    """`<key>.meta.json`. Frames and starts are counted in episode frames."""

    key: str
    episode: int
    split: Split
    first_frame: int
    num_frames: int
    first_start: int
    num_starts: int
    instruction: str
    fps: float
    cameras: tuple[str, ...]
    depth: bool


class SegmentEntry(Entry):
    """A segment in the index.

    `members` gives [offset, size] in bytes of each of its files inside the tar, `crc32c` each one's CRC-32C; sets that
    were written before there were any have none.
    """

    key: str
    episode: int
    shard: str
    first_frame: int
    num_frames: int
    first_start: int
    num_starts: int
    split: Split
    members: dict[str, tuple[int, int]]
    crc32c: dict[str, int] = {}


class EpisodeEntry(Entry):
    index: int
    key: str
    frames: int
    split: Split
    instruction: str
    success: bool | None
    source: str  # the recording it came from, for people
    segments: tuple[str, ...]  # keys
    instructions: tuple[str, ...] = ()  # all of them, `instruction` first, where several were recorded


class ShardEntry(Entry):
    name: str
    bytes: int
    sha256: str


class Index(Entry):
    """index.json"""

    schema_version: Literal[1] = INDEX_VERSION
    contract_sha256: str
    shards: tuple[ShardEntry, ...]
    episodes: tuple[EpisodeEntry, ...]
    segments: tuple[SegmentEntry, ...]
