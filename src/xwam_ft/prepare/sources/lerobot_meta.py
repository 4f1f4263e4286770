"""What LeRobot's meta/ folder says, in all versions: features and their column names, cameras, path templates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.prepare.episode import LogCode
from xwam_ft.prepare.sources import CameraInfo, SourceInfo
from xwam_ft.prepare.sources.views import VIDEOS

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
PICTURES = ("video", "image")
CHUNK = 1000  # episodes a chunk, where meta/info.json does not say


@dataclass(frozen=True)
class Feature:
    name: str
    dtype: str
    columns: tuple[str, ...]  # full column names; empty for pictures and text
    depth: bool = False
    code: LogCode | None = None  # of a depth video, where meta says how it is coded


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json, with what every version needs.

    Raises:
        UserError: it is not LeRobot's, or a value of it makes no sense.
    """
    where = path / "meta" / "info.json"
    meta = read_json(where)
    if not isinstance(meta, dict) or not isinstance(meta.get("features"), dict):
        raise UserError("has no `features` table, so it is not LeRobot metadata", where, "restore meta/info.json")
    fps = meta.get("fps")
    if not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise UserError(f"fps is {fps!r}", where, "write the recording's frames per second there")
    chunk = meta.get("chunks_size") or CHUNK
    if not isinstance(chunk, int) or chunk < 1:
        raise UserError(f"chunks_size is {chunk!r}", where, "write a whole number of episodes, 1000 by default")
    return meta


def read_features(path: Path, meta: dict[str, Any]) -> dict[str, Feature]:
    """The features of meta/info.json with their columns named; text and bookkeeping columns have no names."""
    features: dict[str, Feature] = {}
    for name, spec in meta["features"].items():
        if not isinstance(spec, dict) or not _sizes(spec.get("shape")):
            shown = spec if not isinstance(spec, dict) else {"shape": spec.get("shape")}
            raise UserError(
                f"feature {name!r} is {shown!r}", path / "meta" / "info.json", "give it a dtype and a shape of numbers"
            )
        dtype = str(spec.get("dtype", ""))
        if dtype in PICTURES:
            features[name] = _picture(name, dtype, spec)
        elif name in BOOKKEEPING or dtype in ("string", "str"):
            features[name] = Feature(name, dtype, ())
        else:
            features[name] = Feature(name, dtype, _columns(name, spec))
    return features


def _sizes(shape: Any) -> bool:
    return shape is None or (isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape))


def _columns(name: str, spec: dict[str, Any]) -> tuple[str, ...]:
    width = int(np.prod(spec.get("shape") or [1]))
    labels = flat_names(spec.get("names"))
    if len(labels) != width or len(set(labels)) != width:
        return (name,) if width == 1 else tuple(f"{name}/{i}" for i in range(width))
    return tuple(f"{name}/{label}" if label != name else name for label in labels)


def _picture(name: str, dtype: str, spec: dict[str, Any]) -> Feature:
    """A camera; depth by its flag or its name. v0.6 stores how depth was coded beside the flag."""
    details: dict[str, Any] = {}
    for key in ("video_info", "info"):
        if isinstance(spec.get(key), dict):
            details |= {str(k).removeprefix("video."): value for k, value in spec[key].items()}
    depth = bool(details.get("is_depth_map")) or name.endswith("_depth") or name.startswith("observation.depth")
    code = None
    if depth and isinstance(details.get("depth_max"), int | float):
        usual = LogCode()
        code = LogCode(
            low=float(details.get("depth_min", usual.low)),
            high=float(details["depth_max"]),
            shift=float(details.get("shift", usual.shift)),
            log=bool(details.get("use_log", True)),
        )
    return Feature(name, dtype, (), depth, code)


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
    return SourceInfo(
        path=path,
        format="LeRobot v" + version_of(meta, "2"),
        fps=float(meta["fps"]),
        robot=str(meta.get("robot_type") or "unknown"),
        cameras={name: CameraInfo(name, each.depth) for name, each in features.items() if each.dtype in PICTURES},
        columns=tuple(column for feature in features.values() for column in feature.columns),
        calibration=read_calibration(path),
        suffixes=(".parquet", *VIDEOS),
    )


def version_of(meta: dict[str, Any], default: str = "") -> str:
    return str(meta.get("codebase_version") or default).lstrip("v")


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
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{key} is {template!r}, which cannot be filled ({error})",
            path / "meta" / "info.json",
            f"use these names in it: {listed(names)}",
        ) from None


def read_jsonl(path: Path, needs: str) -> dict[int, dict[str, Any]]:
    """The objects of a .jsonl file by their whole number `needs`; none where there is no file.

    Raises:
        UserError: a line is not JSON, or lacks that number.
    """
    rows: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return rows
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise UserError(f"line {number} is not JSON", path, "mend or remove that line") from None
        if not isinstance(row, dict) or not isinstance(row.get(needs), int):
            raise UserError(f"line {number} lacks a whole number {needs!r}", path, "mend or remove that line")
        rows[row[needs]] = row
    return rows
