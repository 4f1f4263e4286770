"""What the parts of a GPU day share: its settings, its backbone, its recipe, tables, and what is not here."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import train_step
from _gpu_shards import write_shards
from _measure import peak_memory, seconds
from _sizes import SIZES, Size, random_backbone
from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.backbone import Backbone, cast_weights, load_backbone, locate_backbone
from xwam_ft.model.folder_check import PARTS, Part
from xwam_ft.model.precision import uses_tf32
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.memory import is_out_of_memory, module_on_random_clips
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import INDEX_FILE, ShardSet

RECIPE = "recipes/wan22_5b_lora_24gb.yaml"
ON_CPU = "not measured: a CPU does not count it"
RANDOM = "not measured: the weights are random; give --weights"
OUT_OF_MEMORY = "not measured: out of memory"
AS_SAID = "not measured"
"""In the cells after one that has the reason."""
Cell = str | float | int | bool
Say = Callable[[str], None]


class NotHere(Exception):
    """A part that this machine cannot measure; the text says why."""


@dataclass
class Found:
    """What a part has measured.

    Args:
        tables: {"title", "columns", "rows", "note"}; numbers as they are, and where there is none a sentence.
        says: {"text", "good"}: what to read first; good is None where nothing is to be judged.
    """

    tables: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    says: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> None:
        assert all(len(row) == len(columns) for row in rows), title
        assert all(cell is not None and cell != "" for row in rows for cell in row), f"{title}: an empty cell"
        self.tables.append({"title": title, "columns": list(columns), "rows": [list(r) for r in rows], "note": note})

    def say(self, text: str, good: bool | None = None) -> None:
        self.says.append({"text": text, "good": good})


@dataclass(frozen=True)
class Day:
    """The settings of a day.

    Args:
        out: the folder of the day.
        weights: a backbone's folder or hub id; None: random weights of the 5B shapes.
        toy: the built-in small backbone on a CPU.
    """

    out: Path
    weights: str | None
    toy: bool

    @property
    def device(self) -> str:
        return "cpu" if self.toy else "cuda"

    @property
    def repeats(self) -> int:
        return 1 if self.toy else 5

    @property
    def precision(self) -> str:
        return "32-true" if self.toy else "bf16-mixed"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.toy else torch.bfloat16

    @cached_property
    def folder(self) -> Path | None:
        """Where the weights lie; a hub id is fetched."""
        return None if self.weights is None else locate_backbone(self.weights, PARTS)

    @cached_property
    def size(self) -> Size:
        """Shapes of the parts: those of the weights' own configurations, with clips as in the 5B recipes."""
        if self.toy or self.folder is None:
            return SIZES["tiny" if self.toy else "5b"]()
        made = SIZES["5b"]()
        read: list[dict[str, Any]] = [
            {key: value for key, value in read_json(self.folder / part / "config.json").items() if key[0] != "_"}
            for part in ("transformer", "vae", "text_encoder")
        ]
        read[0]["patch_size"] = tuple(read[0]["patch_size"])
        transformer, vae, text = read
        return replace(made, name="weights", transformer=transformer, vae=vae, text=text)

    def backbone(self, *parts: Part, dtype: torch.dtype | None = None, device: str | None = None) -> Backbone:
        """Parts of the backbone, the same numbers each time; in float32 they are those of bfloat16."""
        device = device or self.device
        if self.weights is not None:
            made = load_backbone(self.weights, dtype=torch.bfloat16, parts=parts)
        else:
            torch.manual_seed(0)
            made = random_backbone(self.size, device, torch.bfloat16, parts)
        for module in (made.transformer, made.text_encoder):
            if module is not None:
                cast_weights(module, dtype or self.dtype)
        return made.to(device)

    @property
    def shards(self) -> ShardSet:
        """A small shard set of recorded pictures at this day's clip; made where it is missing."""
        place = self.out / "work" / "shards"
        if not (place / INDEX_FILE).is_file():
            write_shards(place, self.size.contract)
        return ShardSet.open(place)

    def recipe(self, *overrides: str) -> Recipe:
        """The 24 GB recipe, for this day's backbone and device; `a.b=c` changes more of it."""
        place, backbone = (json.dumps(str(of)) for of in (self.out / "work" / "shards", self.weights or PUBLISHED))
        contract = [f"data.shards={place}", f"backbone.path={backbone}", "data.augment.copies=1"]  # an hour's work
        sizes = [f"model.depth.blocks={self.size.depth_blocks}", "trainer.accumulate=1", "trainer.workers=0"]
        here = [f"trainer.accelerator={'cpu' if self.toy else 'gpu'}", f"trainer.precision={self.precision}"]
        dtype = f"backbone.dtype={str(self.dtype).removeprefix('torch.')}"
        return load_recipe(bundled(RECIPE), [*contract, *sizes, *here, dtype, *overrides])

    def module(self, recipe: Recipe, backbone: Backbone | None = None, *, device: str | None = None) -> TrainingModule:
        """The training module of a recipe, on the day's device, for steps of its micro-batch of `clips`."""
        if not self.toy:  # as `train` sets it meanwhile; nothing else runs in this process
            torch.set_float32_matmul_precision("high" if uses_tf32(recipe.trainer) else "highest")
        backbone = backbone or self.backbone("transformer")
        torch.manual_seed(0)
        network = trainable_network(backbone, recipe, self.size.contract).to(device or self.device).train()
        batch = train_step.clips(self.size, recipe.trainer.batch_size, "meta")
        return module_on_random_clips(network, recipe, batch).to(device or self.device)

    def clips(self, count: int) -> Any:
        torch.manual_seed(1)
        return train_step.clips(self.size, count, self.device)

    def peak(self, call: Callable[[], object]) -> Cell:
        """Most GB that tensors took during a call."""
        found = peak_memory(call, self.device)
        return ON_CPU if found is None else round(found, 3)

    def seconds(self, call: Callable[[], object], repeats: int | None = None) -> float:
        return seconds(call, self.device, repeats or self.repeats)

    def free(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()  # a module and its hooks refer to each other
        if self.device == "cuda":
            torch.cuda.empty_cache()


def tried(call: Callable[[], list[Cell]], columns: int) -> list[Cell]:
    """The cells of a row, or a reason in each of them where memory runs out or the product refuses."""
    try:
        return call()
    except UserError as error:
        reason = f"not measured: {error}"
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = OUT_OF_MEMORY
    return [reason, *[AS_SAID] * (columns - 1)]


def figure(cell: Cell, digits: int = 3) -> str:
    """A number with so many significant digits; a sentence as it is."""
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int) or abs(cell) >= 10**digits:
        return f"{cell:,.0f}"
    return f"{cell:.{digits}g}"
