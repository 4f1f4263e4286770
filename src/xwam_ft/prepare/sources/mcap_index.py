"""Where every message of an MCAP file is: one walk over its records, which reads no message.

Chunks are skipped over and their message indexes read, so a file of many gigabytes costs as many seeks as it has
chunks. Files without chunks, without message indexes or without a summary are indexed by the same walk, and a file
that a killed recorder left is told by its missing end. Record layouts: https://mcap.dev/spec.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from xwam_ft.errors import UserError, require
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Int
    from numpy import ndarray

MAGIC = b"\x89MCAP0\r\n"
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, MESSAGE_INDEX, METADATA, DATA_END = 0x02, 3, 4, 5, 6, 7, 0x0C, 0x0F
HEAD = struct.Struct("<BQ")  # operation code, length of what follows
MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
UNCHUNKED = -1


@dataclass(frozen=True)
class Topic:
    """The messages of one topic over the files of an episode, in order of log time."""

    name: str
    encoding: str  # of its messages: cdr, json
    schema: str  # sensor_msgs/msg/Image
    schema_encoding: str
    schema_data: bytes
    times: Int[ndarray, " n"]  # log times, ns, or those of mcap_stamps.py
    places: Int[ndarray, "n 3"]  # file, chunk (its offset in the file, -1: none), offset in the chunk or file


@dataclass
class FileIndex:
    """One file."""

    path: Path
    schemas: dict[int, Any] = field(default_factory=dict[int, Any])
    channels: dict[int, Any] = field(default_factory=dict[int, Any])
    messages: dict[int, list[np.ndarray]] = field(
        default_factory=dict[int, Any]
    )  # channel -> [n, 3]: time, chunk, offset
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    complete: bool = False  # it ends as a finished file does


def require_mcap() -> None:
    """Raises a UserError with the pip line where the reader's packages are absent."""
    for package, module in (("mcap", "mcap.reader"), ("mcap-ros2-support", "mcap_ros2.decoder")):
        try:
            __import__(module)
        except ImportError:
            raise require(package, "mcap", "reading MCAP files") from None


