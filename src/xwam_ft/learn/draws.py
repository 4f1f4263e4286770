"""The random numbers of a sample: noise, text dropout, prefix, hidden future: functions of (seed, position).

Each sample has its own CPU generator and draws from it in one order: three uniforms for the noise level, one for
text dropout, then the noise of video, action and proprio. So a sample's numbers do not depend on what else is in
its micro-batch, and its noise level is known without drawing its noise. The length of its clean action prefix comes
from a generator of its own; validation has none, so that its losses are of whole chunks. So does whether its future is
hidden; validation always hides it, as policy calls do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.encode.clips import Stream, generator_at, random_bits
from xwam_ft.model.noise import Sigmas, sample_prefixes, sample_sigmas
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from xwam_ft.encode.batch import Batch
    from xwam_ft.recipe import NoiseSpec


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch, on its device; `action_prefix` is None where the recipe trains none, and
    `future_hidden` where the future is joint."""

    sigmas: Sigmas
    drop_text: Bool[Tensor, " b"]
    noise: Streams
    action_prefix: Int[Tensor, " b"] | None = None
    future_hidden: Bool[Tensor, " b"] | None = None


def draw(
    batch: Batch,
    noise: NoiseSpec,
    text_dropout: float,
    seed: int,
    stream: Stream = Stream.NOISE,
    hidden_share: float | None = None,
) -> Draws:
    """Draw for every sample of `batch` by its position.

    Args:
        hidden_share: of training samples whose future is hidden; None: the future is joint.
    """
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
    share = 1.0 if hidden_share is not None and stream is Stream.VALIDATION else hidden_share
    hidden = None if share is None else futures_hidden(batch.positions, share, seed).to(device)
    return Draws(_on(_joined(sigmas), device), drop_text, Streams.cat(noises).to(device), on_device, hidden)


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


def futures_hidden(positions: Sequence[int], share: float, seed: int) -> Bool[Tensor, " b"]:
    """Which training samples have their future hidden."""
    return torch.tensor([random_bits(seed, Stream.FUTURE, position) < share * 2**63 for position in positions])


def _joined(sigmas: Sequence[Sigmas]) -> Sigmas:
    return Sigmas(
        torch.cat([one.video for one in sigmas]),
        torch.cat([one.action for one in sigmas]),
        torch.cat([one.action_is_clean for one in sigmas]),
    )


def _on(sigmas: Sigmas, device: torch.device) -> Sigmas:
    return Sigmas(sigmas.video.to(device), sigmas.action.to(device), sigmas.action_is_clean.to(device))
