"""Where the numbers of a run go: Lightning's loggers by `logging.to`, and always metrics.jsonl, which the report reads.

A resumed run repeats the steps after its checkpoint. metrics.jsonl and TensorBoard forget what they were told of them;
CSV tables begin anew in a folder of their own, named by the step they begin at; W&B goes on in the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from xwam_ft.files import write_text_atomic
from xwam_ft.train.history import METRICS_FILE

if TYPE_CHECKING:
    from xwam_ft.recipe import Recipe


def run_loggers(run: Path, first_step: int, recipe: Recipe) -> list[Logger]:
    """metrics.jsonl, and what `logging.to` names, each once; nothing is written before the first number."""
    made: dict[str, Logger] = {"jsonl": MetricsFile(run / METRICS_FILE, first_step)}
    for name in recipe.logging.to:
        if name == "tensorboard":
            made[name] = Events(run, name="", version="tensorboard", purge_step=first_step + 1)
        elif name == "csv":
            made[name] = CSVLogger(run, name="csv", version=f"from-{first_step:06d}", flush_logs_every_n_steps=1)
        else:
            made[name] = _wandb(run, recipe)
    return list(made.values())


def _wandb(run: Path, recipe: Recipe) -> WandbLogger:
    """A W&B run whose id follows from the run folder, so that a resumed run goes on in it."""
    place = str(run.resolve())
    return WandbLogger(
        project="xwam-ft",
        name=run.name,
        id=hashlib.sha256(place.encode()).hexdigest()[:12],
        resume="allow",
        save_dir=place,
        config=recipe.model_dump(mode="json"),
    )


class Events(TensorBoardLogger):
    """TensorBoard events alone: the run folder holds recipe.yaml, so Lightning's hparams.yaml is not written."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class MetricsFile(Logger):
    """metrics.jsonl: a line of JSON a step that was logged, `{"step": 10, "train/loss_total": ...}`."""

    def __init__(self, path: Path, first_step: int) -> None:
        super().__init__()
        self.path, self._first_step = path, first_step
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
        """Forget later steps, which this session repeats, and the half line that a killed process left."""
        self._pruned = True
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= self._first_step]
            if kept != lines:
                write_text_atomic(self.path, "".join(kept))


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
