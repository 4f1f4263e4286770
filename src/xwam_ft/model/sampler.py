"""Asynchronous denoising: actions in a few steps, video in many, one network call a step.

Conventions: sigma = 1 is noise, 0 is data; velocity = noise - x. Step k uses the k-th timestep of each stream's
own grid; from k = N_a on actions and proprio are clean, at timestep 0, and video goes on alone. Latent frame 0
and state 0 are conditions and are written back after every step. Source: arXiv 2604.26694, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xwam_ft.errors import UserError
from xwam_ft.model.network import JointNetwork, Prediction, TextContext

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

SHIFT = 5.0
"""Time shift the released model was trained and is sampled with."""

FIRST_SIGMA = 0.999
"""Where the unshifted grid starts."""


@dataclass(frozen=True)
class SampleNoise:
    """Standard normal noise of one request."""

    video: Float[Tensor, "b c tl v h w"]
    action: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]


@dataclass(frozen=True)
class Sample:
    """What was sampled, normalised as the network sees it; `video` is unfinished after a policy call."""

    video: Float[Tensor, "b c tl v h w"]
    action: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]
    depth: Float[Tensor, "b c tl v h w"] | None


def draw_noise(
    video: tuple[int, ...], action: tuple[int, ...], proprio: tuple[int, ...], generator: torch.Generator
) -> SampleNoise:
    """Noise of the given shapes, drawn on the generator's device in this order."""
    shapes = (video, action, proprio)
    return SampleNoise(*(torch.randn(shape, generator=generator, device=generator.device) for shape in shapes))


def flow_grid(steps: int, shift: float = SHIFT) -> NDArray[np.float64]:
    """The sigmas of `steps` steps, noisiest first: evenly spaced from 0.999 towards 0, shifted; 0 not included."""
    sigma = np.linspace(FIRST_SIGMA, 0.0, steps + 1)[:-1]
    return shift * sigma / (1 + (shift - 1) * sigma)


class Solver:
    """UniPC (order 2, bh2) for flow velocities on `flow_grid`; diffusers' own grid differs by up to 4 timesteps.

    `timesteps` are what the network is given: 1000 * sigma, truncated.
    """

    def __init__(self, steps: int, shift: float = SHIFT) -> None:
        from diffusers import UniPCMultistepScheduler

        # flow_shift 1 leaves the grid we hand over as it is.
        self._scheduler: Any = UniPCMultistepScheduler(
            num_train_timesteps=1000,
            solver_order=2,
            solver_type="bh2",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=1.0,
        )
        self._scheduler.set_timesteps(sigmas=flow_grid(steps, shift))
        self._scheduler.set_begin_index(0)

    @property
    def timesteps(self) -> Int[Tensor, " n"]:
        return self._scheduler.timesteps

    @property
    def sigmas(self) -> Float[Tensor, " n1"]:
        """The grid with its final 0."""
        return self._scheduler.sigmas

    def step(self, velocity: Tensor, k: int, x: Tensor) -> Tensor:
        """x at sigma_k -> x at sigma_(k+1); steps are taken in order, each once."""
        return self._scheduler.step(velocity, self._scheduler.timesteps[k], x, return_dict=False)[0]


@torch.no_grad()
def sample(
    network: JointNetwork,
    condition_latents: Float[Tensor, "b c v h w"],
    condition_proprio: Float[Tensor, "b dp"],
    text: Float[Tensor, "b s dt"] | TextContext,
    *,
    noise: SampleNoise,
    video_steps: int,
    action_steps: int,
    null_text: Float[Tensor, "b s dt"] | TextContext | None = None,
    guidance: float = 0.0,
    shift: float = SHIFT,
    actions_only: bool = False,
    with_depth: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """Denoise one clip from `noise`, given its first latent frame, first state and instruction.

    Args:
        guidance: 0 = conditional only; otherwise null + guidance * (conditional - null), which needs `null_text`.
            Depth is never guided.
        actions_only: a policy call: stop once the actions are clean (no depth, video left noisy).
        with_depth: run the depth branch on the last step.
        progress: called with (steps done, steps in all) after each step.

    Raises:
        UserError: step counts that do not fit each other, guidance without `null_text`.
    """
    if not 1 <= action_steps <= video_steps:
        raise UserError(
            f"{action_steps} action steps and {video_steps} video steps",
            "the sampler",
            "choose 1 <= action_steps <= video_steps: actions are decoded while the video is",
        )
    if guidance not in (0.0, 1.0) and null_text is None:
        raise UserError(
            f"guidance {guidance} without the embedding of the empty prompt", "the sampler", "give null_text, or 0"
        )
    guided = guidance not in (0.0, 1.0)
    context = _encoded(network, text)
    null = _encoded(network, null_text) if guided and null_text is not None else None
    video_solver = Solver(video_steps, shift)
    action_solver, proprio_solver = Solver(action_steps, shift), Solver(action_steps, shift)

    def hold(video: Tensor, proprio: Tensor) -> None:
        if proprio.shape[1]:
            proprio[:, 0] = condition_proprio
        video[:, :, 0] = condition_latents

    video, action, proprio = noise.video.clone(), noise.action.clone(), noise.proprio.clone()
    hold(video, proprio)
    batch = video.shape[0]
    steps = action_steps if actions_only else video_steps
    depth = None
    for k in range(steps):
        acting = k < action_steps
        t_video = video_solver.timesteps[k].to(video).expand(batch)
        t_action = action_solver.timesteps[k].to(video).expand(batch) if acting else torch.zeros_like(t_video)
        depth_now = with_depth and not actions_only and k == steps - 1
        inputs = (video, action, proprio)
        out = network(*inputs, context, t_video, t_action, with_depth=depth_now)
        if null is not None:
            out = guide(out, network(*inputs, null, t_video, t_action, with_depth=False), guidance)
        depth = out.depth
        video = video_solver.step(out.video, k, video)
        if acting:
            action = action_solver.step(out.action, k, action)
            proprio = proprio_solver.step(out.proprio, k, proprio)
        hold(video, proprio)
        if progress is not None:
            progress(k + 1, steps)
    return Sample(video, action, proprio, depth)


def guide(conditional: Prediction, null: Prediction, guidance: float) -> Prediction:
    """Classifier-free guidance of the three velocities; the depth stays the conditional one."""
    return Prediction(
        video=torch.lerp(null.video, conditional.video, guidance),
        action=torch.lerp(null.action, conditional.action, guidance),
        proprio=torch.lerp(null.proprio, conditional.proprio, guidance),
        depth=conditional.depth,
    )


def _encoded(network: JointNetwork, text: Tensor | TextContext) -> TextContext:
    return text if isinstance(text, TextContext) else network.encode_text(text)
