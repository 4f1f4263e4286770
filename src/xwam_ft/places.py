"""How a checkpoint of a run is named: RUN (the newest), RUN@STEP, or its folder."""

from __future__ import annotations

import re
from pathlib import Path

from xwam_ft.errors import UserError
from xwam_ft.files import require_local
from xwam_ft.hub import hint

RECIPE_FILE = "recipe.yaml"
"""What makes a folder a run."""
CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"step-(\d{6,})$")


def run_at(text: str | Path) -> tuple[Path, int | None]:
    """The run and the step that a place names: `RUN` (the newest checkpoint, None), `RUN@1500`, or
    `RUN/checkpoints/step-001500`. A folder that is there under the whole name is taken as it is, `@` or not.

    Raises:
        UserError: what stands behind the `@` is no step of a run that is there.
    """
    place = Path(text)
    if not str(text).startswith("hf:"):  # which is for the Hub to say
        require_local(place, "a run or bundle")
    if place.exists() or "@" not in place.name:
        named = step_of(place)
        return (place, None) if named is None else (place.absolute().parents[1], named)
    name, _, step = place.name.rpartition("@")
    run = place.with_name(name) if name else place
    if not (run / RECIPE_FILE).is_file():
        raise UserError(f"names a step of {run}, which is not a run folder", place, "give RUN, or RUN@STEP")
    if not (step.isascii() and step.isdigit()):
        raise UserError(f"names the step {step!r}, which is no number", place, f"give {run}, or {run}@STEP")
    return run, int(step)


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint's folder in a run; None: it is another folder."""
    name = _NAME.search(folder.name)
    return int(name[1]) if name and folder.absolute().parent.name == CHECKPOINTS and folder.is_dir() else None


def neither(place: str | Path) -> UserError:
    """The error where RUN, RUN@STEP or BUNDLE is asked for and something else is named."""
    what, more = "is neither a run nor a bundle", ""
    if not Path(place).exists():
        what, more = "is not there", hint(place, "model")
    fix = f"give RUN, RUN@STEP or BUNDLE: a folder that `xwam-ft train` or `export` made{more}"
    return UserError(what, place, fix)
