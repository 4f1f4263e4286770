"""`xwam-ft train RECIPE --smoke`: does a recipe train at all? One batch through everything, in about a minute.

Four proofs, each a sentence when it fails: the untrained adapters leave the video to the base; one batch gives a
finite loss and finite gradients; one clip at fixed noise can be learned by heart; what is saved is read back. Clips are
decoded and encoded as they are needed, so that it takes as long on a large shard set; nothing is kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from rich.table import Table

from xwam_ft.encode.inputs import open_inputs
from xwam_ft.errors import UserError, listed
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.module import TrainingModule
from xwam_ft.learn.optimizer import make_optimizer, trained_parameters
from xwam_ft.model.adapters import load_trainable, parameter_groups, trainable_state
from xwam_ft.model.branch import MAIN, lora_layers, use_adapters
from xwam_ft.model.sampler import Conditions, sample
from xwam_ft.model.streams import Streams
from xwam_ft.runs.checkpoint import TRAINABLE_FILE, latest_checkpoint, list_checkpoints
from xwam_ft.runs.folder import make_run
from xwam_ft.train.callbacks import Clock
from xwam_ft.train.exact import ExactCheckpoints
from xwam_ft.train.train import make_trainer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.encode.batch import Batch
    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.learn.draws import Draws
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet

OVERFIT_STEPS = 60
LEARNED = 0.5
"""Share of its first loss that a clip must fall below when it is learned by heart."""
FURTHER = 0.9
"""The same where what is started from has learned much of it before."""


def smoke_test(recipe: Recipe, console: Console) -> None:
    """Prove in about a minute that a recipe trains, in one process, from pixels; makes no run and no latent cache.

    Raises:
        UserError: as training, and a proof that fails.
    """
    one = {"devices": 1, "nodes": 1, "strategy": "auto"}
    changes = {
        "trainer": recipe.trainer.model_copy(update=one),
        "data": recipe.data.model_copy(update={"cache": "none"}),
    }
    inputs = open_inputs(recipe.model_copy(update=changes), console)
    smoke(inputs.recipe, inputs.shard_set, inputs.clips(check=False), console)


def smoke(recipe: Recipe, shard_set: ShardSet, source: ClipSource, console: Console) -> None:
    """Run the proofs on the first training clips and print what passed.

    Raises:
        UserError: the first one that fails.
    """
    trainer = make_trainer(recipe, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module = TrainingModule.of_contract(recipe, shard_set.contract)
    data = ClipDataModule(source, recipe, shard_set.contract.sha256)
    module.train_on(data)
    trainer.precision_plugin.convert_module(module)
    module.to(trainer.strategy.root_device)
    table = Table("proof", "result", "seconds", title="smoke test")
    with tempfile.TemporaryDirectory(prefix="xwam-ft-smoke-") as place:
        folder = make_run(Path(place) / "run", recipe, shard_set.contract)
        checkpoints = ExactCheckpoints(folder, shard_set, source, None, Clock(), console)
        for name, check in _Checks(module, data, trainer, checkpoints).all().items():
            started = time.perf_counter()
            with trainer.precision_plugin.forward_context():
                result = check()
            table.add_row(name, result, f"{time.perf_counter() - started:.1f}")
    console.print(table)


class _Checks:
    """The proofs, in order; each returns what it found or raises."""

    def __init__(
        self, module: TrainingModule, data: ClipDataModule, trainer: pl.Trainer, checkpoints: ExactCheckpoints
    ) -> None:
        self.module, self.network, self.recipe = module, module.network, module.recipe
        self.data, self.trainer, self.checkpoints = data, trainer, checkpoints

    def all(self) -> dict[str, Callable[[], str]]:
        return {
            "step 0 is the base model": self.base,
            "one batch, forward and backward": self.batch,
            "actions are sampled": self.actions,
            "one clip is learned by heart": self.overfit,
            "a checkpoint reads back": self.checkpoint,
        }

    def base(self) -> str:
        """With B = 0 an adapter adds exactly nothing, so the video is that of the frozen base to the bit."""
        layers = lora_layers(self.network.transformer)
        if self.recipe.init_from is not None:
            return f"nothing to compare: it starts from {self.recipe.init_from}"
        if self.recipe.model.train != "lora":
            return f"nothing to compare: model.train is {self.recipe.model.train}, without adapters on the video"
        batch, draws = self._given([0])
        self.network.eval()
        with torch.no_grad():
            noised = self.module.add_noise(batch, draws)
            adapted = self.module.predict(noised, draws).video
            use_adapters(layers, [])
            try:
                base = self.module.predict(noised, draws).video
            finally:
                use_adapters(layers, [MAIN])
        if not torch.equal(adapted, base):
            raise _failed(
                f"the adapters change the video by up to {float((adapted - base).abs().max()):.3g} before any training",
                "model.lora",
                "start a run from a backbone without adapters of its own",
            )
        return "video equal to the bit with and without adapters"

    def batch(self) -> str:
        batch, _ = self._given(self.module.geometry.micro_batch(0, 0))
        self.network.train()
        loss = self.module.training_step(batch, 0)
        loss.backward()
        parameters = trained_parameters(self.network)
        blind = [name for name, parameter in parameters.items() if parameter.grad is None]
        broken = [n for n, p in parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        self.network.zero_grad(set_to_none=True)
        if broken:
            raise _failed(f"gradients are not finite in {listed(broken, 3)}", "the network", "try precision 32-true")
        if blind:
            raise _failed(
                f"{len(blind)} of {len(parameters)} trained tensors get no gradient: {listed(blind, 3)}",
                "the network",
                "leave that part out of the recipe",
            )
        return f"loss {float(loss.detach()):.3g}; {len(parameters)} trained tensors have finite gradients"

    def actions(self) -> str:
        batch, _ = self._given([0])
        noise = Streams.normal(batch.streams.shapes, torch.Generator().manual_seed(self.recipe.seed))
        self.network.eval()
        out = sample(
            self.network, Conditions(batch.latents[:, :, 0], batch.proprio[:, 0]), batch.text,
            noise=noise.to(self.module.device), video_steps=2, action_steps=2, shift=self.recipe.noise.shift,
        )  # fmt: skip
        for name, tensor in (("actions", out.action), ("video", out.video)):
            if not bool(torch.isfinite(tensor).all()):
                raise _failed(f"sampled {name} are not finite", "the network", "try trainer.precision 32-true")
        return f"{batch.action.shape[1]} actions of {batch.action.shape[2]} numbers, finite"

    def overfit(self) -> str:
        batch, draws = self._given([self._noisy_position()])
        optim, goal = self.recipe.optim, LEARNED if self.recipe.init_from is None else FURTHER
        optimizer = make_optimizer(parameter_groups(self.network, optim), optim)
        losses: list[float] = []
        with torch.no_grad():
            before = {name: value.clone() for name, value in trainable_state(self.network).items()}
        self.network.eval()  # without dropout: the same question every time
        while len(losses) <= OVERFIT_STEPS and (not losses or losses[-1] > goal * losses[0]):
            loss = self._loss(batch, draws)
            losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(trained_parameters(self.network).values()), optim.clip_norm)
            optimizer.step()
        still = [name for name, value in trainable_state(self.network).items() if torch.equal(value, before[name])]
        if losses[-1] > goal * losses[0]:
            raise _failed(
                f"{OVERFIT_STEPS} steps on one clip took the loss from {losses[0]:.3g} to {losses[-1]:.3g} only",
                f"clip {batch.keys[0]}",
                "raise optim.lr_lora, lr_heads and lr_depth, or look at that recording in the shard set's report.html",
            )
        if still:
            raise _failed(
                f"{len(still)} trained tensors did not move: {listed(still, 3)}",
                "the network",
                "leave that part out of the recipe, or give it a loss (loss.*)",
            )
        return f"loss {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses) - 1} steps"

    def checkpoint(self) -> str:
        optim, run = self.recipe.optim, self.checkpoints.folder.path
        self.trainer.strategy.optimizers = [make_optimizer(parameter_groups(self.network, optim), optim)]
        self.checkpoints.save(self.trainer, self.module)
        saved = latest_checkpoint(run)
        assert saved is not None
        wanted = {name: value.clone() for name, value in trainable_state(self.network).items()}
        with torch.no_grad():
            for parameter in trained_parameters(self.network).values():
                parameter.zero_()
        load_trainable(self.network, saved.trainable(), saved.folder / TRAINABLE_FILE)
        wrong = [name for name, value in trainable_state(self.network).items() if not torch.equal(value, wanted[name])]
        if wrong:
            raise _failed(f"read back, {listed(wrong, 3)} differ", saved.folder, "check the disk it lies on")
        folder = list_checkpoints(run)[-1]
        size = sum(path.stat().st_size for path in folder.iterdir())
        return f"{len(wanted)} tensors, {size / 1e6:.1f} MB without AdamW's state"

    def _given(self, positions: list[int]) -> tuple[Batch, Draws]:
        batch = self.data.dataset.batch(positions, self.module.device)
        return batch, self.module.draw(batch, 0.0)

    def _noisy_position(self) -> int:
        """The first position whose actions are noised: clean ones would have no action loss to learn."""
        for position in range(1000):
            if not bool(self._given([position])[1].sigmas.action_is_clean[0]):
                return position
        return 0  # clean_action_probability: 1

    def _loss(self, batch: Batch, draws: Draws) -> Tensor:
        prediction = self.module.predict(self.module.add_noise(batch, draws), draws)
        terms = self.module.loss_terms(batch, draws, prediction)
        return self.module.weigh({name: term.mean for name, term in terms.items()})


def _failed(what: str, where: object, fix: str) -> UserError:
    return UserError(f"the smoke test failed: {what}", where, fix)
