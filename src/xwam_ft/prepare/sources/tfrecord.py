"""TFRecord files and the tf.train.Example in their records, without TensorFlow. Files are mapped, never read whole.

A record is: length (u64), masked CRC-32C of it, the data, masked CRC-32C of that, all little-endian. An Example is a
protocol buffer: Example.features (1) > Features.feature (1), a map of name (1) to Feature (2) > one list of bytes (1),
float32 (2) or int64 (3), each with the field `value` (1).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import google_crc32c
import numpy as np

from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

LENGTH = struct.Struct("<QI")
CRC = struct.Struct("<I")
MASK_DELTA = 0xA282EAD8  # a checksum stored beside its data is rotated and shifted by this
Kind = Literal["bytes", "float", "int"]
KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int"}


@dataclass(frozen=True)
class RecordPlace:
    """One record's data in its file."""

    start: int
    length: int


@dataclass(frozen=True)
class ExampleFeature:
    """One entry of an Example: its list, not yet read."""

    kind: Kind
    body: memoryview

    def floats(self) -> Float[ndarray, " n"]:
        """float32 values as float64, packed or not."""
        parts = [
            np.frombuffer(value, "<f4") if wire == 2 else np.array(CRC.unpack(value), np.uint32).view(np.float32)
            for _, wire, value in _fields(self.body)
        ]
        return np.concatenate([np.zeros(0), *parts]).astype(np.float64)

    def ints(self) -> Int[ndarray, " n"]:
        found: list[int] = []
        for _, wire, value in _fields(self.body):
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                found.append(number - (1 << 64) if number >> 63 else number)
            assert wire in (0, 2)
        return np.array(found, dtype=np.int64)

    def items(self) -> list[memoryview]:
        """The entries of a list of bytes."""
        return [value for _, _, value in _fields(self.body)]


def masked_crc32c(data: bytes | memoryview) -> int:
    """The checksum as TFRecord files store it: CRC-32C (RFC 3720), rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(bytes(data))
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped: only what is looked at is read."""
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def records(path: Path) -> tuple[list[RecordPlace], str | None]:
    """Where the records of a file are, and what is wrong where they end early. Lengths are checked, data is not."""
    data, at, found = map_file(path), 0, list[RecordPlace]()
    while at < len(data):
        if at + LENGTH.size > len(data):
            return found, f"{path} ends in the middle of record {len(found)}"
        length, crc = LENGTH.unpack_from(data, at)
        if masked_crc32c(data[at : at + 8]) != crc:
            return found, f"{path} is damaged: the length of record {len(found)} does not fit its checksum"
        start = at + LENGTH.size
        at = start + length + CRC.size
        if at > len(data):
            return found, f"{path} ends in the middle of record {len(found)}"
        found.append(RecordPlace(start, length))
    return found, None


def check_record(path: Path, place: RecordPlace) -> None:
    """Raises an EpisodeError where the data does not fit its checksum."""
    data = map_file(path)
    (crc,) = CRC.unpack_from(data, place.start + place.length)
    if masked_crc32c(data[place.start : place.start + place.length]) != crc:
        raise EpisodeError(f"{path} is damaged: the record at byte {place.start} does not fit its checksum")


def example(path: Path, place: RecordPlace) -> dict[str, ExampleFeature]:
    """The entries of an Example by name.

    Raises:
        EpisodeError: the record is no Example.
    """
    body = map_file(path)[place.start : place.start + place.length]
    found: dict[str, ExampleFeature] = {}
    try:
        for number, _, features in _fields(body):
            for inner, _, entry in _fields(features) if number == 1 else ():
                if inner == 1:
                    parts = {field: value for field, _, value in _fields(entry)}
                    name = bytes(parts.get(1, b"")).decode()
                    for kind, _, values in _fields(parts.get(2, memoryview(b""))):
                        found[name] = ExampleFeature(KINDS[kind], values)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError):
        raise EpisodeError(f"{path}: the record at byte {place.start} is not a tf.train.Example") from None
    return found


def _fields(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Number, wire type and bytes of each field of a message."""
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        wire, start = tag & 7, at
        if wire == 0:
            _, at = _varint(body, at)
        elif wire == 2:
            length, start = _varint(body, at)
            at = start + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(body):
            raise ValueError("a field is cut off")
        yield tag >> 3, wire, body[start:at]


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
