"""One training step: batch -> noise -> prediction -> losses. Lightning calls it; nothing else is in here.

Conventions: sigma = 1 is noise; targets are velocities `noise - x`; latent frame 0 and state 0 stay clean.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from xwam_ft.errors import UserError, listed
from xwam_ft.model.adapters import parameter_groups
from xwam_ft.model.losses import LossMasks, LossTerm, Targets, flow_losses
from xwam_ft.model.noise import add_noise, prefix_mask
from xwam_ft.train.clips import StepGeometry, Stream, random_bits
from xwam_ft.train.draws import Draws, draw
from xwam_ft.train.first_loss import require_sound_start
from xwam_ft.train.optimizer import learning_rate_factor, make_optimizer, split_decay, trained_parameters
from xwam_ft.train.sharding import gathered, is_sharded, shard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Bool, Float
    from torch import Tensor

    from xwam_ft.model.network import JointNetwork, Prediction
    from xwam_ft.recipe import Recipe
    from xwam_ft.train.data import Batch


EXPLODED = 100.0
"""A step's loss above this many times the median of the steps before it has exploded."""
REMEMBERED = 50
"""Steps that median is taken over; before half of them are known, nothing counts as exploded."""


@dataclass(frozen=True)
class Noised:
    """What the network is given: noised streams with their conditions written back in."""

    video: Float[Tensor, "b c tl v h w"]
    action: Float[Tensor, "b ta da"]
    proprio: Float[Tensor, "b tp dp"]
    text: Float[Tensor, "b s dt"]
    action_held: Bool[Tensor, "b ta"] | None = None  # the clean prefixes; None where the recipe trains none


