"""`xwam-ft train`: a module, a data module, callbacks and loggers given to Lightning's Trainer.

Several devices: Lightning starts one process each, and every one of them comes through here. The first rank makes
the cache and the run folder and prints; the others wait until these are there. Where one fails, all end (together.py).
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console
from rich.table import Table

from xwam_ft.consoles import setting, typed
from xwam_ft.encode.encode import wants_depth
from xwam_ft.encode.inputs import Inputs, first_rank, open_inputs, wait_for
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_folder, write_json_atomic
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.module import TrainingModule
from xwam_ft.learn.start import require_backbone_whole
from xwam_ft.model.adapters import write_peft_adapter
from xwam_ft.model.branch import DEPTH, MAIN
from xwam_ft.model.precision import chosen_precision, float32_products
from xwam_ft.model.sharding import gathered
from xwam_ft.model.tensor_files.source import bundle_backbone
from xwam_ft.plan.memory import is_out_of_memory, out_of_memory
from xwam_ft.plan.plan import make_plan
from xwam_ft.plan.plan_report import print_plan
from xwam_ft.runs.checkpoint import run_disk_errors
from xwam_ft.runs.folder import (
    ADAPTER,
    DEPTH_ADAPTER,
    PLAN_FILE,
    RECIPE_FILE,
    RunFolder,
    keep_length,
    keep_places,
    make_run,
    open_run,
    require_backbone_there,
    require_free,
    require_run,
    require_same_data,
    require_sealed,
    require_shards,
)
from xwam_ft.runs.origin import open_origin, require_backbone
from xwam_ft.train.callbacks import AdaptersMove, Averaging, Clock, Signals, StepBar, signals_restored
from xwam_ft.train.exact import ExactCheckpoints
from xwam_ft.train.loggers import run_loggers
from xwam_ft.train.look import Look
from xwam_ft.train.own_code import OwnCode, own_code
from xwam_ft.train.shared_memory import require_shared_memory
from xwam_ft.train.together import Together, together

if TYPE_CHECKING:
    from xwam_ft.encode.clip_source import ClipPool, ClipSource
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet
    from xwam_ft.strict_yaml import Overrides


def train_recipe(recipe: Recipe, run: Path, console: Console) -> None:
    """Train by a recipe into the new run folder `run`.

    Raises:
        UserError: anything wrong with recipe, shards, backbone or folder; a loss that is not finite.
        KeyboardInterrupt, SystemExit: a signal ended the run; its checkpoint is written.
    """
    if first_rank():
        require_free(run)
    else:
        console = Console(quiet=True)
    with together(run, console) as processes:
        if first_rank():
            _begin(recipe, run, processes, console)
        else:
            wait_for(run / RECIPE_FILE)
            _go_on(run, processes, console, None)


def _begin(recipe: Recipe, run: Path, processes: Together, console: Console) -> None:
    """Make the run folder, and train."""
    inputs, own = open_inputs(recipe, console), own_code(recipe)
    recipe = inputs.recipe
    require_backbone_whole(recipe, console)
    if recipe.init_from is not None:
        require_backbone(open_origin(recipe.init_from), recipe.backbone)
    plan = make_plan(recipe, inputs.shard_set, run)
    print_plan(plan, recipe, console)
    require_shared_memory(recipe, inputs.contract, plan.latents, depth=wants_depth(recipe, inputs.contract))
    clips = inputs.clips()
    folder = make_run(run, recipe, inputs.contract)
    write_json_atomic(run / PLAN_FILE, plan.to_json())
    _finish(folder, inputs, clips, own, processes, console)


def resume_run(run: Path, console: Console, overrides: Overrides | None = None) -> None:
    """Go on with a run from its newest checkpoint, to the same weights as if it had not been stopped.

    Args:
        overrides: of keys that the result does not depend on (folder.FREE, CUT), this call's alone; and for good
            `trainer.max_steps`, which makes the run longer, and `data.shards`, where they were moved.

    Raises:
        UserError: not a run folder, a damaged checkpoint, another contract, backbone, shard set or recipe, or an
            override that would change the result.
    """
    console = console if first_rank() else Console(quiet=True)
    place = require_run(run)
    with together(place, console) as processes:
        _go_on(place, processes, console, overrides)


def _go_on(run: Path, processes: Together, console: Console, overrides: Overrides | None) -> None:
    """What `resume_run` does where nobody else does."""
    folder = open_run(run, overrides)
    done, steps = folder.first_step, folder.recipe.trainer.max_steps
    finished = done >= steps
    said = f"{run}: {done} of {steps} steps are done" if finished else f"{run}: at step {done} of {steps}"
    console.print(said, soft_wrap=True, markup=False)
    _refuse_bundle(folder)
    require_shards(folder)
    require_backbone_there(folder)
    if folder.checkpoint is not None and folder.decided is not None:
        require_sealed(folder)
    inputs, own = open_inputs(folder.recipe, console, under=folder.decided), own_code(folder.recipe)
    require_same_data(folder, inputs.shard_set, inputs.identity)  # before anything is encoded
    require_backbone_whole(folder.recipe, console)
    if first_rank() and keep_places(folder):
        console.print(f"data.shards of the run: {folder.recipe.data.where}", soft_wrap=True, markup=False)
    clips = inputs.clips()
    if folder.extends:
        console.print(folder.extensions[-1].said, soft_wrap=True, markup=False)
    if first_rank():
        if folder.extends:
            plan = make_plan(inputs.recipe, inputs.shard_set, folder.path)
            write_json_atomic(folder.path / PLAN_FILE, plan.to_json())
        folder = keep_length(folder)
    _finish(folder, inputs, clips, own, processes, console)
    if finished:
        longer = f"xwam-ft train --resume {quote(str(run))} --set trainer.max_steps={2 * steps}"
        console.print(f"to train longer: {longer}", soft_wrap=True, markup=False)


def _refuse_bundle(folder: RunFolder) -> None:
    """A bundle in the backbone's place means to start from what it learned, which is a run of its own."""
    place, run = folder.recipe.backbone.path, folder.path
    if (backbone := bundle_backbone(Path(place))) is not None:
        new = typed("xwam-ft", "train", run / RECIPE_FILE, "--init", place, "--run", f"{run}-2")
        raise UserError(
            f"is a bundle, and {run} goes on on the backbone that it was trained on",
            place,
            f"begin a new run with what the bundle learned: {new} {setting('backbone.path', backbone)}",
        )


