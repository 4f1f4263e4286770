"""The tables of a LeRobot v3.0 dataset: rows, episodes, tasks, features and their statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

VERSION = "v3.0"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000  # files a folder
DATA_MEGABYTES = 100  # a file of rows
INDICES = ("frame_index", "episode_index", "index", "task_index")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


class Rows:
    """Writes the rows of episodes, one row group each, into files of at most `DATA_MEGABYTES`."""

    def __init__(self, folder: Path, widths: dict[str, int], fps: float) -> None:
        import pyarrow as pa

        self._folder, self._fps = folder, fps
        numbers = [(name, pa.list_(pa.float32(), width)) for name, width in widths.items()]
        scalars = [("timestamp", pa.float32()), *((name, pa.int64()) for name in INDICES)]
        self._schema = pa.schema([*numbers, *scalars])
        self._bytes_a_row = 4 * sum(widths.values()) + 36
        self._writer: Any = None
        self._file = -1
        self._bytes = 0
        self._rows = 0

    def add(self, episode: int, task: int, columns: dict[str, Float[ndarray, "f n"]]) -> dict[str, int]:
        """Append an episode; returns what its line in meta/episodes says of it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        frames = len(next(iter(columns.values())))
        size = frames * self._bytes_a_row
        if self._writer is None or self._bytes + size > DATA_MEGABYTES * 2**20:
            self.close()
            self._file, self._bytes = self._file + 1, 0
            path = self._folder / DATA_PATH.format(chunk_index=self._file // CHUNK, file_index=self._file % CHUNK)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, self._schema)
        self._bytes += size
        index = np.arange(frames)
        table: dict[str, Any] = {name: list(values.astype(np.float32)) for name, values in columns.items()}
        table |= {"timestamp": (index / self._fps).astype(np.float32), "frame_index": index}
        table |= {"episode_index": np.full(frames, episode), "index": self._rows + index}
        table |= {"task_index": np.full(frames, task)}
        self._writer.write_table(pa.table(table, schema=self._schema))
        first, self._rows = self._rows, self._rows + frames
        place = {"data/chunk_index": self._file // CHUNK, "data/file_index": self._file % CHUNK}
        return {**place, "dataset_from_index": first, "dataset_to_index": self._rows}

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def write_tasks(folder: Path, tasks: Sequence[str]) -> None:
    """meta/tasks.parquet, with the texts as pandas' index, as LeRobot reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = {"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": pa.array(tasks, pa.string())}
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": columns}
    table = pa.table(named).replace_schema_metadata({"pandas": json.dumps({**pandas, "pandas_version": "2.3.0"})})
    pq.write_table(table, folder / "meta" / "tasks.parquet")


def write_episodes(folder: Path, episodes: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), path)


def video_feature(
    height: int, width: int, codec: str, pixels: str, fps: float, depth: tuple[float, float] | None = None
) -> dict[str, Any]:
    """A feature of videos. `depth`: near and far in metres of a depth video's logarithmic code."""
    channels = 3 if depth is None else 1
    info: dict[str, Any] = {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": pixels,
        "video.is_depth_map": depth is not None,
        "video.fps": fps,
        "video.channels": channels,
        "has_audio": False,
    }
    if depth is not None:
        code = {"depth_min": depth[0], "depth_max": depth[1], "shift": 0.0, "use_log": True}
        info |= {"is_depth_map": True, "depth_unit": "m", **{f"video.{name}": value for name, value in code.items()}}
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": [height, width, channels], "names": names, "info": info, "fps": fps}


def number_feature(names: Sequence[str], fps: float) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names), "fps": fps}


def bookkeeping(fps: float) -> dict[str, Any]:
    kinds = {"timestamp": "float32", **dict.fromkeys(INDICES, "int64")}
    return {name: {"dtype": kind, "shape": [1], "names": None, "fps": fps} for name, kind in kinds.items()}


def statistics(values: Float[ndarray, "f n"], count: int | None = None, *, picture: bool = False) -> dict[str, Any]:
    """What LeRobot normalises by, per number; of pictures per channel, as [n, 1, 1].

    Args:
        count: rows these stand for, where they are a sample.
    """
    table = np.asarray(values, dtype=np.float64)
    found = {"min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0)}
    found |= {name: np.quantile(table, share, axis=0) for name, share in QUANTILES.items()}
    shaped = {name: (value[:, None, None] if picture else value).tolist() for name, value in found.items()}
    return {**shaped, "count": [len(table) if count is None else count]}
