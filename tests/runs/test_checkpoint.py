"""Checkpoints: whole or absent, the last few kept, damage named."""

from __future__ import annotations

import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.runs.best import best_checkpoint
from xwam_ft.runs.checkpoint import (
    EMA_FILE,
    RunState,
    best_steps,
    latest_checkpoint,
    library_versions,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)


def state(step: int) -> RunState:
    return RunState(
        step=step,
        position=4 * step,
        epoch=0,
        seed=0,
        samples_per_step=4,
        learning_rates={"lora": 0.1},
        recipe={"model.lora.alpha": 2.0},
        contract="c",
        backbone="b",
        encoders="e",
        shards="s",
        network={"num_views": 2},
        versions=library_versions(),
    )


def write(run: Path, step: int, keep: int = 2, ema: bool = True) -> Path:
    tensors = {"w": torch.full((3,), float(step))}
    return write_checkpoint(run, state(step), tensors, {"step.w": torch.tensor(1.0)}, tensors if ema else None, keep)


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write(tmp_path, 7))
    assert checkpoint.state == state(7)
    assert torch.equal(checkpoint.trainable()["w"], torch.full((3,), 7.0))
    average = checkpoint.ema()
    assert average is not None
    assert torch.equal(average["w"], torch.full((3,), 7.0))
    assert float(checkpoint.optimizer()["step.w"]) == 1.0


def test_without_an_average_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(write(tmp_path, 1, ema=False)).ema() is None


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9, 10, 999_999, 1_000_000):
        write(tmp_path, step, keep=3)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000010", "step-999999", "step-1000000"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.state.step == 1_000_000


def test_leftovers_of_a_kill_are_not_checkpoints_and_go_away(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".step-000003.abc.tmp"
    leftover.mkdir(parents=True)
    assert latest_checkpoint(tmp_path) is None
    write(tmp_path, 4)
    assert not leftover.exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_checkpoint(tmp_path, state(1), {"w": "no tensor"}, {}, None, 1)  # pyright: ignore
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("name", ["trainable.safetensors", EMA_FILE, "optimizer.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 1)
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged") as error:
        latest_checkpoint(tmp_path)
    assert error.value.where == str(path)
    path.unlink()
    with pytest.raises(UserError, match="the checkpoint's file is missing"):
        read_checkpoint(folder)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    import json

    folder = write(tmp_path, 1)
    tree = read_json(folder / "state.json")
    (folder / "state.json").write_text(json.dumps(tree | {"schema_version": 99}))
    with pytest.raises(UserError, match="has schema version 99, not 2"):
        read_checkpoint(folder)


@contextmanager
def files_no_longer_than(size: int) -> Generator[None]:
    """What a write beyond this meets is what a full disk gives, under another name (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [64, 20_000])  # the first file fails; a later one does
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, size: int) -> None:
    last = write(tmp_path, 1, keep=1)
    before = {path: path.read_bytes() for path in last.iterdir()}
    big = {"w": torch.zeros(10_000)}
    with files_no_longer_than(size), pytest.raises(UserError, match="cannot be written") as error:
        write_checkpoint(tmp_path, state(2), {"w": torch.zeros(100)}, big, None, 1)
    assert f"the last checkpoint is {last}" in error.value.what
    assert f"xwam-ft train --resume {tmp_path}" in error.value.fix
    assert list((tmp_path / "checkpoints").iterdir()) == [last]
    assert {path: path.read_bytes() for path in last.iterdir()} == before
    read_checkpoint(write(tmp_path, 2, keep=1))  # room again: goes on


def test_the_best_by_held_out_loss_is_kept_beside_the_newest(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    weights = {"video": 1.0, "action": 2.0}
    losses = {1: (0.5, 0.5), 2: (0.9, 0.1), 3: (0.6, 0.4), 4: (0.7, 0.7), 5: (0.1, 0.1)}  # 5 is not saved
    for step, (video, action) in losses.items():
        row = f'{{"step": {step}, "held_out/video": {video}, "held_out/action": {action}}}\n'
        with metrics.open("a") as stream:
            stream.write(row + f'{{"step": {step}, "train/loss_total": 0.0}}\n')
    with metrics.open("a") as stream:
        stream.write('{"step": 6, "held_out/vi')  # a kill cut the line
    for step in (1, 2, 3, 4):
        spare = best_steps(tmp_path, weights, 1)
        tensors = {"w": torch.zeros(1)}
        write_checkpoint(tmp_path, state(step), tensors, tensors, None, keep=1, spare=spare)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000002", "step-000004"]
    assert best_steps(tmp_path, weights, 5) == [2, 4]
    assert best_steps(tmp_path / "absent", weights, 1) == []


def test_losses_over_other_clips_are_not_compared(tmp_path: Path) -> None:
    rows = [(1, 2.0, 8), (2, 1.0, 8), (3, 0.1, 16), (4, 0.2, 16)]
    lines = [f'{{"step": {step}, "held_out/video": {loss}, "held_out_clips": {clips}}}\n' for step, loss, clips in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    for step, *_ in rows:
        write_checkpoint(tmp_path, state(step), {"w": torch.zeros(1)}, {"w": torch.zeros(1)}, None, keep=9)
    assert best_steps(tmp_path, {"video": 1.0}, 1) == [3, 2]  # each number of clips has its own
    (tmp_path / "metrics.jsonl").write_text("".join([*lines, lines[0].replace('"step": 1', '"step": 5')]))
    found = best_checkpoint(tmp_path, "video")
    assert (found.step, found.value, found.other) == (2, 1.0, (3, 4))
    assert "not compared, since measured on other clips: step 3, 4" in str(found)
