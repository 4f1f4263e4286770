"""The Lightning data module of a recipe: loaders of training and of held-out clips."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler

from xwam_ft.arguments import checked
from xwam_ft.encode.batch import Batch, PictureBatch
from xwam_ft.encode.cache import EMPTY_PROMPT
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.encode.dataset import ClipDataset, Unreadable
from xwam_ft.encode.inputs import first_rank, open_inputs
from xwam_ft.errors import UserError
from xwam_ft.evaluate.open_loop import spread
from xwam_ft.learn.apart import said_of_data
from xwam_ft.learn.counts import StepCounts
from xwam_ft.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xwam_ft.encode.clip_source import ClipSource


class MicroBatches(DistributedSampler["list[int]"]):
    """The sampler of one rank: positions of every micro-batch from `first_step` to `last_step` - 1.

    It deals out over processes itself, which its base class says to Lightning.
    """

    def __init__(self, geometry: StepGeometry, rank: int, first_step: int, last_step: int) -> None:
        self.geometry, self.rank = geometry, rank
        self.first_step, self.last_step = first_step, last_step

    def __iter__(self) -> Iterator[list[int]]:
        return self.geometry.micro_batches(self.first_step, self.last_step, self.rank)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.geometry.accumulate


class HeldOutBatches(DistributedSampler["list[int]"]):
    """Every held-out clip on every rank, in order: all come to the same numbers, and stop early together."""

    def __init__(self, clips: int, batch_size: int) -> None:
        self.clips, self.batch_size = clips, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.clips, self.batch_size):
            yield list(range(first, min(first + self.batch_size, self.clips)))

    def __len__(self) -> int:
        return -(-self.clips // self.batch_size)


class ClipLoader(DataLoader["Batch | PictureBatch | Unreadable"]):
    """Whole batches from a dataset. Where it begins follows from the Trainer's step, so it has no state to save."""

    def __init__(self, dataset: ClipDataset, sampler: DistributedSampler[list[int]], workers: int, length: int) -> None:
        pin = torch.cuda.is_available()
        super().__init__(dataset, sampler=sampler, batch_size=None, num_workers=workers, pin_memory=pin)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


class ClipDataModule(pl.LightningDataModule):
    """Training batches of every step that is still to do, as one epoch, and the held-out clips.

    Args:
        source: the clips.
        recipe: order, sizes, which held-out clips.
        contract: SHA-256 of the contract that the clips are under.
    """

    def __init__(self, source: ClipSource, recipe: Recipe, contract: str) -> None:
        super().__init__()
        self.source, self.recipe, self.contract = source, recipe, contract
        self.dataset = ClipDataset(source, source.of_split("train"), recipe.seed)
        self.geometry = geometry_of(recipe)
        self.counts = StepCounts(source, recipe.noise, recipe.seed, self.geometry)

    @classmethod
    @checked()
    def from_recipe(cls, recipe: Recipe | str | Path) -> ClipDataModule:
        """The clips of a recipe's shard sets; the latent cache is made where it is missing.

        Warns of sets that contradict each other, and of held-out episodes that are trained on.

        Raises:
            UserError: anything wrong with recipe, shards or backbone.
        """
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
        inputs = open_inputs(recipe)
        for sentence in said_of_data(inputs.recipe, inputs.shard_set) if first_rank() else ():
            warnings.warn(sentence, stacklevel=2)
        return cls(inputs.clips(), recipe, inputs.contract.sha256)

    @property
    def empty_text(self) -> Float[Tensor, "s dt"]:
        """The embedding of the empty instruction."""
        return self.source.prompt_embeddings[self.source.prompt_index[EMPTY_PROMPT]]

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.geometry = geometry_of(self.recipe, self.trainer)
        self.counts = StepCounts(self.source, self.recipe.noise, self.recipe.seed, self.geometry)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch | PictureBatch:
        if isinstance(batch, Unreadable):
            raise UserError(batch.what, batch.where, batch.fix)
        return batch.with_text(self.source.prompt_embeddings)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Pictures go through the VAE here, on the device and not in a loader's worker; text becomes float32."""
        return self.source.finish(replace(batch, text=batch.text.float()))

    def train_dataloader(self) -> ClipLoader:
        trainer = self.trainer
        rank, first, done = 0, 0, 0
        if trainer is not None:
            rank, first = trainer.global_rank, trainer.global_step
            # Of the epoch at hand, where a Lightning checkpoint is gone on from.
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        sampler = MicroBatches(self.geometry, rank, first, max(steps_of(trainer, self.recipe), first))
        return ClipLoader(self.dataset, sampler, self.recipe.trainer.workers, done + len(sampler))

    def val_dataloader(self) -> ClipLoader | list[Any]:
        """Held-out clips, spread evenly over the split; nothing where nothing is held out."""
        chosen = spread(self.source.of_split("held_out"), self.recipe.validation.clips)
        sampler = HeldOutBatches(len(chosen), self.recipe.trainer.batch_size)
        dataset = ClipDataset(self.source, chosen, seed=None)
        return ClipLoader(dataset, sampler, 0, len(sampler)) if chosen else []


def geometry_of(recipe: Recipe, trainer: pl.Trainer | None = None) -> StepGeometry:
    """How a step's clips are dealt out: as a Trainer says, or without one in one process as the recipe says."""
    spec = recipe.trainer
    if trainer is None:
        return StepGeometry(spec.batch_size, spec.accumulate)
    return StepGeometry(spec.batch_size, trainer.accumulate_grad_batches, trainer.world_size)


def steps_of(trainer: pl.Trainer | None, recipe: Recipe) -> int:
    """The optimizer steps of a run: the Trainer's `max_steps` where it has one, or the recipe's."""
    return trainer.max_steps if trainer is not None and trainer.max_steps > 0 else recipe.trainer.max_steps