def _finish(
    folder: RunFolder, inputs: Inputs, clips: ClipPool, own: OwnCode, processes: Together, console: Console
) -> None:
    """Train what is left of a run."""
    _print_data(inputs, clips, console)
    if (said := chosen_precision(folder.recipe.trainer)[1]) is not None:
        console.print(said, soft_wrap=True)
    try:
        fit(folder, clips, inputs.shard_set, own, processes, console)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(folder.recipe) from error
    console.print(f"run: {folder.path}", soft_wrap=True, markup=False)
    names = quote(str(folder.path)), quote(f"{folder.path}-bundle")
    console.print(f"next: xwam-ft export {' '.join(names)}", soft_wrap=True, markup=False)


def fit(
    folder: RunFolder, clips: ClipSource, shard_set: ShardSet, own: OwnCode, processes: Together, console: Console
) -> None:
    """Train to the last step; returns at once where that is done already, was looked at and has its adapter folder."""
    recipe, clock = folder.recipe, Clock()
    average = None if recipe.optim.ema_decay is None else Averaging(recipe.optim.ema_decay)
    signals = Signals(console)
    look = Look(folder, shard_set, clips, average, clock, signals, console)
    kept: list[str] = []
    module = TrainingModule.of_contract(recipe, folder.contract, run=folder.path, report=kept, console=console)
    for sentence in kept if folder.first_step == 0 else ():
        console.print(f"imported weights: {sentence}", soft_wrap=True)
    data = ClipDataModule(clips, recipe, folder.contract.sha256)
    checkpoints = ExactCheckpoints(folder, shard_set, clips, average, clock, console)
    callbacks: list[Callback] = [
        processes,
        *([average] if average is not None else []),
        AdaptersMove(),
        clock,
        signals,
        checkpoints,
        look,
        *own.callbacks,
    ]
    if first_rank() and not console.quiet:
        callbacks.append(StepBar(console))
    trainer = make_trainer(
        recipe,
        callbacks=callbacks,
        logger=[*run_loggers(folder.path, folder.first_step, recipe, look.missed), *own.loggers],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),  # a user's own
        enable_progress_bar=first_rank() and not console.quiet,
        num_sanity_val_steps=-1 if "validate" in look.missed else 0,
        default_root_dir=folder.path,
    )
    has_adapter = recipe.model.train != "lora" or (folder.path / ADAPTER).exists()
    if folder.first_step >= recipe.trainer.max_steps and not (look.missed or checkpoints.unlogged) and has_adapter:
        checkpoints.require_belonging(trainer, module)
        return
    try:
        with (
            _quiet(),
            _deterministic(trainer),
            float32_products(recipe.trainer),
            signals_restored(),
            run_disk_errors(folder.path),
        ):
            trainer.fit(module, datamodule=data)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning turns into an exit with 1
            raise KeyboardInterrupt from None
        raise
    except UserError:
        with suppress(OSError):
            look.report()  # how it came to that
        raise
    look.report()
    if signals.stopped:
        console.print(f"stopped after step {module.step}, which is saved")
        console.print(f"go on with: xwam-ft train --resume {quote(str(folder.path))}", soft_wrap=True, markup=False)
        processes.close()
        raise KeyboardInterrupt if signals.received == signal.SIGINT else SystemExit(128 + signals.received)
    _write_adapters(module.network, folder)
    _print_time(clock, console)


