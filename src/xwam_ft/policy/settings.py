"""How a policy samples, where a request says nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from xwam_ft.model.solver import SHIFT

Future: TypeAlias = Literal["joint", "optional"]
"""Whether a policy acts with the frames after the first alone, or was trained to act without them too."""


@dataclass(frozen=True)
class Settings:
    """How actions are sampled.

    Args:
        seed: of the first request; every further one counts up.
        action_steps, video_steps: denoising steps; the video's matter to its grid even when it is not finished.
        guidance: classifier-free guidance of text; 0 = none.
        shift: time shift of the sampling grid.
        with_future: of a policy whose future is optional: denoise actions together with the imagined frames after all,
            as a joint policy always does.
    """

    seed: int = 0
    action_steps: int = 10
    video_steps: int = 50
    guidance: float = 0.0
    shift: float = SHIFT
    with_future: bool = False
