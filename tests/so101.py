"""Recordings as an SO-101 lab's look on disk: LeRobot v3.0, two cameras, joints in degrees, 30 fps, no depth.

Synthetic motion and pictures; written by the recorder's own LeRobot writer, which LeRobot's loader reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "data_tools"))
from _lerobot_writer import Recording, write_dataset

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = [f"{motor}.pos" for motor in MOTORS]
CENTRE = np.array([0.0, -30.0, 40.0, 30.0, 0.0, 40.0])  # degrees; the gripper from 0 (closed) to 100 (open)
SWING = np.array([40.0, 30.0, 30.0, 25.0, 60.0, 38.0])
TASKS = ("Put the red cube into the box", "Push the cube to the left")


def motion(frames: int, rng: np.random.Generator, fps: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """State and action, float32 [F, 6] in degrees: the leader is a tenth of a second ahead of the follower."""
    phase, rate = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0.15, 0.4, 6)

    def at(seconds: np.ndarray) -> np.ndarray:
        return CENTRE + SWING * np.sin(2 * np.pi * rate * seconds[:, None] + phase)

    seconds = np.arange(frames) / fps
    jitter = rng.normal(0, 0.05, (frames, 6))
    return (at(seconds) + jitter).astype(np.float32), at(seconds + 0.1).astype(np.float32)


def pictures(state: np.ndarray, height: int, width: int, rng: np.random.Generator, *, wrist: bool) -> np.ndarray:
    """uint8 [F, H, W, 3]: a textured table and a bright block that goes where the joints say."""
    coarse = rng.integers(60, 160, (height // 8 + 1, width // 8 + 1, 3))
    table = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    out = np.empty((len(state), height, width, 3), np.uint8)
    for frame, joints in enumerate(state):
        shown = np.roll(table, round(joints[0] / 90 * width / 4), axis=1) if wrist else table.copy()
        x = round((joints[0] / 90 + 1) / 2 * (width - 16)) if not wrist else width // 2 - 8
        y = round((joints[1] / 90 + 1) / 2 * (height - 16))
        shown[y : y + 12, x : x + 16] = (220, 40, 30)
        out[frame] = shown
    return out


def write_so101(
    folder: Path,
    *,
    episodes: int = 4,
    frames: int = 150,
    size: tuple[int, int] = (120, 160),
    cameras: tuple[str, ...] = ("front", "wrist"),
    seed: int = 0,
) -> Path:
    """Write the set into the new folder; returns it."""
    rng = np.random.default_rng(seed)
    made: list[Recording] = []
    for episode in range(episodes):
        state, action = motion(frames, rng)
        videos = {camera: pictures(state, *size, rng, wrist=camera == "wrist") for camera in cameras}
        columns = {"observation.state": state, "action": action}
        made.append(Recording(TASKS[episode % len(TASKS)], columns, videos, {}))
    names = {"observation.state": NAMES, "action": NAMES}
    write_dataset(folder, made, fps=30, robot="so101_follower", names=names, calibration={}, crf=23, depth_crf=10)
    (folder / "meta" / "calibration.json").unlink()  # LeRobot writes none
    return folder
