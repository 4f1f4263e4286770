"""Callbacks and loggers that a recipe names by import path."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

import tiny_training
from xwam_ft.errors import UserError

CODE = """
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger

class Count(Callback):
    def on_train_end(self, trainer, pl_module):
        open("counted", "w").write(str(trainer.global_step))

def stop_early():
    return EarlyStopping("held_out/action", min_delta=1e9, patience=1)

def table():
    return CSVLogger("mine", name="", version="")
"""


def test_they_are_made_and_called(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_callbacks.py").write_text(CODE)
    sets = [
        "trainer.callbacks=[own_callbacks:Count, own_callbacks:stop_early]",
        "trainer.loggers=[own_callbacks:table]",
        "trainer.accumulate=1",
        "validation.every_steps=1",
    ]
    run = tiny_training.train(recipe_file, tmp_path / "run", sets, console)
    assert (tmp_path / "counted").read_text() == "2"  # stopped at the second validation
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002"]  # and saved there
    assert "held_out/action" in (tmp_path / "mine/metrics.csv").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("math.cos", r"'math.cos' is not of the form my.module:Name"),
        ("absent_module:Name", r"absent_module:Name cannot be made \(ModuleNotFoundError: "),
        ("collections:OrderedDict", r"collections:OrderedDict\(\) gives a OrderedDict, not a Lightning callback"),
        ("math:absent", r"math:absent cannot be made \(AttributeError: "),
    ],
)
def test_what_cannot_be_made_is_named(
    recipe_file: Path, tmp_path: Path, console: Console, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        tiny_training.train(recipe_file, tmp_path / "run", [f"trainer.callbacks=['{name}']"], console)
    assert error.value.where == "trainer.callbacks"
    assert not (tmp_path / "run").exists()
