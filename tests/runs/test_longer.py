"""A run that is given more steps: the same bits whether stopped or not, a record, sentences that can be followed."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import tiny_training
from tiny_training import cut_back, same_checkpoint
from xwam_ft.errors import UserError
from xwam_ft.recipe import load_recipe
from xwam_ft.runs.folder import open_run, require_sealed
from xwam_ft.runs.longer import EXTENSIONS_FILE, read_extensions

TO_8 = ["trainer.max_steps=8", "checkpoint.every_steps=1", "checkpoint.keep=9"]


def told(run: Path, overrides: list[str]) -> str:
    shown = io.StringIO()
    tiny_training.resume(run, Console(file=shown, width=300), overrides)
    return shown.getvalue()


def commands(text: str, word: str = "xwam-ft") -> list[list[str]]:
    """What could be pasted of a text: arguments of every command that it names."""
    lines = [line[line.index(f"{word} ") :] for line in text.splitlines() if f"{word} " in line]
    return [shlex.split(line) for line in lines]


@pytest.mark.slow
def test_an_extended_run_stopped_and_gone_on_with_has_the_same_bits(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "whole")
    said = told(run, TO_8)
    assert "cosine, now to step 8 (was 6): the rates rise again from 14.6 % to " in said  # as step 6 was taken with
    assert said.index("rise again") < said.index("next: xwam-ft export")
    [entry] = read_extensions(run, 8)
    assert (entry.from_step, entry.before, entry.max_steps) == (6, 6, 8)
    assert load_recipe(run / "recipe.yaml").trainer.max_steps == 8
    assert json.loads((run / "plan.json").read_text())["steps"] == 8
    assert "now to step 8 (was 6)" in (run / "report.html").read_text()
    assert (run / "validation/step-000008/metrics.json").is_file()
    ours, theirs = (folder / "adapter/adapter_model.safetensors" for folder in (run, finished))
    assert ours.read_bytes() != theirs.read_bytes()

    for last in (6, 7):  # a kill before the first checkpoint of the added steps, and after it
        killed = cut_back(run, tmp_path / f"killed-{last}", last)
        tiny_training.resume(killed, Console(quiet=True))
        same_checkpoint(killed / "checkpoints/step-000008", run / "checkpoints/step-000008")
    for step in (3, 6, 8):  # each is held against the length of its own time
        require_sealed(open_run(run, step=step))


@pytest.mark.slow
def test_an_unfinished_run_extended_before_any_checkpoint_is_the_longer_run(
    finished: Path, recipe_file: Path, tmp_path: Path, console: Console
) -> None:
    whole = tiny_training.train(recipe_file, tmp_path / "whole", ["trainer.max_steps=4"], console)
    run = cut_back(finished, tmp_path / "cut", 0)
    tiny_training.resume(run, console, ["trainer.max_steps=4"])
    same_checkpoint(run / "checkpoints/step-000004", whole / "checkpoints/step-000004")


@pytest.mark.slow
def test_a_plateau_goes_on_as_if_the_run_had_been_planned_longer(
    recipe_file: Path, tmp_path: Path, console: Console
) -> None:
    plateau = ["optim.schedule=warmup-stable-decay", "optim.decay_share=0.5"]
    whole = tiny_training.train(recipe_file, tmp_path / "whole", [*plateau, "trainer.max_steps=8"], console)
    run = tiny_training.train(recipe_file, tmp_path / "run", plateau, console)
    early = cut_back(run, tmp_path / "early", 3)  # at the plateau still
    assert "it goes on at the plateau, and falls to 0 from step 4 on" in told(early, ["trainer.max_steps=8"])
    same_checkpoint(early / "checkpoints/step-000008", whole / "checkpoints/step-000008")


@pytest.mark.slow
def test_a_finished_run_says_so_and_how_to_go_on(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "my [bold] run: 1")
    said = told(run, [])
    assert f"{run}: 6 of 6 steps are done" in said
    export, longer = commands(said)
    assert export == ["xwam-ft", "export", str(run), f"{run}-bundle"]
    assert longer == ["xwam-ft", "train", "--resume", str(run), "--set", "trainer.max_steps=12"]
    assert not (run / EXTENSIONS_FILE).exists()


def test_fewer_steps_than_are_done_are_refused(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for steps in (3, 5):
        with pytest.raises(UserError, match=rf"trainer\.max_steps: is {steps}, and .* has done 6 steps already") as no:
            tiny_training.resume(finished, Console(quiet=True), [f"trainer.max_steps={steps}"])
        assert commands(no.value.fix) == [["xwam-ft", "export", str(finished), f"{finished}-bundle"]]
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_length_written_into_the_recipe_is_refused_with_a_command_that_works(
    finished: Path, tmp_path: Path, console: Console
) -> None:
    run = shutil.copytree(finished, tmp_path / "edited")
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["trainer"]["max_steps"] = 7
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"was trained with trainer\.max_steps 6, and .* says 7") as error:
        tiny_training.resume(run, console)
    [[_, _, resume, place, _, value]] = commands(error.value.fix)
    assert (resume, place) == ("--resume", str(run))
    tiny_training.resume(run, console, [value])
    assert open_run(run).first_step == 7


def test_a_kill_between_the_two_files_loses_no_step(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    entry = {"from_step": 6, "before": 6, "max_steps": 9, "said": "", "at": ""}
    (run / EXTENSIONS_FILE).write_text(json.dumps([entry]))
    assert open_run(run).recipe.trainer.max_steps == 9
    assert open_run(run, ["trainer.workers=2"]).recipe.trainer.max_steps == 9
    require_sealed(open_run(run))


def test_a_checkpoint_from_before_an_extension_that_was_gone_back_behind(finished: Path, tmp_path: Path) -> None:
    run = cut_back(finished, tmp_path / "run", 3)
    entry = {"from_step": 6, "before": 6, "max_steps": 9, "said": "", "at": ""}
    (run / EXTENSIONS_FILE).write_text(json.dumps([entry]))
    assert [one.from_step for one in open_run(run).extensions] == [3]  # all steps after it are taken under the new one
