"""Small LeRobot sets made on the spot, the same recordings in v2.1 and v3.0."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xwam_ft.media import write_gray16, write_rgb

sys.path.append(str(Path(__file__).parent))  # tests are imported by path: lets them import formats.py

FPS = 10
HEIGHT, WIDTH = 32, 48
NAMES = ["j1", "j2", "grip"]
CAMERA = "observation.images.Front View"
DEPTH = "observation.images.front_depth"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
URDF = """<robot name="two"><link name="base"/><link name="upper"/><link name="hand"/>
<joint name="shoulder" type="revolute"><parent link="base"/><child link="upper"/><origin xyz="0 0 0.3"/>
<axis xyz="0 1 0"/><limit lower="-3" upper="3"/></joint>
<joint name="elbow" type="revolute"><parent link="upper"/><child link="hand"/><origin xyz="0.2 0 0"/>
<axis xyz="0 1 0"/><limit lower="-3" upper="3"/></joint></robot>"""
EMBODIMENT = """
name: toy
cameras: {front: {source: "observation.images.Front View", depth: {source: front_depth, unit: mm}}}
image: {height: 32, width: 32}
timing: {frame_skip: 2, action_skip: 1, clip_frames: 5}
slots:
  arm: {kind: joints, columns: [j1, j2], units: rad}
  hand: {kind: gripper, columns: [grip]}
"""


@dataclass
class Recording:
    """Numbers and pictures of a few episodes, before any format."""

    states: list[np.ndarray]  # [F, 3] each
    actions: list[np.ndarray]
    pictures: list[np.ndarray]
    depths: list[np.ndarray]  # mm
    tasks: list[str] = field(default_factory=list)


def recording(lengths: list[int], seed: int = 0) -> Recording:
    """Smooth numbers and moving gradients, so that frames can be told apart after encoding."""
    random = np.random.default_rng(seed)
    made = Recording([], [], [], [], [])
    for episode, length in enumerate(lengths):
        state = np.cumsum(random.normal(0, 0.05, (length, 3)), axis=0).astype(np.float32)
        made.states.append(state)
        made.actions.append((state + random.normal(0, 0.01, state.shape)).astype(np.float32))
        time = np.arange(length)[:, None, None]
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        base = (rows * 4 + columns * 2 + time * 9 + episode * 60) % 256
        made.pictures.append(np.stack([base, 255 - base, (base // 2)], axis=-1).astype(np.uint8))
        depth = (400 + rows * 10 + columns * 5 + time * 20).astype(np.uint16)
        depth[:, :4, :4] = 0  # never measured
        made.depths.append(depth)
        made.tasks.append(("open the drawer", "close the drawer")[episode % 2])
    return made


def _info(version: str, data: str, video: str, names: Any) -> dict[str, Any]:
    numbers = {"dtype": "float32", "shape": [3], "names": names}
    picture = {"dtype": "video", "shape": [HEIGHT, WIDTH, 3], "names": None, "info": {"video.codec": "av1"}}
    depth = {**picture, "info": {"video.is_depth_map": True}}
    scalars = {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index")}
    return {
        "codebase_version": version,
        "robot_type": "toy",
        "fps": FPS,
        "chunks_size": 1000,
        "data_path": data,
        "video_path": video,
        "features": {"observation.state": numbers, "action": numbers, CAMERA: picture, DEPTH: depth, **scalars},
    }


def _rows(made: Recording, episode: int) -> dict[str, Any]:
    length = len(made.states[episode])
    return {
        "observation.state": pa.array(list(made.states[episode]), pa.list_(pa.float32())),
        "action": pa.array(list(made.actions[episode]), pa.list_(pa.float32())),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / FPS),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "task_index": pa.array(np.full(length, 7 + episode % 2)),  # not 0, 1: tasks are keyed by value
    }


def _write_meta(root: Path, info: dict[str, Any]) -> None:
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def write_v21(
    root: Path,
    made: Recording,
    *,
    data: str = V2_DATA,
    video: str = V2_VIDEO,
    names: Any = None,
    drop: tuple[str, ...] = (),
) -> Path:
    _write_meta(root, _info("v2.1", data, video, [NAMES] if names is None else names))
    lines = []
    for episode, state in enumerate(made.states):
        place = {"episode_chunk": 0, "chunk_index": 0, "episode_index": episode}
        path = root / data.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({k: v for k, v in _rows(made, episode).items() if k not in drop}), path)
        write_rgb(root / video.format(**place, video_key=CAMERA), made.pictures[episode], FPS)
        _write_depth(root / video.format(**place, video_key=DEPTH), made.depths[episode])
        lines.append({"episode_index": episode, "tasks": [made.tasks[episode]], "length": len(state)})
    (root / "meta" / "episodes.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    tasks = [{"task_index": 8, "task": "close the drawer"}, {"task_index": 7, "task": "open the drawer"}]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(json.dumps(task) for task in tasks))
    return root


def write_v30(root: Path, made: Recording, *, drift: float = 0.0, drop: tuple[str, ...] = ()) -> Path:
    """All episodes in one parquet and one mp4; rows are shuffled, since everything is keyed by value."""
    _write_meta(root, _info("v3.0", V3_DATA, V3_VIDEO, {"motors": NAMES}))
    tables = [pa.table({k: v for k, v in _rows(made, e).items() if k not in drop}) for e in range(len(made.states))]
    whole = pa.concat_tables(tables)
    if {"episode_index", "frame_index"}.isdisjoint(drop):
        whole = whole.take(np.random.default_rng(1).permutation(len(whole)))
    path = root / V3_DATA.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(whole, path)
    write_rgb(root / V3_VIDEO.format(video_key=CAMERA, chunk_index=0, file_index=0), np.concatenate(made.pictures), FPS)
    _write_depth(root / V3_VIDEO.format(video_key=DEPTH, chunk_index=0, file_index=0), np.concatenate(made.depths))
    rows, first = [], 0
    for episode, state in enumerate(made.states):
        row = {"episode_index": episode, "tasks": [made.tasks[episode]], "length": len(state)}
        row |= {"data/chunk_index": 0, "data/file_index": 0}
        for key in (CAMERA, DEPTH):
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            row |= {f"videos/{key}/from_timestamp": first / FPS + drift * (episode > 0)}
        rows.append(row)
        first += len(state)
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), path)
    tasks = pa.table({"task_index": [8, 7], "__index_level_0__": ["close the drawer", "open the drawer"]})
    pq.write_table(tasks, root / "meta" / "tasks.parquet")
    return root


def _write_depth(path: Path, depth: np.ndarray) -> None:
    write_gray16(path.with_suffix(".mkv"), depth, FPS)
    path.with_suffix(".mkv").rename(path)  # the template names every video .mp4; readers probe


@pytest.fixture
def made() -> Recording:
    return recording([14, 11, 12])


@pytest.fixture
def v21(tmp_path: Path, made: Recording) -> Path:
    return write_v21(tmp_path / "v21", made)


@pytest.fixture
def v30(tmp_path: Path, made: Recording) -> Path:
    return write_v30(tmp_path / "v30", made)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(EMBODIMENT)
    return path


@pytest.fixture
def lerobot() -> Any:
    """The writers, for tests that need another set."""

    class Writers:
        recording = staticmethod(recording)
        v21 = staticmethod(write_v21)
        v30 = staticmethod(write_v30)
        camera, depth, names, fps, embodiment, urdf = CAMERA, DEPTH, NAMES, FPS, EMBODIMENT, URDF

    return Writers
