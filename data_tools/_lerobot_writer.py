"""Write a LeRobot v3.0 dataset of a few episodes: one parquet, one mp4 a camera, all meta files.

Only what a recorder needs: every episode in memory, one chunk, one file. Written with pinned encoder settings, one
thread and no dates, so that equal pictures give equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.codec.context import Flags

# LeRobot's 12-bit depth code: logarithmic between these depths in metres, shifted so that near depth is not crowded.
DEPTH_MIN, DEPTH_MAX, DEPTH_SHIFT, DEPTH_STEPS = 0.01, 10.0, 3.5, 4095


@dataclass(frozen=True)
class Recording:
    """One episode: equal numbers of rows everywhere."""

    task: str
    columns: dict[str, np.ndarray]  # feature -> [F] or [F, n]
    videos: dict[str, np.ndarray]  # camera -> uint8 [F, H, W, 3]
    depths: dict[str, np.ndarray]  # camera -> float metres [F, H, W]

    @property
    def length(self) -> int:
        return len(next(iter(self.columns.values())))


def depth_code(metres: np.ndarray) -> np.ndarray:
    """Metres -> LeRobot's 12-bit code; 0 is kept for "no depth"."""
    low, high = np.log(DEPTH_MIN + DEPTH_SHIFT), np.log(DEPTH_MAX + DEPTH_SHIFT)
    unit = (np.log(np.clip(metres, DEPTH_MIN, DEPTH_MAX) + DEPTH_SHIFT) - low) / (high - low)
    return np.clip(np.rint(unit * DEPTH_STEPS), 1, DEPTH_STEPS).astype(np.uint16)