def index_file(path: Path) -> FileIndex:
    """Walk over the records of a file.

    Raises:
        UserError: it is not an MCAP file.
    """
    found = FileIndex(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError("is not an MCAP file (its first bytes are others)", path, "record or copy it again")
        indexed: set[int] = set()
        chunks: list[int] = []
        for code, start, length in _records(stream, size):
            if code == CHUNK:
                chunks.append(start - HEAD.size)
            elif code == MESSAGE_INDEX and chunks:
                _add_index(found, stream.read(length), chunks[-1])
                indexed.add(chunks[-1])
            elif code == MESSAGE:
                channel, _, time, _ = MESSAGE_HEAD.unpack(stream.read(MESSAGE_HEAD.size))
                _add(found, channel, np.array([[time, UNCHUNKED, start - HEAD.size]], dtype=np.int64))
            elif code == FOOTER:
                found.complete = True
            else:
                _add_record(found, code, stream, length)
    for chunk in chunks:
        unknown = any(channel not in found.channels for channel in found.messages)
        if chunk not in indexed or unknown:  # what the recorder did not write is found in the chunk itself
            _scan_chunk(found, chunk, messages=chunk not in indexed)
    return found


def topics_of(files: list[FileIndex]) -> dict[str, Topic]:
    """The topics of an episode by name, its files put together in order of time.

    Raises:
        EpisodeError: one topic with messages of two kinds.
    """
    parts: dict[str, list[np.ndarray]] = {}
    kinds: dict[str, tuple[str, str, str, bytes]] = {}
    for number, file in enumerate(files):
        for channel_id, rows in file.messages.items():
            channel = file.channels.get(channel_id)
            if channel is None:
                continue
            schema = file.schemas.get(channel.schema_id)
            kind: tuple[str, str, str, bytes] = (channel.message_encoding, "", "", b"")
            if schema is not None:
                kind = (channel.message_encoding, schema.name, schema.encoding, schema.data)
            if kinds.setdefault(channel.topic, kind) != kind:
                raise EpisodeError(f"{file.path}: topic {channel.topic} has messages of two kinds")
            table = np.concatenate(rows)
            own = np.full((len(table), 1), number, dtype=np.int64)
            parts.setdefault(channel.topic, []).append(np.concatenate([table[:, :1], own, table[:, 1:]], axis=1))
    found: dict[str, Topic] = {}
    for name in sorted(parts):
        table = np.concatenate(parts[name])
        table = table[np.argsort(table[:, 0], kind="stable")]
        found[name] = Topic(name, *kinds[name], table[:, 0], table[:, 1:])
    return found


def read_messages(paths: tuple[Path, ...], places: Int[ndarray, "n 3"]) -> Iterator[bytes]:
    """The bytes of messages, one by one; at most two chunks are held.

    Raises:
        EpisodeError: a chunk that does not decompress, whose checksum is wrong, or a file that has changed.
    """
    for number, chunk, offset in places.tolist():
        path = paths[number]
        data: bytes | None = None
        length = 0
        if chunk == UNCHUNKED:
            with path.open("rb") as stream:
                stream.seek(offset)
                code, length = _head(stream)
                data = stream.read(length) if code == MESSAGE else None
        else:
            body = _chunk(path, chunk)
            if offset + HEAD.size <= len(body):
                code, length = HEAD.unpack_from(body, offset)
                start = offset + HEAD.size
                data = body[start : start + length] if code == MESSAGE else None
        if data is None or len(data) != length:
            raise EpisodeError(f"{path} has no message at byte {offset} of its chunk at {chunk}: its index is wrong")
        yield data[MESSAGE_HEAD.size :]


@functools.lru_cache(maxsize=2)
def _chunk(path: Path, offset: int) -> bytes:
    """A chunk's records, decompressed."""
    from mcap.data_stream import ReadDataStream
    from mcap.exceptions import McapError
    from mcap.records import Chunk
    from mcap.stream_reader import get_chunk_data_stream

    with path.open("rb") as stream:
        stream.seek(offset)
        _, length = _head(stream)
        body = stream.read(length)
    try:
        chunk = Chunk.read(ReadDataStream(io.BytesIO(body)))
        opened, size = get_chunk_data_stream(chunk, validate_crc=True)
        return opened.read(size)
    except (McapError, ValueError, RuntimeError, OSError, struct.error) as error:  # zstd, lz4 and checksum errors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    except Exception as error:  # zstandard's own error derives from Exception alone
        if type(error).__name__ != "ZstdError":
            raise
        reason = str(error)
    raise EpisodeError(f"{path} has a damaged chunk at byte {offset} ({reason})")


def _records(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Code, start and length of each record's content, the stream standing at it; ends where the file does."""
    position = len(MAGIC)
    while position + HEAD.size <= size:
        stream.seek(position)
        code, length = _head(stream)
        if code == 0 or position + HEAD.size + length > size:  # 0 is no operation: the file is damaged
            return
        yield code, position + HEAD.size, length
        if code == FOOTER:
            return
        position += HEAD.size + length


def _head(stream: BinaryIO) -> tuple[int, int]:
    data = stream.read(HEAD.size)
    return HEAD.unpack(data) if len(data) == HEAD.size else (0, 0)


def _add(found: FileIndex, channel: int, rows: np.ndarray) -> None:
    found.messages.setdefault(channel, []).append(rows)


def _add_index(found: FileIndex, body: bytes, chunk: int) -> None:
    channel, length = struct.unpack_from("<HI", body)
    entries = np.frombuffer(body, dtype="<u8", count=length // 8, offset=6).reshape(-1, 2).astype(np.int64)
    if len(entries):
        _add(found, channel, np.insert(entries, 1, chunk, axis=1))


def _add_record(found: FileIndex, code: int, stream: BinaryIO, length: int) -> None:
    """Schemas, channels and metadata."""
    from mcap.data_stream import ReadDataStream
    from mcap.records import Channel, Metadata, Schema

    if code not in (SCHEMA, CHANNEL, METADATA):
        return
    reader = ReadDataStream(io.BytesIO(stream.read(length)))
    if code == SCHEMA:
        schema = Schema.read(reader)
        found.schemas[schema.id] = schema
    elif code == CHANNEL:
        channel = Channel.read(reader)
        found.channels[channel.id] = channel
    else:
        found.metadata |= Metadata.read(reader).metadata


def _scan_chunk(found: FileIndex, offset: int, *, messages: bool) -> None:
    try:
        body = _chunk(found.path, offset)
    except EpisodeError:
        found.complete = False  # reading says more
        return
    stream = io.BytesIO(body)
    position = 0
    while position + HEAD.size <= len(body):
        stream.seek(position)
        code, length = _head(stream)
        if code == MESSAGE and messages:
            channel, _, time, _ = MESSAGE_HEAD.unpack(stream.read(MESSAGE_HEAD.size))
            _add(found, channel, np.array([[time, offset, position]], dtype=np.int64))
        elif code != MESSAGE:
            _add_record(found, code, stream, length)
        position += HEAD.size + length
