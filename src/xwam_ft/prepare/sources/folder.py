"""A plain folder: one folder an episode, a table and the cameras in it.

    RECORDINGS/
      recording.json          optional: {"fps": 30, "robot": "my_arm"}
      meta/calibration.json   optional: {"cameras": {NAME: {"intrinsics": [fx, fy, cx, cy], "pose": 4x4, "kind": ...}}}
      EPISODE/                any name; taken in the order of the numbers in the names
        TABLE.csv             or .parquet or .npz: a row a frame
        CAMERA.mp4            or .mkv .avi .mov .webm: a picture a row of the table,
        CAMERA/               or a folder of .png .jpg .tif, in the order of the numbers in their names
        CAMERA_depth.mkv      depth the same way: 16-bit gray video, folder of 16-bit pictures, or .npy/.npz [F, H, W]
        instruction.txt       optional

Columns of a .csv or .parquet are named by their headers, arrays [F, k] of an .npz (and lists in a .parquet) NAME/0 ..
NAME/k-1. What is called `action`, `action/NAME`, `action.NAME` or `action_NAME` (or `cmd`, `command` for `action`) is a
command, everything else an observation; `timestamp` (or `time`, `t`) is the time in seconds, in milli-, micro- or
nanoseconds where its steps are too long for seconds; `instruction` is a column of text. Other columns of text are left
out, and those that count frames and episodes: `index`, `frame_index`, `episode_index`, `task_index`.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.prepare.episode import Episode, EpisodeError, Problem, Table, VideoView, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo
from xwam_ft.prepare.sources.beside import unreadable
from xwam_ft.prepare.sources.lerobot_meta import BOOKKEEPING, read_calibration
from xwam_ft.prepare.sources.resampling import nominal_rate, rate
from xwam_ft.prepare.sources.views import ARRAYS, VIDEOS, find_view, natural, picture_files

reads = "a plain folder with one folder an episode (a table .csv, .parquet or .npz, and a video or pictures a camera)"

TABLES = (".csv", ".parquet", ".npz")
SETTINGS = "recording.json"
EMPTY = "the recorder was stopped before it wrote one: copy the table again, or leave the episode's folder out"
TEXT = "instruction"
TIMES = re.compile(r"(?:time_?stamps?|times?|t|stamp)(?:_(?:s|sec|ms|us|ns))?", re.IGNORECASE)
COMMAND = re.compile(r"(?:actions?|cmd|commands?|commanded)[./_](.+)", re.IGNORECASE)
SLOWEST = 2.0  # s between frames: what is longer is counted in smaller units


def detect(path: Path) -> bool:
    return bool(_folders(path))


def read(path: Path) -> Source:
    """Open a plain folder of recordings.

    Raises:
        UserError: recording.json makes no sense, or no table can be read; it is a part of a LeRobot set.
    """
    above = path.resolve().parent
    if (above / "meta" / "info.json").is_file() and not (path / SETTINGS).is_file():
        # Its tables hold many episodes each, and would be read as one.
        raise UserError(f"is the {path.resolve().name!r} folder of a LeRobot set", path, f"give {above}")
    return PlainFolder(path)


@dataclass(frozen=True)
class FolderTable:
    path: Path

    def read(self) -> Table:
        columns = read_table(self.path)[0]
        times = take_times(columns)
        if not len(next(iter(columns.values()), ())):
            raise EpisodeError(f"{self.path} holds no row", EMPTY)
        return Table(columns, times, None)


class PlainFolder(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = read_json(path / SETTINGS) if (path / SETTINGS).is_file() else {}
        fps = self.settings.get("fps") if isinstance(self.settings, dict) else "not there"
        if fps is not None and (not isinstance(fps, int | float) or not 0 < fps < float("inf")):
            raise UserError(f"fps is {fps!r}", path / SETTINGS, 'write {"fps": frames per second, "robot": name}')
        self.fps = None if fps is None else float(fps)
        self.columns: dict[str, None] = {}
        self.rates: list[float] = []  # by the timestamps of each episode
        self._episodes = [self._episode(index, folder) for index, folder in enumerate(_folders(path))]
        if not self.columns:
            first = self._episodes[0].problems[0]
            raise UserError(
                f"holds no table that can be read ({first})", path, getattr(first, "fix", "") or "mend the tables"
            )

    @property
    def info(self) -> SourceInfo:
        names = sorted({name for episode in self._episodes for name in episode.views})
        return SourceInfo(
            path=self.path,
            format="plain folder",
            fps=self.fps,
            robot=str(self.settings.get("robot") or "unknown"),
            cameras={name: CameraInfo(name, name.endswith("_depth")) for name in names},
            columns=tuple(self.columns),
            calibration=read_calibration(self.path),
            suffixes=(*TABLES, *VIDEOS),
            measured_fps=nominal_rate(float(np.median(self.rates))) if self.rates else None,
        )

    def episodes(self) -> list[Episode]:
        return self._episodes

    def _episode(self, index: int, folder: Path) -> Episode:
        views: dict[str, View] = {}
        problems: list[str] = []
        tables = _tables(folder)
        length, texts = 0, list[str]()
        try:
            if len(tables) != 1:
                raise EpisodeError(f"{folder} holds {len(tables)} tables ({listed(t.name for t in tables)}), not one")
            columns, texts = read_table(tables[0])
            times = take_times(columns)
            if times is not None and (measured := rate(times)) > 0:
                self.rates.append(measured)
            length = len(next(iter(columns.values()), ()))
            self.columns |= dict.fromkeys(columns)
            for camera, path in _cameras(folder).items():
                found = find_view(path, 0, length, whole=True)
                if isinstance(found, str):
                    problems.append(found)
                views[camera] = VideoView(path, 0, length) if isinstance(found, str) else found
            if not length:
                raise EpisodeError(f"{tables[0]} holds no row", EMPTY)
        except EpisodeError as error:
            problems.append(Problem.of(error))
        spoken = folder / "instruction.txt"
        if spoken.is_file():
            texts = [spoken.read_text(encoding="utf-8", errors="replace").strip()]
        return Episode(
            dataset=self.path,
            index=index,
            length=length,
            views=views,
            table=FolderTable(tables[0] if tables else folder),
            instructions=tuple(text for text in texts if text),
            problems=tuple(problems),
        )


def _folders(path: Path) -> list[Path]:
    """The episodes of a folder: its folders that hold a table or a video."""
    if not path.is_dir():
        return []
    inside = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    found = [child for child in inside if _tables(child)]
    if found:  # an episode whose table is lost is one too, and is told
        found = [child for child in inside if child in found or any(file.suffix in VIDEOS for file in child.iterdir())]
    return sorted(found, key=lambda child: natural(child.name))


def _tables(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in TABLES)
    return [file for file in files if not file.stem.endswith("_depth")]


def _cameras(folder: Path) -> dict[str, Path]:
    """Videos, folders of pictures and arrays of depth by name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        camera = path.suffix.lower() in VIDEOS or (path.is_dir() and picture_files(path))
        if camera or (path.suffix.lower() in ARRAYS and path.stem.endswith("_depth")):
            if path.stem in found:
                raise EpisodeError(
                    f"{folder} holds camera {path.stem!r} twice: {found[path.stem].name} and {path.name}"
                )
            found[path.stem] = path
    return found


