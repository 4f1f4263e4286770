"""Clips at some positions -> a batch (batch.py), in the order of clips.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, get_worker_info

from xwam_ft.encode.batch import MOTION, Batch, PictureBatch
from xwam_ft.encode.clip_tensors import ClipPictures
from xwam_ft.encode.clips import ClipOrder, copy_at, wording_at
from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.encode.cache import CachedClip
    from xwam_ft.encode.clip_source import ClipSource


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
        """The clips at some positions; in a loader's worker without their text (`Motion.with_text`).

        Raises:
            UserError: one cannot be read.
        """
        clips = [self.clip(position) for position in positions]
        tensors = [self.source.read(clip, self.copy(p, clip)) for p, clip in zip(positions, clips, strict=True)]
        told = [self.source.prompt_index[self.told(p, clip)] for p, clip in zip(positions, clips, strict=True)]
        motion: dict[str, Any] = {
            "positions": tuple(positions),
            "keys": tuple(clip.key for clip in clips),
            "text": torch.empty(0) if get_worker_info() else self.source.prompt_embeddings[told].float(),
            "told": tuple(told),
            "depth_mask": _stack(tensors, "depth_mask", torch.bool) if self.source.with_depth else None,
        }
        motion |= {name: _stack(tensors, name, torch.float32) for name in MOTION}
        depth = _stack(tensors, "depth", torch.float32) if self.source.with_depth else None
        if isinstance(tensors[0], ClipPictures):
            return PictureBatch(**motion, pictures=_stack(tensors, "rgb"), depth_pictures=depth)
        return Batch(**motion, latents=_stack(tensors, "rgb", torch.float32), depth=depth)


def _stack(clips: Sequence[object], name: str, dtype: torch.dtype | None = None) -> Tensor:
    """One tensor of every clip, stacked; each number is read and written once, in `dtype` already."""
    rows: list[Tensor] = [getattr(clip, name) for clip in clips]
    stacked = torch.empty(len(rows), *rows[0].shape, dtype=dtype or rows[0].dtype)
    for row, place in zip(rows, stacked, strict=True):
        place.copy_(row)
    return stacked
