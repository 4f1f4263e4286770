"""Cached clips -> batches, in the order of clips.py.

Legend: B clips, C channels, Tl latent frames, V views, h x w latent grid, Ta actions of Da, Tp states of Dp,
S text positions of Dt. Everything is normalised and float32; masks are 0 or 1 (bool for depth cells).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from xwam_ft.train.cache import CachedClip, ClipTensors, LatentCache
from xwam_ft.train.clips import StepGeometry, clip_at, copy_at

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Clips as the network sees them, before noise. `positions` say which random numbers are theirs."""

    positions: tuple[int, ...]
    keys: tuple[str, ...]
    latents: Float[Tensor, "b c tl v h w"]
    video_mask: Float[Tensor, "b tl"]
    action: Float[Tensor, "b ta da"]
    action_mask: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]
    proprio_mask: Float[Tensor, "b tp dp"]
    text: Float[Tensor, "b s dt"]
    depth: Float[Tensor, "b c tl v h w"] | None
    depth_mask: Bool[Tensor, "b tl v h w"] | None

    @property
    def size(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device (Lightning calls this)."""
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.pin_memory() for n, t in tensors.items() if isinstance(t, torch.Tensor)})


class ClipDataset(Dataset[Batch]):
    """The clips of one split, addressed by batches of positions.

    Args:
        cache: the latent cache.
        clips: which clips position p stands for is `order(p)`, an index into these.
        seed: of the training order and of which augmented copy is shown; None: position p is clip p (validation).
    """

    def __init__(self, cache: LatentCache, clips: Sequence[CachedClip], seed: int | None) -> None:
        self.cache, self.clips, self.seed = cache, list(clips), seed

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, position: int) -> CachedClip:
        index = position if self.seed is None else clip_at(self.seed, position, len(self.clips))
        return self.clips[index]

    def copy(self, position: int, clip: CachedClip) -> int:
        return 0 if self.seed is None else copy_at(self.seed, position, clip.copies)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        clips = [self.clip(position) for position in positions]
        tensors = [self.cache.read(clip, self.copy(p, clip)) for p, clip in zip(positions, clips, strict=True)]
        prompts = [self.cache.prompt_index[clip.instruction] for clip in clips]
        return Batch(
            positions=tuple(positions),
            keys=tuple(clip.key for clip in clips),
            latents=_stack(tensors, "rgb"),
            video_mask=_stack(tensors, "video_mask"),
            action=_stack(tensors, "action"),
            action_mask=_stack(tensors, "action_mask"),
            proprio=_stack(tensors, "proprio"),
            proprio_mask=_stack(tensors, "proprio_mask"),
            text=self.cache.prompt_embeddings[prompts].float(),
            depth=_stack(tensors, "depth") if self.cache.identity.with_depth else None,
            depth_mask=_stack(tensors, "depth_mask").bool() if self.cache.identity.with_depth else None,
        )


@dataclass(frozen=True)
class MicroBatches:
    """The batch sampler of one rank: positions of every micro-batch from `first_step` to `last_step` - 1."""

    geometry: StepGeometry
    rank: int
    first_step: int
    last_step: int

    def __iter__(self) -> Iterator[list[int]]:
        return self.geometry.micro_batches(self.first_step, self.last_step, self.rank)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.geometry.accumulate


class ClipDataModule(pl.LightningDataModule):
    """Training batches of every step that is still to do."""

    def __init__(
        self, cache: LatentCache, seed: int, geometry: StepGeometry, first_step: int, last_step: int, workers: int
    ) -> None:
        super().__init__()
        self.dataset = ClipDataset(cache, cache.of_split("train"), seed)
        self.geometry, self.workers = geometry, workers
        self.first_step, self.last_step = first_step, last_step

    def train_dataloader(self) -> DataLoader[Batch]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return DataLoader(
            self.dataset,
            sampler=MicroBatches(self.geometry, rank, self.first_step, self.last_step),
            batch_size=None,  # the dataset gives whole batches
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )


def _stack(tensors: Sequence[ClipTensors], name: str) -> Any:
    return torch.stack([getattr(clip, name) for clip in tensors]).float()
