"""Recordings of two days, each prepared by itself and both in one call, all as an SO-101 lab has them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft.prepare import pipeline, report

sys.path.insert(0, str(Path(__file__).parents[1]))
from so101 import NAMES, TASKS, Recording, motion, pictures, write_dataset

SMALL = {
    "timing.frame_skip": 2,
    "timing.action_skip": 1,
    "timing.clip_frames": 5,
    "image.height": 32,
    "image.width": 64,
    "held_out": 0.3,
    **{f"cameras.{name}.depth": {"source": f"{name}_depth", "unit": "lerobot_log12"} for name in ("front", "wrist")},
    "depth": {"near": 0.3, "far": 3.0},
}
SIZE = (40, 80)


def recordings(lengths: Sequence[int], seed: int) -> list[Recording]:
    rng = np.random.default_rng(seed)
    made: list[Recording] = []
    for number, frames in enumerate(lengths):
        state, action = motion(frames, rng)
        videos = {name: pictures(state, *SIZE, rng, wrist=name == "wrist") for name in ("front", "wrist")}
        down, across = np.mgrid[: SIZE[0], : SIZE[1]]
        metres = 0.5 + down / 40 + across / 100 + 0.2 * np.sin(np.arange(frames) / 20)[:, None, None]
        columns = {"observation.state": state, "action": action}
        made.append(Recording(TASKS[number % 2], columns, videos, dict.fromkeys(videos, metres)))
    return made


def write(folder: Path, made: list[Recording]) -> Path:
    names = {"observation.state": NAMES, "action": NAMES}
    write_dataset(folder, made, fps=30, robot="so101_follower", names=names, calibration={}, crf=23, depth_crf=10)
    (folder / "meta" / "calibration.json").unlink()
    return folder


def prepared(raws: Sequence[Path], out: Path, **more: Any) -> Path:
    values: dict[str, Any] = {**SMALL, **more}
    embodiment = Path(values.pop("embodiment", "so101_joints"))
    options: dict[str, Any] = {"depth": None, "workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET}
    plots, report.plots = report.plots, lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"}
    try:
        pipeline.prepare(list(raws), out, embodiment=embodiment, overrides=values, **options)
    finally:
        report.plots = plots
    return out


@dataclass(frozen=True)
class Days:
    raw: tuple[Path, Path]
    monday: Path
    friday: Path
    whole: Path  # both prepared in one call


@pytest.fixture(scope="session")
def days(tmp_path_factory: pytest.TempPathFactory) -> Days:
    """Read them, do not change them."""
    folder = tmp_path_factory.mktemp("days")
    raw = (
        write(folder / "monday_raw", recordings([30, 24, 36], 1)),
        write(folder / "friday_raw", recordings([28, 33, 25, 31], 2)),
    )
    monday, friday = (prepared([one], folder / one.name.removesuffix("_raw")) for one in raw)
    return Days(raw, monday, friday, prepared(raw, folder / "whole"))


@pytest.fixture
def tuesday_raw(tmp_path: Path) -> Path:
    """Monday's scenes and nearly its motions, the videos in BGR and two joints in each other's place."""
    made = [
        replace(
            one,
            columns={name: table[:, [0, 2, 1, 3, 4, 5]] + 1 for name, table in one.columns.items()},
            videos={name: frames[..., ::-1].copy() for name, frames in one.videos.items()},
        )
        for one in recordings([30, 24, 36], 1)
    ]
    return write(tmp_path / "tuesday_raw", made)


@pytest.fixture(scope="session")
def prepare_small() -> Callable[..., Path]:
    return prepared
