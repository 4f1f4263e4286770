"""What is looked at while a run learns: held-out losses and errors, imagined video, the report.

It only looks: network, averaged weights, mode and generators are afterwards as they were before, so a run ends with the
same bits whenever it is looked at.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from xwam_ft.evaluate.open_loop import summary_lines
from xwam_ft.files import write_json_atomic
from xwam_ft.train.callbacks import Every
from xwam_ft.train.history import IMAGINED, History
from xwam_ft.train.report import write_report
from xwam_ft.train.sharding import is_sharded, whole
from xwam_ft.train.validation import (
    error_metrics,
    evaluation_mode,
    imagine_held_out,
    imagine_metrics,
    live_policy,
    validate,
)

if TYPE_CHECKING:
    from xwam_ft.policy.policy import Policy
    from xwam_ft.train.callbacks import MetricLog
    from xwam_ft.train.session import Session


class CatchUp(Callback):
    """Looks at the step a run goes on from, where that was missed, as soon as the network is in its place."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        observer, step = self.observer, self.observer.session.first_step
        clock = observer.session.clock
        for name in observer.missed:
            clock.lap("network")
            (observer.validate if name == "validate" else observer.imagine)(step)
            clock.lap("validation" if name == "validate" else "imagining")
        if observer.missed:
            observer.report(step)


class Observer:
    """Looks at a session.

    Args:
        log: where numbers go; None on every rank but the first.
    """

    def __init__(self, session: Session, log: MetricLog | None) -> None:
        self.session, self.log = session, log
        self.history = History(session.folder.path)
        self.spent_before = self.history.seconds()
        if log is not None:
            self.history.forget_after(session.first_step)
        self.missed = self._missed()  # read here, before any rank writes: all of them must agree

    def _missed(self) -> list[str]:
        """What was to be looked at after the step a run goes on from, and was not: it ended between saving and that."""
        spec, step = self.session.recipe.validation, self.session.first_step
        if step == 0 or not self._held_out:
            return []
        last = step >= self.session.recipe.trainer.max_steps
        seen = next((one for one in self.history.validated() if one.step == step), None)
        missed: list[str] = []
        if (last or (spec.every_steps and step % spec.every_steps == 0)) and (seen is None or seen.tables is None):
            missed.append("validate")
        due = last or (spec.imagine_every_steps and step % spec.imagine_every_steps == 0)
        if due and spec.imagine_clips and (seen is None or seen.imagined is None):
            missed.append("imagine")
        return missed

    def callbacks(self) -> list[Callback]:
        """In the order in which they run after a step."""
        spec, clock = self.session.recipe.validation, self.session.clock
        return [
            CatchUp(self),
            Every(self.validate, spec.every_steps, clock, "validation"),
            Every(self.imagine, spec.imagine_every_steps, clock, "imagining"),
            Every(self.report, math.gcd(spec.every_steps, spec.imagine_every_steps), clock, "report"),
        ]

    def validate(self, step: int) -> None:
        """Losses and action errors on held-out clips, of the weights that would be exported."""
        if not self._held_out:
            if self.log is not None:
                self.session.console.print(f"step {step}: nothing is held out, so nothing is validated")
        elif self._looks:
            with self._exported() as policy:
                tables = validate(policy, self.session.module, self.session.source, self.session.shard_set)
            if self.log is not None:
                self._write_validation(self.log, step, tables)
        self.session.trainer.strategy.barrier()

    def _write_validation(self, log: MetricLog, step: int, tables: dict[str, Any]) -> None:
        log.write(step, {**tables["losses"], **error_metrics(tables["open_loop"])})
        self.history.write_validation(step, tables)
        losses = {name: value for name, value in tables["losses"].items() if name.startswith("val/")}
        shown = "  ".join(f"{name.removeprefix('val/')} {value:.3g}" for name, value in losses.items())
        lines = summary_lines(tables["open_loop"])
        self.session.console.print(f"step {step}, held out: {'; '.join([shown, *lines])}", soft_wrap=True)

    def imagine(self, step: int) -> None:
        """Imagined beside recorded video of a held-out episode, and errors with each camera black."""
        if self._looks and self.session.recipe.validation.imagine_clips > 0 and self._held_out:
            with self._exported() as policy, self._imagining(step) as folder:
                tables = imagine_held_out(policy, self.session.shard_set, self.session.recipe, folder)
                write_json_atomic(folder / "metrics.json", tables)
            if self.log is not None:
                self.log.write(step, imagine_metrics(tables))
                sheet = self.history.folder(step) / IMAGINED / "contact_sheet.png"
                self.log.picture(step, "imagine/contact_sheet", sheet)
        self.session.trainer.strategy.barrier()

    def report(self, step: int) -> None:
        """Write report.html and time.json of the run so far; the first rank does."""
        if self.session.trainer.is_global_zero:
            names = {**self.spent_before, **self.session.clock.spent}
            self.history.write_seconds(
                {name: self.spent_before.get(name, 0.0) + self.session.clock.spent.get(name, 0.0) for name in names}
            )
            write_report(self.session.folder.path)

    @property
    def _looks(self) -> bool:
        """Whether this rank looks: the first does while the others wait, and all of them where weights are sharded."""
        return self.log is not None or is_sharded(self.session.network)

    @property
    def _held_out(self) -> bool:
        return bool(self.session.source.of_split("held_out"))

    @contextmanager
    def _imagining(self, step: int) -> Generator[Path]:
        """Where pictures go: into the run on the first rank, nowhere on the others."""
        if self.log is not None:
            with self.history.imagining(step) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory(prefix="xwam-ft-") as folder:
                yield Path(folder)

    @contextmanager
    def _exported(self) -> Generator[Policy]:
        """A policy around the weights that would be exported: the averaged ones, where the run keeps them."""
        weights = self.session.average.weights if self.session.average is not None else None
        with evaluation_mode(self.session.network, weights), whole(self.session.network):
            yield live_policy(
                self.session.network,
                self.session.source,
                self.session.codec,
                self.session.recipe,
                self.session.shard_set.contract,
            )
