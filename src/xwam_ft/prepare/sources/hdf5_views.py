"""Datasets of an HDF5 file as views and tables. The file is opened for every read, so that all of it can be pickled."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.prepare.episode import EpisodeError, Table
from xwam_ft.prepare.sources.beside import unreadable
from xwam_ft.prepare.sources.views import open_picture, stacked, to_counts, to_rgb

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt16
    from numpy import ndarray

# The comment of JPEGs that RoboTwin's tools write since they mind the order of channels; older ones have none.
STANDARD = b"XPL-RGB1"


@contextlib.contextmanager
def opened(path: Path) -> Generator[Any]:
    """An open file.

    Raises:
        EpisodeError: absent, truncated, or not HDF5.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "it is not there" if not path.is_file() else str(error).split("(")[-1].rstrip(")")
        told = unreadable(path, reason, "HDF5 file")
        raise EpisodeError(told, told.fix) from None
    with file:
        yield file


@dataclass(frozen=True)
class HDF5Pictures:
    """One camera of one episode: an array [F, H, W, 3], [F, 3, H, W] or [F, H, W], or an encoded picture a row.

    Depth is uint16 or floating point, [F, H, W] or [F, H, W, 1], or encoded with 16 bits.
    """

    path: Path
    dataset: str
    frames: int
    swapped: bool = False  # see hdf5_layouts.py

    def size(self) -> tuple[int, int]:
        first = self._rows([0])[0]
        if first.ndim < 2:
            picture = open_picture(first.tobytes(), f"{self._name} frame 0")
            return picture.height, picture.width
        return _channels_last(first).shape[:2]

    def codec(self) -> str:
        first = self._rows([0])[0]
        if first.ndim < 2:
            return str(open_picture(first.tobytes(), f"{self._name} frame 0").format).lower()
        return str(first.dtype)

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        found = self._rows(rows)
        if found[0].ndim < 2:
            return stacked([self._decoded(data, row) for data, row in zip(found, rows, strict=True)], self._name)
        pictures = [_channels_last(picture) for picture in found]
        if pictures[0].dtype != np.uint8 or (pictures[0].ndim == 3 and pictures[0].shape[2] not in (1, 3, 4)):
            raise EpisodeError(f"{self._name} holds {found[0].dtype} of shape {list(found[0].shape)}, not pictures")
        if pictures[0].ndim == 2 or pictures[0].shape[2] == 1:
            return np.stack([np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2) for picture in pictures])
        return np.stack([picture[..., :3] for picture in pictures])

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"] | Float32[ndarray, "n h w"]:
        found = self._rows(rows)
        if found[0].ndim < 2:
            return stacked(
                [to_counts(open_picture(data.tobytes(), self._name), self._name) for data in found], self._name
            )
        depth = np.stack([picture.squeeze() for picture in found])
        if depth.ndim != 3 or depth.dtype == np.uint8 or depth.dtype.kind not in "uif":
            raise EpisodeError(f"{self._name} holds {depth.dtype} of shape {list(found[0].shape)}, not depth")
        if depth.dtype.kind in "ui" and (depth.min() < 0 or depth.max() > 65535):
            raise EpisodeError(f"{self._name} holds depth counts up to {depth.max()}, beyond 16 bits")
        return depth.astype(np.uint16 if depth.dtype.kind in "ui" else np.float32)

    @property
    def _name(self) -> str:
        return f"{self.path} dataset {self.dataset!r}"

    def _decoded(self, data: np.ndarray, row: int) -> np.ndarray:
        where = f"{self._name} frame {row}"
        picture = open_picture(data.tobytes(), where)
        pixels = to_rgb(picture, where)
        return pixels[..., ::-1] if self.swapped and picture.info.get("comment") != STANDARD else pixels

    def _rows(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Rows as arrays; encoded pictures as one-dimensional uint8, their padding included."""
        with opened(self.path) as file:
            dataset = file[self.dataset]
            if len(dataset) != self.frames:
                raise EpisodeError(f"{self._name} holds {len(dataset)} pictures, the episode has {self.frames} frames")
            if not self.frames:
                raise EpisodeError(f"{self._name} holds no pictures")
            unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
            found = _read(self.path, dataset, unique)
        if found.dtype.kind in "SO":
            encoded = [np.frombuffer(bytes(row), np.uint8) for row in found]
            return [encoded[i] for i in inverse]
        return [found[i] for i in inverse]


def _channels_last(picture: np.ndarray) -> np.ndarray:
    first = picture.ndim == 3 and picture.shape[0] in (1, 3, 4) and picture.shape[2] not in (1, 3, 4)
    return np.moveaxis(picture, 0, -1) if first else picture


@dataclass(frozen=True)
class HDF5Table:
    """`columns`: dataset path -> the full names of its numbers in one row."""

    path: Path
    columns: dict[str, tuple[str, ...]]
    length: int
    timestamps: str | None = None

    def read(self) -> Table:
        found: dict[str, np.ndarray] = {}
        if not self.length:
            raise EpisodeError(f"{self.path} holds no row of numbers", "copy the file again, or leave it out")
        with opened(self.path) as file:
            for dataset, names in self.columns.items():
                numbers = self._numbers(file, dataset).reshape(self.length, -1)
                if numbers.shape[1] != len(names):
                    where = f"{self.path} dataset {dataset!r}"
                    raise EpisodeError(f"{where} holds {numbers.shape[1]} numbers a row, not {len(names)}")
                found.update({name: numbers[:, i] for i, name in enumerate(names)})
            times = None if self.timestamps is None else self._numbers(file, self.timestamps).reshape(self.length, -1)
        return Table(found, None if times is None else times[:, 0], None)

    def _numbers(self, file: Any, dataset: str) -> np.ndarray:
        values = file[dataset]
        if len(values) != self.length:
            raise EpisodeError(
                f"{self.path} dataset {dataset!r} holds {len(values)} rows, the episode has {self.length} frames"
            )
        return np.asarray(_read(self.path, values, ()), dtype=np.float64)


def _read(path: Path, dataset: Any, rows: Any) -> np.ndarray:
    try:
        return dataset[rows]
    except OSError as error:
        raise EpisodeError(f"{path} dataset {dataset.name!r} cannot be read ({error})") from None
