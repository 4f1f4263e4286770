"""What is looked at while a run learns: held-out losses and errors, imagined video, the report.

It only looks: network, averaged weights, mode and generators are afterwards as they were before, so a run ends with the
same bits whenever it is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xwam_ft.evaluate.open_loop import summary_lines
from xwam_ft.files import write_json_atomic
from xwam_ft.train.callbacks import Every
from xwam_ft.train.history import IMAGINED, History
from xwam_ft.train.report import write_report
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


class Observer:
    """Looks at a session.

    Args:
        log: where numbers go; None on every rank but the first, which alone looks while the others wait.
    """

    def __init__(self, session: Session, log: MetricLog | None) -> None:
        self.session, self.log = session, log
        self.history = History(session.folder.path)
        self.spent_before = self.history.seconds()
        if log is not None:
            self.history.forget_after(session.first_step)

    def callbacks(self) -> list[Every]:
        """In the order in which they run after a step."""
        spec, clock = self.session.recipe.validation, self.session.clock
        return [
            Every(self.validate, spec.every_steps, clock, "validation"),
            Every(self.imagine, spec.imagine_every_steps, clock, "imagining"),
            Every(self.report, math.gcd(spec.every_steps, spec.imagine_every_steps), clock, "report"),
        ]

    def validate(self, step: int) -> None:
        """Losses and action errors on held-out clips, of the weights that would be exported; on the first rank."""
        if self.log is not None and not self.session.cache.of_split("held_out"):
            self.session.console.print(f"step {step}: nothing is held out, so nothing is validated")
        elif self.log is not None:
            with self._exported() as policy:
                tables = validate(policy, self.session.module, self.session.cache, self.session.shard_set)
            self.log.write(step, {**tables["losses"], **error_metrics(tables["open_loop"])})
            self.history.write_validation(step, tables)
            losses = {name: value for name, value in tables["losses"].items() if name.startswith("val/")}
            shown = "  ".join(f"{name.removeprefix('val/')} {value:.3g}" for name, value in losses.items())
            lines = summary_lines(tables["open_loop"])
            self.session.console.print(f"step {step}, held out: {'; '.join([shown, *lines])}", soft_wrap=True)
        self.session.trainer.strategy.barrier()

    def imagine(self, step: int) -> None:
        """Imagined beside recorded video of a held-out episode, and errors with each camera black; as `validate`."""
        wanted = self.session.recipe.validation.imagine_clips > 0 and bool(self.session.cache.of_split("held_out"))
        if self.log is not None and wanted:
            with self._exported() as policy, self.history.imagining(step) as folder:
                tables = imagine_held_out(policy, self.session.shard_set, self.session.recipe, folder)
                write_json_atomic(folder / "metrics.json", tables)
            self.log.write(step, imagine_metrics(tables))
            self.log.picture(step, "imagine/contact_sheet", self.history.folder(step) / IMAGINED / "contact_sheet.png")
        self.session.trainer.strategy.barrier()

    def report(self, step: int) -> None:
        """Write report.html and time.json of the run so far; the first rank does."""
        if self.session.trainer.is_global_zero:
            names = {**self.spent_before, **self.session.clock.spent}
            self.history.write_seconds(
                {name: self.spent_before.get(name, 0.0) + self.session.clock.spent.get(name, 0.0) for name in names}
            )
            write_report(self.session.folder.path)

    @contextmanager
    def _exported(self) -> Generator[Policy]:
        """A policy around the weights that would be exported: the averaged ones, where the run keeps them."""
        weights = self.session.average.weights if self.session.average is not None else None
        with evaluation_mode(self.session.network, weights):
            yield live_policy(
                self.session.network,
                self.session.cache,
                self.session.codec,
                self.session.recipe,
                self.session.shard_set.contract,
            )
