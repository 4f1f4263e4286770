"""The pictures the built-in `tiny` models learn from: Meta-World rendered in two ways.

Video: every training task seen by the three cameras of recipes/embodiments/metaworld_sawyer.yaml at 20 pictures a
second, moved by the benchmark's expert (with and without noise) or at random. No action or state is kept.
Depth: single pictures with depth in metres, from cameras, lights and colours drawn at random.

    OUT/video/TASK.npz   rgb uint8 [frames, 3, 96, 128, 3], lengths int64 [episodes], metres float16 [m, 96, 128]
    OUT/depth/TASK.npz   rgb uint8 [n, 96, 128, 3], metres float16 [n, 96, 128], focal float32 [n] (pixels)
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.evaluate.metaworld import Simulator, benchmark
from xwam_ft.files import atomic_path

HELD_OUT = (
    "button-press-topdown",
    "button-press-topdown-wall",
    "drawer-close",
    "drawer-open",
    "window-open",
    "window-close",
    "push",
    "push-wall",
)
"""Tasks no built-in weight has seen: those of the bundled recordings and of recipes/metaworld, and near twins."""

CAMERAS = ["corner", "corner3", "gripperPOV"]
HEIGHT, WIDTH = 96, 128
STRIDE = 4  # simulator steps a picture
LONGEST = 196  # simulator steps an episode: 13 pictures, each 4 after the one before
FAR = 10.0


def all_tasks() -> list[str]:
    """Every task of the installed benchmark, sorted."""
    return sorted(name.removesuffix("-v3") for name in benchmark([])[1])


def training_tasks() -> list[str]:
    return [task for task in all_tasks() if task not in HELD_OUT]


def require_renders(corpus: Path) -> None:
    """Raise a `UserError` where a task was not rendered yet."""
    for kind in ("video", "depth"):
        for task in all_tasks():
            if not (corpus / kind / f"{task}.npz").is_file():
                raise UserError(
                    f"has no {kind}/{task}.npz", corpus, f"run: python data_tools/pretrain_tiny.py corpus {corpus}"
                )


def generator(*words: int | str) -> np.random.Generator:
    """Independent of the order in which tasks are rendered."""
    return np.random.default_rng([int.from_bytes(str(word).encode(), "big") % 2**63 for word in words])


def play(simulator: Simulator, rng: np.random.Generator) -> Iterator[None]:
    """Play one episode; yields before every step."""
    observation = simulator.reset(int(rng.integers(2**31)))
    noise = rng.choice([0.0, 0.3, 1.0])
    drift, wanders = np.zeros(4), rng.random() < 1 / 3
    for _ in range(LONGEST):
        yield
        if wanders:
            drift = 0.92 * drift + 0.3 * rng.standard_normal(4)
            action = drift
        else:
            action = simulator.expert.get_action(observation) + noise * rng.standard_normal(4)
        observation, _, _, _, info = simulator.environment.step(np.clip(action, -1, 1).astype(np.float32))
        if info["success"] and not wanders and rng.random() < 0.1:
            return


def render_video(task: str, episodes: int, out: Path) -> None:
    """Episodes of one task, with depth of every tenth picture of one camera after another."""
    simulator = Simulator(task, CAMERAS, HEIGHT, WIDTH)
    rng = generator("video", task)
    frames: list[np.ndarray] = []
    metres: list[np.ndarray] = []
    lengths: list[int] = []
    for _ in range(episodes):
        before = len(frames)
        for step, _ in enumerate(play(simulator, rng)):
            if step % STRIDE:
                continue
            if len(frames) % 10 == 0:
                pictures = list(simulator.pictures(depth=True).values())
                metres.append(np.minimum(pictures[len(metres) % len(pictures)], FAR))
            frames.append(np.stack(list(simulator.pictures(depth=False).values())))
        lengths.append(len(frames) - before)
    simulator.close()
    with atomic_path(out) as path:  # what is there is kept, so it must be whole
        np.savez(path, rgb=np.stack(frames), lengths=np.array(lengths), metres=np.stack(metres).astype(np.float16))


class RandomLook:
    """Draws a camera, lights and colours into a simulator's model."""

    def __init__(self, simulator: Simulator) -> None:
        self.model = simulator.model
        self.rgba, self.materials = self.model.geom_rgba.copy(), self.model.mat_rgba.copy()
        self.light = self.model.light_pos.copy()
        self.camera = self.model.camera("corner").id

    def draw(self, rng: np.random.Generator) -> float:
        """Returns the focal length in pixels."""
        model = self.model
        for kept, now in ((self.rgba, model.geom_rgba), (self.materials, model.mat_rgba)):
            amount = rng.choice([0.0, 0.15, 0.5])
            now[:, :3] = np.clip(kept[:, :3] + amount * rng.uniform(-1, 1, (len(kept), 3)), 0, 1)
        model.light_pos[:] = self.light + rng.uniform(-1, 1, self.light.shape)
        model.light_diffuse[:] = rng.uniform(0.3, 0.9, model.light_diffuse.shape)
        model.vis.headlight.ambient[:] = rng.uniform(0.1, 0.5)
        target = np.array([rng.uniform(-0.25, 0.25), rng.uniform(0.45, 0.85), rng.uniform(0.0, 0.25)])
        angle, height = rng.uniform(-math.pi, math.pi), rng.uniform(0.15, 1.2)
        distance = rng.uniform(0.35, 1.8)
        away = np.array([math.cos(angle), math.sin(angle), height])
        position = target + distance * away / np.linalg.norm(away)
        back = (position - target) / np.linalg.norm(position - target)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        up = np.cross(back, right)
        roll = rng.normal(0, 0.08)
        right, up = (math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right)
        _place(model, self.camera, position, np.stack([right, up, back], axis=1))
        model.cam_fovy[self.camera] = rng.uniform(35, 75)
        return HEIGHT / 2 / math.tan(math.radians(model.cam_fovy[self.camera]) / 2)


