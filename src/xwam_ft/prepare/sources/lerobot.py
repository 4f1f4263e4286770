"""LeRobot v2.0 / v2.1: one parquet and one mp4 an episode. What v3.0 shares is here; its layout is lerobot_v3.py.

Paths come from the templates in meta/info.json. Missing things have these fallbacks, all stated in the report:
    chunks_size              1000
    meta/episodes.jsonl      the parquet files that are there, numbered by their name
    meta/tasks.jsonl         the instructions in meta/episodes.jsonl
    column frame_index       rows in file order
    column episode_index     the whole file is the episode (v2), rows located by earlier lengths (v3)
    column timestamp         frame number / fps
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.prepare.episode import Episode, EpisodeError, PictureView, Table, VideoView, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass(frozen=True)
class Feature:
    name: str
    dtype: str
    columns: tuple[str, ...]  # full column names; empty for pictures and text


@dataclass(frozen=True)
class LeRobotTable:
    """The rows of one episode: chosen by value of episode_index where it is recorded, in order of frame_index."""

    path: Path
    episode: int
    length: int
    first: int | None  # first row where episode_index is not recorded; None: the file is the episode
    features: tuple[Feature, ...]

    def read(self) -> Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.path.is_file():
            raise EpisodeError(f"{self.path} is listed in meta and not there")
        try:
            schema = pq.read_schema(self.path)
            known = schema.names
            wanted = [feature.name for feature in self.features if feature.columns and feature.name in known]
            extra = [name for name in (*BOOKKEEPING, "next.success") if name in known and name not in wanted]
            # Many episodes may share the file: leave the others out while reading, where the column allows it.
            plain = "episode_index" in known and pa.types.is_integer(schema.field("episode_index").type)
            only = [("episode_index", "==", self.episode)] if plain else None
            table = pq.read_table(self.path, columns=[*wanted, *extra], filters=only)
        except (pa.ArrowInvalid, OSError) as error:
            raise EpisodeError(f"{self.path} is not a readable parquet file ({str(error).splitlines()[0]})") from None
        rows = self._rows(table)
        if len(rows) != self.length:
            raise EpisodeError(f"{self.path} holds {len(rows)} rows of this episode, meta says {self.length}")
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

    def _rows(self, table: Any) -> np.ndarray:
        rows = np.arange(len(table))
        if "episode_index" in table.column_names:
            rows = rows[_scalar(table, "episode_index") == self.episode]
        elif self.first is not None:
            rows = rows[self.first : self.first + self.length]
        if "frame_index" in table.column_names:
            rows = rows[np.argsort(_scalar(table, "frame_index")[rows], kind="stable")]
        return rows


def _scalar(table: Any, name: str) -> np.ndarray:
    """A column of single numbers, also where it is stored as lists of one."""
    return np.asarray(table.column(name).to_pylist()).reshape(len(table), -1)[:, 0]


def _numbers(column: Any, length: int, path: Path, feature: Feature) -> np.ndarray:
    try:
        numbers = np.asarray(column.to_pylist(), dtype=np.float64).reshape(length, -1)
    except (TypeError, ValueError):
        raise EpisodeError(f"{path} column {feature.name!r} has rows of different lengths or missing values") from None
    if numbers.shape[1] != len(feature.columns):
        raise EpisodeError(
            f"{path} column {feature.name!r} holds {numbers.shape[1]} numbers a row, meta says {len(feature.columns)}"
        )
    return numbers


class LeRobotV2(Source):
    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.features = read_features(path, meta)
        self.info_ = source_info(path, meta, self.features)

    @property
    def info(self) -> SourceInfo:
        return self.info_

    def episodes(self) -> list[Episode]:
        tasks = {int(row["task_index"]): str(row["task"]) for row in read_jsonl(self.path / "meta" / "tasks.jsonl")}
        listed_rows = read_jsonl(self.path / "meta" / "episodes.jsonl")
        rows = {int(row["episode_index"]): row for row in listed_rows} or self._scanned()
        if not rows:
            raise UserError(
                "lists no episode", self.path / "meta" / "episodes.jsonl", "record some, or restore the file"
            )
        return [self._episode(index, rows[index], tasks) for index in sorted(rows)]

    def _scanned(self) -> dict[int, dict[str, Any]]:
        """Episodes by the files that are there, for sets without meta/episodes.jsonl."""
        files = sorted((self.path / "data").rglob("*.parquet"))
        numbers = [(re.search(r"(\d+)$", file.stem), file) for file in files]
        return {int(number[1]): {"length": _rows_of(file)} for number, file in numbers if number}

    def _episode(self, index: int, row: dict[str, Any], tasks: dict[int, str]) -> Episode:
        chunk = index // int(self.meta.get("chunks_size") or 1000)
        names = {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": index, "file_index": index}
        data = self.path / fill_template(self.path, "data_path", self.meta.get("data_path") or V2_DATA, names)
        length = int(row["length"]) if "length" in row else _rows_of(data)
        problems = [] if data.is_file() else [f"{data} is listed in meta and not there"]
        views: dict[str, View] = {}
        for key, feature in self.features.items():
            if feature.dtype == "image":
                views[key] = PictureView(data, key, tuple(range(length)))
            elif feature.dtype == "video":
                template = self.meta.get("video_path") or V2_VIDEO
                file = self.path / fill_template(self.path, "video_path", template, {**names, "video_key": key})
                problems += [] if file.is_file() else [_absent(self.path, file, key, index)]
                views[key] = VideoView(file, 0, length)
        return Episode(
            dataset=self.path,
            index=index,
            length=length,
            views=views,
            table=LeRobotTable(data, index, length, None, tuple(self.features.values())),
            instructions=tuple(str(text) for text in row.get("tasks") or ()),
            tasks=tasks,
            success=row.get("success"),
            problems=tuple(problems),
        )


def open_lerobot(path: Path) -> Source:
    """Open a LeRobot dataset of v2.0, v2.1 or v3.0, chosen by its `codebase_version`, else by its layout.

    Raises:
        UserError: meta/info.json is not one, lacks what locates the data, or has a version that is not supported.
    """
    where = path / "meta" / "info.json"
    meta = read_json(where)
    if not isinstance(meta, dict) or not isinstance(meta.get("features"), dict):
        raise UserError("has no `features` table, so it is not LeRobot metadata", where, "restore meta/info.json")
    if not isinstance(meta.get("fps"), int | float) or meta["fps"] <= 0:
        raise UserError(f"fps is {meta.get('fps')!r}", where, "write the recording's frames per second there")
    version = str(meta.get("codebase_version") or "").lstrip("v")
    if version.startswith("3") or (not version and (path / "meta" / "episodes").is_dir()):
        from xwam_ft.prepare.sources.lerobot_v3 import LeRobotV3

        return LeRobotV3(path, meta)
    if version.startswith("2") or not version:
        return LeRobotV2(path, meta)
    raise UserError(
        f"codebase_version is {version!r}; v2.0, v2.1 and v3.0 are read", where, "convert it with LeRobot's own scripts"
    )


def read_features(path: Path, meta: dict[str, Any]) -> dict[str, Feature]:
    """The features of meta/info.json with their columns named; text and bookkeeping columns have no names."""
    features: dict[str, Feature] = {}
    for name, spec in meta["features"].items():
        dtype = str(spec.get("dtype", ""))
        if dtype in ("video", "image") or name in BOOKKEEPING or dtype in ("string", "str"):
            features[name] = Feature(name, dtype, ())
            continue
        width = int(np.prod([int(size) for size in spec.get("shape") or [1]]))
        labels = flat_names(spec.get("names"))
        if len(labels) != width or len(set(labels)) != width:
            labels = [str(i) for i in range(width)]
            columns = (name,) if width == 1 else tuple(f"{name}/{label}" for label in labels)
        else:
            columns = tuple(f"{name}/{label}" if label != name else name for label in labels)
        features[name] = Feature(name, dtype, columns)
    return features


def flat_names(names: Any) -> list[str]:
    """Element names from a list, a nested list, a dict of lists, a dict of name -> index, or null."""
    if names is None:
        return []
    if isinstance(names, dict):
        if names and all(isinstance(value, int) for value in names.values()):
            return [str(name) for name, _ in sorted(names.items(), key=lambda item: item[1])]
        return [inner for value in names.values() for inner in flat_names(value)]
    if isinstance(names, list | tuple):
        return [inner for value in names for inner in flat_names(value)]
    return [str(names)]


def source_info(path: Path, meta: dict[str, Any], features: dict[str, Feature]) -> SourceInfo:
    cameras: dict[str, CameraInfo] = {}
    for name, feature in features.items():
        if feature.dtype in ("video", "image"):
            spec = meta["features"][name]
            details = spec.get("info") or spec.get("video_info") or {}
            flagged = any(bool(details.get(key)) for key in ("video.is_depth_map", "is_depth_map"))
            cameras[name] = CameraInfo(name, flagged or name.endswith("_depth"))
    return SourceInfo(
        path=path,
        format="LeRobot v" + str(meta.get("codebase_version") or "2").lstrip("v"),
        fps=float(meta["fps"]),
        robot=str(meta.get("robot_type") or "unknown"),
        cameras=cameras,
        columns=tuple(column for feature in features.values() for column in feature.columns),
        calibration=read_calibration(path),
    )


def read_calibration(path: Path) -> dict[str, dict[str, Any]]:
    """`meta/calibration.json`, an addition of ours to LeRobot, where it is there: {"cameras": {name: {...}}}."""
    file = path / "meta" / "calibration.json"
    if not file.is_file():
        return {}
    tree = read_json(file)
    cameras: Any = tree.get("cameras", tree) if isinstance(tree, dict) else None
    if not isinstance(cameras, dict) or not all(isinstance(value, dict) for value in cameras.values()):
        raise UserError(
            "holds no table of cameras", file, 'write {"cameras": {NAME: {"intrinsics": [fx, fy, cx, cy]}}}'
        )
    return {str(name): value for name, value in cameras.items()}


def fill_template(path: Path, key: str, template: str, names: dict[str, Any]) -> str:
    try:
        return template.format(**names)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{key} is {template!r}, which cannot be filled ({error})",
            path / "meta" / "info.json",
            f"use these names in it: {listed(names)}",
        ) from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise UserError(f"line {number} is not JSON", path, "mend or remove that line") from None
    return rows


def _rows_of(path: Path) -> int:
    """Rows of a parquet file; 0 where it cannot be read, which its own check will say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0


def _absent(root: Path, file: Path, key: str, index: int) -> str:
    pictures = root / "images" / key / f"episode_{index:06d}"
    if pictures.is_dir():
        return f"{file} is not there; {pictures} holds its pictures: the recording was interrupted before encoding"
    return f"{file} is listed in meta and not there"
