"""Clips -> batches, in the order of clips.py.

Legend: B clips, C channels, Tl latent frames, V views, h x w latent grid, Ta actions of Da, Tp states of Dp,
S text positions of Dt. Everything is normalised and float32; masks are 0 or 1 (bool for depth cells).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from xwam_ft.errors import UserError
from xwam_ft.train.clip_tensors import ClipPictures
from xwam_ft.train.clips import ClipOrder, StepGeometry, copy_at, wording_at

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from torch import Tensor
    from typing_extensions import Self

    from xwam_ft.train.cache import CachedClip
    from xwam_ft.train.clip_source import ClipSource


MOTION = ("video_mask", "action", "action_mask", "proprio", "proprio_mask")


@dataclass(frozen=True)
class Motion:
    """What batches of latents and of pictures have in common. `positions` say which random numbers are theirs."""

    positions: tuple[int, ...]
    keys: tuple[str, ...]
    video_mask: Float[Tensor, "b tl"]
    action: Float[Tensor, "b ta da"]
    action_mask: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]
    proprio_mask: Float[Tensor, "b tp dp"]
    text: Float[Tensor, "b s dt"]
    depth_mask: Bool[Tensor, "b tl v h w"] | None

    @property
    def size(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch on another device (Lightning calls this)."""
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.pin_memory() for n, t in tensors.items() if isinstance(t, torch.Tensor)})


@dataclass(frozen=True)
class Batch(Motion):
    """Clips as the network sees them, before noise."""

    latents: Float[Tensor, "b c tl v h w"]
    depth: Float[Tensor, "b c tl v h w"] | None


@dataclass(frozen=True)
class PictureBatch(Motion):
    """Clips before the VAE."""

    pictures: UInt8[Tensor, "b v t height width 3"]
    depth_pictures: Float[Tensor, "b v t height width"] | None

    def with_latents(self, latents: Tensor, depth: Tensor | None) -> Batch:
        motion = {field.name: getattr(self, field.name) for field in fields(Motion)}
        return Batch(**motion, latents=latents, depth=depth)


@dataclass(frozen=True)
class Unreadable:
    """A `UserError` that a loader's worker met: as an exception it would reach the first process as another one."""

    what: str
    where: str
    fix: str


class ClipDataset(Dataset["Batch | PictureBatch | Unreadable"]):
    """The clips of one split, addressed by batches of positions.

    Args:
        source: the latent cache, or what reads pixels.
        clips: which clips position p stands for is `order(p)`, an index into these.
        seed: of the training order, of which augmented copy is shown and which wording is told; None: position p is
            clip p (validation).
    """

    def __init__(self, source: ClipSource, clips: Sequence[CachedClip], seed: int | None) -> None:
        self.source, self.clips, self.seed = source, list(clips), seed
        self._order = None if seed is None else ClipOrder(seed, len(self.clips), source.weights)

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, position: int) -> CachedClip:
        return self.clips[position if self._order is None else self._order.at(position)]

    def copy(self, position: int, clip: CachedClip) -> int:
        return 0 if self.seed is None else copy_at(self.seed, position, clip.copies)

    def told(self, position: int, clip: CachedClip) -> str:
        """The wording of the instruction."""
        if self.seed is None or not clip.wordings:
            return clip.instruction
        return clip.wordings[wording_at(self.seed, position, len(clip.wordings))]

    def masks(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """The masks of the clips at some positions, by name, stacked: what the losses count."""
        clips = [self.clip(position) for position in positions]
        rows = [self.source.masks(clip, self.copy(p, clip)) for p, clip in zip(positions, clips, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def batch(self, positions: Sequence[int], device: torch.device | str) -> Batch:
        """A batch of latents on a device, without a loader."""
        return self.source.finish(self.read(positions).to(device))

    def __getitem__(self, positions: Sequence[int]) -> Batch | PictureBatch | Unreadable:
        try:
            return self.read(positions)
        except UserError as error:
            if get_worker_info() is None:
                raise
            return Unreadable(error.what, error.where, error.fix)

    def read(self, positions: Sequence[int]) -> Batch | PictureBatch:
        """The clips at some positions.

        Raises:
            UserError: one cannot be read.
        """
        clips = [self.clip(position) for position in positions]
        tensors = [self.source.read(clip, self.copy(p, clip)) for p, clip in zip(positions, clips, strict=True)]
        told = [self.source.prompt_index[self.told(p, clip)] for p, clip in zip(positions, clips, strict=True)]
        motion: dict[str, Any] = {
            "positions": tuple(positions),
            "keys": tuple(clip.key for clip in clips),
            "text": self.source.prompt_embeddings[told].float(),
            "depth_mask": _stack(tensors, "depth_mask").bool() if self.source.with_depth else None,
        }
        motion |= {name: _stack(tensors, name).float() for name in MOTION}
        depth = _stack(tensors, "depth").float() if self.source.with_depth else None
        if isinstance(tensors[0], ClipPictures):
            return PictureBatch(**motion, pictures=_stack(tensors, "rgb"), depth_pictures=depth)
        return Batch(**motion, latents=_stack(tensors, "rgb").float(), depth=depth)


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
        self, source: ClipSource, seed: int, geometry: StepGeometry, first_step: int, last_step: int, workers: int
    ) -> None:
        super().__init__()
        self.dataset = ClipDataset(source, source.of_split("train"), seed)
        self.geometry, self.workers = geometry, workers
        self.first_step, self.last_step = first_step, last_step

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch | PictureBatch:
        if isinstance(batch, Unreadable):
            raise UserError(batch.what, batch.where, batch.fix)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Pictures go through the VAE here, on the device and not in a loader's worker."""
        return self.dataset.source.finish(batch)

    def train_dataloader(self) -> DataLoader[Batch | PictureBatch | Unreadable]:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return DataLoader(
            self.dataset,
            sampler=MicroBatches(self.geometry, rank, self.first_step, self.last_step),
            batch_size=None,  # the dataset gives whole batches
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )


def _stack(clips: Sequence[object], name: str) -> Tensor:
    return torch.stack([getattr(clip, name) for clip in clips])
