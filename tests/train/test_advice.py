"""What this room advises can be typed: every command in its sentences is one that the command line takes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console

import tiny_training
import xwam_ft
from tiny_training import cut_back
from xwam_ft.cli import app
from xwam_ft.errors import UserError
from xwam_ft.runs.folder import open_run
from xwam_ft.runs.origin import open_origin

QUIET = Console(quiet=True)
SOURCE = Path(xwam_ft.__file__).parent
ROOMS = [path for room in ("train", "encode") for path in sorted((SOURCE / room).glob("*.py"))]
VERBS: Any = typer.main.get_command(app)


def test_every_command_that_is_named_exists_with_its_options() -> None:
    seen = 0
    for path in ROOMS:
        for verb, rest in re.findall(
            r"(?<!of )xwam-ft ([a-z]+)((?: (?:--[a-z-]+|\{[^}]*\}|[A-Z]+(?:@[A-Z]+)?))*)", path.read_text()
        ):
            assert verb in VERBS.commands, f"{path.name}: xwam-ft {verb}"
            known = {option for parameter in VERBS.commands[verb].params for option in parameter.opts}
            assert set(re.findall(r"--[a-z-]+", rest)) <= known, f"{path.name}: xwam-ft {verb}{rest}"
            seen += 1
    assert seen >= 15


def command(fix: str) -> list[str]:
    """The command that a fix ends with, or quotes between backticks."""
    quoted = re.search(r"`(xwam-ft [^`]+)`", fix)
    return shlex.split(quoted[1] if quoted else fix[fix.index("xwam-ft ") :])


def follow(words: list[str]) -> None:
    """Do what a command says, in this process."""
    assert words[:2] == ["xwam-ft", "train"], words
    VERBS.main(words[1:], standalone_mode=False)


@pytest.mark.slow
def test_an_existing_run_is_gone_on_with_as_it_says(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = cut_back(finished, tmp_path / "my [bold] run", 3)
    with pytest.raises(UserError, match="the run folder exists already") as error:
        tiny_training.train(recipe_file, run, [], QUIET)
    follow(command(error.value.fix))
    assert open_run(run).first_step == 6


@pytest.mark.slow
def test_a_run_without_checkpoint_is_gone_on_with_as_it_says(finished: Path, tmp_path: Path) -> None:
    run = cut_back(finished, tmp_path / "my run", 0)
    with pytest.raises(UserError, match="has no checkpoint yet") as error:
        open_origin(str(run))
    follow(command(error.value.fix))
    assert open_run(run).first_step == 6


@pytest.mark.slow
def test_going_on_from_an_older_step_is_a_run_that_starts_there(
    finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "my run")
    for place in (f"{run}@3", str(run / "checkpoints/step-000003")):
        with pytest.raises(UserError, match="names step 3, and a run goes on from its newest checkpoint, 6") as error:
            tiny_training.resume(Path(place), QUIET)
    words = shlex.split(error.value.fix[error.value.fix.index("--init") :])
    assert words == ["--init", f"{run}@3"]
    more = ["--run", str(tmp_path / "new"), "--set", "trainer.max_steps=1"]
    follow(["xwam-ft", "train", str(recipe_file), *words, *more])
    assert open_run(tmp_path / "new").first_step == 1
