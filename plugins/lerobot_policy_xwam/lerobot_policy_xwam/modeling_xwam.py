"""An xwam-ft bundle as a LeRobot policy.

Observations come as LeRobot gives them (`observation.images.NAME` [B, 3, H, W] in [0, 1], `observation.state` [B, S] in
the robot's own units, `task`), and actions [B, D] go back in the robot's own units and LeRobot's order: degrees, or
-100 to 100, as the recordings were. Names and units are those that the bundle's contract took from the recordings.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor
from xwam_ft import Policy, UserError, hub
from xwam_ft.alias_table import Aliases
from xwam_ft.aliases import robot_command
from xwam_ft.policy.from_hub import bundle_at
from xwam_ft.policy.request import command_columns, command_table
from xwam_ft.policy.watch import ObservationWatch, watch_of

from lerobot_policy_xwam.configuration_xwam import TRAINED, XwamConfig

BUNDLE = "bundle"
"""Where a folder that was saved by LeRobot's means keeps the bundle."""
SETTINGS = ("action_steps", "guidance", "seed")
ROUNDING = 1e-3
LOG = logging.getLogger("lerobot_policy_xwam")


class XwamPolicy(PreTrainedPolicy):
    """A bundle.

    Args:
        config: its `bundle` is loaded, every file checked, and its features become those of the contract.

    Raises:
        UserError: no bundle there, or one whose recordings did not name the robot's numbers.
    """

    config_class = XwamConfig
    name = "xwam"

    def __init__(self, config: XwamConfig, *inputs: Any, **kwargs: Any) -> None:
        super().__init__(config)
        if not config.bundle:
            raise UserError("names no bundle", "policy.bundle", "give its folder, or ORG/NAME of the Hub")
        self.folder = bundle_at(config.bundle)
        self.bundle = Policy.load(self.folder, device=str(config.device), selfcheck=config.selfcheck)
        given = {name: value for name in SETTINGS if (value := getattr(config, name)) is not None}
        self.bundle.settings = dataclasses.replace(self.bundle.settings, **given)
        self.network = self.bundle.network  # so that devices and parameters are seen
        contract = self.bundle.contract
        self.aliases = contract.aliases or Aliases()
        self.state_names = list(self.aliases.vectors.get(OBS_STATE, self.aliases.numbers))
        self.action_names = self._action_names(config)
        self.hold = config.hold or contract.timing.action_skip
        self.execute = min(config.execute or max(1, contract.timing.action_steps // 2), contract.timing.action_steps)
        config.input_features = self._inputs()
        config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (len(self.action_names),))}
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> XwamPolicy:
        """A bundle, or a folder that `save_pretrained` wrote; here or on the Hub.

        Args:
            config: how it is asked; its `bundle` is what `pretrained_name_or_path` holds.
            revision: of the Hub: branch, tag or commit.

        Raises:
            UserError: nothing of the kind there.
        """
        folder = saved_folder(pretrained_name_or_path, revision)
        if config is None:
            config = XwamConfig(**kwargs) if folder is None else PreTrainedConfig.from_pretrained(folder, **kwargs)
        if not isinstance(config, XwamConfig):
            raise UserError(f"is a policy of type {config.type!r}", pretrained_name_or_path, "load it by its own class")
        named = f"{pretrained_name_or_path}{'' if revision is None else f'@{revision}'}"
        policy = cls(dataclasses.replace(config, bundle=named if folder is None else str(folder / BUNDLE)))
        return policy.eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """config.json, the steps around the policy, and the bundle beside them: all that `--policy.path` wants."""
        from lerobot_policy_xwam.processor_xwam import make_xwam_pre_post_processors

        kept = dataclasses.replace(self.config, bundle=BUNDLE, rtc_config=None)
        kept._save_pretrained(save_directory)
        for steps in make_xwam_pre_post_processors(kept):
            steps.save_pretrained(save_directory)
        shutil.copytree(self.folder, save_directory / BUNDLE, dirs_exist_ok=True)

    def reset(self) -> None:
        """Forget the commands that are still to be carried out."""
        self._waiting: deque[Tensor] = deque()
        self._watches: dict[int, ObservationWatch] = {}  # of each robot or scene of a batch
        if self.config.seed is not None:
            self.bundle.calls = 0

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The next action [B, D] of the chunk at hand; a new chunk once `execute` commands of it are carried out."""
        if not self._waiting:
            chunk = self.predict_action_chunk(batch)[:, : self.execute * self.hold]
            self._waiting.extend(chunk.unbind(dim=1))
        return self._waiting.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Actions [B, T, D], one a tick of LeRobot's control loop.

        Args:
            inference_delay: ticks that pass until the chunk is there.
            prev_chunk_left_over: actions [T, D] or [B, T, D] of the chunk under way from now on. Those that are carried
                out meanwhile are what the new chunk begins with, where the bundle was trained with action prefixes.

        Raises:
            UserError: an observation that does not fit the contract.
        """
        chunks: list[np.ndarray] = []
        for index in range(_size(batch)):
            request = self._request(batch, index)
            if prev_chunk_left_over is not None and inference_delay:
                left = prev_chunk_left_over if prev_chunk_left_over.ndim == 2 else prev_chunk_left_over[index]
                if (prefix := self._prefix(left, inference_delay)) is not None:
                    request["options"] = {"prefix": prefix}
            watch = self.bundle.watch = self._watches.setdefault(index, watch_of(self.bundle))
            output = self.bundle.infer(request)
            for warning in watch.first_of(output.warnings):
                LOG.warning("%s", warning)
            rows = command_table(self.bundle.contract, output.commands.slots)
            chunks.append(np.array([self._robot(row) for row in rows]))
        chunk = torch.from_numpy(np.stack(chunks)).float().repeat_interleave(self.hold, dim=1)
        return chunk.to(self.config.device)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        raise NotImplementedError(f"a bundle {TRAINED}")

    def get_optim_params(self) -> dict:
        raise NotImplementedError(f"a bundle {TRAINED}")

    def _request(self, batch: dict[str, Tensor], index: int) -> dict[str, Any]:
        """One observation of a batch, by the robot's own names; pictures as uint8 [H, W, 3]."""
        request: dict[str, Any] = {}
        for key, value in batch.items():
            if not key.startswith("observation.") or not isinstance(value, Tensor):
                continue
            one = value[index].detach().cpu()
            if key.startswith(OBS_IMAGES) or key == "observation.image":
                one = one.movedim(0, -1)
                one = one if one.dtype == torch.uint8 else _whole(one.float(), key)
            request[key] = one.numpy()
        task = batch.get("task", "")
        request["task"] = task[index] if isinstance(task, list | tuple) else str(task)
        return request

    def _robot(self, row: np.ndarray) -> list[float]:
        told = robot_command(self.bundle.contract, row)
        return [told[name] for name in self.action_names]

    def _prefix(self, left: Tensor, delay: int) -> np.ndarray | None:
        """The commands that are carried out meanwhile as the contract has them: SI, one an action period."""
        told = left.cpu().double().numpy()
        none = np.flatnonzero(~told.any(axis=1))  # LeRobot fills up with rows of zeros what is shorter than it asks
        told = told[: none[0]] if len(none) else told
        rows = told[:delay][:: self.hold][: self.bundle.action_prefix]
        if not len(rows):
            return None
        places = [self.action_names.index(name) for name in robot_command(self.bundle.contract, np.zeros(self._width))]
        numbers = [self.aliases.numbers[self.action_names[place]] for place in places]
        scale, offset = (np.array([getattr(n, key) for n in numbers]) for key in ("scale", "offset"))
        return rows[:, places] * scale + offset

    @property
    def _width(self) -> int:
        return len(command_columns(self.bundle.contract))

    def _action_names(self, config: XwamConfig) -> list[str]:
        commanded = list(robot_command(self.bundle.contract, np.zeros(self._width)))
        order = config.action_names or [name for name in self.state_names if name in commanded]
        if sorted(order) != sorted(commanded):
            raise UserError(
                f"is {order}, and the bundle commands {commanded}", "policy.action_names", "name these, in their order"
            )
        return order

    def _inputs(self) -> dict[str, PolicyFeature]:
        cameras = {camera.name: camera for camera in self.bundle.contract.cameras}
        keys = {key: name for key, name in self.aliases.images.items() if key.startswith(OBS_IMAGES)}
        features = {
            key: PolicyFeature(FeatureType.VISUAL, (3, cameras[name].source_height, cameras[name].source_width))
            for key, name in (keys or {f"{OBS_IMAGES}.{name}": name for name in cameras}).items()
        }
        features[OBS_STATE] = PolicyFeature(FeatureType.STATE, (len(self.state_names),))
        return features


