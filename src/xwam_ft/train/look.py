"""What is looked at while a run learns: errors of a policy on held-out clips, imagined video, the report.

Held-out losses are the module's own (Lightning's validation); this adds to them. It only looks: network, averaged
weights, mode and generators are afterwards as they were, so a run ends with the same bits whenever it is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np

from xwam_ft.encode.inputs import first_rank
from xwam_ft.evaluate.open_loop import open_loop, summary_lines
from xwam_ft.files import write_json_atomic
from xwam_ft.learn.held_out import HeldOutLosses
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.sharding import is_sharded, whole
from xwam_ft.runs.history import IMAGINED, History
from xwam_ft.runs.report import write_report
from xwam_ft.train.budget import Budget, look_bar
from xwam_ft.train.callbacks import Averaging, Clock, Signals, StepCallback
from xwam_ft.train.loggers import log_picture
from xwam_ft.train.validation import (
    error_metrics,
    evaluation_mode,
    imagine_held_out,
    imagine_metrics,
    imagined_clips,
    live_policy,
)

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.learn.module import TrainingModule
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.policy.policy import Policy
    from xwam_ft.runs.folder import RunFolder
    from xwam_ft.shards import ShardSet


class Look(StepCallback):
    """Looks at a run.

    The first rank looks and writes; where weights are sharded the others compute along.

    Args:
        folder, shard_set, source: the run, and what it trains on.
        average: whose weights are looked at, since they are exported, or None.
        signals: what ends a look.
    """

    def __init__(
        self,
        folder: RunFolder,
        shard_set: ShardSet,
        source: ClipSource,
        average: Averaging | None,
        clock: Clock,
        signals: Signals,
        console: Console,
    ) -> None:
        self.signals = signals
        self.folder, self.shard_set, self.source = folder, shard_set, source
        self.recipe, self.average, self.clock, self.console = folder.recipe, average, clock, console
        self.history = History(folder.path)
        self.spent_before = self.history.seconds()
        self.holds_out = bool(source.of_split("held_out"))
        self.budget = Budget(self.recipe.validation.budget, clock, self.spent_before)
        self.missed = self._missed()  # read here, before any rank writes: all of them must agree
        self._meanwhile = ExitStack()
        self._put_off: int | float | None = None  # what `limit_val_batches` was before a look was put off

    def _missed(self) -> list[str]:
        """What was to be looked at after the step a run goes on from, and was not: it ended between saving and that."""
        spec, step = self.recipe.validation, self.folder.first_step
        if step == 0 or not self.holds_out:
            return []
        last = step >= self.recipe.trainer.max_steps
        if not last and self.budget.exceeded():
            return []
        return self.history.owed(step, spec, last=last)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if first_rank():
            self.history.forget_after(self.folder.first_step)
            if not self.holds_out:
                self.console.print("nothing is held out, so nothing is validated")
        if "imagine" in self.missed:
            self.imagine(trainer, pl_module)
            self.report()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.lap("network")
        self._meanwhile.enter_context(self._exported(pl_module))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The policy's errors, beside the losses that the module has summed up."""
        module: Any = pl_module
        scores: dict[str, Any] | None = None
        if self._looks(module):
            clips = self.recipe.validation.clips
            with self._ends(module), look_bar(trainer, "actions of held-out clips", clips, self.console) as advance:
                policy = self._policy(module)
                scores = open_loop(policy, self.shard_set, clips=clips, advance=advance).metrics()
        if scores is not None:
            losses = module.held_out.means()
            errors = error_metrics(scores)
            if trainer.is_global_zero:
                self._tell(module.step, losses, scores)
            if trainer.sanity_checking:  # a look made up for, of which Lightning logs nothing
                alike = {name: float(np.float32(value)) for name, value in {**errors, **losses}.items()}
                for logger in trainer.loggers:
                    logger.log_metrics(alike, module.step)
            else:
                module.log_dict(errors, rank_zero_only=True)
        elif self.signals.cut:
            module.held_out = HeldOutLosses(self.recipe)  # nothing is logged of it: it is made up for as a whole
        trainer.strategy.barrier()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self._meanwhile.close()
        self.clock.lap("validation")
        if module.step < module.max_steps and not self.signals.received:  # the last report is written once all is done
            self.report()

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        spec = self.recipe.validation
        if step == module.max_steps:
            self.imagine(trainer, module)
        elif not trainer.should_stop:
            looks, imagines = (bool(n) and step % n == 0 for n in (spec.every_steps, spec.imagine_every_steps))
            if (looks or imagines) and self.holds_out and self._over_budget(trainer, step):
                self._put_off, trainer.limit_val_batches = trainer.limit_val_batches, 0
            elif imagines:
                self.imagine(trainer, module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._put_off is not None:
            trainer.limit_val_batches, self._put_off = self._put_off, None

    def _over_budget(self, trainer: pl.Trainer, step: int) -> bool:
        """Whether there is no time for a look; the first rank's clock decides for all."""
        said: str | None = trainer.strategy.broadcast(self.budget.exceeded())
        if said is not None:
            self.console.print(f"step {step}: not looked at, {said}", soft_wrap=True, markup=False)
        return said is not None

    def imagine(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Imagined beside recorded video of a held-out episode, and errors with each camera black."""
        module: Any = pl_module
        if self.recipe.validation.imagine_clips == 0 or not self.holds_out:
            return
        self.clock.lap("network")
        step = module.step
        tables: dict[str, Any] | None = None
        if self._looks(module):
            total = imagined_clips(self.shard_set, self.recipe)
            with (
                self._ends(module),
                self._exported(module),
                self._imagining(step) as place,
                look_bar(trainer, "imagining", total, self.console) as advance,
            ):
                tables = imagine_held_out(self._policy(module), self.shard_set, self.recipe, place, advance)
                write_json_atomic(place / "metrics.json", tables)
        if tables is not None and not self.signals.cut:
            for logger in trainer.loggers:
                logger.log_metrics(imagine_metrics(tables), step)
            if trainer.is_global_zero:
                sheet = self.history.folder(step) / IMAGINED / "contact_sheet.png"
                log_picture(trainer.loggers, "imagine/contact_sheet", sheet, step)
        trainer.strategy.barrier()
        self.clock.lap("imagining")
        self.signals.agree(trainer, module)

    def report(self) -> None:
        """Write report.html and time.json of the run so far; the first rank does."""
        if first_rank():
            spent, before = self.clock.spent, self.spent_before
            self.history.write_seconds({n: before.get(n, 0.0) + spent.get(n, 0.0) for n in {**before, **spent}})
            write_report(self.folder.path)
            self.clock.lap("report")

    def _tell(self, step: int, losses: dict[str, float], scores: dict[str, Any]) -> None:
        self.history.write_validation(step, {"losses": losses, "open_loop": scores})
        terms = {n.removeprefix("held_out/"): v for n, v in losses.items() if n.startswith("held_out/")}
        shown = "  ".join(f"{name} {value:.3g}" for name, value in terms.items())
        self.console.print(f"step {step}, held out: {'; '.join([shown, *summary_lines(scores)])}", soft_wrap=True)

    def _ends(self, module: TrainingModule) -> AbstractContextManager[None]:
        """What a signal ends, where no other process computes along."""
        return nullcontext() if is_sharded(module.network) else self.signals.ends_look()

    def _looks(self, module: TrainingModule) -> bool:
        """Whether this rank looks: the first does while the others wait, and all of them where weights are sharded."""
        if is_sharded(module.network):
            return True
        self.signals.cut = self.signals.cut or self.signals.received != 0  # it came before the look
        return first_rank() and not self.signals.cut

    @contextmanager
    def _imagining(self, step: int) -> Generator[Path]:
        """Where pictures go: into the run on the first rank, nowhere on the others."""
        if first_rank():
            with self.history.imagining(step) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="xwam-ft-") as folder:
                yield Path(folder)

    @contextmanager
    def _exported(self, pl_module: pl.LightningModule) -> Generator[None]:
        """The network is meanwhile the one that would be exported."""
        module: Any = pl_module
        weights = self.average.weights if self.average is not None else None
        with evaluation_mode(module.network, weights), whole(module.network):
            yield

    def _policy(self, module: TrainingModule) -> Policy:
        codec = self._codec.to(module.device)
        return live_policy(module.network, self.source, codec, self.recipe, self.folder.contract)

    @cached_property
    def _codec(self) -> Backbone:
        """The VAE: what training from pixels has loaded, or loaded for the first look."""
        spec = self.recipe.backbone
        return self.source.codec or load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision)
