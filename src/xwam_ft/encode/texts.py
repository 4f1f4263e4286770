"""Embeddings of many instructions: a row each, on disk and mapped where they are many, gathered a batch at a time.

At 5B a row is 4.2 MB in bfloat16: 5,000 wordings are 21 GB. Every position is kept, those behind the instruction's end
too: the network is shown the text encoder's outputs there, which are neither zero nor alike.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from xwam_ft.copies import Copies, copies_folder
from xwam_ft.errors import UserError
from xwam_ft.model.tensor_files.stream import write_rows

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

IN_MEMORY = 256_000_000
"""Bytes up to which rows that no cache holds are simply kept in memory."""


class TextRows(Protocol):
    """[n, s, dt], as far as it is asked: a tensor (mapped to its file or not), or rows of several."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """A row [s, dt] by its number; of a list of numbers those rows, [k, s, dt]."""
        ...


class JoinedRows:
    """Rows that lie in several tensors, where they are."""

    def __init__(self, rows: Sequence[Float[Tensor, "s dt"]]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Float[Tensor, "s dt"]]:
        return iter(self._rows)

    def __getitem__(self, rows: int | list[int]) -> Any:
        return self._rows[rows] if isinstance(rows, int) else torch.stack([self._rows[row] for row in rows])


def kept_rows(rows: Iterator[Float[Tensor, "s dt"]], count: int) -> Float[Tensor, "n s dt"]:
    """`count` rows as they come: in memory, or where they are many in a file that goes with this process.

    Raises:
        UserError: too little room for that file, below $XWAM_FT_CACHE.
    """
    first = next(rows)
    shape, size = (count, *first.shape), count * first.numel() * first.element_size()
    made = torch.empty(shape, dtype=first.dtype) if size <= IN_MEMORY else _mapped(shape, first.dtype, size)
    for place, row in enumerate(chain([first], rows)):
        made[place] = row
    return made


def shared_rows(
    name: str, rows: Callable[[], Iterator[Float[Tensor, "s dt"]]], count: int, limit_gb: float
) -> Float[Tensor, "n s dt"]:
    """`count` rows that one process of this machine makes, while others wait for it and then map the same file.

    Args:
        name: says what the rows are, for good: the file stays among the copies (copies.py).
        rows: makes them.
        limit_gb: as `data.local_gb`.

    Raises:
        UserError: what `rows` raises; too little room for that file, below $XWAM_FT_CACHE.
    """
    from safetensors.torch import load_file

    copies = Copies(limit_gb)

    def write(path: Path) -> None:
        made = rows()
        first = next(made)
        size = count * first.numel() * first.element_size()
        copies.require_within(size)
        _require_room(count, size)
        write_rows(path, "embeddings", chain([first], made), count)

    return load_file(copies.made(name, write))["embeddings"]


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
    folder = copies_folder()
    _require_room(shape[0], size)
    handle, name = tempfile.mkstemp(prefix="instructions-", dir=folder)
    os.close(handle)
    try:
        whole = torch.from_file(name, shared=True, size=size // dtype.itemsize, dtype=dtype)
    finally:
        Path(name).unlink()  # the mapping lives on; the disk has its room back when this process is gone
    return whole.view(shape)


def _require_room(count: int, size: int) -> None:
    folder = copies_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"has {free / 1e9:,.1f} GB free, and the embeddings of {count} instructions take {size / 1e9:,.1f} GB",
            folder,
            "free some space, set XWAM_FT_CACHE to a folder on another disk, or make a latent cache (data.cache: auto)",
        )
