"""Looks at a run are bounded and seen, and a signal ends them at once: no weight depends on any of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tiny_training
from tiny_training import cut_back, same_checkpoint
from xwam_ft.learn.module import TrainingModule
from xwam_ft.train import budget, look
from xwam_ft.train.budget import Budget
from xwam_ft.train.callbacks import SPEED, Clock
from xwam_ft.train.exact import ExactCheckpoints

QUIET = Console(quiet=True)


def looks(run: Path) -> list[tuple[int, str]]:
    """Step and numbers of every row of a look in metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row for row in rows if any(name.startswith(("held_out", "imagine/", "blackout/")) for name in row)]
    return sorted((row["step"], json.dumps(row, sort_keys=True)) for row in seen)


def test_looks_may_take_their_share_of_training_time_and_a_minute() -> None:
    clock = Clock()
    clock.spent = {"network": 700.0, "data": 100.0, "validation": 50.0, "imagining": 60.0, "checkpoints": 1e6}
    before = {"network": 200.0, "validation": 50.0}
    assert Budget(0.1, clock, before).exceeded() is None  # 160 s are 60 and a tenth of 1000
    clock.spent["imagining"] += 1
    assert Budget(0.1, clock, before).exceeded() == (
        "looks took 161 s beside 1000 s of training, more than validation.budget (0.1)"
    )
    assert Budget(None, clock, before).exceeded() is None


@pytest.mark.slow
def test_a_look_that_there_is_no_time_for_is_left_out_and_said_but_never_the_last(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FREE_SECONDS", 0.0)
    shown = io.StringIO()
    run = cut_back(finished, tmp_path / "cut", 0)
    (run / "time.json").unlink()
    often = ["validation.every_steps=2", "validation.imagine_every_steps=1", "validation.imagine_clips=1"]
    tiny_training.resume(run, Console(file=shown, width=200), [*often, "validation.budget=0"])
    looks = sorted(path.name for path in (run / "validation").iterdir())
    assert looks == ["step-000001", "step-000006"]  # the first is not known to be long
    said = [line for line in shown.getvalue().splitlines() if "not looked at" in line]
    assert [line.split(":")[0] for line in said] == ["step 2", "step 3", "step 4", "step 5"]
    assert "imagining: " in shown.getvalue()
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["open_loop", "imagine_held_out"])
def test_ctrl_c_ends_a_look_at_once_and_saves_what_is_done(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)

    def endless(*args: Any, **options: Any) -> Any:
        nonlocal asked
        asked = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            time.sleep(0.01)

    asked = 0.0
    monkeypatch.setattr(look, where, endless)
    shown = io.StringIO()
    often = ["validation.every_steps=4", "validation.imagine_every_steps=4", "validation.imagine_clips=1"]
    with pytest.raises(KeyboardInterrupt):
        tiny_training.resume(run, Console(file=shown, width=200), often if where != "open_loop" else often[:1])
    assert time.monotonic() - asked < 15
    assert "Ctrl-C: stopping; what is done is saved" in shown.getvalue()
    assert "stopped after step 4, which is saved" in shown.getvalue()
    assert not list((run / "validation").glob("step-000004/*.json"))
    assert not looks(run)
    monkeypatch.undo()
    tiny_training.resume(run, QUIET, often)
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")
    whole = cut_back(finished, tmp_path / "whole", 3)
    tiny_training.resume(whole, QUIET, often)
    assert looks(run) == looks(whole)
    assert {step for step, _ in looks(run)} == {4, 6}


@pytest.mark.slow
def test_a_look_that_a_kill_halved_is_made_again_as_a_whole(finished: Path, tmp_path: Path) -> None:
    whole = cut_back(finished, tmp_path / "whole", 3)
    imagined = ["validation.imagine_clips=1"]
    tiny_training.resume(whole, QUIET, imagined)
    tables = [path.relative_to(whole) for path in whole.glob("validation/**/metrics.json")]
    assert len(looks(whole)) == len(tables) == 2
    for name in ("rows", "tables"):  # the one was written, and the other was not
        run = Path(shutil.copytree(whole, tmp_path / name))
        if name == "rows":
            (run / tables[0]).unlink()
            (run / tables[1]).unlink()
        else:
            lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
            kept = [line for line in lines if not set(json.loads(line)) & {"held_out/total", "imagine/psnr"}]
            (run / "metrics.jsonl").write_text("".join(kept))
            assert not looks(run)
        tiny_training.resume(run, QUIET, imagined)
        assert looks(run) == looks(whole)
        for table in tables:
            assert (run / table).read_bytes() == (whole / table).read_bytes()


@pytest.mark.slow
def test_the_row_of_a_step_that_a_kill_kept_back_is_told_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(run: Path) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k != SPEED} for row in found if "train/loss_total" in row]

    class Killed(BaseException):
        pass

    def killed(*args: Any) -> None:
        raise Killed  # the checkpoint is written, and Lightning has logged nothing of the step yet

    def checkpoint(run: Path, step: int) -> dict[str, Any]:
        return json.loads((run / f"checkpoints/step-{step:06d}/state.json").read_text())

    for steps, told in (("checkpoint.every_steps=4", 4), ("checkpoint.every_steps=6", 6)):
        run = cut_back(finished, tmp_path / f"{told}", 3)
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 3))
        with monkeypatch.context() as patched:
            patched.setattr(ExactCheckpoints, "save", _then(ExactCheckpoints.save, killed))
            with pytest.raises(Killed):
                tiny_training.resume(run, QUIET, [steps])
        assert [row["step"] for row in rows(run)] == [step for step in (2, 4, 6) if step < told]
        assert checkpoint(run, told)["logged"].keys() == rows(finished)[-1].keys() - {"step"}
        tiny_training.resume(run, QUIET)
        assert rows(run) == rows(finished)
        tiny_training.resume(run, QUIET)
        assert rows(run) == rows(finished)
        same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


def _then(first: Callable[..., Any], after: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **options: Any) -> None:
        first(*args, **options)
        after(*args)

    return both


@pytest.mark.slow
def test_a_signal_between_micro_batches_keeps_the_steps_done(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    honest = TrainingModule.training_step

    def killed(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:  # the first half of the second step
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", killed)
    with pytest.raises(SystemExit) as stop:
        tiny_training.resume(run, QUIET)
    assert stop.value.code == 143
    monkeypatch.undo()
    assert (run / "checkpoints/step-000004").is_dir()
    tiny_training.resume(run, QUIET)
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


@pytest.mark.slow
def test_the_command_leaves_with_130(recipe_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xwam_ft.cli", "train", str(recipe_file), "--run", str(tmp_path / "run")]
    more = ["--set", "trainer.max_steps=100000", "--set", "checkpoint.every_steps=1"]
    process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 240
    while not (tmp_path / "run/checkpoints/step-000002").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Ctrl-C: stopping" in said
    assert "Traceback" not in said
