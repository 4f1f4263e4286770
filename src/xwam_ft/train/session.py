"""One training session: network, optimizer, checkpoint and callbacks put together and run to the last step.

A session starts at step 0 or where a checkpoint left off; nothing else distinguishes the two.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.table import Table

from xwam_ft.errors import UserError, listed
from xwam_ft.model.adapters import load_trainable, prepare_for_training, trainable_state, zero_adapters
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import Layout
from xwam_ft.model.merge import fit_depth_adapter, share_branch
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.precision import chosen_precision
from xwam_ft.train.cache import EMPTY_PROMPT
from xwam_ft.train.callbacks import (
    AdaptersMove,
    Averaging,
    Clock,
    Every,
    MetricLog,
    Metrics,
    ProgressBar,
    Signals,
    signals_restored,
)
from xwam_ft.train.checkpoint import (
    OPTIMIZER_FILE,
    TRAINABLE_FILE,
    Checkpoint,
    RunState,
    best_steps,
    disk_trouble,
    library_versions,
    list_checkpoints,
    write_checkpoint,
)
from xwam_ft.train.clips import StepGeometry
from xwam_ft.train.counts import StepCounts
from xwam_ft.train.data import ClipDataModule
from xwam_ft.train.folder import CONTRACT_FILE, RunFolder, record, require_continuable
from xwam_ft.train.history import METRICS_FILE
from xwam_ft.train.module import TrainingModule
from xwam_ft.train.observer import Observer
from xwam_ft.train.optimizer import AveragedWeights, optimizer_tensors, restore_optimizer, trained_parameters
from xwam_ft.train.sharding import gathered
from xwam_ft.train.sinks import open_sinks

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet
    from xwam_ft.train.clip_source import ClipSource


class Session:
    """Everything of one call of `train` or `resume` that lives in memory."""

    def __init__(self, folder: RunFolder, shard_set: ShardSet, source: ClipSource, console: Console) -> None:
        self.clock = Clock()
        self.folder, self.recipe, self.source, self.console = folder, folder.recipe, source, console
        self.shard_set = shard_set
        recipe, checkpoint = self.recipe, folder.checkpoint
        self.first_step = checkpoint.state.step if checkpoint else 0
        spec = recipe.backbone
        backbone = load_backbone(
            spec.path, dtype=spec.dtype, parts=("transformer",), revision=spec.revision, quantize=spec.quantize
        )
        self.backbone = backbone
        kept: list[str] = []
        self.network = trainable_network(backbone, recipe, shard_set.contract, kept)
        require_whole_patches(self.network, source, shard_set)
        if self.first_step == 0:
            for sentence in kept:
                console.print(f"imported weights: {sentence}", soft_wrap=True)
        self.average = None
        if recipe.optim.ema_decay is not None:
            self.average = AveragedWeights(trainable_state(self.network), recipe.optim.ema_decay)
        self.trainer = self._trainer()
        trainer_spec = recipe.trainer
        self.geometry = StepGeometry(trainer_spec.batch_size, trainer_spec.accumulate, self.trainer.world_size)
        require_continuable(folder, shard_set, source.identity, backbone.fingerprint, self.geometry.samples)
        if checkpoint is not None:
            trained = checkpoint.trainable()
            load_trainable(self.network, trained, checkpoint.folder / TRAINABLE_FILE)
            self._report_zero(trained)
            stored = checkpoint.ema()
            if self.average is not None and stored is not None:
                self.average.restore(stored)
        counts = StepCounts(source, recipe.noise, recipe.seed, self.geometry)
        empty = source.prompt_embeddings[source.prompt_index[EMPTY_PROMPT]]
        self.module = TrainingModule(self.network, recipe, self.geometry, counts.of_step, empty, self.first_step)
        self.module.last_good = self._last_good
        self.data = ClipDataModule(
            source, recipe.seed, self.geometry, self.first_step, trainer_spec.max_steps, trainer_spec.workers
        )

    def fit(self) -> None:
        """Train to the last step; returns at once where that is done already, and was looked at.

        Raises:
            KeyboardInterrupt, SystemExit: a signal ended the run; its checkpoint is written.
            UserError: a loss that is not finite or explodes, adapters that do not move, a full disk.
        """
        recipe = self.recipe
        first = self.trainer.is_global_zero
        path = self.folder.path
        if self.first_step >= recipe.trainer.max_steps and not Observer(self, None).missed:
            return
        log = None
        if first:
            with disk_trouble(path):
                log = MetricLog(path, self.first_step, lambda: open_sinks(path, self.first_step, recipe))
        observer = Observer(self, log)
        metrics = Metrics(log, recipe.logging.every_steps)
        signals = Signals(self.save)
        callbacks: list[Callback] = []
        if self.folder.checkpoint is not None:
            callbacks.append(RestoreOptimizer(self.folder.checkpoint))
        if self.average is not None:
            callbacks.append(Averaging(self.average))
        callbacks += [
            AdaptersMove(),
            self.clock,
            metrics,
            Every(self.save, recipe.checkpoint.every_steps, self.clock, "checkpoints"),
            signals,
            *observer.callbacks(),
        ]
        if first:
            callbacks.append(ProgressBar(self.console, recipe.trainer.max_steps, metrics))
        self.trainer.callbacks.extend(callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        self.network.train()
        try:
            with _quiet(), _deterministic(self.trainer), signals_restored(), disk_trouble(path):
                self.trainer.fit(self.module, datamodule=self.data)
        except UserError:
            with suppress(OSError):
                observer.report(0)  # how it came to that
            raise
        finally:
            if log is not None:
                log.close()
        observer.report(0)
        if signals.stopped_at is not None:
            self.console.print(f"stopped after step {signals.stopped_at}, which is saved")
            self.console.print(f"go on with: xwam-ft train --resume {self.folder.path}", soft_wrap=True)
            if signals.received == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + signals.received)

    def save(self, step: int) -> None:
        """Write a checkpoint; the first rank does, and the others go on once they have sent their shards."""
        recipe, names = self.recipe, trained_parameters(self.network)
        optimizer: Any = self.trainer.optimizers[0]
        first = self.trainer.is_global_zero
        trainable = gathered(trainable_state(self.network), first)
        stored = gathered(optimizer_tensors(optimizer, names), first)
        ema = gathered(self.average.weights, first) if self.average is not None else None
        if not first:
            return
        position = step * self.geometry.samples
        state = RunState(
            step=step,
            position=position,
            epoch=position // len(self.data.dataset),
            seed=recipe.seed,
            samples_per_step=self.geometry.samples,
            learning_rates={group["name"]: group["lr"] for group in optimizer.param_groups},
            recipe=record(self.recipe),
            contract=self.folder.contract.sha256,
            backbone=self.backbone.fingerprint,
            encoders=self.source.identity.backbone,
            shards=self.source.identity.shards,
            network=self.network.config.to_dict(),
            versions=library_versions(),
        )
        kept, path = recipe.checkpoint, self.folder.path
        best = best_steps(path, path / METRICS_FILE, recipe.loss.model_dump(), kept.keep_best)
        write_checkpoint(path, state, trainable, stored, ema, kept.keep, spare=best)

    @cached_property
    def codec(self) -> Backbone:
        """The VAE: what training from pixels has loaded, or loaded for the first validation."""
        spec = self.recipe.backbone
        codec = self.source.codec or load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision)
        return codec.to(self.trainer.strategy.root_device)

    def print_time(self) -> None:
        """Where the time went."""
        spent = self.clock.spent
        table = Table("what", "seconds", "share", title="where the time went")
        total = sum(spent.values()) or 1.0
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{seconds:.1f}", f"{100 * seconds / total:.0f} %")
        self.console.print(table)

    def _trainer(self) -> pl.Trainer:
        spec = self.recipe.trainer
        with _quiet():
            return pl.Trainer(
                accelerator=spec.accelerator,
                devices=spec.devices,
                num_nodes=spec.nodes,
                strategy=ModelParallelStrategy() if spec.strategy == "fsdp2" else spec.strategy,
                precision=chosen_precision(spec)[0],
                max_steps=max(spec.max_steps - self.first_step, 0),
                max_epochs=1,  # the loader runs over every step that is left
                accumulate_grad_batches=spec.accumulate,
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=0,
                default_root_dir=self.folder.path,
            )

    def _report_zero(self, trained: dict[str, Tensor]) -> None:
        """Say which adapters a checkpoint holds at zero, where they began: they have learned nothing so far."""
        still, adapters = zero_adapters(trained)
        if still and self.first_step:
            self.console.print(
                f"after {self.first_step} steps {len(still)} of {adapters} adapters are still zero: {listed(still, 3)}",
                soft_wrap=True,
            )

    def _last_good(self) -> str:
        folders = list_checkpoints(self.folder.path)
        return str(folders[-1]) if folders else "none: the run had not saved one yet"


class RestoreOptimizer(Callback):
    """Puts AdamW's state back as soon as Lightning has made the optimizer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        names, where = trained_parameters(module.network), self.checkpoint.folder / OPTIMIZER_FILE
        restore_optimizer(trainer.optimizers[0], names, self.checkpoint.optimizer(), where)


