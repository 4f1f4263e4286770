"""A simulated SO-101 as a LeRobot environment, `--env.type=so101_sim`: joints that go where they are told, two cameras.

The pictures are made of the joints, so that they change with them. An episode succeeds when the arm has moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

HEIGHT, WIDTH, NUMBERS = 32, 64, 6


class So101Sim(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, task: str, steps: int) -> None:
        self.task = self.task_description = task
        self._max_episode_steps = steps
        self.render_mode = "rgb_array"
        picture = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({"front": picture, "wrist": picture}),
                "agent_pos": gym.spaces.Box(-200, 200, (NUMBERS,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-200, 200, (NUMBERS,), np.float32)
        self.commands: list[np.ndarray] = []
        self.joints = np.zeros(NUMBERS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.joints = self.np_random.uniform(-5, 5, NUMBERS) + np.array([0, -40, 40, 10, 0, 50])
        self.start = self.joints.copy()
        return self._seen(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.commands.append(np.asarray(action, dtype=np.float64))
        self.joints = self.joints + np.clip(self.commands[-1] - self.joints, -10, 10)
        moved = bool(np.abs(self.joints - self.start).max() > 90)
        return self._seen(), 0.0, moved, False, {"is_success": moved}

    def render(self) -> np.ndarray:
        return self._seen()["pixels"]["front"]

    def _seen(self) -> dict[str, Any]:
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        pictures = {
            name: np.stack([x * 2 + self.joints[i], y * 4 + self.joints[i + 1], 0 * x + 80 * (i + 1)], axis=-1)
            for i, name in enumerate(("front", "wrist"))
        }
        shown = {name: np.clip(picture, 0, 255).astype(np.uint8) for name, picture in pictures.items()}
        return {"pixels": shown, "agent_pos": self.joints.copy()}


@EnvConfig.register_subclass("so101_sim")
@dataclass
class So101SimEnv(EnvConfig):
    task: str = "Pick up the cube"
    episode_length: int = 12
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (NUMBERS,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (NUMBERS,)),
            "pixels/front": PolicyFeature(FeatureType.VISUAL, (HEIGHT, WIDTH, 3)),
            "pixels/wrist": PolicyFeature(FeatureType.VISUAL, (HEIGHT, WIDTH, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels/front": "observation.images.front",
            "pixels/wrist": "observation.images.wrist",
        }
    )

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        makers = [lambda: So101Sim(self.task, self.episode_length)] * n_envs
        return {"so101_sim": {0: gym.vector.SyncVectorEnv(makers)}}
