"""Clips in batches: as the network sees them, and before the VAE.

Legend: B clips, C channels, Tl latent frames, V views, h x w latent grid, Ta actions of Da, Tp states of Dp,
S text positions of Dt. Everything is normalised and float32; masks are 0 or 1 (bool for depth cells).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch

from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from torch import Tensor
    from typing_extensions import Self

    from xwam_ft.encode.texts import TextRows

MOTION = ("video_mask", "action", "action_mask", "proprio", "proprio_mask")


@dataclass(frozen=True)
class BatchMotion:
    """What batches of latents and of pictures have in common. `positions` say which random numbers are theirs.

    A loader's worker leaves `text` empty (a clip's is 8 MB at 5B size, too much for a container's shared memory), and
    says in `told` which rows of the source's embeddings it is; see `with_text`.
    """

    positions: tuple[int, ...]
    keys: tuple[str, ...]
    video_mask: Float[Tensor, "b tl"]
    action: Float[Tensor, "b ta da"]
    action_mask: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]
    proprio_mask: Float[Tensor, "b tp dp"]
    text: Float[Tensor, "b s dt"]
    depth_mask: Bool[Tensor, "b tl v h w"] | None
    told: tuple[int, ...] = field(default=(), kw_only=True)

    def with_text(self, embeddings: TextRows) -> Self:
        """The batch with its instructions, in the dtype of `embeddings` where a worker left them out."""
        return self if self.text.numel() else replace(self, text=embeddings[list(self.told)])

    @property
    def size(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch on another device (Lightning calls this)."""
        moved = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.pin_memory() for n, t in tensors.items() if isinstance(t, torch.Tensor)})


@dataclass(frozen=True)
class Batch(BatchMotion):
    """Clips as the network sees them, before noise."""

    latents: Float[Tensor, "b c tl v h w"]
    depth: Float[Tensor, "b c tl v h w"] | None

    @property
    def streams(self) -> Streams:
        """What is noised."""
        return Streams(self.latents, self.action, self.proprio)


@dataclass(frozen=True)
class PictureBatch(BatchMotion):
    """Clips before the VAE."""

    pictures: UInt8[Tensor, "b v t height width 3"]
    depth_pictures: Float[Tensor, "b v t height width"] | None

    def with_latents(self, latents: Tensor, depth: Tensor | None) -> Batch:
        motion = {f.name: getattr(self, f.name) for f in fields(BatchMotion)}
        return Batch(**motion, latents=latents, depth=depth)