class TrainingModule(pl.LightningModule):
    """The network and its loss.

    Args:
        network: prepared for training (adapters in, the rest frozen).
        recipe: noise, losses, optimizer.
        geometry: how the positions of a step are dealt out.
        counts_of_step: valid numbers of each loss term in a whole optimizer step (counts.py).
        empty_text: embedding of the empty instruction.
        first_step: the optimizer steps that were done before (resume).
    """

    def __init__(
        self,
        network: JointNetwork,
        recipe: Recipe,
        geometry: StepGeometry,
        counts_of_step: Callable[[int], Mapping[str, float]],
        empty_text: Float[Tensor, "s dt"],
        first_step: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe, self.geometry, self.first_step = recipe, geometry, first_step
        self.counts_of_step = counts_of_step
        self.empty_text: Tensor
        self.register_buffer("empty_text", empty_text.float(), persistent=False)
        self.losses: dict[str, Tensor] = {}  # of the optimizer step at hand, summed over this rank's micro-batches
        self.keys: list[str] = []  # of the clips of the optimizer step at hand, on this rank
        self.history: deque[float] = deque(maxlen=REMEMBERED)  # its losses of the last steps
        self.grad_norm: Tensor | None = None
        self.learning_rates: dict[str, float] = {}  # of the optimizer step at hand
        self.last_good: Callable[[], str] = lambda: "none"

    @property
    def step(self) -> int:
        """Optimizer steps done, those before a resume included."""
        return self.first_step + (self.trainer.global_step if self._trainer is not None else 0)

    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not is_sharded(self.network):
            self.network.to(strategy.root_device)
            shard(self.network, strategy.root_device, self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = batch.positions[0] // self.geometry.samples
        # Dropout inside the layers draws from torch's generators: tie them to the position as well.
        torch.manual_seed(random_bits(self.recipe.seed, Stream.LAYERS, batch.positions[0]))
        draws = draw(batch, self.recipe.noise, self.recipe.loss.text_dropout, self.recipe.seed)
        noised = self.add_noise(batch, draws)
        prediction = self.predict(noised, draws)
        losses = self.normalise(self.loss_terms(batch, draws, prediction), step)
        total = self.weigh(losses)
        self._require_finite(total, step, batch)
        self._record(losses, total, batch)
        # Lightning averages over micro-batches and ranks; the counts are of the whole step, so ours are sums.
        return total * (self.geometry.accumulate * self.geometry.ranks)

    def add_noise(self, batch: Batch, draws: Draws) -> Noised:
        video = add_noise(batch.latents, draws.video, draws.sigmas.video)
        video[:, :, 0] = batch.latents[:, :, 0]
        proprio = add_noise(batch.proprio, draws.proprio, draws.sigmas.action)
        proprio[:, 0] = batch.proprio[:, 0]
        text = torch.where(draws.drop_text[:, None, None], self.empty_text, batch.text)
        action, held = add_noise(batch.action, draws.action, draws.sigmas.action), None
        if draws.action_prefix is not None:
            held = prefix_mask(draws.action_prefix, action.shape[1])
            action = torch.where(held[..., None], batch.action, action)
        return Noised(video, action, proprio, text, held)

    def predict(self, noised: Noised, draws: Draws) -> Prediction:
        timesteps = 1000 * draws.sigmas.video, 1000 * draws.sigmas.action
        streams = noised.video, noised.action, noised.proprio
        return self.network(*streams, noised.text, *timesteps, action_held=noised.action_held)

    def loss_terms(self, batch: Batch, draws: Draws, prediction: Prediction) -> dict[str, LossTerm]:
        """Sums of squared velocity errors (depth: of the clean latent) over valid numbers."""
        targets = Targets(
            video=draws.video - batch.latents,
            action=draws.action - batch.action,
            proprio=draws.proprio - batch.proprio,
            depth=batch.depth,
        )
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
        optim, max_steps = self.recipe.optim, self.recipe.trainer.max_steps
        groups = split_decay(self.network, parameter_groups(self.network, optim))
        optimizer = make_optimizer(groups, optim)

        def factor(steps_here: int) -> float:
            return learning_rate_factor(self.first_step + steps_here, optim.warmup_steps, max_steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a step that has exploded, before it is taken; clip the gradient of the whole step."""
        self._require_steady()
        self.learning_rates = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
        parameters = trained_parameters(self.network).values()
        norm = torch.nn.utils.clip_grad_norm_(list(parameters), self.recipe.optim.clip_norm)
        self.grad_norm = gathered({"norm": norm})["norm"]
        if not torch.isfinite(self.grad_norm):
            self._stop(f"the gradient is {self.grad_norm.item()} at step {self.step + 1}, in clips {listed(self.keys)}")

    def take_losses(self) -> dict[str, Tensor]:
        """The losses of the optimizer step just done, on this rank, and start anew."""
        losses, self.losses = self.losses, {}
        return losses

    def _record(self, losses: Mapping[str, Tensor], total: Tensor, batch: Batch) -> None:
        if batch.positions[0] % self.geometry.samples < self.geometry.batch_size * self.geometry.ranks:
            self.keys = []  # the first micro-batch of a step
        self.keys += batch.keys
        for name, loss in {**losses, "total": total}.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.detach()

    def _require_steady(self) -> None:
        if "total" not in self.losses:
            return
        if not self.history:
            require_sound_start(self.losses, self.recipe.data.where)
        total = float(self.losses["total"])
        if len(self.history) >= REMEMBERED // 2 and total > EXPLODED * median(self.history):
            self._stop(
                f"the loss has exploded: {total:.3g} at step {self.step + 1}, {median(self.history):.3g} in the steps "
                f"before, in clips {listed(self.keys)}"
            )
        self.history.append(total)

    def _require_finite(self, total: Tensor, step: int, batch: Batch) -> None:
        if not torch.isfinite(total):
            self._stop(f"the loss is {total.item()} at step {step + 1}, in clips {listed(batch.keys)}")

    def _stop(self, what: str) -> None:
        raise UserError(
            what,
            self.recipe.data.where,
            f"look at those recordings, or lower the learning rates; the last good checkpoint is {self.last_good()}",
        )
