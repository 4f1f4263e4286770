"""Episode: the one form every reader produces. Everything in it is lazy and can be sent to a worker process.

Columns are single numbers per frame, named `<feature>/<element>` ("observation.state/kLeftElbow"); a feature of one
number without an element name is named by the feature alone. Values are as recorded: no unit is converted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from xwam_ft import media

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8, UInt16
    from numpy import ndarray


class EpisodeError(Exception):
    """What is wrong with one episode, as a sentence; the episode is rejected and the others go on.

    `fix`: what to do about it, where that can be told better than by the kind of the fault.
    """

    def __init__(self, text: str, fix: str = "") -> None:
        super().__init__(text)
        self.fix = fix


class Problem(str):
    """The same found while an episode's files were located. `camera`: the feature it is about, "" for all of it."""

    fix: str
    camera: str

    def __new__(cls, text: str, fix: str = "", camera: str = "") -> Problem:
        made = super().__new__(cls, text)
        made.fix, made.camera = fix, camera
        return made

    @staticmethod
    def of(error: EpisodeError, camera: str = "") -> Problem:
        return Problem(str(error), error.fix, camera)


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

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"] | Float32[ndarray, "n h w"]:
        """Depth as recorded: counts, or real numbers where the format stores them."""
        ...


@dataclass(frozen=True)
class LogCode:
    """LeRobot's 12-bit depth code (since v0.6): its ends and shift in metres; logarithmic, or linear."""

    low: float = 0.01
    high: float = 10.0
    shift: float = 3.5
    log: bool = True


@dataclass(frozen=True)
class VideoView:
    """A run of frames of a video file, located by integers."""

    path: Path
    first: int  # index of the episode's first frame in the file
    frames: int
    shared: bool = False  # other episodes are in the file too (LeRobot v3.0), whose reader counted its frames
    code: LogCode | None = None  # of a depth video, where the recording says how its counts are coded

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
