"""What our own Trainer hangs on the training loop beside checkpoints (exact.py) and the look (look.py).

Lightning counts micro-batches; these count optimizer steps, through `StepCallback.after_step`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomProgress, MetricsTextColumn

from xwam_ft.errors import UserError, listed
from xwam_ft.learn.optimizer import AveragedWeights, trained_parameters
from xwam_ft.model.adapters import trainable_state, zero_adapters
from xwam_ft.model.sharding import gathered

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.learn.module import TrainingModule

SPEED = "train/samples_per_second"
MOVED_BY = 20
"""Steps after which every adapter must have left zero; AdamW moves whatever has a gradient at its first."""


class StepCallback(Callback):
    """Calls `after_step` once an optimizer step, with the number of steps done."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, module, module.step)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        raise NotImplementedError


class Clock(StepCallback):
    """Where the time goes, in seconds: `network` (forward, backward, optimizer), `data`, and what others report."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._mark = time.perf_counter()
        self._worked = 0.0  # until the last step: on network and data

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self._mark
        self._mark = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.lap("setup")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lap("data")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.lap("network")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        worked = self.spent.get("network", 0.0) + self.spent.get("data", 0.0)
        rate = module.geometry.samples / (worked - self._worked)
        self._worked = worked
        module.log(SPEED, rate, prog_bar=True)


class Averaging(StepCallback):
    """Keeps the running average of the trained weights.

    Lightning's own WeightAveraging copies the frozen base as well, averages in the dtype of training and cannot be cut
    over processes.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: AveragedWeights | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """By name, float32; the start's before any step."""
        assert self._average is not None
        return self._average.weights

    def restore(self, stored: dict[str, Tensor]) -> None:
        """What a checkpoint holds."""
        assert self._average is not None
        self._average.restore(stored)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of the weights where they are by now: on their device, and cut over processes."""
        module: Any = pl_module
        if self._average is None:
            self._average = AveragedWeights(trainable_state(module.network), self.decay)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        assert self._average is not None
        self._average.update(trained_parameters(module.network), step - 1)


class AdaptersMove(StepCallback):
    """Stops a run whose adapters learn nothing: looks once, after `MOVED_BY` steps or where a later one goes on."""

    def __init__(self) -> None:
        self._looked = False

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if self._looked or step < MOVED_BY:
            return
        self._looked = True
        still, adapters = zero_adapters(gathered(trainable_state(module.network)))
        if still:
            raise UserError(
                f"{len(still)} of {adapters} adapters have not moved in {step} steps: {listed(still, 3)}",
                "the run",
                "give their part of the network a loss (loss.*) and a rate (optim.*), or leave it out of the recipe",
            )


class LookEnded(BaseException):
    """A signal came during a look, which ends at once: no weight depends on it."""


class Signals(StepCallback):
    """SIGTERM and the first Ctrl-C are told at once and end the run: after the micro-batch at hand, and a look at once;
    the steps done are saved. A second Ctrl-C ends it without that."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.received = 0  # the signal's number, on the ranks that heard one
        self.stopped = False  # whether a step was the last for it, on all of them
        self.cut = False  # whether a look was ended by it, on this rank
        self._looking = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)
            signal.signal(signal.SIGINT, self._ask)

    on_sanity_check_start = on_train_start = on_fit_start  # Lightning puts handlers of its own in between

    def _ask(self, number: int, frame: Any) -> None:
        first, self.received = not self.received, number
        if not first and number == signal.SIGINT:
            raise KeyboardInterrupt
        if first:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            self.console.print(f"{name}: stopping; what is done is saved (Ctrl-C again: at once)", markup=False)
        if self._looking:
            raise LookEnded

    @contextmanager
    def ends_look(self) -> Generator[None]:
        """A look that a signal ends wherever it is."""
        try:
            self._looking = True
            yield
        except LookEnded:
            self.cut = True
        finally:
            self._looking = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        self.agree(trainer, module)  # between two micro-batches too: the weights are those of the last step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self.agree(trainer, module)

    def agree(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """One rank may hear the signal a step before another: all stop together, unless all is done anyway."""
        heard = self.cut if trainer.validating or module.step >= module.max_steps else self.received != 0
        if trainer.strategy.reduce_boolean_decision(heard, all=False):
            trainer.limit_val_batches = 0  # there may be little time left
            trainer.should_stop = self.stopped = True


@contextmanager
def signals_restored() -> Generator[None]:
    """Put the handlers of SIGTERM and SIGINT back afterwards, ours and Lightning's gone."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


class StepBar(RichProgressBar):
    """Lightning's rich bar, of optimizer steps and on the console that everything else is printed to."""

    def __init__(self, console: Console) -> None:
        super().__init__(leave=True)
        self._shown_on = console

    @property
    def total_train_batches(self) -> int:
        module: Any = self.trainer.lightning_module
        return module.max_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        super().on_train_batch_end(trainer, pl_module, outputs, batch, module.step - 1)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        known = {"loss": "loss", SPEED: "clips/s"}
        found = super().get_metrics(trainer, pl_module)
        return {shown: found[name] for name, shown in known.items() if name in found}

    def _get_train_description(self, current_epoch: int) -> str:
        return "train"

    def _init_progress(self, trainer: pl.Trainer) -> None:
        if self.progress is None or self._progress_stopped:  # Lightning's own makes a console of its own
            self._reset_progress_bar_ids()
            theme = self.theme
            self._metric_component = MetricsTextColumn(
                trainer, theme.metrics, theme.metrics_text_delimiter, theme.metrics_format
            )
            columns = (*self.configure_columns(trainer), self._metric_component)
            self.progress = CustomProgress(*columns, console=self._shown_on)
            self.progress.start()
            self._progress_stopped = False
