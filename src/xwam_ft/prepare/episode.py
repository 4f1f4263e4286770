"""Episode: the one form every reader produces. Everything in it is lazy and can be sent to a worker process.

Columns are single numbers per frame, named `<feature>/<element>` ("observation.state/kLeftElbow"); a feature of one
number without an element name is named by the feature alone. Values are as recorded: no unit is converted here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xwam_ft import media

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray


class EpisodeError(Exception):
    """What is wrong with one episode, as a sentence; the episode is rejected and the others go on."""


class View(Protocol):
    """One camera of one episode, `frames` pictures long; rows count from the episode's first frame."""

    @property
    def frames(self) -> int: ...

    @property
    def path(self) -> Path: ...

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, probed."""
        ...

    def codec(self) -> str: ...

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]: ...

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"]: ...


@dataclass(frozen=True)
class VideoView:
    """A run of frames of a video file, located by integers."""

    path: Path
    first: int  # index of the episode's first frame in the file
    frames: int
    shared: bool = False  # other episodes are in the file too (LeRobot v3.0), whose reader counted its frames

    def size(self) -> tuple[int, int]:
        found = media.probe(self.path)
        return found.height, found.width

    def codec(self) -> str:
        found = media.probe(self.path)
        return f"{found.codec} {found.pixel_format}"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return media.read_rgb(self.path, [self.first + row for row in rows])

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"]:
        return media.read_gray16(self.path, [self.first + row for row in rows])


@dataclass(frozen=True)
class PictureView:
    """Pictures stored as encoded bytes in rows of a parquet column (LeRobot's `image` features)."""

    path: Path
    column: str
    rows: tuple[int, ...]  # parquet rows in frame order

    @property
    def frames(self) -> int:
        return len(self.rows)

    def size(self) -> tuple[int, int]:
        height, width = self._decode([0])[0].shape[:2]
        return int(height), int(width)

    def codec(self) -> str:
        return "pictures"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return np.stack([np.asarray(picture.convert("RGB")) for picture in self._open(rows)])

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"]:
        return np.stack([np.asarray(picture).astype(np.uint16) for picture in self._open(rows)])

    def _decode(self, rows: Sequence[int]) -> list[np.ndarray]:
        return [np.asarray(picture) for picture in self._open(rows)]

    def _open(self, rows: Sequence[int]) -> list[Any]:
        import pyarrow.parquet as pq
        from PIL import Image

        column = pq.read_table(self.path, columns=[self.column]).column(0)
        pictures: list[Any] = []
        for row in rows:
            cell = column[self.rows[row]].as_py()
            data = cell["bytes"] if isinstance(cell, dict) else cell
            if not data:
                raise EpisodeError(f"{self.path} column {self.column!r} holds no picture for frame {row}")
            pictures.append(Image.open(io.BytesIO(data)))
        return pictures


@dataclass(frozen=True)
class Table:
    """The numbers of one episode, F frames."""

    columns: dict[str, Float[ndarray, " f"]]
    timestamps: Float[ndarray, " f"] | None
    task_index: ndarray | None  # [F] integers
    success: bool | None = None
    problems: dict[str, str] = field(default_factory=dict[str, str])  # column -> why it cannot be used


class TableHandle(Protocol):
    def read(self) -> Table:
        """Raises EpisodeError when the file is absent, unreadable or of another length."""
        ...


@dataclass(frozen=True)
class Episode:
    """One recorded episode. `problems` are sentences found while locating its files; any one rejects it."""

    dataset: Path
    index: int  # the dataset's own number
    length: int
    views: dict[str, View]  # by feature name, depth views among them
    table: TableHandle
    instructions: tuple[str, ...] = ()
    tasks: dict[int, str] = field(default_factory=dict[int, str])  # task_index -> text
    success: bool | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # oddities that do not reject it
