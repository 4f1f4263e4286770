"""The random numbers of a sample: noise level, noise, text dropout, action prefix: functions of (seed, position).

Each sample has its own CPU generator and draws from it in one order: three uniforms for the noise level, one for
text dropout, then the noise of video, action and proprio. So a sample's numbers do not depend on what else is in
its micro-batch, and its noise level is known without drawing its noise. The length of its clean action prefix comes
from a generator of its own; validation has none, so that its losses are of whole chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.encode.clips import Stream, generator_at
from xwam_ft.model.noise import Sigmas, sample_prefixes, sample_sigmas
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from xwam_ft.encode.batch import Batch
    from xwam_ft.recipe import NoiseSpec


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch, on its device; `action_prefix` is None where the recipe trains none."""

    sigmas: Sigmas
    drop_text: Bool[Tensor, " b"]
    noise: Streams
    action_prefix: Int[Tensor, " b"] | None = None


def draw(batch: Batch, noise: NoiseSpec, text_dropout: float, seed: int, stream: Stream = Stream.NOISE) -> Draws:
    """Draw for every sample of `batch` by its position."""
    shapes = [(1, *stream.shape[1:]) for stream in batch.streams.parts]
    sigmas: list[Sigmas] = []
    uniforms: list[Tensor] = []
    noises: list[Streams] = []
    for position in batch.positions:
        generator = generator_at(seed, stream, position)
        sigmas.append(sample_sigmas(1, noise, generator))
        uniforms.append(torch.rand(1, generator=generator))
        noises.append(Streams.normal(shapes, generator))
    device = batch.latents.device
    drop_text = (torch.cat(uniforms) < text_dropout).to(device)
    prefix = action_prefixes(batch.positions, noise, seed) if stream is Stream.NOISE else None
    on_device = None if prefix is None else prefix.to(device)
    return Draws(_on(_joined(sigmas), device), drop_text, Streams.cat(noises).to(device), on_device)


def action_is_clean(
    positions: Sequence[int], noise: NoiseSpec, seed: int, stream: Stream = Stream.NOISE
) -> Bool[Tensor, " b"]:
    """Which samples are given clean actions, known without drawing any noise."""
    drawn = [sample_sigmas(1, noise, generator_at(seed, stream, position)) for position in positions]
    return _joined(drawn).action_is_clean


def action_prefixes(positions: Sequence[int], noise: NoiseSpec, seed: int) -> Int[Tensor, " b"] | None:
    """How many first actions of each training sample are given clean; None where the recipe trains no prefixes."""
    spec = noise.action_prefix
    if spec.max == 0:
        return None
    return torch.cat([sample_prefixes(1, spec, generator_at(seed, Stream.PREFIX, position)) for position in positions])


def _joined(sigmas: Sequence[Sigmas]) -> Sigmas:
    return Sigmas(
        torch.cat([one.video for one in sigmas]),
        torch.cat([one.action for one in sigmas]),
        torch.cat([one.action_is_clean for one in sigmas]),
    )


def _on(sigmas: Sigmas, device: torch.device) -> Sigmas:
    return Sigmas(sigmas.video.to(device), sigmas.action.to(device), sigmas.action_is_clean.to(device))