def trainable_network(
    backbone: Backbone, recipe: Recipe, contract: Contract, report: list[str] | None = None
) -> JointNetwork:
    """The network of a recipe on a backbone, its new parts and adapters drawn from the recipe's seed.

    A depth branch that the backbone brings is taken over as copies, or where the recipe says `adapter`, as the
    nearest adapter. `report` is given sentences that say what was kept of imported X-WAM weights.

    Raises:
        UserError: that adapter cannot hold it, or the base is quantised: such blocks can be neither copied nor fitted.
    """
    model, brought = recipe.model, brings_depth(backbone, recipe.model.depth.blocks)
    form = model.branch_on(depth=contract.depth.kind != "none", brought=brought)
    if brought and form != "none" and recipe.backbone.quantize is not None:
        raise UserError(
            f"is {recipe.backbone.quantize!r}, and {backbone.name} brings a depth branch, which cannot be laid on that",
            "backbone.quantize",
            "remove it, or set model.depth.branch to none",
        )
    config = NetworkConfig(
        num_views=len(contract.cameras),
        action_dim=contract.action_dim,
        proprio_dim=contract.state_dim,
        actions_per_frame=contract.timing.actions_per_frame,
        depth_blocks=0 if form == "none" else model.depth.blocks,
        depth_shared=form == "adapter" and not brought,
    )
    network = build_network(backbone, config, recipe.seed, layout=Layout.of(contract), report=report)
    network.gradient_checkpointing = model.gradient_checkpointing
    copies = share_branch(network) if form == "adapter" and brought else None
    prepare_for_training(network, model.lora, model.depth, train=model.train, seed=recipe.seed)
    if copies is not None:
        worst = max(fit_depth_adapter(network, copies), key=lambda fit: fit.error)
        if report is not None:
            lost = f"at most {worst.error:.2g} of what a layer learned is lost ({worst.name})"
            report.append(f"depth branch: held by an adapter, {lost}")
    return network


