"""Exact resume, which Lightning's checkpoints do not offer: as safetensors, whole or not there, to the same bits.

One callback writes what checkpoint.py describes and puts it back: the trainer's counters before the optimizer is made,
weights and AdamW's state once the network is cut over processes. All else is a function of the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from xwam_ft.errors import listed
from xwam_ft.learn.data import geometry_of
from xwam_ft.learn.optimizer import optimizer_tensors, restore_optimizer, trained_parameters
from xwam_ft.model.adapters import load_trainable, trainable_state, zero_adapters
from xwam_ft.runs.checkpoint import (
    OPTIMIZER_FILE,
    TRAINABLE_FILE,
    Checkpoint,
    RunState,
    best_steps,
    library_versions,
    take_part,
    write_checkpoint,
)
from xwam_ft.runs.folder import RunFolder, keep_backbone, record, require_continuable
from xwam_ft.runs.history import History
from xwam_ft.train.callbacks import SPEED, Averaging, Clock, StepCallback

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.learn.module import TrainingModule
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.shards import ShardSet


class ExactCheckpoints(StepCallback):
    """Writes a run's checkpoints and goes on from the newest.

    Args:
        folder: the run; its `checkpoint` is gone on from.
        shard_set, source: what it trains on.
        average: whose weights are saved too, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        shard_set: ShardSet,
        source: ClipSource,
        average: Averaging | None,
        clock: Clock,
        console: Console,
    ) -> None:
        self.folder, self.shard_set, self.identity = folder, shard_set, source.identity
        self._clips = len(source.of_split("train"))
        self.average, self.clock, self.console = average, clock, console
        self.saved_at = folder.first_step
        self.unlogged = self._unlogged()

    def _unlogged(self) -> dict[str, float]:
        """What a kill kept the loggers from being told of the checkpoint's step."""
        if self.folder.checkpoint is None:
            return {}
        step, logged = self.folder.first_step, self.folder.checkpoint.state.logged
        rows = [row for row in History(self.folder.path).metrics() if row["step"] == step]
        return {} if any(logged.keys() & row.keys() for row in rows) else logged

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Counters of the checkpoint: the optimizer's schedule asks for them."""
        module: Any = pl_module
        self.require_belonging(trainer, module)
        if self.folder.checkpoint is not None:
            set_step(trainer, self.folder.checkpoint.state.step)

    def require_belonging(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Raise a `UserError` if the checkpoint is of another recipe, contract, backbone, shard set or step size.

        What is the run's own and lies elsewhere now is written down.
        """
        samples = geometry_of(module.recipe, trainer).samples
        require_continuable(self.folder, self.shard_set, self.identity, module.backbone, samples)
        if trainer.is_global_zero and self.folder.checkpoint is not None and (moved := keep_backbone(self.folder)):
            self.console.print(f"backbone.path of the run: {moved}", soft_wrap=True, markup=False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights and AdamW's state, where both have their places: this process reads what it holds of them."""
        checkpoint, module = self.folder.checkpoint, pl_module
        if checkpoint is not None:
            restore_weights(checkpoint, module.network, self.console)  # pyright: ignore[reportArgumentType]
            stored = checkpoint.ema()
            if self.average is not None and stored is not None:
                self.average.restore(stored)
            names = trained_parameters(module.network)  # pyright: ignore[reportArgumentType]
            restore_optimizer(trainer.optimizers[0], names, checkpoint.optimizer(), checkpoint.folder / OPTIMIZER_FILE)
        if self.unlogged and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.unlogged, self.folder.first_step)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if step % module.recipe.checkpoint.every_steps == 0 or step == module.max_steps or trainer.should_stop:
            self.clock.lap("network")
            every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
            due = step % every == 0 or step == module.max_steps
            self.save(trainer, module, _row(trainer) if due else {})
            self.clock.lap("checkpoints")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where another callback stopped the run between two checkpoints."""
        module: Any = pl_module
        if module.step != self.saved_at:
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: TrainingModule, logged: dict[str, float] | None = None) -> None:
        """Write a checkpoint; the first rank does, and the others go on once they have sent their shards.

        Args:
            logged: what the loggers will be told of this step.
        """
        module.settle()
        recipe, step, first = module.recipe, module.step, trainer.is_global_zero
        optimizer: Any = trainer.optimizers[0]
        trainable = trainable_state(module.network)
        stored = optimizer_tensors(optimizer, trained_parameters(module.network))
        ema = self.average.weights if self.average is not None else None
        self.saved_at = step
        if not first:
            take_part(trainable, stored, ema)
            return
        position = step * module.geometry.samples
        state = RunState(
            step=step,
            position=position,
            epoch=position // self._clips,
            seed=recipe.seed,
            samples_per_step=module.geometry.samples,
            learning_rates={group["name"]: group["lr"] for group in optimizer.param_groups},
            recipe=record(recipe),
            contract=self.folder.contract.sha256,
            backbone=module.backbone,
            encoders=self.identity.backbone,
            shards=self.identity.shards,
            network=module.network.config.to_dict(),
            versions=library_versions(),
            logged=logged or {},
        )
        kept, path = recipe.checkpoint, self.folder.path
        best = best_steps(path, recipe.loss.model_dump(), kept.keep_best)
        write_checkpoint(path, state, trainable, stored, ema, kept.keep, spare=best)


def _row(trainer: pl.Trainer) -> dict[str, float]:
    """What Lightning will tell the loggers of the step at hand, but for its speed."""
    found: dict[str, Any] = trainer._logger_connector.metrics["log"]  # pyright: ignore[reportPrivateUsage]
    return {name: float(value) for name, value in found.items() if name not in ("step", SPEED)}


def restore_weights(checkpoint: Checkpoint, network: JointNetwork, console: Console) -> None:
    """Put a checkpoint's weights into a network, and say which adapters are at zero there: they learned nothing yet."""
    trained = checkpoint.trainable()
    load_trainable(network, trained, checkpoint.folder / TRAINABLE_FILE)
    still, adapters = zero_adapters(trained)
    if still:
        console.print(
            f"after {checkpoint.state.step} steps {len(still)} of {adapters} adapters are still zero: "
            f"{listed(still, 3)}",
            soft_wrap=True,
        )


def set_step(trainer: pl.Trainer, step: int) -> None:
    """Let a trainer count on from an optimizer step, as where it goes on from a checkpoint of its own.

    Whatever asks for its `global_step` follows: sampler, learning rates, loggers, callbacks.
    """
    loop = trainer.fit_loop.epoch_loop
    taken, batches = loop.automatic_optimization.optim_progress.optimizer.step.total, loop.batch_progress.total
    taken.ready = taken.completed = step
    batches.ready = batches.completed = step * trainer.accumulate_grad_batches
    loop._batches_that_stepped = step  # pyright: ignore[reportPrivateUsage]
