"""What hangs on the training loop: metrics, checkpoints, validation, progress, signals. One small class each.

Lightning counts micro-batches; these count optimizer steps, through `StepCallback.after_step`.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from xwam_ft.errors import UserError, listed
from xwam_ft.files import write_text_atomic
from xwam_ft.model.adapters import trainable_state, zero_adapters
from xwam_ft.train.history import METRICS_FILE
from xwam_ft.train.optimizer import trained_parameters
from xwam_ft.train.sharding import gathered

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.train.module import TrainingModule
    from xwam_ft.train.optimizer import AveragedWeights
    from xwam_ft.train.sinks import Sink

MOVED_BY = 20
"""Steps after which every adapter must have left zero; AdamW moves whatever has a gradient at its first."""


class StepCallback(Callback):
    """Calls `after_step` once an optimizer step, with the number of steps done."""

    _seen = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        if module.step != self._seen and trainer.global_step > 0:
            self._seen = module.step
            self.after_step(trainer, module, module.step)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        raise NotImplementedError


class Clock(Callback):
    """Where the time goes, in seconds: `network` (forward, backward, optimizer), `data`, and what others report."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._mark = time.perf_counter()

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


class Averaging(StepCallback):
    """Keeps the running average of the trained weights."""

    def __init__(self, average: AveragedWeights) -> None:
        self.average = average

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self.average.place_like(trained_parameters(module.network))

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        self.average.update(trained_parameters(module.network), step - 1)


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


class MetricLog:
    """Numbers by step as lines of JSON, and told to the sinks of `logging.to`. Only the first rank writes."""

    def __init__(self, run: Path, first_step: int, sinks: Callable[[], Sequence[Sink]] = tuple) -> None:
        self.path = run / METRICS_FILE
        self._make = sinks
        self._sinks: Sequence[Sink] | None = None
        # A resumed run repeats the steps after its checkpoint: forget what was logged of them.
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
            write_text_atomic(self.path, "".join(kept))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for sink in self._opened():
            sink.write(step, metrics)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def picture(self, step: int, name: str, path: Path) -> None:
        for sink in self._opened():
            sink.picture(step, name, path)

    def close(self) -> None:
        for sink in self._sinks or ():
            sink.close()

    def _opened(self) -> Sequence[Sink]:
        if self._sinks is None:  # at the first number: a run that fails before leaves no events behind
            self._sinks = self._make()
        return self._sinks


class Metrics(StepCallback):
    """Losses by stream, learning rates, gradient norm and samples a second, every few steps."""

    def __init__(self, log: MetricLog | None, every: int) -> None:
        self.metric_log, self.every = log, every
        self.latest: dict[str, float] = {}
        self._since = (time.perf_counter(), -1)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        losses = module.take_losses()
        first = self._since[1] < 0
        if not first and step % self.every and step != module.recipe.trainer.max_steps:
            return
        now = time.perf_counter()
        # Each rank holds its share of the step's loss: the whole is their sum.
        metrics = {f"train/loss_{name}": _over_ranks(module, loss) for name, loss in losses.items()}
        if module.grad_norm is not None:
            metrics["train/grad_norm"] = float(module.grad_norm)
        metrics |= {f"lr/{name}": rate for name, rate in module.learning_rates.items()}
        if not first:
            seconds = (now - self._since[0]) / (step - self._since[1])
            metrics["train/samples_per_second"] = module.geometry.samples / seconds
        self._since = (now, step)
        self.latest = metrics
        if self.metric_log is not None:
            self.metric_log.write(step, metrics)


def _over_ranks(module: TrainingModule, share: Tensor) -> float:
    gathered: Any = module.all_gather(share)
    return float(gathered.sum())


class Every(StepCallback):
    """Does something every `every` steps (0: never), and after the last step.

    `action` is called on every rank with the number of steps done.
    """

    def __init__(self, action: Callable[[int], None], every: int, clock: Clock, name: str) -> None:
        self.action, self.every, self.clock, self.name = action, every, clock, name

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        if (self.every and step % self.every == 0) or step == module.recipe.trainer.max_steps:
            self.clock.lap("network")
            self.action(step)
            self.clock.lap(self.name)


class Signals(StepCallback):
    """SIGTERM and the first Ctrl-C end the run after the step at hand, with a checkpoint; a second Ctrl-C at once."""

    def __init__(self, save: Callable[[int], None]) -> None:
        self.save = save
        self.stopped_at: int | None = None
        self.received = 0  # the signal's number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def ask(number: int, frame: Any) -> None:
            self.received = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ask)
            signal.signal(signal.SIGINT, ask)

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        # One rank may hear the signal a step before another: all stop together.
        if trainer.strategy.reduce_boolean_decision(self.received != 0, all=False):
            self.save(step)
            self.stopped_at = step
            trainer.should_stop = True


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


class ProgressBar(StepCallback):
    """Steps, rate, time left and the latest loss."""

    def __init__(self, console: Console, max_steps: int, metrics: Metrics) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.metrics = metrics
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self.max_steps = max_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self.task = self.progress.add_task("train", total=self.max_steps, completed=module.first_step, now="")
        self.progress.start()

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        latest = self.metrics.latest
        parts = [f"loss {latest['train/loss_total']:.3f}"] if "train/loss_total" in latest else []
        if "train/samples_per_second" in latest:
            parts.append(f"{latest['train/samples_per_second']:.1f} clips/s")
        self.progress.update(self.task, completed=step, now=", ".join(parts))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.progress.stop()
