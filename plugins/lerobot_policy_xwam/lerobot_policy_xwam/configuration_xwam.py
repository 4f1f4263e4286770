"""What LeRobot's command line and config.json say of a bundle: `--policy.type=xwam --policy.bundle=ORG/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs import PreTrainedConfig

TRAINED = "is trained by `xwam-ft train`, not by LeRobot; see the README of lerobot_policy_xwam"


@PreTrainedConfig.register_subclass("xwam")
@dataclass
class XwamConfig(PreTrainedConfig):
    """How a bundle is asked.

    Args:
        bundle: its folder, or ORG/NAME[@REVISION] of the Hub.
        execute: commands carried out before the policy looks again; None: half of what it predicts.
        hold: ticks of LeRobot's control loop that a command lasts; None: as in the recordings, which ran at its rate.
        action_steps: denoising steps; None: the bundle's.
        guidance: of text; None: the bundle's.
        seed: of the first chunk's noise after a reset; None: the bundle's, counting on.
        action_names: the robot's names of its commands in LeRobot's order; None: those of `observation.state`.
        selfcheck: repeat the request that was recorded at export when loading.
    """

    bundle: str = ""
    execute: int | None = None
    hold: int | None = None
    action_steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    action_names: list[str] | None = None
    selfcheck: bool = True
    rtc_config: Any = None  # set by `lerobot-rollout --inference.type=rtc`; never saved

    def __post_init__(self) -> None:
        super().__post_init__()
        self.push_to_hub = False  # what is pushed is a bundle: `xwam-ft export --push`
        for name in ("execute", "hold", "action_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"policy.{name} is {value}. Fix: give a whole number from 1 on, or leave it out")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> Any:
        raise NotImplementedError(f"xwam {TRAINED}")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """The bundle's own contract says which cameras and numbers there are; it is asked at every observation."""
