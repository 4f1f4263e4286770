"""A run that is given more steps than it began with, or fewer: what it was planned for, at every step of it.

extensions.json    of a run folder: one entry each time `--resume RUN --set trainer.max_steps=N` changed the number.

The weights of a step depend on the steps that were planned then (the rates do), so a checkpoint is compared with the
number of its own time. The file is written before recipe.yaml follows it: whoever reads a run between the two, or
after a kill there, takes the file's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.files import read_json, write_json_atomic
from xwam_ft.runs.schedule import when_extended

if TYPE_CHECKING:
    from xwam_ft.recipe import Recipe

EXTENSIONS_FILE = "extensions.json"


@dataclass(frozen=True)
class Extension:
    """One change of `trainer.max_steps`.

    Args:
        from_step: the steps done when it was made; those after it were taken under it.
        before, max_steps: the number until then, and from then on.
        said: what it does to the rates.
        at: when, ISO 8601.
    """

    from_step: int
    before: int
    max_steps: int
    said: str
    at: str


def read_extensions(run: Path, newest: int) -> tuple[Extension, ...]:
    """Those of a run whose newest checkpoint is of step `newest`: one made later than that begins there."""
    path = run / EXTENSIONS_FILE
    entries = [Extension(**entry) for entry in read_json(path)] if path.is_file() else []
    return tuple(replace(entry, from_step=min(entry.from_step, newest)) for entry in entries)


def write_extensions(run: Path, extensions: Sequence[Extension]) -> None:
    write_json_atomic(run / EXTENSIONS_FILE, [asdict(entry) for entry in extensions])


def extension(recipe: Recipe, step: int, max_steps: int, run: Path) -> Extension:
    """That of a run by `recipe`, which has done `step` steps.

    Raises:
        UserError: `max_steps` leaves no step to do.
    """
    before = recipe.trainer.max_steps
    if max_steps <= step:
        typed = quote(str(run))
        raise UserError(
            f"is {max_steps}, and {run} has done {step} steps already",
            "trainer.max_steps",
            f"give more than {step}; what it has learned by now is written by: xwam-ft export {typed} "
            f"{quote(f'{run}-bundle')}",
        )
    said = when_extended(recipe.optim, step, before, max_steps)
    return Extension(step, before, max_steps, said, datetime.now().astimezone().isoformat(timespec="seconds"))


def with_steps(recipe: Recipe, max_steps: int) -> Recipe:
    return recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"max_steps": max_steps})})


def up_to_date(recipe: Recipe, extensions: Sequence[Extension]) -> Recipe:
    """The recipe of a run folder, where a kill came between the two files."""
    if extensions and recipe.trainer.max_steps == extensions[-1].before:
        return with_steps(recipe, extensions[-1].max_steps)
    return recipe


def planned_at(step: int, extensions: Sequence[Extension], now: int) -> int:
    """The steps that were planned when a run came to `step`; `now`: those of its recipe."""
    planned = extensions[0].before if extensions else now
    for entry in extensions:
        if entry.from_step < step:
            planned = entry.max_steps
    return planned