def read_table(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns [F] in float64 by full name, and the instructions of a text column.

    Raises:
        EpisodeError: unreadable, rows of different lengths, no number, or a cell that is none.
    """
    columns = _npz(path) if path.suffix.lower() == ".npz" else _arrow(path)
    texts = list(dict.fromkeys(str(text) for text in columns.pop(TEXT, ())))
    found: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if name in BOOKKEEPING and not TIMES.fullmatch(name):
            continue
        if values.dtype.kind in "US" and not _is_number(values[0] if len(values) else ""):
            continue
        array = _floats(values, name, path)
        command = COMMAND.fullmatch(name)
        full = f"action/{command[1]}" if command else name
        names = [full] if array.shape[1] == 1 else [f"{full}/{i}" for i in range(array.shape[1])]
        found |= {column: array[:, i] for i, column in enumerate(names)}
    lengths = sorted({len(values) for values in found.values()})
    if not found:
        raise EpisodeError(f"{path} holds no column of numbers")
    if len(lengths) > 1:
        raise EpisodeError(f"{path} holds columns of {lengths[0]} and of {lengths[-1]} rows")
    return found, texts


def take_times(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """The column of times out of a table, in seconds; None where none is recorded."""
    name = next((name for name in columns if TIMES.fullmatch(name)), None)
    if name is None:
        return None
    times = columns.pop(name)
    steps = np.diff(times[np.isfinite(times)])
    step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    scale = next((scale for scale in (1.0, 1e-3, 1e-6, 1e-9) if step * scale <= SLOWEST), 1.0)
    return times * scale


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as archive:
            return {name: np.atleast_1d(archive[name]) for name in archive}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        told = unreadable(path, str(error).splitlines()[0], ".npz of numbers")
        raise EpisodeError(told, told.fix) from None


def _arrow(path: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    try:
        table: Any = csv.read_csv(path) if path.suffix.lower() == ".csv" else pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        told = unreadable(path, str(error).splitlines()[0], "table")
        raise EpisodeError(told, told.fix) from None
    found: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found[name] = np.asarray([value or "" for value in column.to_pylist()], dtype=np.str_)
        else:
            found[name] = np.asarray(column.to_pylist(), dtype=object)
    return found


def _floats(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """[F, k]; a cell without a number is NaN, which the checks tell."""
    if values.dtype.kind in "US":
        bad = next((row for row, value in enumerate(values) if not _is_number(value)), None)
        if bad is not None:
            raise EpisodeError(f"{path} column {name!r} holds {str(values[bad])!r} in row {bad}, not a number")
    try:
        rows = [np.nan if value is None else value for value in values] if values.dtype == object else values
        array = np.asarray(rows, dtype=np.float64)
        return array.reshape(len(values), -1) if len(values) else np.zeros((0, 1))
    except (TypeError, ValueError):
        raise EpisodeError(f"{path} column {name!r} holds something that is not a number in every row") from None


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