def write_dataset(
    folder: Path,
    recordings: list[Recording],
    *,
    fps: int,
    robot: str,
    names: dict[str, list[str]],
    calibration: dict[str, Any],
    crf: int,
    depth_crf: int,
) -> None:
    """Write `recordings` as a dataset into the new folder `folder`.

    Args:
        names: element names of every column feature.
        calibration: written to meta/calibration.json.
        crf, depth_crf: x264's and x265's quality (lower is better and larger).
    """
    tasks = list(dict.fromkeys(recording.task for recording in recordings))
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    first = recordings[0]
    features: dict[str, Any] = {}
    for name, rows in first.columns.items():
        shape = list(rows.shape[1:]) or [1]
        features[name] = {"dtype": str(rows.dtype), "shape": shape, "names": names[name], "fps": fps}
    for camera, pictures in first.videos.items():
        key = f"observation.images.{camera}"
        _write_video(folder, key, [r.videos[camera] for r in recordings], fps, "libx264", crf)
        features[key] = _video_feature(pictures.shape[1:], "h264", "yuv420p", fps, is_depth=False)
    for camera, pictures in first.depths.items():
        key = f"observation.images.{camera}_depth"
        _write_video(folder, key, [depth_code(r.depths[camera]) for r in recordings], fps, "libx265", depth_crf)
        features[key] = _video_feature((*pictures.shape[1:], 1), "hevc", "gray12le", fps, is_depth=True)
    for name, dtype in (("timestamp", "float32"), *((n, "int64") for n in _INDICES)):
        features[name] = {"dtype": dtype, "shape": [1], "names": None, "fps": fps}
    _write_tables(folder, recordings, tasks, fps, [key for key in features if features[key]["dtype"] == "video"])
    _write_json(
        folder / "meta" / "info.json",
        {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": len(recordings),
            "total_frames": sum(r.length for r in recordings),
            "total_tasks": len(tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": fps,
            "splits": {"train": f"0:{len(recordings)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        },
    )
    _write_json(folder / "meta" / "stats.json", _statistics(recordings))
    _write_json(folder / "meta" / "calibration.json", calibration)


_INDICES = ("frame_index", "episode_index", "index", "task_index")


def _video_feature(
    shape: tuple[int, ...], codec: str, pixel_format: str, fps: int, *, is_depth: bool
) -> dict[str, Any]:
    height, width, channels = shape
    info: dict[str, Any] = {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": pixel_format,
        "video.is_depth_map": is_depth,
        "video.fps": fps,
        "video.channels": channels,
        "has_audio": False,
    }
    if is_depth:
        info |= {"video.depth_min": DEPTH_MIN, "video.depth_max": DEPTH_MAX, "video.shift": DEPTH_SHIFT}
        info |= {"video.use_log": True}
    return {
        "dtype": "video",
        "shape": [height, width, channels],
        "names": ["height", "width", "channels"],
        "info": info,
        "fps": fps,
    }


def _write_video(folder: Path, key: str, episodes: list[np.ndarray], fps: int, codec: str, crf: int) -> None:
    path = folder / "videos" / key / "chunk-000" / "file-000.mp4"
    path.parent.mkdir(parents=True)
    colour = codec == "libx264"
    # No macroblock tree in x264: its output varies from run to run. x265 is told to use one thread of each kind.
    # In 12 bits x265 goes on below 0, which libavcodec's own crf option does not allow.
    special = (
        {"crf": str(crf), "x264-params": "mbtree=0", "threads": "1"}
        if colour
        else {"x265-params": f"crf={crf}:pools=none:frame-threads=1:wpp=0:log-level=none:info=0", "preset": "slow"}
    )
    options = {"g": "32", **special}
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width = episodes[0].shape[1:3]
        stream.pix_fmt = "yuv420p" if colour else "gray12le"
        stream.codec_context.flags |= Flags.bitexact
        for frame in (frame for episode in episodes for frame in episode):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24" if colour else "gray12le")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _write_tables(folder: Path, recordings: list[Recording], tasks: list[str], fps: int, videos: list[str]) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in (*recordings[0].columns, "timestamp", *_INDICES)}
    episodes: list[dict[str, Any]] = []
    start = 0
    for index, recording in enumerate(recordings):
        rows = range(recording.length)
        for name, values in recording.columns.items():
            columns[name] += values.tolist()
        columns["timestamp"] += [row / fps for row in rows]
        columns["frame_index"] += list(rows)
        columns["episode_index"] += [index] * recording.length
        columns["index"] += [start + row for row in rows]
        columns["task_index"] += [tasks.index(recording.task)] * recording.length
        stop = start + recording.length
        episode: dict[str, Any] = {"episode_index": index, "tasks": [recording.task], "length": recording.length}
        episode |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": start, "dataset_to_index": stop}
        for key in videos:
            episode |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            episode |= {f"videos/{key}/from_timestamp": start / fps, f"videos/{key}/to_timestamp": stop / fps}
        episodes.append(episode | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        start = stop
    types = {name: _arrow_type(values) for name, values in recordings[0].columns.items()}
    types |= {"timestamp": pa.float32()} | dict.fromkeys(_INDICES, pa.int64())
    table = pa.table({name: pa.array(values, type=types[name]) for name, values in columns.items()})
    pq.write_table(table, folder / "data" / "chunk-000" / "file-000.parquet")
    pq.write_table(pa.Table.from_pylist(episodes), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    named = {"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks)}
    described: dict[str, Any] = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [],
        "pandas_version": "2.3.0",
    }
    described["columns"] = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pq.write_table(
        pa.table(named).replace_schema_metadata({"pandas": json.dumps(described)}), folder / "meta" / "tasks.parquet"
    )


def _arrow_type(values: np.ndarray) -> pa.DataType:
    scalar = pa.from_numpy_dtype(values.dtype)
    return pa.list_(scalar, values.shape[1]) if values.ndim == 2 else scalar


def _statistics(recordings: list[Recording]) -> dict[str, Any]:
    """Per column and element; of RGB per channel in 0..1 as [3, 1, 1]. Not of depth: a code's mean means nothing."""
    statistics: dict[str, Any] = {}
    level = np.arange(256) / 255
    for camera in recordings[0].videos:
        # Histograms, not pixels: a long recording's pixels as floats would not fit into memory.
        counts = np.sum(
            [
                [np.bincount(r.videos[camera][..., channel].ravel(), minlength=256) for channel in range(3)]
                for r in recordings
            ],
            axis=0,
        )
        share = counts / np.sum(counts, axis=1, keepdims=True)
        mean = share @ level
        found = {"min": [level[c > 0].min() for c in counts], "max": [level[c > 0].max() for c in counts]}
        found |= {"mean": mean, "std": np.sqrt(share @ level**2 - mean**2)}
        nested = {name: [[[float(value)]] for value in values] for name, values in found.items()}
        statistics[f"observation.images.{camera}"] = nested | {"count": [sum(r.length for r in recordings)]}
    for name in recordings[0].columns:
        values = np.concatenate([r.columns[name].reshape(r.length, -1) for r in recordings]).astype(np.float64)
        statistics[name] = {
            "min": values.min(0).tolist(),
            "max": values.max(0).tolist(),
            "mean": values.mean(0).tolist(),
            "std": values.std(0).tolist(),
            "count": [len(values)],
        }
    return statistics


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
