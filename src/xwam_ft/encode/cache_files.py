"""The files of a latent cache, in a folder or at a URL: which are there, writing them, reading rows of them.

At a URL a file is written here first and appears there whole; what is known of it (size, SHA-256) is noted beside the
spool, so that the index can name it. Training reads whole files where the copies of all of them fit on this machine,
and otherwise only the rows of the clip that is shown: a file holds all clips of a segment, and the order of training is
random over segments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xwam_ft import remote
from xwam_ft.copies import LOCAL_GB, Copies, copies_folder
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, read_json, sha256, write_json_atomic

if TYPE_CHECKING:
    from torch import Tensor

HEADER = 1 << 16  # bytes of a file's beginning that hold its header, as a rule
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
"""torch's names of what stands in safetensors files."""


@dataclass(frozen=True)
class CachedFile:
    path: str  # relative to the cache folder
    size: int
    sha256: str


@dataclass(frozen=True)
class CacheFiles:
    """The files of a cache that is being made at `folder`."""

    folder: Path

    @property
    def far(self) -> bool:
        return remote.url_of(self.folder) is not None

    @property
    def spool(self) -> Path:
        """Where files are written first, and what is noted of those that went up."""
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:32]
        return copies_folder() / "spool" / name if self.far else self.folder

    def there(self, names: Sequence[str]) -> set[str]:
        """Which of these files are there."""
        if not self.far:
            return {name for name in names if (self.folder / name).is_file()}
        return set(remote.sizes(self.folder, names))

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Let `save` write a file, which appears whole or not at all."""
        with atomic_path(self.spool / name) as temporary:
            save(temporary)
        if self.far:
            path = self.spool / name
            self.note(CachedFile(name, path.stat().st_size, sha256(path)))
            remote.put(path, self.folder / name)
            path.unlink()

    def note(self, file: CachedFile) -> None:
        """Remember what is known of a file at the URL, which was or will be written there."""
        write_json_atomic((self.spool / file.path).with_suffix(".json"), [file.size, file.sha256])

    def known(self, names: Sequence[str]) -> list[CachedFile]:
        """Size and SHA-256 of files that are there; one at a URL of which nothing is noted is read for it."""
        if not self.far:
            return [CachedFile(name, (self.folder / name).stat().st_size, sha256(self.folder / name)) for name in names]
        there, found = remote.sizes(self.folder, names), list[CachedFile]()
        for name in names:
            note, size = (self.spool / name).with_suffix(".json"), there[name]
            if note.is_file() and (noted := read_json(note))[0] == size:
                found.append(CachedFile(name, *noted))
            else:
                found.append(CachedFile(name, size, remote.sha256(self.folder / name, size)))
        return found


class _Stands(NamedTuple):
    """Where a tensor stands in its file, and of what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class FarTensors:
    """A safetensors file at a URL, read by rows of its tensors.

    Args:
        whole: whether all of it is copied to this machine when a row of it is wanted.
    """

    folder: Path
    file: CachedFile
    whole: bool
    local_gb: float = LOCAL_GB
    _mapped: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)

    @cached_property
    def _parts(self) -> dict[str, _Stands]:
        place, size = self.folder / self.file.path, self.file.size
        head = remote.read_bytes(place, 0, min(HEADER, size))
        length = int.from_bytes(head[:8], "little")
        if length > size - 8:
            raise self._changed()
        while len(head) < 8 + length:
            head += remote.read_bytes(place, len(head), 8 + length - len(head))
        try:
            tree: dict[str, Any] = json.loads(head[8 : 8 + length])
        except ValueError:
            raise self._changed() from None
        first = 8 + length
        return {
            name: _Stands(row["dtype"], tuple(row["shape"]), *(first + at for at in row["data_offsets"]))
            for name, row in tree.items()
            if name != "__metadata__"
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return self._parts[name].shape

    def rows(self, names: Sequence[str], row: int) -> dict[str, Tensor]:
        """Row `row` of several tensors."""
        if self.whole:
            opened = self._opened()
            return {name: opened.get_slice(name)[row] for name in names}
        import torch

        spans: list[tuple[int, int]] = []
        for name in names:
            part = self._parts[name]
            size = (part.stop - part.start) // part.shape[0]
            spans.append((part.start + row * size, size))
        place = self.folder / self.file.path
        name = f"{self.file.sha256} {spans}"
        total = sum(size for _, size in spans)
        data = Copies(self.local_gb).get(name, total, lambda: b"".join(remote.read_ranges(place, spans)))
        found: dict[str, Tensor] = {}
        at = 0
        for name, (_, size) in zip(names, spans, strict=True):
            part = self._parts[name]
            # A copy, since the bytes of several dtypes do not stand where each may begin.
            values = torch.frombuffer(bytearray(data[at : at + size]), dtype=getattr(torch, DTYPES[part.dtype]))
            found[name] = values.reshape(part.shape[1:])
            at += size
        return found

    def _opened(self) -> Any:
        """The copy on this machine, mapped; one that was removed meanwhile lives on while it is open."""
        if "file" not in self._mapped:
            from safetensors import safe_open

            self._mapped["file"] = safe_open(self.copy(), framework="pt")
        return self._mapped["file"]

    def copy(self) -> Path:
        """All of it on this machine, compared with its SHA-256; to be opened at once."""
        return Copies(self.local_gb).file(f"{self.file.sha256} whole", self.file.size, self._all)

    def _all(self) -> bytes:
        data = b"".join(remote.blocks(self.folder / self.file.path, self.file.size))
        if hashlib.sha256(data).hexdigest() != self.file.sha256:
            raise self._changed()
        return data

    def _changed(self) -> UserError:
        fix = "delete it and run `xwam-ft encode` again; only this file is made anew"
        return UserError("has changed since it was written", self.folder / self.file.path, fix)
