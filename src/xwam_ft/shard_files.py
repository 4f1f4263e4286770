"""The files of a shard set, in a folder or at a URL: whether they are there and sound, and the bytes of a segment.

From a folder a segment is read where it stands. From a URL the part of the tar that holds what is wanted of it comes in
one request, and a copy of it stays on this machine (copies.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from google_crc32c import value as crc32c

from xwam_ft import remote
from xwam_ft.copies import LOCAL_GB, Copies, copies_folder
from xwam_ft.decoding import Source
from xwam_ft.errors import UserError
from xwam_ft.files import FilePart, read_json, sha256
from xwam_ft.remote_errors import Missing

if TYPE_CHECKING:
    from xwam_ft.shard_index import SegmentEntry, ShardEntry

INDEX_FILE = "index.json"
CONTRACT_FILE = "contract.json"
AGAIN = "run `xwam-ft prepare` again"
FETCHES = 2  # of a part whose checksum differs
VIDEOS = (".mp4", ".mkv")
COMPARED = 100_000
# Places of videos in tars (by name, date and size) that were compared with their checksums.
_compared: set[tuple[int, tuple[int, int]]] = set()


def read_index(folder: Path) -> tuple[Any, str | None]:
    """What index.json holds, and its SHA-256 where it came from a URL.

    Raises:
        UserError: there is none, and why that may be; it is no JSON.
    """
    path = folder / INDEX_FILE
    if (url := remote.url_of(folder)) is not None:
        try:
            data = remote.read_bytes(path)
        except Missing as error:
            raise _unfinished(url, error) from None
        try:
            return json.loads(data), sha256_of(data).hexdigest()
        except ValueError as error:
            raise UserError(f"is not valid JSON ({error})", path, f"upload it again, or {AGAIN}") from None
    if not path.is_file():
        what = "is not a finished shard set (no index.json)" if folder.is_dir() else "the folder does not exist"
        if folder.is_file():
            what = "is a file, and a shard set is a folder"
        what += "" if folder.is_absolute() else f"; looked at {folder.absolute()}"
        raise UserError(what, folder, "give a folder that `xwam-ft prepare` finished")
    return read_json(path), None


def _unfinished(url: str, error: UserError) -> UserError:
    """Of a URL without an index: part of a set, or nothing at all."""
    if "bucket" in error.what:
        return error
    there = [] if url.startswith("http") else list(remote.sizes(url))
    if any(name.startswith("shard-") or name == CONTRACT_FILE for name in there):
        return UserError(
            "is a shard set of which only a part was uploaded (no index.json, which comes last)",
            url,
            "run the same `xwam-ft prepare` command again, which goes on; or upload the rest, index.json last",
        )
    seen = "" if there or url.startswith("http") else "; nothing lies there"
    return UserError(f"is not a finished shard set (no index.json{seen})", url, "check the URL")


def _part(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


class Members(NamedTuple):
    """Files of a segment by their names in it."""

    tables: dict[str, bytes]
    videos: dict[str, Source]


@dataclass(frozen=True)
class ShardFiles:
    """The tars of a set. `local_gb`: of copies on this machine, where it is at a URL."""

    folder: Path
    local_gb: float = LOCAL_GB

    def place(self, shard: str) -> Path:
        """Where a tar lies; of sets that were joined it is named in full."""
        return Path(shard) if remote.url_of(shard) else self.folder / shard

    def missing_or_cut(self, shard: ShardEntry) -> str | None:
        """What is wrong with a tar without reading it; None: it is there with its size."""
        place = self.place(shard.name)
        size = self._listed.get(shard.name) if remote.url_of(self.folder) else remote.size_of(place)
        if size is None and remote.url_of(place):  # no listing of a web server, or of another set
            size = remote.size_of(place)
        if size is None:
            return "the shard is missing"
        return None if size == shard.bytes else f"has {size} bytes, not the {shard.bytes} that were written"

    def damage(self, shard: ShardEntry) -> str | None:
        """What is wrong with a tar, its SHA-256 included, which reads all of it; None: it is as it was written."""
        if (found := self.missing_or_cut(shard)) is not None:
            return found
        place = self.place(shard.name)
        found = remote.sha256(place, shard.bytes) if remote.url_of(place) else sha256(place)
        return None if found == shard.sha256 else "is damaged (SHA-256 differs from index.json)"

    @cached_property
    def _listed(self) -> dict[str, int]:
        """Sizes of all tars of a URL, asked for once."""
        url = remote.url_of(self.folder)
        return {} if url is None or url.startswith("http") else remote.sizes(url)

    def unreadable(self, entry: SegmentEntry, reason: str) -> UserError:
        """The error for a segment whose bytes are not what they should be."""
        place, fix = self.place(entry.shard), f"copy the shard again, or {AGAIN}"
        if remote.url_of(place):
            fix = f"remove {copies_folder()}, which holds a copy of it; if that does not help, upload the shard again"
        return UserError(f"segment {entry.key} cannot be read ({reason})", place, fix)

    def members(self, entry: SegmentEntry, names: Collection[str], version: str) -> Members:
        """Files of a segment by their names in it, compared with their checksums where the index has them.

        Videos in a folder's tars, which are read a part at a time, are compared once a process.

        Args:
            version: SHA-256 of the tar, which tells its copies from those of another of the same name.

        Raises:
            UserError: the tar is not there, its server does not give it, or these are not the bytes that were written.
        """
        place = self.place(entry.shard)
        try:
            spans = {name: entry.members[name] for name in names}
        except KeyError as error:
            raise self.unreadable(entry, str(error)) from None
        if remote.url_of(place) is None:
            if not place.is_file():
                raise UserError("the shard is missing", place, f"copy the whole folder again, or {AGAIN}")
            try:
                with place.open("rb") as stream:
                    stat = os.fstat(stream.fileno())
                    tar = hash((str(place), stat.st_mtime_ns, stat.st_size))
                    videos = [name for name in names if name.endswith(VIDEOS)]
                    sound = [name for name in videos if (tar, spans[name]) in _compared]
                    found = {name: _part(stream, *spans[name]) for name in names if name not in sound}
            except OSError as error:
                raise self.unreadable(entry, str(error)) from None
            if (changed := _changed(entry, found)) is not None:
                raise self.unreadable(entry, f"{changed} is not what was written: its checksum differs")
            if len(_compared) > COMPARED:
                _compared.clear()
            _compared.update((tar, spans[name]) for name in videos)
            return _split(found | {name: FilePart(place, *spans[name]) for name in videos})
        # They stand one after another, so that what lies between them is not worth a request of its own.
        start = min(offset for offset, _ in spans.values())
        size = max(offset + length for offset, length in spans.values()) - start

        def parts(data: bytes) -> dict[str, bytes]:
            return {name: data[offset - start : offset - start + length] for name, (offset, length) in spans.items()}

        def fetch() -> bytes:
            changed: str | None = None
            for _ in range(FETCHES):  # what was hurt on its way is sound the next time
                data = remote.read_bytes(place, start, size)
                if (changed := _changed(entry, parts(data))) is None:
                    return data
            raise UserError(
                f"{changed} of segment {entry.key} is not what was written: its checksum differs",
                place,
                "the shard was replaced or damaged since the set was opened: start again where it was replaced by "
                "another set, else upload the shard again",
            )

        copies, name = Copies(self.local_gb), f"{version} {start}+{size}"
        return _split(parts(copies.get(name, size, fetch, lambda data: _changed(entry, parts(data)) is None)))


def _split(found: Mapping[str, Any]) -> Members:
    tables = {name: data for name, data in found.items() if not name.endswith(VIDEOS)}
    return Members(tables, {name: data for name, data in found.items() if name not in tables})


def _changed(entry: SegmentEntry, found: Mapping[str, bytes]) -> str | None:
    """The first of a segment's files that is not what was written; None: all are, as far as the index can tell."""
    known = entry.crc32c
    return next((name for name, data in found.items() if name in known and crc32c(data) != known[name]), None)