def make_trainer(recipe: Recipe, **more: Any) -> pl.Trainer:
    """Lightning's Trainer by the `trainer`, `validation` and `logging` sections of a recipe."""
    spec = recipe.trainer
    with _quiet():
        return pl.Trainer(
            accelerator=spec.accelerator,
            devices=spec.devices,
            num_nodes=spec.nodes,
            strategy=ModelParallelStrategy() if spec.strategy == "fsdp2" else spec.strategy,
            precision=chosen_precision(spec)[0],
            max_steps=spec.max_steps,
            max_epochs=1,  # the loader runs over every step that is left
            accumulate_grad_batches=spec.accumulate,
            val_check_interval=(recipe.validation.every_steps or spec.max_steps) * spec.accumulate,
            check_val_every_n_epoch=None,
            log_every_n_steps=min(recipe.logging.every_steps, spec.max_steps),
            inference_mode=False,  # what the network keeps of a validation must serve in training
            enable_model_summary=False,
            **more,
        )


def _print_data(inputs: Inputs, clips: ClipPool, console: Console) -> None:
    """Where the clips come from, and of several sets how often each is shown."""
    if inputs.recipe.data.cache != "none":
        later = "; the VAE is, once held-out clips are validated" if clips.of_split("held_out") else ""
        console.print(f"training from the latent cache: VAE and text encoder are not loaded{later}", soft_wrap=True)
    if clips.still is not None:
        still = int(sum(part.sum() for part in clips.still))
        weight = inputs.recipe.data.still_weight
        times = "left out" if not weight else f"shown {weight:g} times as often as the others"
        total = len(clips.of_split("train"))
        console.print(f"nothing moves in {still} of {total} training clips, which are {times}", soft_wrap=True)
    if len(inputs.sets.sets) > 1:
        shares = (f"{name} {100 * share:.3g} % ({count} clips)" for name, count, share in clips.shares())
        console.print(f"clips shown: {', '.join(shares)}", soft_wrap=True)


def _print_time(clock: Clock, console: Console) -> None:
    table = Table("what", "seconds", "share", title="where the time went")
    total = sum(clock.spent.values()) or 1.0
    for name, seconds in sorted(clock.spent.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds:.1f}", f"{100 * seconds / total:.0f} %")
    console.print(table)


def _write_adapters(network: JointNetwork, folder: RunFolder) -> None:
    """The last weights of the transformer's LoRA, the main stream's and the depth branch's, in peft folders."""
    adapters = {name: value for name, value in network.transformer.named_parameters() if ".lora_" in name}
    state = gathered(adapters, first_rank())
    if not first_rank():
        return
    held = getattr(network.transformer, "peft_config", {})
    for name, adapter in ((DEPTH_ADAPTER, DEPTH), (ADAPTER, MAIN)):
        target = folder.path / name
        if adapter in held and not target.exists():
            with atomic_folder(target) as temporary:
                write_peft_adapter(network, temporary, folder.recipe.backbone.path, adapter=adapter, state=state)


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