def saved_folder(place: str | Path, revision: str | None = None) -> Path | None:
    """The folder that `save_pretrained` wrote, fetched where it is on the Hub; None where `place` is a bundle."""
    folder = Path(place)
    repo = hub.repo_of(place, "model")
    if repo is not None:
        repo = hub.pinned(dataclasses.replace(repo, revision=revision or repo.revision))
        if f"{BUNDLE}/manifest.json" not in hub.files(repo):
            return None
        folder = hub.fetch(repo)
    config = folder / "config.json"
    if (folder / "manifest.json").exists() or not config.is_file():
        return None
    return folder if json.loads(config.read_text(encoding="utf-8")).get("type") == "xwam" else None


def _whole(picture: Tensor, key: str) -> Tensor:
    """A picture of LeRobot's, from 0 to 1, in whole numbers from 0 to 255.

    Raises:
        UserError: it is in another range: as grey levels, or normalised by mean and spread.
    """
    least, most = picture.min().item(), picture.max().item()
    if not (least >= -ROUNDING and most <= 1 + ROUNDING):
        raise UserError(
            f"is from {least:.3g} to {most:.3g}", key, "give uint8, or floats from 0 to 1 that are not normalised"
        )
    return (picture * 255).round().clamp(0, 255).to(torch.uint8)


def _size(batch: dict[str, Tensor]) -> int:
    return next(len(value) for key, value in batch.items() if key.startswith("observation.") and torch.is_tensor(value))
