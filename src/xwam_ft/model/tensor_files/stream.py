"""Write one safetensors file tensor by tensor, and read it back the same way: two tensors in memory at most.

The library's own writer wants every tensor at once. The format is its public one: eight bytes with the header's
length, a JSON header with dtype, shape and place of every tensor, then their bytes without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, sent_on

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.tensor_files.source import Stored
    from xwam_ft.progress import Advance

_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """One tensor to write: its name, what it will be, and how to make it (on the CPU, when its turn comes)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_stream(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str], advance: Advance) -> dict[str, str]:
    """Write `pieces`, made in the order given, one after the other; whole or not at all.

    Args:
        advance: called with the bytes of each tensor when it is written.

    Returns:
        SHA-256 of every tensor's bytes.

    Raises:
        UserError: a tensor of another shape than announced, or one that holds numbers that are not finite.
    """
    # Wide numbers first, so that each lies at a multiple of its own size.
    placed = sorted(pieces, key=lambda piece: -piece.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    end = 0
    for piece in placed:
        starts[piece.name], end = end, end + piece.bytes
        place = [starts[piece.name], end]
        header[piece.name] = {"dtype": _CODES[piece.dtype], "shape": list(piece.shape), "data_offsets": place}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)

        def put(name: str, data: memoryview) -> None:
            stream.seek(8 + len(text) + starts[name])
            stream.write(data)

        return write_pieces(pieces, path, stream, put, advance)


def write_pieces(
    pieces: Sequence[Piece],
    where: Path,
    stream: IO[bytes],
    put: Callable[[str, memoryview], None],
    advance: Advance,
) -> dict[str, str]:
    """Make each piece while the one before it is hashed and `put` into `stream`, and what was put goes to the disk.

    Returns and raises: as `write_stream`.
    """
    digests: dict[str, str] = {}

    def take(piece: Piece, tensor: Tensor) -> int:
        data = tensor_bytes(tensor)
        digests[piece.name] = hashlib.sha256(data).hexdigest()
        put(piece.name, data)
        return piece.bytes

    with sent_on(stream) as send, ThreadPoolExecutor(1) as beside:
        going: Future[int] | None = None
        for piece in pieces:
            tensor = made(piece, where)
            if going is not None:
                advance(going.result())
                send()
            going = beside.submit(take, piece, tensor)
        if going is not None:
            advance(going.result())
    return digests


def write_rows(path: Path, name: str, rows: Iterator[Tensor], count: int) -> None:
    """Write one tensor [count, ...] from its rows, one in memory at a time, as `safetensors.torch.save_file` would."""
    first = next(rows)
    piece = Piece(name, (count, *first.shape), first.dtype, lambda: first)
    part = {"dtype": _CODES[piece.dtype], "shape": list(piece.shape), "data_offsets": [0, piece.bytes]}
    text = json.dumps({name: part}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for row in chain([first], rows):
            assert row.shape == first.shape, f"{name}: rows of {list(first.shape)} and {list(row.shape)}"
            stream.write(tensor_bytes(row))
    wanted = 8 + len(text) + piece.bytes
    assert path.stat().st_size == wanted, f"{name}: {path.stat().st_size} bytes of {wanted}"


def require_written(tensors: Mapping[str, Stored], digests: Mapping[str, str], where: Path) -> None:
    """Raise a `UserError` unless a file's tensors, read one by one, are those of `digests`."""
    if tensors.keys() != digests.keys():
        raise UserError("reads back with other tensors than were written", where, "export again; check the disk")
    for name, digest in digests.items():
        if hashlib.sha256(tensor_bytes(tensors[name].read())).hexdigest() != digest:
            raise UserError(f"tensor {name!r} reads back changed", where, "export again; check the disk")


def made(piece: Piece, where: Path) -> Tensor:
    """A piece's tensor on the CPU, of the shape and type announced, its numbers finite."""
    tensor = piece.make().detach().cpu()
    if tuple(tensor.shape) != piece.shape:
        raise UserError(
            f"{piece.name} has shape {list(tensor.shape)} and should have {list(piece.shape)}",
            where,
            "use a checkpoint and a recipe of one run",
        )
    if not all_finite(tensor):
        raise UserError(f"{piece.name} holds numbers that are not finite", where, "do not use these weights")
    return tensor.to(piece.dtype)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither infinities nor NaN, which both of its ends would show; whole numbers always are.

    In one pass: `isfinite().all()` writes a mask first and takes forty times as long in bfloat16.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(end.item()) for end in tensor.aminmax())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as they lie in a file."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
