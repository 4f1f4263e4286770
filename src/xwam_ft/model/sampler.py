"""Asynchronous denoising: actions in a few steps, video in many, one network call a step.

Conventions: sigma = 1 is noise, 0 is data; velocity = noise - x. Step k uses the k-th timestep of each stream's
own grid; from k = N_a on actions and proprio are clean, at timestep 0, and video goes on alone. Latent frame 0
and state 0 are conditions and are written back after every step; so are actions known beforehand (`action_prefix`,
for real-time chunking: those the robot still executes; `action_given`: all of them), at timestep 0 throughout.
Source: arXiv 2604.26694, section 3.3; prefixes are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.network import JointNetwork, Prediction, TextContext
from xwam_ft.model.noise import prefix_mask
from xwam_ft.model.solver import SHIFT, Solver

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


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
    action_prefix: Float[Tensor, "b k da"] | None = None,
    action_given: Float[Tensor, "b ta da"] | None = None,
    given: Bool[Tensor, " b"] | None = None,
    shift: float = SHIFT,
    actions_only: bool = False,
    with_depth: bool = True,
    forward: Callable[..., Prediction] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """Denoise one clip from `noise`, given its first latent frame, first state and instruction.

    Args:
        guidance: 0 = conditional only; otherwise null + guidance * (conditional - null), which needs `null_text`.
            Depth is never guided.
        action_prefix: the first k actions, normalised; the rest of the chunk goes on from them. What a network
            makes of a prefix that it was not trained with (`noise.action_prefix`) is undefined.
        action_given: the whole chunk, normalised, in the place of a prefix: what future do these actions make? Clean
            at timestep 0 from the first step on, as in the samples that training gives clean actions to.
        given: the samples that `action_given` is of; the others' actions are sampled. Default all.
        actions_only: a policy call: stop once the actions are clean (no depth, video left noisy).
        with_depth: run the depth branch on the last step.
        forward: takes the network's steps in its place, with the same arguments (compiled.py).
        progress: called with (steps done, steps in all) after each step.

    Raises:
        UserError: step counts that do not fit each other, guidance without `null_text`, or a prefix that leaves no
            action to sample.
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
    predict = forward or network
    video_solver = Solver(video_steps, shift)
    action_solver, proprio_solver = Solver(action_steps, shift), Solver(action_steps, shift)
    batch = noise.video.shape[0]
    steps = action_steps if actions_only else video_steps
    # On the device before the first step: the loop neither copies from the host nor waits for the device.
    device = noise.video.device
    t_video, t_action = (_timetable(solver, steps, batch, device) for solver in (video_solver, action_solver))

    known, options = _prefix(action_prefix, noise.action)
    if action_given is not None:
        known, options = _whole(action_given, given, noise.action)

    def hold(video: Tensor, action: Tensor, proprio: Tensor) -> None:
        if proprio.shape[1]:
            proprio[:, 0] = condition_proprio
        video[:, :, 0] = condition_latents
        if action_given is None:
            action[:, : known.shape[1]] = known
        else:
            action.copy_(torch.where(options["action_held"][..., None], known, action))

    video, action, proprio = noise.video.clone(), noise.action.clone(), noise.proprio.clone()
    hold(video, action, proprio)
    depth = None
    for k in range(steps):
        acting = k < action_steps
        depth_now = with_depth and not actions_only and k == steps - 1
        inputs = (video, action, proprio)
        out = predict(*inputs, context, t_video[k], t_action[k], with_depth=depth_now, **options)
        if null is not None:
            unconditional = predict(*inputs, null, t_video[k], t_action[k], with_depth=False, **options)
            out = guide(out, unconditional, guidance)
        depth = out.depth
        video = video_solver.step(out.video, k, video)
        if acting:
            action = action_solver.step(out.action, k, action)
            proprio = proprio_solver.step(out.proprio, k, proprio)
        hold(video, action, proprio)
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


def _timetable(solver: Solver, steps: int, batch: int, device: torch.device) -> list[Float[Tensor, " b"]]:
    """A stream's timestep at every step, 0 after its own last one; each a tensor of its own, aligned alike."""
    table = torch.zeros(steps, batch)
    known = solver.timesteps[:steps]
    table[: len(known)] = known[:, None]
    return [row.clone() for row in table.to(device)]


def _prefix(prefix: Tensor | None, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The known first actions (none: [B, 0, Da]), and what says to the network which they are."""
    if prefix is None or prefix.shape[1] == 0:
        return action[:, :0], {}
    batch, steps, width = action.shape
    if prefix.shape[0] != batch or prefix.shape[2] != width or prefix.shape[1] >= steps:
        raise UserError(
            f"an action prefix of shape {tuple(prefix.shape)} for chunks of shape {tuple(action.shape)}",
            "the sampler",
            f"give [{batch}, k, {width}] with k below {steps}",
        )
    lengths = torch.full((batch,), prefix.shape[1], device=action.device)
    return prefix.to(action), {"action_held": prefix_mask(lengths, steps)}


def _whole(actions: Tensor, given: Tensor | None, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """As `_prefix`, of whole chunks; held in the samples that are given theirs."""
    if actions.shape != action.shape:
        raise UserError(
            f"given actions of shape {tuple(actions.shape)} for chunks of shape {tuple(action.shape)}",
            "the sampler",
            "give one action for every step of every chunk",
        )
    batch, steps, _ = action.shape
    rows = torch.ones(batch, dtype=torch.bool, device=action.device) if given is None else given
    return actions.to(action), {"action_held": rows[:, None].expand(batch, steps)}


def _encoded(network: JointNetwork, text: Tensor | TextContext) -> TextContext:
    return text if isinstance(text, TextContext) else network.encode_text(text)
