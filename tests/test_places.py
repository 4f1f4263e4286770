"""The way a checkpoint of a run is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from xwam_ft.errors import UserError
from xwam_ft.places import run_at


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "my [run]: 1"
    (folder / "checkpoints/step-001500").mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    return folder


def test_a_run_its_step_and_its_checkpoint_folder(run: Path) -> None:
    assert run_at(run) == (run, None)
    assert run_at(f"{run}@1500") == (run, 1500)
    assert run_at(f"{run}@0") == (run, 0)
    assert run_at(run / "checkpoints/step-001500") == (run, 1500)


def test_a_folder_whose_name_has_an_at_is_itself(run: Path) -> None:
    other = run.rename(run.with_name("run@7"))
    assert run_at(other) == (other, None)
    assert run_at(f"{other}@1500") == (other, 1500)


def test_what_is_no_step_or_no_run_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names the step 'best', which is no number"):
        run_at(f"{run}@best")
    with pytest.raises(UserError, match=r"names a step of .*other, which is not a run folder"):
        run_at(tmp_path / "other@3")
    assert run_at("hub/name") == (Path("hub/name"), None)  # what is not there is told by whoever opens it
