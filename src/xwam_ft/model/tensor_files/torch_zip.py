"""Tensors of a foreign torch file (.pt, .ckpt, DeepSpeed states), read without running anything that is in it.

Such a file is a zip: `data.pkl`, a pickle program that puts objects together, and one uncompressed record for each
storage. A pickle program may name any function and call it. Here it finds six names beside tensor types (`_KNOWN`);
every other name gives a stand-in that takes any call, does nothing, and is listed. Tensors stay on the disk: the
program yields where each lies, and `TorchZip.read` fetches its bytes alone: a file of 39 GB costs one tensor of RAM.

This is the package's only reading of pickles, of what others wrote; what others shall read export/torch_file.py writes.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PROGRAM = 1 << 28
"""Bytes of pickle program that are read at most; a real checkpoint's is a few hundred kB."""

AGAIN = "download or copy it again, and compare its size and SHA-256 with the publisher's"


class Storage(NamedTuple):
    """One record of the zip."""

    record: str
    dtype: torch.dtype
    numel: int


class StoredTensor(NamedTuple):
    """A tensor that is still on the disk: a strided view of a record; a tuple, so no program can change it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype


class TorchZip:
    """An open torch file.

    Args:
        path: the file.

    Attributes:
        content: what the program builds: dicts, lists, numbers, text, `StoredTensor`s and stand-ins.
        stand_ins: sorted names of the classes and functions it asked for in vain.

    Raises:
        UserError: not a torch zip file, truncated, or a program that makes no sense.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _require_zip(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {info.filename: info for info in archive.infolist()}
                program = next((name for name in self._records if name.endswith("/data.pkl")), None)
                if program is None or self._records[program].file_size > MAX_PROGRAM:
                    raise UserError("is a zip without a torch program (data.pkl)", path, "give a file of torch.save")
                self._folder = program.removesuffix("data.pkl")
                if (order := self._folder + "byteorder") in self._records and archive.read(order) != b"little":
                    raise UserError("was written on a big-endian machine", path, "save it again on a usual one")
                with archive.open(program) as stream:
                    self.content, self.stand_ins = _run(stream, path)
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
            raise UserError(f"is truncated or damaged ({error})", path, AGAIN) from None
        self._file = path.open("rb")

    def close(self) -> None:
        self._file.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """Fetch one tensor; its checksum is compared where it is all of its record.

        Raises:
            UserError: the record is absent, short, compressed, or not what its checksum says.
        """
        item = stored.dtype.itemsize
        info = self._records.get(f"{self._folder}data/{stored.storage.record}")
        size = stored.storage.numel * item
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
            raise UserError(f"its record {stored.storage.record} is missing or of another size", self.path, AGAIN)
        count = 0
        if prod(stored.shape):
            count = 1 + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True))
        buffer = torch.empty(count * item, dtype=torch.uint8)
        # The directory's offset is that of a local header, whose name and extra field may have other lengths.
        self._file.seek(info.header_offset)
        header = self._file.read(30)
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        self._file.seek(info.header_offset + 30 + skip + stored.offset * item)
        view = buffer.numpy().data
        whole = count == stored.storage.numel
        if (
            header[:4] != b"PK\x03\x04"
            or self._file.readinto(view) != len(view)
            or (  # pyright: ignore[reportAttributeAccessIssue]
                whole and zlib.crc32(view) != info.CRC
            )
        ):
            raise UserError(f"its record {stored.storage.record} is damaged", self.path, AGAIN)
        return buffer.view(stored.dtype).as_strided(stored.shape, stored.stride)


def _require_zip(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise UserError("is a git-lfs pointer, not the file itself", path, "fetch it with `git lfs pull`")
    if not head.startswith(b"PK\x03\x04"):
        fix = "give a file that torch.save wrote (1.6 or later), or safetensors; older ones: load and save them again"
        raise UserError("is no zip file of torch", path, fix)
    if not zipfile.is_zipfile(path):
        raise UserError("is truncated: its directory, at the end, is missing", path, AGAIN)


class _StandIn:
    """What the program gets for a name that is not in `_KNOWN`: takes every call and every item, does nothing."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    extend = add = append


class _Builder:
    """A call the program may make; an object without attributes, so that the program cannot change it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state for a function")


class _RebuildTensor(_Builder):
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
        """torch's `_rebuild_tensor_v2`; what comes after the strides (gradients, hooks) means nothing here."""
        lists = [tuple(values) for values in (shape, stride)]
        numbers = [offset, *lists[0], *lists[1]]
        sound = isinstance(storage, Storage) and len(lists[0]) == len(lists[1])
        sound = sound and all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
        if not sound:
            raise pickle.UnpicklingError("what stands for a tensor is not one")
        last = offset + sum((n - 1) * step for n, step in zip(*lists, strict=True))
        if prod(lists[0]) > storage.numel or (prod(lists[0]) and last >= storage.numel):
            raise pickle.UnpicklingError("a tensor larger than its storage")
        return StoredTensor(storage, offset, *lists)


class _RebuildParameter(_Builder):
    __slots__ = ()

    def __call__(self, data: Any, *rest: Any) -> Any:
        """torch's `_rebuild_parameter`: the tensor in it."""
        return data


class _Size(_Builder):
    __slots__ = ()

    def __call__(self, values: Any = ()) -> tuple[Any, ...]:
        return tuple(values)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _Size(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
}
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.stand_ins: dict[str, type[_StandIn]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        full = f"{module}.{name}"
        return self.stand_ins.setdefault(full, type("StandIn", (_StandIn,), {"__slots__": (), "stands_for": full}))

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, record, _, numel = pid
        sound = kind == "storage" and isinstance(dtype, torch.dtype) and isinstance(record, str)
        if not sound or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("a storage that is none")
        return Storage(record, dtype, numel)


def _run(stream: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    unpickler = _Unpickler(stream)
    try:
        content = unpickler.load()
    except Exception as error:  # a hostile or broken program may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"its program cannot be followed ({reason})", path, AGAIN) from None
    return content, tuple(sorted(unpickler.stand_ins))
