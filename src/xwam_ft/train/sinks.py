"""Where metrics go: TensorBoard events, a CSV table, Weights & Biases. One small class each, chosen by `logging.to`.

A resumed run repeats the steps after its checkpoint; every sink forgets what it was told of them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xwam_ft.errors import require

if TYPE_CHECKING:
    from xwam_ft.recipe import Recipe

CSV_FILE = "metrics.csv"


class Sink(Protocol):
    """Told every number once, by step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None:
        """A picture file, where this place can show one."""
        ...

    def close(self) -> None: ...


def require_wandb(why: str) -> Any:
    """The module wandb; where it is not installed, a `UserError` whose place is the recipe key `why`."""
    if find_spec("wandb") is None:
        raise require("wandb", "wandb", why)
    return import_module("wandb")


def open_sinks(run: Path, first_step: int, recipe: Recipe) -> list[Sink]:
    """The sinks that `logging.to` names, each once.

    Raises:
        UserError: wandb is asked for and not installed.
    """
    made: dict[str, Sink] = {}
    for name in recipe.logging.to:
        if name == "tensorboard":
            made[name] = TensorBoard(run / name, first_step)
        elif name == "csv":
            made[name] = Csv(run / CSV_FILE, first_step)
        else:
            made[name] = WeightsAndBiases(run, recipe)
    return list(made.values())


class TensorBoard:
    """Events in `tensorboard/`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Csv:
    """A table of step, name and value, one number a line: spreadsheets and pandas pivot it."""

    HEADER = ("step", "name", "value")

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        kept: list[list[str]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as stream:
                rows = list(csv.reader(stream))[1:]
            # A killed process may have left half a line.
            kept = [row for row in rows if len(row) == 3 and row[0].isdigit() and int(row[0]) <= first_step]
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([self.HEADER, *kept])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([step, name, value] for name, value in metrics.items())

    def picture(self, step: int, name: str, path: Path) -> None:
        """Nothing: a table holds no pictures."""

    def close(self) -> None:
        """Nothing: every line is written at once."""


class WeightsAndBiases:
    """A W&B run whose id follows from the run folder, so that a resumed run goes on in it.

    W&B counts its own steps and takes none back; ours is the metric `step`, which its plots are told to use.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        self._wandb = require_wandb("logging.to")
        name = str(run.resolve())
        self._run = self._wandb.init(
            project="xwam-ft",
            name=run.name,
            id=hashlib.sha256(name.encode()).hexdigest()[:12],
            resume="allow",
            dir=name,
            config=recipe.model_dump(mode="json"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self) -> None:
        self._run.finish()
