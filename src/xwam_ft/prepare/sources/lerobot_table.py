"""Rows of a LeRobot parquet file: the numbers of one episode, and the pictures of its `image` columns.

Rows are chosen by the value of episode_index where it is recorded and put in the order of frame_index; `first` places
them where it is not, and None means that the file is the episode.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.prepare.episode import EpisodeError, Table
from xwam_ft.prepare.sources.beside import located, unreadable
from xwam_ft.prepare.sources.lerobot_meta import BOOKKEEPING, Feature
from xwam_ft.prepare.sources.views import open_picture, stacked, to_counts, to_rgb

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt16
    from numpy import ndarray


EMPTY = "its rows were never written, or the copy was cut: copy or download it again, or leave the episode out"


@dataclass(frozen=True)
class LeRobotTable:
    path: Path
    episode: int
    length: int
    first: int | None
    features: tuple[Feature, ...]

    def read(self) -> Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema(self.path)
        known = schema.names
        wanted = [feature.name for feature in self.features if feature.columns and feature.name in known]
        extra = [name for name in (*BOOKKEEPING, "next.success") if name in known and name not in wanted]
        # Many episodes may share the file: leave the others out while reading, where the column allows it.
        plain = "episode_index" in known and pa.types.is_integer(schema.field("episode_index").type)
        only = [("episode_index", "==", self.episode)] if plain else None
        try:
            table = pq.read_table(self.path, columns=[*wanted, *extra], filters=only)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error) from None
        rows = _order(table, self.path, self.episode, self.length, self.first)
        columns: dict[str, np.ndarray] = {}
        for feature in self.features:
            if feature.name in wanted:
                numbers = _numbers(table.column(feature.name), len(table), self.path, feature)[rows]
                columns.update({name: numbers[:, i] for i, name in enumerate(feature.columns)})

        def scalar(name: str) -> np.ndarray | None:
            return _scalar(table, name)[rows] if name in table.column_names else None

        success = scalar("next.success")
        timestamps, task = scalar("timestamp"), scalar("task_index")
        return Table(
            columns=columns,
            timestamps=None if timestamps is None else timestamps.astype(np.float64),
            task_index=None if task is None else task.astype(np.int64),
            success=None if success is None else bool(success.any()),
        )


@dataclass(frozen=True)
class ParquetPictures:
    """Pictures in a parquet column: encoded bytes, or the name of a file beside the dataset's meta/ folder."""

    path: Path
    column: str
    episode: int
    frames: int
    first: int | None
    root: Path

    def size(self) -> tuple[int, int]:
        picture = self._open([0])[0]
        return picture.height, picture.width

    def codec(self) -> str:
        return "pictures"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return stacked([to_rgb(picture, self._name) for picture in self._open(rows)], self._name)

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"] | Float32[ndarray, "n h w"]:
        return stacked([to_counts(picture, self._name) for picture in self._open(rows)], self._name)

    @property
    def _name(self) -> str:
        return f"{self.path} column {self.column!r}"

    def _open(self, rows: Sequence[int]) -> list[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema(self.path)
        if self.column not in schema.names:
            raise EpisodeError(f"{self.path} has no column {self.column!r}")
        places = _places(self.path, self.episode, self.frames, self.first)[list(rows)]
        cells: dict[int, Any] = {}
        try:
            file = pq.ParquetFile(self.path)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            groups = np.searchsorted(starts, places, side="right") - 1
            for group in np.unique(groups):  # a file of many episodes is never read whole
                column = file.read_row_group(int(group), columns=[self.column]).column(self.column)
                for place in places[groups == group].tolist():
                    cells[place] = column[place - int(starts[group])].as_py()
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error) from None
        found = zip(rows, (cells[place] for place in places.tolist()), strict=True)
        return [self._picture(cell, row) for row, cell in found]

    def _picture(self, cell: Any, row: int) -> Any:
        data, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        where = f"{self._name} frame {row}"
        if data:
            return open_picture(bytes(data), where)
        if name:
            path = located(self.root, str(name))
            if path.is_file():
                return open_picture(path, f"{path} ({where})")
            raise EpisodeError(
                f"{path} is not there ({where})", "copy the folder of the pictures into the dataset, beside meta/"
            )
        raise EpisodeError(f"{where} holds no picture")


def rows_of(path: Path) -> int:
    """Rows of a parquet file; 0 where it cannot be read, which its own check will say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return 0


@functools.lru_cache(maxsize=64)
def _places(path: Path, episode: int, length: int, first: int | None) -> np.ndarray:
    """Rows of the file that are the episode's frames, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = _schema(path).names
    names = [name for name in ("episode_index", "frame_index") if name in known]
    try:
        if not names:
            return _fitting(np.arange(rows_of(path)), path, length, first)
        return _order(pq.read_table(path, columns=names), path, episode, length, first)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _order(table: Any, path: Path, episode: int, length: int, first: int | None) -> np.ndarray:
    rows = np.arange(len(table))
    if "episode_index" in table.column_names:
        rows, first = rows[_scalar(table, "episode_index") == episode], None
    if first is not None:
        rows = rows[first : first + length]
    if "frame_index" in table.column_names:
        rows = rows[np.argsort(_scalar(table, "frame_index")[rows], kind="stable")]
    return _fitting(rows, path, length, None)


def _fitting(rows: np.ndarray, path: Path, length: int, first: int | None) -> np.ndarray:
    rows = rows if first is None else rows[first : first + length]
    if not len(rows):
        raise EpisodeError(f"{path} holds no row of this episode, meta says {length}", EMPTY)
    if len(rows) != length:
        raise EpisodeError(f"{path} holds {len(rows)} rows of this episode, meta says {length}")
    return rows


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise EpisodeError(f"{path} is listed in meta and not there")
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> EpisodeError:
    told = unreadable(path, str(error).splitlines()[0], "parquet file")
    return EpisodeError(told, told.fix)


def _scalar(table: Any, name: str) -> np.ndarray:
    """A column of single numbers, also where it is stored as lists of one."""
    values = np.asarray(table.column(name).to_pylist())
    return values.reshape(len(table), -1)[:, 0] if len(table) else np.zeros(0)


def _numbers(column: Any, length: int, path: Path, feature: Feature) -> np.ndarray:
    try:
        numbers = np.asarray(column.to_pylist(), dtype=np.float64)
        numbers = numbers.reshape(length, -1) if length else np.zeros((0, len(feature.columns)))
    except (TypeError, ValueError):
        raise EpisodeError(f"{path} column {feature.name!r} has rows of different lengths or missing values") from None
    if numbers.shape[1] != len(feature.columns):
        raise EpisodeError(
            f"{path} column {feature.name!r} holds {numbers.shape[1]} numbers a row, meta says {len(feature.columns)}"
        )
    return numbers
