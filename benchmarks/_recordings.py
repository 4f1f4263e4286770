"""Synthetic LeRobot v2.1 recordings of any size, and the embodiment file that reads them.

Pictures are a drifting texture with a moving box and a little noise, so that coding them costs about what coding a
robot's camera does. A few episodes are drawn; the others link to their videos and have numbers of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from scipy.ndimage import zoom

from xwam_ft.files import write_bytes_atomic
from xwam_ft.media import REPRODUCIBLE, encoded, write_gray16

JOINTS = 7
RECORDED = {"crf": "18", "preset": "medium", "g": "16", **REPRODUCIBLE}  # a recorder's choice, which is not the shards'
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mkv"
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"


@dataclass(frozen=True)
class Shape:
    """Of recordings: episodes of `frames`, each with `cameras` of height x width, and their depth in mm."""

    episodes: int
    frames: int
    cameras: int = 3
    height: int = 480
    width: int = 640
    depth: bool = False
    fps: int = 20
    drawn: int = 4  # episodes with videos of their own

    @property
    def camera_names(self) -> list[str]:
        return [f"camera{number}" for number in range(self.cameras)]


def write_recordings(folder: Path, shape: Shape, *, videos: Path | None = None) -> Path:
    """Write a dataset to `folder`; with `videos`, link to the videos of an equally shaped dataset there."""
    (folder / "meta").mkdir(parents=True)
    numbers = {"dtype": "float32", "shape": [JOINTS], "names": [f"j{number}" for number in range(JOINTS)]}
    features: dict[str, object] = {"observation.state": numbers, "action": numbers}
    for name in shape.camera_names:
        size = [shape.height, shape.width]
        features[f"observation.images.{name}"] = {"dtype": "video", "shape": [*size, 3], "names": None}
        if shape.depth:
            told = {"dtype": "video", "shape": [*size, 1], "names": None, "info": {"video.is_depth_map": True}}
            features[f"observation.images.{name}_depth"] = told
    info = {"codebase_version": "v2.1", "robot_type": "synthetic", "fps": shape.fps, "chunks_size": 1000}
    info |= {"data_path": DATA, "video_path": VIDEO, "features": features}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    episodes = [{"episode_index": n, "tasks": ["move"], "length": shape.frames} for n in range(shape.episodes)]
    _write_lines(folder / "meta" / "episodes.jsonl", episodes)
    _write_lines(folder / "meta" / "tasks.jsonl", [{"task_index": 0, "task": "move"}])
    for number in range(shape.episodes):
        _write_table(folder, shape, number)
        for view, name in enumerate(shape.camera_names):
            _write_videos(folder, shape, number, view, name, videos)
    return folder


def write_embodiment(path: Path, shape: Shape, height: int, width: int) -> Path:
    """The embodiment file of such recordings, pictures to be stored at height x width."""
    depth = {"unit": "mm"}
    cameras = {
        name: {"source": f"observation.images.{name}"}
        | ({"depth": {"source": f"observation.images.{name}_depth", **depth}} if shape.depth else {})
        for name in shape.camera_names
    }
    columns = [f"j{number}" for number in range(JOINTS)]
    tree = {
        "name": "synthetic",
        "cameras": cameras,
        "image": {"height": height, "width": width},
        "timing": {"frame_skip": 4, "action_skip": 1, "clip_frames": 9},
        "slots": {"arm": {"kind": "joints", "columns": columns, "units": "rad"}},
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def _write_table(folder: Path, shape: Shape, number: int) -> None:
    random = np.random.default_rng(number)
    phase, speed = random.uniform(0, 6, JOINTS), random.uniform(0.5, 2, JOINTS)
    state = np.sin(phase + speed * np.arange(shape.frames + 2)[:, None] / shape.fps).astype(np.float32)
    listed = pa.list_(pa.float32())
    table = {
        "observation.state": pa.array(list(state[:-2]), listed),
        "action": pa.array(list(state[2:] + random.normal(0, 2e-3, state[2:].shape).astype(np.float32)), listed),
        "timestamp": pa.array(np.arange(shape.frames, dtype=np.float32) / shape.fps),
        "frame_index": pa.array(np.arange(shape.frames)),
        "episode_index": pa.array(np.full(shape.frames, number)),
        "task_index": pa.array(np.zeros(shape.frames, dtype=np.int64)),
    }
    path = folder / DATA.format(episode_chunk=number // 1000, episode_index=number)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)


def _write_videos(folder: Path, shape: Shape, number: int, view: int, name: str, videos: Path | None) -> None:
    keys = [f"observation.images.{name}", *([f"observation.images.{name}_depth"] if shape.depth else [])]
    for key in keys:
        path = folder / VIDEO.format(episode_chunk=number // 1000, episode_index=number, video_key=key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if videos is not None or number >= shape.drawn:
            os.link(
                (videos or folder) / VIDEO.format(episode_chunk=0, episode_index=number % shape.drawn, video_key=key),
                path,
            )
        elif key.endswith("_depth"):
            write_gray16(path, _depths(shape, number, view), shape.fps)
        else:
            write_bytes_atomic(path, encoded(_pictures(shape, number, view), shape.fps, "libx264", RECORDED))


def _pictures(shape: Shape, number: int, view: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng([number, view])
    coarse = random.uniform(30, 220, (shape.height // 16 + 1, shape.width // 16 + 1, 3))
    texture: Any = zoom(coarse, (16, 16, 1), order=1)[: shape.height, : shape.width]
    noise = random.normal(0, 3, (shape.height, shape.width, 1))
    for frame in range(shape.frames):
        picture = np.roll(texture, frame, axis=1) + np.roll(noise, 37 * frame, axis=0)
        top, left, side = _box(shape, frame)
        picture[top : top + side, left : left + side] = (230, 40, 40)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _depths(shape: Shape, number: int, view: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng([number, view, 1])
    far = np.broadcast_to(np.linspace(2500, 800, shape.height)[:, None], (shape.height, shape.width))
    noise = random.normal(0, 2, far.shape)
    for frame in range(shape.frames):
        depth = far + np.roll(noise, 37 * frame, axis=0)
        top, left, side = _box(shape, frame)
        depth[top : top + side, left : left + side] = 700
        yield depth.astype(np.uint16)


def _box(shape: Shape, frame: int) -> tuple[int, int, int]:
    """Top, left and side of the box that crosses the picture."""
    side = shape.height // 4
    left = int((shape.width - side) * (0.5 + 0.5 * np.sin(frame / 15)))
    return int((shape.height - side) * (0.5 + 0.5 * np.cos(frame / 15))), left, side


def _write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
