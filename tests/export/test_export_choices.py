"""Which checkpoint is exported, what an export needs, and two of them at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.export import export
from xwam_ft.export.export import export_run
from xwam_ft.locks import sole_writer
from xwam_ft.runs import checkpoint
from xwam_ft.runs.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run with a second checkpoint, whose adapters are twice as strong."""
    copy = Path(shutil.copytree(trained_run, tmp_path / "run"))
    first = latest_checkpoint(copy)
    assert first is not None
    state = replace(first.state, step=first.state.step + 5)
    doubled = {name: 2 * value for name, value in first.trainable().items()}
    write_checkpoint(copy, state, doubled, first.optimizer(), None, keep=5)
    return copy


def exported(run: Path, out: Path, **options: object) -> dict[str, object]:
    export_run(run, out, format="peft", console=QUIET, **options)  # pyright: ignore[reportArgumentType]
    from safetensors.torch import load_file

    return load_file(out / "adapter_model.safetensors")


def test_a_step_names_the_checkpoint_and_one_that_is_not_there_lists_those_that_are(run: Path, tmp_path: Path) -> None:
    newest, first = exported(run, tmp_path / "newest"), exported(run, tmp_path / "first", step=2, ema=False)
    for name, value in first.items():
        assert (newest[name] == 2 * value).all()  # pyright: ignore
    with pytest.raises(UserError, match=r"has no checkpoint of step 3\. Fix: choose one that it kept: 2, 7"):
        export_run(run, tmp_path / "third", format="peft", step=3, console=QUIET)


def test_a_checkpoint_s_folder_is_taken_for_its_run(run: Path, tmp_path: Path) -> None:
    by_step = exported(run, tmp_path / "by_step", step=2)
    by_folder = exported(run / "checkpoints" / "step-000002", tmp_path / "by_folder")
    assert all((by_folder[name] == value).all() for name, value in by_step.items())  # pyright: ignore


def test_an_edited_recipe_is_refused_in_every_format(run: Path, tmp_path: Path) -> None:
    path = run / "recipe.yaml"
    assert "alpha: 2.0" in path.read_text()
    path.write_text(path.read_text().replace("alpha: 2.0", "alpha: 8.0"))  # would scale the adapter fourfold
    for format in ("bundle", "peft"):
        with pytest.raises(
            UserError, match=r"was trained with model\.lora\.alpha 2\.0, and .*recipe\.yaml says 8\.0\. Fix: restore it"
        ):
            export_run(run, tmp_path / "out", format=format, console=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["peft", "diffusers"])
def test_an_adapter_alone_needs_no_shards(run: Path, tmp_path: Path, format: str) -> None:
    path = run / "recipe.yaml"
    shards = next(line for line in path.read_text().splitlines() if line.strip().startswith("shards:"))
    place = Path(shards.partition(":")[2].strip())
    moved = place.with_name("elsewhere")
    place.rename(moved)
    try:
        assert export_run(run, tmp_path / "adapter", format=format, console=QUIET).is_dir()
        with pytest.raises(
            UserError,
            match=r"there is no such folder.*where the shards were moved, give their new place",
        ):
            export_run(run, tmp_path / "bundle", console=QUIET)
    finally:
        moved.rename(place)


def test_two_exports_to_one_place_do_not_meet(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        sole_writer(out, "exporting to it"),
        pytest.raises(UserError, match=r"out: is in use: process .* is exporting to it since"),
    ):
        export_run(run, out, format="peft", console=QUIET)
    assert export_run(run, out, format="peft", console=QUIET) == out
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 2


def test_an_export_that_another_ended_since_is_not_written_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, out = export.sole_writer, tmp_path / "out"

    def late(target: Path, doing: str) -> Any:
        out.mkdir()
        (out / "theirs").write_text("")
        return honest(target, doing)

    monkeypatch.setattr(export, "sole_writer", late)
    with pytest.raises(UserError, match="out: exists already and is not an empty folder"):
        export_run(run, out, format="peft", console=QUIET)
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["out"]
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_a_checkpoint_that_a_training_removes_is_told_or_passed_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, gone = checkpoint.read_checkpoint, run / "checkpoints" / "step-000007"

    def removed(folder: Path) -> Checkpoint:
        if folder == gone:
            shutil.rmtree(gone)
        return honest(folder)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "read_checkpoint", removed)
        newest = latest_checkpoint(run)
    assert newest is not None
    assert newest.state.step == 2

    def slow(job: Any, *others: object) -> Any:
        shutil.rmtree(job.checkpoint.folder)
        return needs(job, *others)

    needs = export.needs_of
    monkeypatch.setattr(export, "needs_of", slow)
    with pytest.raises(UserError, match=r"step-000002: was removed while it was read.*run the same command again"):
        export_run(run, tmp_path / "out", format="peft", console=QUIET)
    assert not (tmp_path / "out").exists()


def test_a_name_with_brackets_and_blanks_is_printed_as_it_is_and_can_be_pasted(run: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=400)
    out = tmp_path / "cup [v2] of tea"
    export_run(run, out, format="peft", console=console)
    text = console.export_text()
    assert f"peft: {out}\n" in text
    assert f"next: PeftModel.from_pretrained(transformer, {str(out)!r})\n" in text
