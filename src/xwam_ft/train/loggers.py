"""Where the numbers of a run go: Lightning's loggers by `logging.to`, and always metrics.jsonl, which the report reads.

A resumed run repeats the steps after its checkpoint, and a look that was broken off after the checkpoint's own step.
metrics.jsonl forgets what it was told of both, TensorBoard of the steps;
CSV tables begin anew in a folder of their own, named by the step they begin at; W&B goes on in the same run, whose id
lies in wandb.json, and is not told of a step twice.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from xwam_ft.encode.inputs import first_rank
from xwam_ft.files import read_json, write_json_atomic, write_text_atomic
from xwam_ft.runs.history import METRICS_FILE, History, of_look

if TYPE_CHECKING:
    from xwam_ft.recipe import Recipe


WANDB_FILE = "wandb.json"


def run_loggers(run: Path, first_step: int, recipe: Recipe, missed: Sequence[str] = ()) -> list[Logger]:
    """metrics.jsonl, and what `logging.to` names, each once; nothing is written before the first number.

    Args:
        missed: the looks (history.LOOKS) after the first step that are made up for.
    """
    made: dict[str, Logger] = {"jsonl": MetricsFile(run / METRICS_FILE, first_step, missed)}
    for name in recipe.logging.to:
        if name == "tensorboard":
            made[name] = Events(run, name="", version="tensorboard", purge_step=first_step + 1)
        elif name == "csv":
            made[name] = CSVLogger(run, name="csv", version=f"from-{first_step:06d}", flush_logs_every_n_steps=1)
        else:
            made[name] = _wandb(run, recipe)
    return list(made.values())


def _wandb(run: Path, recipe: Recipe) -> WandbLogger:
    """A W&B run whose id is drawn once and kept in the run folder: a resumed run, wherever it lies, goes on in it."""
    spec = recipe.logging.wandb
    return WandbOnce(
        {(row["step"], name) for row in History(run).metrics() for name in row},
        project=spec.project or os.environ.get("WANDB_PROJECT") or "xwam-ft",
        entity=spec.entity or os.environ.get("WANDB_ENTITY") or None,
        name=spec.name or os.environ.get("WANDB_NAME") or run.name,
        id=_drawn_id(run / WANDB_FILE),
        resume="allow",
        save_dir=str(run.resolve()),
        config=recipe.model_dump(mode="json"),
    )


def _drawn_id(path: Path) -> str | None:
    """The id in a file, which the first process to ask makes; None on other ranks, which log nothing there."""
    if not path.is_file() and first_rank():
        write_json_atomic(path, {"id": secrets.token_hex(6)})
    return str(read_json(path)["id"]) if path.is_file() else None


class WandbOnce(WandbLogger):
    """W&B forgets nothing, so what was told before the steps were repeated is not told again.

    Args:
        told: (step, metric) of the sessions before.
    """

    def __init__(self, told: set[tuple[float, str]], **options: Any) -> None:
        super().__init__(**options)
        self._told = told

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = {name: value for name, value in metrics.items() if (step, name) not in self._told}
        if new:
            super().log_metrics(new, step)


class Events(TensorBoardLogger):
    """TensorBoard events alone: the run folder holds recipe.yaml, so Lightning's hparams.yaml is not written."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class MetricsFile(Logger):
    """metrics.jsonl: a line of JSON a step that was logged, `{"step": 10, "train/loss_total": ...}`."""

    def __init__(self, path: Path, first_step: int, missed: Sequence[str] = ()) -> None:
        super().__init__()
        self.path, self._first_step, self._missed = path, first_step, tuple(missed)
        self._pruned = False

    @property
    def name(self) -> str:
        return "lightning"  # the folder for checkpoints of a ModelCheckpoint that a recipe names

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds recipe.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._pruned:
            self._prune()
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")

    def _prune(self) -> None:
        """Forget what this session repeats, and the half line that a killed process left."""
        self._pruned = True
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and not self._repeated(json.loads(line))]
            if kept != lines:
                write_text_atomic(self.path, "".join(kept))

    def _repeated(self, row: Mapping[str, float]) -> bool:
        first, step = self._first_step, row["step"]
        return step > first or (step == first and any(of_look(name, *self._missed) for name in row))


def log_picture(loggers: list[Logger], name: str, path: Path, step: int) -> None:
    """A picture file, to the loggers that can show one."""
    import numpy as np
    from PIL import Image

    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                shown = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(name, shown, step, dataformats="HWC")  # pyright: ignore
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step)
