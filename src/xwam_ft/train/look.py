"""What is looked at while a run learns: errors of a policy on held-out clips, imagined video, the report.

Held-out losses are the module's own (Lightning's validation); this adds to them. It only looks: network, averaged
weights, mode and generators are afterwards as they were, so a run ends with the same bits whenever it is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from xwam_ft.encode.inputs import first_rank
from xwam_ft.evaluate.open_loop import open_loop, summary_lines
from xwam_ft.files import write_json_atomic
from xwam_ft.model.backbone import load_backbone
from xwam_ft.train.callbacks import Averaging, Clock, StepCallback
from xwam_ft.train.history import IMAGINED, History
from xwam_ft.train.loggers import log_picture
from xwam_ft.train.report import write_report
from xwam_ft.train.sharding import is_sharded, whole
from xwam_ft.train.validation import error_metrics, evaluation_mode, imagine_held_out, imagine_metrics, live_policy

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.policy.policy import Policy
    from xwam_ft.shards import ShardSet
    from xwam_ft.train.folder import RunFolder
    from xwam_ft.train.module import TrainingModule


class Look(StepCallback):
    """Looks at a run.

    The first rank looks and writes; where weights are sharded the others compute along.

    Args:
        folder, shard_set, source: the run, and what it trains on.
        average: whose weights are looked at, since they are exported, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        shard_set: ShardSet,
        source: ClipSource,
        average: Averaging | None,
        clock: Clock,
        console: Console,
    ) -> None:
        self.folder, self.shard_set, self.source = folder, shard_set, source
        self.recipe, self.average, self.clock, self.console = folder.recipe, average, clock, console
        self.history = History(folder.path)
        self.spent_before = self.history.seconds()
        self.holds_out = bool(source.of_split("held_out"))
        self.missed = self._missed()  # read here, before any rank writes: all of them must agree
        self._meanwhile = ExitStack()

    def _missed(self) -> list[str]:
        """What was to be looked at after the step a run goes on from, and was not: it ended between saving and that."""
        spec, step = self.recipe.validation, self.folder.first_step
        if step == 0 or not self.holds_out:
            return []
        last = step >= self.recipe.trainer.max_steps
        seen = next((one for one in self.history.validated() if one.step == step), None)
        missed: list[str] = []
        if (last or (spec.every_steps and step % spec.every_steps == 0)) and (seen is None or seen.tables is None):
            missed.append("validate")
        due = last or (spec.imagine_every_steps and step % spec.imagine_every_steps == 0)
        if due and spec.imagine_clips and (seen is None or seen.imagined is None):
            missed.append("imagine")
        return missed

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
        if self._looks(module):
            scores = open_loop(self._policy(module), self.shard_set, clips=self.recipe.validation.clips).metrics()
            losses = module.held_out.means()
            errors = error_metrics(scores)
            if trainer.is_global_zero:
                self._tell(module.step, losses, scores)
            if trainer.sanity_checking:  # a look made up for, of which Lightning logs nothing
                for logger in trainer.loggers:
                    logger.log_metrics({**losses, **errors}, module.step)
            else:
                module.log_dict(errors, rank_zero_only=True)
        trainer.strategy.barrier()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module: Any = pl_module
        self._meanwhile.close()
        self.clock.lap("validation")
        if module.step < module.max_steps:  # the last report is written once all is done
            self.report()

    def after_step(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        every = self.recipe.validation.imagine_every_steps
        if step == module.max_steps or (every and step % every == 0 and not trainer.should_stop):
            self.imagine(trainer, module)

    def imagine(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Imagined beside recorded video of a held-out episode, and errors with each camera black."""
        module: Any = pl_module
        if self.recipe.validation.imagine_clips == 0 or not self.holds_out:
            return
        self.clock.lap("network")
        step = module.step
        if self._looks(module):
            with self._exported(module), self._imagining(step) as place:
                tables = imagine_held_out(self._policy(module), self.shard_set, self.recipe, place)
                write_json_atomic(place / "metrics.json", tables)
            for logger in trainer.loggers:
                logger.log_metrics(imagine_metrics(tables), step)
            if trainer.is_global_zero:
                sheet = self.history.folder(step) / IMAGINED / "contact_sheet.png"
                log_picture(trainer.loggers, "imagine/contact_sheet", sheet, step)
        trainer.strategy.barrier()
        self.clock.lap("imagining")

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

    def _looks(self, module: TrainingModule) -> bool:
        """Whether this rank looks: the first does while the others wait, and all of them where weights are sharded."""
        return first_rank() or is_sharded(module.network)

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
