"""Noise levels of a training batch: asynchronous noise sampling (ANS) and its two baselines.

Conventions: sigma = 1 is noise, 0 is data; x_sigma = (1 - sigma) x + sigma noise; velocity = noise - x;
timestep = 1000 * sigma. Proprio shares the action's sigma. Source: arXiv 2604.26694, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from xwam_ft.recipe import ActionPrefixSpec, NoiseSpec


@dataclass(frozen=True)
class Sigmas:
    """Noise levels after the time shift; a sample with clean actions has no action or proprio loss."""

    video: Float[Tensor, " b"]
    action: Float[Tensor, " b"]
    action_is_clean: Bool[Tensor, " b"]


def sample_sigmas(batch: int, noise: NoiseSpec, generator: torch.Generator) -> Sigmas:
    """Draw the noise levels of `batch` samples, on the CPU.

    asynchronous: with `clean_action_probability` the actions are already decoded (sigma_a = 0, sigma_v uniform);
        otherwise sigma_a is uniform and sigma_v = sigma_a + Beta(alpha, beta) * (1 - sigma_a). So the video is
        never cleaner than the actions, as in asynchronous denoising.
    decoupled: two independent uniforms.  synchronous: one uniform for both.

    Every schedule takes three uniforms a sample, in order, so a sample's draw does not depend on the batch size.
    """
    first, second, third = torch.rand(batch, 3, generator=generator, dtype=torch.float64).unbind(dim=1)
    clean = torch.zeros(batch, dtype=torch.bool)
    if noise.schedule == "synchronous":
        video = action = first
    elif noise.schedule == "decoupled":
        video, action = first, second
    else:
        clean = third < noise.clean_action_probability
        beta = beta_quantile(second, noise.beta_alpha, noise.beta_beta)
        video, action = asynchronous_levels(first, second, beta, clean)
    return Sigmas(shift(video, noise.shift).float(), shift(action, noise.shift).float(), clean)


def asynchronous_levels(
    uniform_action: Float[Tensor, " b"],
    uniform_video: Float[Tensor, " b"],
    beta: Float[Tensor, " b"],
    clean: Bool[Tensor, " b"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Levels of video and action before the time shift: the video is never cleaner than the actions.

    Args:
        beta: draws of Beta(alpha, beta), where the video's level lies between the action's and 1.
        clean: samples whose actions are given clean; their video takes `uniform_video`.
    """
    action = torch.where(clean, 0.0, uniform_action)
    return torch.where(clean, uniform_video, action + beta * (1 - action)), action


def sample_prefixes(batch: int, prefix: ActionPrefixSpec, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Draw how many of each sample's first actions are given clean, on the CPU: 0, or with `probability` 1..`max`.

    A sample takes two uniforms, in order, so its draw does not depend on the batch size.
    """
    first, second = torch.rand(batch, 2, generator=generator, dtype=torch.float64).unbind(dim=1)
    return torch.where(first < prefix.probability, (1 + second * prefix.max).long().clamp(max=prefix.max), 0)


def prefix_mask(lengths: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b steps"]:
    """True at the first `lengths` of a chunk's action steps."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def beta_quantile(probability: Float[Tensor, " b"], alpha: float, beta: float) -> Float[Tensor, " b"]:
    """Inverse distribution function of Beta(alpha, beta): turns uniforms into Beta samples, one for one."""
    from scipy.special import betaincinv

    return torch.as_tensor(betaincinv(alpha, beta, probability.numpy()), dtype=probability.dtype)


def shift(sigma: Float[Tensor, "*n"], s: float) -> Float[Tensor, "*n"]:
    """Time shift s * sigma / (1 + (s - 1) * sigma): keeps 0 and 1, moves the rest towards noise for s > 1."""
    return s * sigma / (1 + (s - 1) * sigma)


def noised(clean: Streams, noise: Streams, sigmas: Sigmas) -> Streams:
    """What the network is given: every stream at its level, with the conditions, latent frame 0 and state 0, clean."""
    levels = (sigmas.video, sigmas.action, sigmas.action)
    streams = Streams(*(add_noise(*of) for of in zip(clean.parts, noise.parts, levels, strict=True)))
    streams.video[:, :, 0] = clean.video[:, :, 0]
    streams.proprio[:, 0] = clean.proprio[:, 0]
    return streams


def add_noise(x: Tensor, noise: Tensor, sigma: Float[Tensor, " b"]) -> Tensor:
    """(1 - sigma) x + sigma noise, with one sigma a sample; x and noise are [B, ...]."""
    level = sigma.to(x).view(-1, *[1] * (x.ndim - 1))
    return (1 - level) * x + level * noise