def brings_depth(backbone: Backbone, blocks: int) -> bool:
    """Whether the backbone is an imported X-WAM with a trained depth branch of this many blocks."""
    return backbone.joint is not None and backbone.joint.config.depth_blocks == blocks


def require_whole_patches(network: JointNetwork, source: ClipSource, shard_set: ShardSet) -> None:
    """Raise a `UserError` unless the latents are a whole number of the transformer's patches."""
    _, frames, _, height, width = source.latent_shape
    patch = network.patch_size
    if frames % patch[0] or height % patch[1] or width % patch[2]:
        raise UserError(
            f"its pictures make latents of {frames}x{height}x{width} cells, and the transformer reads patches of "
            f"{'x'.join(map(str, patch))}",
            shard_set.folder / CONTRACT_FILE,
            "prepare the recordings again with another image size in the embodiment file",
        )


@contextmanager
def _quiet() -> Generator[None]:
    """Without Lightning's banners and its hints about loaders; our own table and bar say what matters."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _deterministic(trainer: pl.Trainer) -> Generator[None]:
    """Deterministic algorithms on a CPU, where resuming is exact to the bit; on a GPU they would cost speed."""
    before = torch.are_deterministic_algorithms_enabled()
    on_cpu = trainer.strategy.root_device.type == "cpu"
    torch.use_deterministic_algorithms(before or on_cpu)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
