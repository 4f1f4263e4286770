"""The module and the data module in a Lightning Trainer that is not ours, with Lightning's own callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file

import xwam_ft
from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.adapters import trainable_state
from xwam_ft.recipe import Recipe
from xwam_ft.runs.history import History
from xwam_ft.shards import ShardSet
from xwam_ft.train.loggers import MetricsFile

Change = Callable[..., Recipe]
TERMS = ("video", "action", "proprio", "depth", "total")


def make_trainer(folder: Path, *callbacks: pl.Callback, **more: Any) -> pl.Trainer:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "log_every_n_steps": 1, "deterministic": False}
    options |= {"default_root_dir": folder, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks)}
    return pl.Trainer(callbacks=list(callbacks), **options | more)


def fit(recipe: Recipe, trainer: pl.Trainer, ckpt: str | None = None) -> TrainingModule:
    module = TrainingModule.from_recipe(recipe)
    trainer.fit(module, datamodule=ClipDataModule.from_recipe(recipe), ckpt_path=ckpt)
    return module


def test_they_are_what_the_package_offers() -> None:
    assert xwam_ft.TrainingModule is TrainingModule
    assert xwam_ft.ClipDataModule is ClipDataModule


@pytest.mark.slow
def test_a_trainer_of_ones_own_comes_to_the_weights_of_ours(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        module = fit(recipe, make_trainer(tmp_path, accumulate_grad_batches=2))
    finally:
        torch.use_deterministic_algorithms(False)
    ours = load_file(finished / "checkpoints/step-000006/trainable.safetensors")
    theirs = trainable_state(module.network)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


class Seen(pl.Callback):
    """What a Trainer offers to be monitored."""

    def __init__(self) -> None:
        self.numbers: list[dict[str, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.numbers.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_lightnings_callbacks_and_loggers_just_work(recipe: Recipe, cache: LatentCache, tmp_path: Path) -> None:
    seen, early = (
        Seen(),
        EarlyStopping(monitor="held_out/action", min_delta=1e9, patience=1, check_on_train_epoch_end=False),
    )
    best = ModelCheckpoint(tmp_path / "ckpt", monitor="held_out/action", filename="{step}", save_top_k=1)
    logger = CSVLogger(tmp_path, name="", version="log", flush_logs_every_n_steps=1)
    trainer = make_trainer(
        tmp_path, seen, early, best, LearningRateMonitor("step"), logger=logger, val_check_interval=1, max_steps=4
    )
    module = fit(recipe, trainer)
    assert trainer.global_step == 2  # nothing improves by 1e9: the second validation was the last
    assert {f"held_out/{term}" for term in TERMS} < seen.numbers[0].keys()
    assert best.best_model_score == min(numbers["held_out/action"] for numbers in seen.numbers)
    table = (tmp_path / "log/metrics.csv").read_text()
    for name in ("lr/lora", "lr-AdamW/lora", "train/loss_total", "train/grad_norm", "held_out/total"):
        assert name in table.splitlines()[0]
    stored = torch.load(best.best_model_path, weights_only=False)
    names = {name.removeprefix("network.") for name in stored["state_dict"]}
    frozen = {name for name, parameter in module.network.named_parameters() if not parameter.requires_grad}
    assert names
    assert not names & frozen
    assert stored["xwam_ft"] == {"contract": cache.identity.contract, "backbone": module.backbone}


@pytest.mark.slow
def test_each_steps_losses_are_its_own(changed: Change, cache: LatentCache, tmp_path: Path) -> None:
    """Steps of one clip: where its actions are clean they have no loss, and none of an earlier step stands there."""
    one = changed(trainer={"batch_size": 1, "accumulate": 1, "max_steps": 8})
    fit(one, make_trainer(tmp_path, logger=MetricsFile(tmp_path / "metrics.jsonl", 0)))
    rows = [row for row in History(tmp_path).metrics() if "train/loss_total" in row]
    assert len(rows) == 8
    assert 0 < sum("train/loss_action" in row for row in rows) < 8
    weights = one.loss.model_dump()
    for row in rows:
        terms = [row.get(f"train/loss_{name}", 0.0) * weights[name] for name in TERMS if name != "total"]
        assert sum(terms) == pytest.approx(row["train/loss_total"], rel=1e-5)


@pytest.mark.slow
def test_a_lightning_checkpoint_is_gone_on_from_to_the_same_bits(
    recipe: Recipe, changed: Change, finished: Path, tmp_path: Path
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        saved = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        whole = fit(recipe, make_trainer(tmp_path, saved, accumulate_grad_batches=2))
        again = fit(recipe, make_trainer(tmp_path / "b", accumulate_grad_batches=2), str(tmp_path / "step=4.ckpt"))
    finally:
        torch.use_deterministic_algorithms(False)
    ours, theirs = trainable_state(whole.network), trainable_state(again.network)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    other = changed(model={"lora": {"rank": 2, "alpha": 2, "targets": ["attention"]}})
    with pytest.raises(UserError, match="holds other trained weights"):
        fit(other, make_trainer(tmp_path / "c"), str(tmp_path / "step=4.ckpt"))


def test_the_trainers_own_steps_rule(recipe: Recipe, cache: LatentCache, tmp_path: Path) -> None:
    module, data = TrainingModule.from_recipe(recipe), ClipDataModule.from_recipe(recipe)
    trainer = make_trainer(tmp_path, max_steps=2, num_sanity_val_steps=0, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == module.max_steps == 2
    assert data.geometry == module.geometry
    assert (module.geometry.batch_size, module.geometry.accumulate) == (2, 1)  # the recipe's 2 is of our own Trainer
    [rate, *_] = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rate == 0.0  # the curve has come down by the Trainer's last step


def test_another_data_module_is_refused_in_a_sentence(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet, tmp_path: Path, contract_with: Callable[..., Contract]
) -> None:
    module = TrainingModule.from_recipe(recipe)
    with pytest.raises(UserError, match="trains on a ClipDataModule of the same recipe") as error:
        make_trainer(tmp_path).fit(module, [0, 1])
    assert "datamodule=xwam_ft.ClipDataModule.from_recipe(recipe)" in error.value.fix
    other = ClipDataModule(cache, recipe, "f" * 64)
    with pytest.raises(UserError, match=r"is for the contract .*, and the data module's recordings have ffff"):
        make_trainer(tmp_path).fit(module, datamodule=other)


def test_a_precision_that_rounds_what_trains_is_refused(recipe: Recipe, cache: LatentCache, tmp_path: Path) -> None:
    assert cache
    with pytest.raises(UserError, match=r"the Trainer's precision is 'bf16-true'.*one of 32-true, bf16-mixed"):
        fit(recipe, make_trainer(tmp_path, precision="bf16-true"))
    with pytest.raises(UserError, match=r"recipe of TrainingModule.from_recipe: is None"):
        TrainingModule.from_recipe(None)  # pyright: ignore[reportArgumentType]


def test_accumulation_that_changes_while_training_is_refused(
    recipe: Recipe, cache: LatentCache, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import GradientAccumulationScheduler

    schedule = GradientAccumulationScheduler({0: 2})
    with pytest.raises(UserError, match="has changed from 1 to 2 while training"):
        fit(recipe, make_trainer(tmp_path, schedule, num_sanity_val_steps=0))


def test_a_loss_scalers_overflow_is_left_to_it(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits the first gradients overflow until the scale has come down; without a scale that ends the run."""
    module = TrainingModule.from_recipe(recipe)
    for parameter in module.network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer = torch.optim.SGD([parameter for parameter in module.parameters() if parameter.requires_grad])
    with pytest.raises(UserError, match="the gradient is "):
        module.configure_gradient_clipping(optimizer)
    module.trainer = make_trainer(tmp_path, plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")))
    monkeypatch.setattr(module, "log", lambda *args, **options: None)  # of no step: nothing runs
    module.configure_gradient_clipping(optimizer)


def test_without_held_out_clips_training_goes_on(
    recipe: Recipe, cache: LatentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipDataModule, "val_dataloader", lambda self: [])
    module, data = TrainingModule.from_recipe(recipe), ClipDataModule.from_recipe(recipe)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
