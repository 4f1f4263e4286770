"""The three streams of a clip that are noised and denoised together: latent video, actions, proprio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """One tensor a stream, normalised as the network sees them; data, noise or velocities, as who holds them says."""

    video: Float[Tensor, "b c tl v h w"]
    action: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Video, action, proprio: the order of the network's arguments."""
        return self.video, self.action, self.proprio

    @property
    def shapes(self) -> tuple[torch.Size, torch.Size, torch.Size]:
        """Of video, action and proprio."""
        return self.video.shape, self.action.shape, self.proprio.shape

    def to(self, device: torch.device | str) -> Streams:
        """The three streams on another device."""
        return Streams(*(stream.to(device) for stream in self.parts))

    def clone(self) -> Streams:
        """The three streams in memory of their own."""
        return Streams(*(stream.clone() for stream in self.parts))

    def __sub__(self, other: Streams) -> Streams:
        """Stream by stream: the velocity is `noise - clean`."""
        return Streams(*(ours - theirs for ours, theirs in zip(self.parts, other.parts, strict=True)))

    @staticmethod
    def cat(parts: Sequence[Streams]) -> Streams:
        """Several batches as one."""
        return Streams(*(torch.cat(streams) for streams in zip(*(part.parts for part in parts), strict=True)))

    @staticmethod
    def normal(shapes: Iterable[Sequence[int]], generator: torch.Generator) -> Streams:
        """Standard normal noise of these three shapes, drawn on the generator's device in this order."""
        return Streams(*(torch.randn(tuple(of), generator=generator, device=generator.device) for of in shapes))
