"""One training step and one validation step: batch -> noise -> prediction -> losses. Any Lightning Trainer calls them.

Conventions: sigma = 1 is noise; targets are velocities `noise - x`; latent frame 0 and state 0 stay clean.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from xwam_ft.arguments import checked
from xwam_ft.encode.clips import StepGeometry, Stream, random_bits
from xwam_ft.encode.inputs import open_inputs
from xwam_ft.errors import UserError, listed
from xwam_ft.learn.data import ClipDataModule, geometry_of, steps_of
from xwam_ft.learn.draws import Draws, draw
from xwam_ft.learn.first_loss import require_sound_start
from xwam_ft.learn.guards import Guards
from xwam_ft.learn.held_out import HeldOutLosses
from xwam_ft.learn.optimizer import make_optimizer, split_decay, trained_parameters
from xwam_ft.learn.start import Unread, start_network
from xwam_ft.model.adapters import parameter_groups
from xwam_ft.model.compiled import compile_blocks
from xwam_ft.model.losses import LossMasks, LossTerm, Targets, flow_losses
from xwam_ft.model.noise import noised, prefix_mask
from xwam_ft.model.sharding import is_sharded, shard, whole_number
from xwam_ft.model.streams import Streams
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.runs.schedule import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Bool, Float
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.encode.batch import Batch
    from xwam_ft.model.network import JointNetwork, Prediction

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # a Trainer's that keep what trains in float32


@dataclass(frozen=True)
class Noised(Streams):
    """What the network is given: noised streams with their conditions written back in."""

    text: Float[Tensor, "b s dt"]
    action_held: Bool[Tensor, "b ta"] | None = None  # the clean prefixes; None where the recipe trains none
    future_hidden: Bool[Tensor, " b"] | None = None  # None where the future is joint


class TrainingModule(pl.LightningModule):
    """The network and its losses, for `xwam-ft train` and for a Trainer of your own beside a `ClipDataModule`.

    Logged are `train/loss_<term>`, `train/grad_norm` and `lr/<group>` of every optimizer step, and of every validation
    `held_out/<term>` at fixed noise (term: total, video, action, proprio, depth). A Trainer's own `max_steps`,
    `accumulate_grad_batches`, devices, strategy and precision hold where they differ from the recipe's.

    Args:
        network: prepared for training (adapters in, the rest frozen).
        recipe: noise, losses, optimizer.
        geometry: how the positions of a step are dealt out, until a Trainer says how.
        counts_of_step: valid numbers of each loss term in a whole optimizer step (counts.py); with a Trainer its data
            module's.
        empty_text: embedding of the empty instruction; likewise.
        contract: SHA-256 of the contract that the network is for.
        backbone: fingerprint of the frozen transformer.
        run: folder whose last checkpoint is named where training stops by itself.
        unread: weights that are still in their files; read where the Trainer configures the model.
    """

    def __init__(
        self,
        network: JointNetwork,
        recipe: Recipe,
        geometry: StepGeometry,
        counts_of_step: Callable[[int], Mapping[str, float]],
        empty_text: Float[Tensor, "s dt"],
        *,
        contract: str = "",
        backbone: str = "",
        run: Path | None = None,
        unread: Unread | None = None,
    ) -> None:
        super().__init__()
        self.network, self.unread = network, unread
        self.recipe, self.geometry, self.run = recipe, geometry, run
        self.contract, self.backbone = contract, backbone
        self.counts_of_step = counts_of_step
        self.empty_text: Tensor
        self.register_buffer("empty_text", empty_text.float(), persistent=False)
        self.losses: dict[str, Tensor] = {}  # of the optimizer step at hand, summed over this rank's micro-batches
        self.keys: list[str] = []  # of the clips of the optimizer step at hand, on this rank
        self.held_out = HeldOutLosses(recipe)
        self._guards: Guards | None = None
        self.strict_loading = False  # a Lightning checkpoint lacks the frozen base; see on_load_checkpoint

    @classmethod
    @checked()
    def from_recipe(cls, recipe: Recipe | str | Path) -> TrainingModule:
        """The module of a recipe: its backbone loaded, adapters, heads and depth branch drawn from its seed.

        Raises:
            UserError: anything wrong with recipe, shards or backbone.
        """
        recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
        inputs = open_inputs(recipe)
        return cls.of_contract(inputs.recipe, inputs.contract)

    @classmethod
    def of_contract(
        cls,
        recipe: Recipe,
        contract: Contract,
        *,
        run: Path | None = None,
        report: list[str] | None = None,
        console: Console | None = None,
    ) -> TrainingModule:
        """The module of a recipe for recordings under a contract, at its start; of a run with checkpoints to go on.

        Args:
            run: as above. report: of `trainable_network`. console: is told what of another run was started from.
        """
        start = start_network(recipe, contract, run, report, console)
        return cls(
            compile_blocks(start.network) if recipe.model.compile else start.network,
            recipe,
            geometry_of(recipe),
            _no_counts,
            torch.zeros(0, start.text_dim),
            contract=contract.sha256,
            backbone=start.fingerprint,
            run=run,
            unread=start.unread,
        )

    @property
    def step(self) -> int:
        """Optimizer steps done, those before a resume included."""
        return self.trainer.global_step if self._trainer is not None else 0

    @property
    def max_steps(self) -> int:
        """The optimizer steps of the whole run, which the learning rates are planned for."""
        return steps_of(self._trainer, self.recipe)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            raise UserError(
                "trains on a ClipDataModule of the same recipe, and the Trainer has none",
                "TrainingModule",
                "call trainer.fit(module, datamodule=xwam_ft.ClipDataModule.from_recipe(recipe))",
            )
        if (given := self.trainer.precision) not in PRECISIONS:
            fix = f"give pl.Trainer(precision=...) one of {listed(PRECISIONS)}; `backbone.dtype` is the frozen base's"
            raise UserError(
                f"trains weights in float32, and the Trainer's precision is {given!r}", "TrainingModule", fix
            )
        self.train_on(data)

    def train_on(self, data: ClipDataModule) -> None:
        """Take from a data module what the losses are divided by, and the empty instruction.

        Raises:
            UserError: its recordings are not what the network is for.
        """
        if self.contract and data.contract != self.contract:
            raise UserError(
                f"is for the contract {self.contract[:12]}, and the data module's recordings have {data.contract[:12]}",
                "TrainingModule",
                "make both from one recipe, whose data.shards names those recordings",
            )
        self.geometry, self.counts_of_step = data.geometry, data.counts.of_step
        self.empty_text = data.empty_text.to(self.empty_text)
        _require_whole_patches(self.network, data.source.latent_shape, self.recipe.data.where)

    def configure_model(self) -> None:
        strategy, device = self.trainer.strategy, torch.device("cpu")
        if isinstance(strategy, ModelParallelStrategy) and not is_sharded(self.network):
            device, mixed = strategy.root_device, self.trainer.precision == "bf16-mixed"
            shard(self.network, device, self.trainer.world_size, mixed=mixed)
        if self.unread is not None:
            self.unread.read_into(self.network, device)
            self.unread = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._trainer is not None and self.trainer.accumulate_grad_batches != self.geometry.accumulate:
            raise UserError(
                f"has changed from {self.geometry.accumulate} to {self.trainer.accumulate_grad_batches} while training",
                "accumulate_grad_batches",
                "keep it: the losses are divided by the valid numbers of a whole optimizer step",
            )
        step = batch.positions[0] // self.geometry.samples
        # Dropout inside the layers draws from torch's generators: tie them to the position as well.
        torch.manual_seed(random_bits(self.recipe.seed, Stream.LAYERS, batch.positions[0]))
        draws = self.draw(batch, self.recipe.loss.text_dropout)
        prediction = self.predict(self.add_noise(batch, draws), draws)
        losses = self.normalise(self.loss_terms(batch, draws, prediction), step)
        total = self.weigh(losses)
        self.guards.finite("loss", total, step, list(batch.keys))
        self._record(losses, total, batch)
        # Lightning averages over micro-batches and ranks; the counts are of the whole step, so ours are sums.
        return total * (self.geometry.accumulate * self.geometry.ranks)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out losses at fixed noise: the same clips with the same random numbers every time."""
        draws = self.draw(batch, 0.0, Stream.VALIDATION)
        self.held_out.add(self.loss_terms, batch, draws, self.predict(self.add_noise(batch, draws), draws))

    def on_validation_epoch_start(self) -> None:
        self.settle()
        self.held_out = HeldOutLosses(self.recipe)

    def on_validation_epoch_end(self) -> None:
        if means := self.held_out.means():  # none of a look that was broken off
            self.log_dict({"step": float(self.step), **means})

    def draw(self, batch: Batch, text_dropout: float, stream: Stream = Stream.NOISE) -> Draws:
        """The random numbers of a batch, as the recipe says."""
        recipe = self.recipe
        return draw(batch, recipe.noise, text_dropout, recipe.seed, stream, recipe.model.hidden_share)

    def add_noise(self, batch: Batch, draws: Draws) -> Noised:
        video, action, proprio = noised(batch.streams, draws.noise, draws.sigmas).parts
        held = None
        if draws.action_prefix is not None:
            held = prefix_mask(draws.action_prefix, action.shape[1])
            action = torch.where(held[..., None], batch.action, action)
        text = torch.where(draws.drop_text[:, None, None], self.empty_text, batch.text)
        return Noised(video, action, proprio, text, held, draws.future_hidden)

    def predict(self, given: Noised, draws: Draws) -> Prediction:
        timesteps = 1000 * draws.sigmas.video, 1000 * draws.sigmas.action
        hidden = {} if given.future_hidden is None else {"future_hidden": given.future_hidden}
        return self.network(*given.parts, given.text, *timesteps, action_held=given.action_held, **hidden)

    def loss_terms(self, batch: Batch, draws: Draws, prediction: Prediction) -> dict[str, LossTerm]:
        """Sums of squared velocity errors (depth: of the clean latent) over valid numbers."""
        targets = Targets(*(draws.noise - batch.streams).parts, batch.depth)
        masks = LossMasks(
            video=batch.video_mask,
            action=batch.action_mask,
            proprio=batch.proprio_mask,
            action_is_clean=draws.sigmas.action_is_clean,
            depth=batch.depth_mask,
            action_prefix=draws.action_prefix,
        )
        return flow_losses(prediction, targets, masks)

    def normalise(self, terms: dict[str, LossTerm], step: int) -> dict[str, Tensor]:
        counts = self.counts_of_step(step)
        return {name: term.sum / counts[name] for name, term in terms.items()}

    def weigh(self, losses: Mapping[str, Tensor]) -> Tensor:
        weights = self.recipe.loss.model_dump()
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def configure_optimizers(self) -> Any:
        optim, max_steps, first = self.recipe.optim, self.max_steps, self.step
        groups = split_decay(self.network, parameter_groups(self.network, optim))
        optimizer = make_optimizer(groups, optim)

        def factor(steps_here: int) -> float:
            return learning_rate_factor(first + steps_here, optim, max_steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a step that has exploded, before it is taken (on a GPU, before it is saved); log what it was."""
        self._require_steady()
        if self._trainer is not None:
            # A term of which the step held no valid number (only clean actions, say) has no loss: 0 would look learned.
            counts = {"total": math.inf, **self.counts_of_step(self.step)}
            losses = {f"train/loss_{name}": loss for name, loss in self.losses.items() if counts[name] > 1}
            # Lightning keeps what is not logged anew: a term that is missing would show an earlier step's loss.
            for shown in (self.trainer._results or {}).values():  # pyright: ignore[reportPrivateUsage]
                if shown.meta.name.startswith("train/loss_"):
                    shown.reset()
            # Each rank holds its share of the step's loss: the whole is their sum.
            self.log_dict(losses, sync_dist=True, reduce_fx="sum")
            self.log("loss", self.losses["total"], prog_bar=True, logger=False, sync_dist=True, reduce_fx="sum")
            rates = {f"lr/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
            self.log_dict({"step": float(self.step + 1), **rates})

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of the whole step by its norm: the Trainer's `gradient_clip_val`, or the recipe's."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError(f"is {gradient_clip_algorithm!r}", "gradient_clip_algorithm", "leave it out, or set 'norm'")
        limit = self.recipe.optim.clip_norm if gradient_clip_val is None else gradient_clip_val
        total = torch.nn.utils.clip_grad_norm_(list(trained_parameters(self.network).values()), limit)
        norm = whole_number(total)
        plugin = self.trainer.precision_plugin if self._trainer is not None else None
        skips = getattr(plugin, "scaler", None) is not None  # in 16 bits: a step whose gradient overflows is not taken
        if not skips:
            self.guards.finite("gradient", norm, self.step, self.keys)
        if self._trainer is not None:
            self.log("train/grad_norm", norm)

    def settle(self) -> None:
        """Judge the numbers of all steps that are taken; called before weights are written down or shown.

        Raises:
            UserError: a step's loss or gradient was not finite, or it exploded.
        """
        self.guards.settle()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % self.geometry.accumulate == 0:
            self.guards.next_step()
        if self.step >= self.max_steps:
            self.trainer.should_stop = True  # no clip is dealt out for later steps; the last is logged and validated

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A Lightning checkpoint: what trains, without the frozen base, and what it belongs to."""
        self.settle()
        trained = self._trained_names()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in trained}
        checkpoint["xwam_ft"] = self._belongs_to()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        odd = sorted(self._trained_names() ^ checkpoint["state_dict"].keys())
        then, now = checkpoint.get("xwam_ft", {}), self._belongs_to()
        wrong = [name for name in now if then.get(name) != now[name]]
        if odd or wrong:
            found = (
                f"another {listed(wrong)}" if wrong else f"other trained weights ({odd[0]!r} is in one of them only)"
            )
            raise UserError(f"holds {found}", "the Lightning checkpoint", "load it with the recipe it was made with")

    def _trained_names(self) -> set[str]:
        return {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}

    def _belongs_to(self) -> dict[str, str]:
        return {"contract": self.contract, "backbone": self.backbone}

    def _record(self, losses: Mapping[str, Tensor], total: Tensor, batch: Batch) -> None:
        if batch.positions[0] % self.geometry.samples < self.geometry.batch_size * self.geometry.ranks:
            self.keys, self.losses = [], {}  # the first micro-batch of a step
        self.keys += batch.keys
        for name, loss in {**losses, "total": total}.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.detach()

    def on_train_end(self) -> None:
        self.settle()

    @property
    def guards(self) -> Guards:
        """Made where the device is known."""
        if self._guards is None:
            self._guards = Guards(self.recipe.data.where, self.run, waits=self.device.type == "cuda")
        return self._guards

    @property
    def history(self) -> deque[float]:
        """Losses of the last steps, as far as they are known by now."""
        return self.guards.history

    def _require_steady(self) -> None:
        if "total" in self.losses:
            if not self.history:
                require_sound_start(self.losses, self.recipe.data.where)
            self.guards.total(self.losses["total"], self.step, self.keys)


def _no_counts(step: int) -> Mapping[str, float]:
    raise AssertionError("a Trainer's data module counts")


def _require_whole_patches(network: JointNetwork, latent_shape: tuple[int, ...], where: str) -> None:
    """Raise a `UserError` unless the latents are a whole number of the transformer's patches."""
    _, frames, _, height, width = latent_shape
    patch = network.patch_size
    if frames % patch[0] or height % patch[1] or width % patch[2]:
        raise UserError(
            f"its pictures make latents of {frames}x{height}x{width} cells, and the transformer reads patches of "
            f"{'x'.join(map(str, patch))}",
            where,
            "prepare the recordings again with another image size in the embodiment file",
        )
