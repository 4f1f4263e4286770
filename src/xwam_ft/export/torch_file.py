"""A `.pt` file as torch reads it, written tensor by tensor: `torch.save` would hold all of them.

The format is torch's public one: a zip archive, nothing compressed, with `data.pkl` (a dict whose tensors point to
`data/0`, `data/1`, ...) and those records, each at a multiple of 64 bytes so that it can be mapped. This is the one
file that writes a pickle; of tensors it holds names, shapes and types alone.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.files import atomic_path
from xwam_ft.model.tensor_files.stream import write_pieces

if TYPE_CHECKING:
    from xwam_ft.model.tensor_files.stream import Piece
    from xwam_ft.progress import Advance

ROOT = "archive"
ALIGNED = 64
_LOCAL_HEADER, _ZIP64 = 30, 20
_PADDING = b"FB"  # the extra field that torch's own writer pads with


@dataclass(frozen=True)
class _Storage:
    """A record `data/KEY`."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Hollow:
    """A tensor without its numbers."""

    storage: _Storage
    shape: tuple[int, ...]


class _Pickler(pickle.Pickler):
    """Pickles hollow tensors as `torch.save` pickles tensors."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        names: Any = torch.storage._dtype_to_storage_type_map()  # pyright: ignore[reportPrivateUsage]
        return "storage", getattr(torch, names[obj.dtype]), obj.key, "cpu", obj.numel

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Hollow):
            return NotImplemented
        strides = [math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape))]
        hooks: Any = OrderedDict()  # not `OrderedDict[...]()`, which would be pickled with its types
        about = (obj.storage, 0, obj.shape, tuple(strides), False, hooks)
        return getattr(torch, "_utils")._rebuild_tensor_v2, about  # noqa: B009


def write_torch(path: Path, key: str, pieces: Sequence[Piece], advance: Advance) -> dict[str, str]:
    """Write `{key: {name: tensor}}`, made in the order given, one at a time; whole or not at all.

    Args:
        advance: called with the bytes of each tensor when it is written.

    Returns:
        SHA-256 of every tensor's bytes.

    Raises:
        UserError: a tensor of another shape than announced, or one that holds numbers that are not finite.
    """
    hollow = {
        piece.name: _Hollow(_Storage(str(number), piece.dtype, math.prod(piece.shape)), piece.shape)
        for number, piece in enumerate(pieces)
    }
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):
        _record(archive, "data.pkl", _pickled({key: hollow}))
        _record(archive, "byteorder", b"little")

        def put(name: str, data: memoryview) -> None:
            _record(archive, f"data/{hollow[name].storage.key}", data)

        digests = write_pieces(pieces, path, stream, put, advance)
        _record(archive, "version", b"3\n")
    return digests


def _pickled(tree: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(tree)
    return stream.getvalue()


def _record(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    head = archive.start_dir + _LOCAL_HEADER + len(info.filename) + len(_PADDING) + 2 + _ZIP64
    gap = -head % ALIGNED
    info.extra = _PADDING + struct.pack("<H", gap) + b"Z" * gap
    with archive.open(info, "w", force_zip64=True) as stream:
        stream.write(data)
