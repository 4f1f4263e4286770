"""Asynchronous denoising: actions in a few steps, video in many, one network call a step.

Conventions: sigma = 1 is noise, 0 is data; velocity = noise - x. Step k uses the k-th timestep of each stream's
own grid; from k = N_a on actions and proprio are clean, at timestep 0, and video goes on alone. Latent frame 0
and state 0 are conditions and are written back after every step; so are actions known beforehand (a prefix, for
real-time chunking: those the robot still executes; or all of them), at timestep 0 throughout.
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
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """What is given of a clip: it is written back after every step, and the network is told that it is clean.

    Args:
        latents: of the first picture. proprio: the first state.
        prefix: the first k actions; the rest of the chunk goes on from them. What a network makes of a prefix that it
            was not trained with (`noise.action_prefix`) is undefined.
        actions: the whole chunk, in the place of a prefix: what future do these actions make? Clean at timestep 0 from
            the first step on, as in the samples that training gives clean actions to.
        rows: the samples that `actions` is of; the others' actions are sampled. Default all.
    """

    latents: Float[Tensor, "b c v h w"]
    proprio: Float[Tensor, "b dp"]
    prefix: Float[Tensor, "b k da"] | None = None
    actions: Float[Tensor, "b ta da"] | None = None
    rows: Bool[Tensor, " b"] | None = None

    def held(self, action: Float[Tensor, "b ta da"]) -> Bool[Tensor, "b ta"] | None:
        """Which of a chunk's actions are known; None: none is.

        Raises:
            UserError: a prefix that leaves no action to sample, or actions that are not one for each step.
        """
        batch, steps, width = action.shape
        if self.actions is not None:
            if self.actions.shape != action.shape:
                raise UserError(
                    f"given actions of shape {tuple(self.actions.shape)} for chunks of shape {tuple(action.shape)}",
                    "the sampler",
                    "give one action for every step of every chunk",
                )
            rows = torch.ones(batch, dtype=torch.bool, device=action.device) if self.rows is None else self.rows
            return rows[:, None].expand(batch, steps)
        if self.prefix is None or self.prefix.shape[1] == 0:
            return None
        shape = self.prefix.shape
        if shape[0] != batch or shape[2] != width or shape[1] >= steps:
            raise UserError(
                f"an action prefix of shape {tuple(shape)} for chunks of shape {tuple(action.shape)}",
                "the sampler",
                f"give [{batch}, k, {width}] with k below {steps}",
            )
        return prefix_mask(torch.full((batch,), shape[1], device=action.device), steps)

    def write_back(self, streams: Streams, held: Bool[Tensor, "b ta"] | None) -> None:
        """Put what is known in its place, in memory; `held` is that of these actions."""
        if streams.proprio.shape[1]:
            streams.proprio[:, 0] = self.proprio
        streams.video[:, :, 0] = self.latents
        if held is not None and self.actions is not None:
            streams.action.copy_(torch.where(held[..., None], self.actions.to(streams.action), streams.action))
        elif held is not None and self.prefix is not None:
            streams.action[:, : self.prefix.shape[1]] = self.prefix


@dataclass(frozen=True)
class Sample(Streams):
    """What was sampled, and the clean depth latents; `video` is unfinished after a policy call."""

    depth: Float[Tensor, "b c tl v h w"] | None


@torch.no_grad()
def sample(
    network: JointNetwork,
    conditions: Conditions,
    text: Float[Tensor, "b s dt"] | TextContext,
    *,
    noise: Streams,
    video_steps: int,
    action_steps: int,
    null_text: Float[Tensor, "b s dt"] | TextContext | None = None,
    guidance: float = 0.0,
    shift: float = SHIFT,
    actions_only: bool = False,
    hide_future: bool = False,
    with_depth: bool = True,
    forward: Callable[..., Prediction] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """Denoise clips from standard normal `noise`, given their conditions and instructions.

    Args:
        guidance: 0 = conditional only; otherwise null + guidance * (conditional - null), which needs `null_text`.
            Depth is never guided.
        actions_only: a policy call: stop once the actions are clean (no depth, video left noisy).
        hide_future: actions and states do not see the frames after the first (see the network). A policy call leaves
            them out, and `Sample.video` is frame 0 alone; the actions are the same to rounding.
        with_depth: run the depth branch on the last step.
        forward: takes the network's steps in its place, with the same arguments (compiled.py).
        progress: called with (steps done, steps in all) after each step.

    Raises:
        UserError: step counts that do not fit each other, guidance without `null_text`, or known actions that do not
            fit the chunk.
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

    held = conditions.held(noise.action)
    options = {} if held is None else {"action_held": held}
    if hide_future and actions_only:
        noise = Streams(noise.video[:, :, :1], noise.action, noise.proprio)
    elif hide_future:
        options["future_hidden"] = torch.ones(batch, dtype=torch.bool, device=device)
    streams, depth = noise.clone(), None
    conditions.write_back(streams, held)
    for k in range(steps):
        acting = k < action_steps
        depth_now = with_depth and not actions_only and k == steps - 1
        out = predict(*streams.parts, context, t_video[k], t_action[k], with_depth=depth_now, **options)
        if null is not None:
            unconditional = predict(*streams.parts, null, t_video[k], t_action[k], with_depth=False, **options)
            out = guide(out, unconditional, guidance)
        depth = out.depth
        streams = Streams(
            video_solver.step(out.video, k, streams.video),
            action_solver.step(out.action, k, streams.action) if acting else streams.action,
            proprio_solver.step(out.proprio, k, streams.proprio) if acting else streams.proprio,
        )
        conditions.write_back(streams, held)
        if progress is not None:
            progress(k + 1, steps)
    return Sample(*streams.parts, depth)


def guide(conditional: Prediction, null: Prediction, guidance: float) -> Prediction:
    """Classifier-free guidance of the three velocities; the depth stays the conditional one."""
    pairs = zip(null.parts, conditional.parts, strict=True)
    video, action, proprio = (torch.lerp(without, given, guidance) for without, given in pairs)
    return Prediction(video, action, proprio, conditional.depth)


def _timetable(solver: Solver, steps: int, batch: int, device: torch.device) -> list[Float[Tensor, " b"]]:
    """A stream's timestep at every step, 0 after its own last one; each a tensor of its own, aligned alike."""
    table = torch.zeros(steps, batch)
    known = solver.timesteps[:steps]
    table[: len(known)] = known[:, None]
    return [row.clone() for row in table.to(device)]


def _encoded(network: JointNetwork, text: Tensor | TextContext) -> TextContext:
    return text if isinstance(text, TextContext) else network.encode_text(text)