def _place(model: Any, camera: int, position: np.ndarray, axes: np.ndarray) -> None:
    mujoco: Any = importlib.import_module("mujoco")

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, axes.flatten())
    model.cam_pos[camera], model.cam_quat[camera] = position, quaternion
    model.cam_mode[camera] = mujoco.mjtCamLight.mjCAMLIGHT_FIXED


def render_depth(task: str, pictures: int, out: Path) -> None:
    """Pictures with depth of one task: two of three from a random camera, the others from the benchmark's three."""
    mujoco: Any = importlib.import_module("mujoco")

    simulator = Simulator(task, CAMERAS, HEIGHT, WIDTH)
    own = {name: float(simulator.model.cam_fovy[simulator.model.camera(name).id]) for name in CAMERAS}
    corner = simulator.model.camera("corner").id
    kept = simulator.model.cam_pos[corner].copy(), simulator.model.cam_quat[corner].copy()
    look, rng = RandomLook(simulator), generator("depth", task)
    rgb: list[np.ndarray] = []
    metres: list[np.ndarray] = []
    focal: list[float] = []
    while len(rgb) < pictures:
        for step, _ in enumerate(play(simulator, rng)):
            if step % 9 or len(rgb) == pictures:
                continue
            focal_length = look.draw(rng)
            name = "corner"
            if rng.random() < 1 / 3:
                name = str(rng.choice(CAMERAS))
                if name == "corner":
                    simulator.model.cam_pos[corner], simulator.model.cam_quat[corner] = kept
                    simulator.model.cam_fovy[corner] = own[name]
                focal_length = HEIGHT / 2 / math.tan(math.radians(own[name]) / 2)
                turned = name != "gripperPOV"
            else:
                turned = False
            mujoco.mj_camlight(simulator.model, simulator.data)
            simulator.renderer.update_scene(simulator.data, camera=name)
            picture = simulator.renderer.render()
            simulator.renderer.enable_depth_rendering()
            depth = simulator.renderer.render()
            simulator.renderer.disable_depth_rendering()
            if np.median(depth) < 0.03:  # inside of something
                continue
            rgb.append((picture[::-1, ::-1] if turned else picture).copy())
            metres.append((depth[::-1, ::-1] if turned else depth).clip(0, FAR).astype(np.float16))
            focal.append(focal_length)
    simulator.close()
    with atomic_path(out) as path:
        np.savez(path, rgb=np.stack(rgb), metres=np.stack(metres), focal=np.array(focal, np.float32))
