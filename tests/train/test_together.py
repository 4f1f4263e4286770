"""Several processes of a run on a CPU (gloo): where one fails, all end within seconds, with its sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from xwam_ft.encode.cache import LatentCache
from xwam_ft.locks import sole_writer
from xwam_ft.recipe import Recipe
from xwam_ft.train import together as waiting

WITHIN = 40.0
"""Seconds from one process' end to the other's, on a machine that is busy with something else."""
SCRIPT = "from xwam_ft.cli import main\nmain()\n"
FAILING = """
import os, resource, signal
from lightning.pytorch.callbacks import Callback
from xwam_ft.errors import UserError

class FullDisk(Callback):
    "The first process may write no file of more than 2,000 bytes, as a full disk would let it write none."
    def on_train_start(self, trainer, pl_module):
        if trainer.is_global_zero:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

class Killed(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_global_zero and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)

class Second(Callback):
    "Another than the first fails, between two steps."
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and batch_idx == 2:
            raise UserError("cannot be read", "clip-7", "record it again")

class Bug(Callback):
    "The first process fails in its look, in a way that nobody foresaw, while the other waits."
    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            raise ZeroDivisionError("of nothing")
"""


@pytest.fixture
def write(changed: Callable[..., Recipe], cache: LatentCache, tmp_path: Path) -> Callable[[str, str], Path]:
    """A recipe of two processes with one of the callbacks above; the cache is there."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "failing.py").write_text(FAILING)

    def written(strategy: str, callback: str) -> Path:
        recipe = changed(
            trainer={"batch_size": 2, "accumulate": 2, "devices": 2, "strategy": strategy, "max_steps": 3},
            checkpoint={"every_steps": 1},
            validation={"every_steps": 2, "clips": 1, "action_steps": 1, "video_steps": 1, "imagine_clips": 0},
            logging={"to": []},
        )
        tree = recipe.model_dump(mode="json")
        tree["trainer"]["callbacks"] = [f"failing:{callback}"] if callback else []
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return written


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `xwam-ft` with arguments; with a rank as one of two processes that something else starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str, rank: int | None = None) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if rank is not None:
            environment |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "script.py", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def ends(process: subprocess.Popen[str], seconds: float = 300.0) -> tuple[int, str]:
    """Its exit code and what it said on stderr."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def both(write: Callable[..., Path], started: Callable[..., subprocess.Popen[str]], strategy: str, callback: str):
    """Exit codes and last words of two processes, and the seconds between their ends."""
    words = ["train", str(write(strategy, callback)), "--run", "run"]
    processes = [started(*words, rank=rank) for rank in (0, 1)]
    while all(process.poll() is None for process in processes):
        time.sleep(0.05)
    since = time.monotonic()
    found = [ends(process, WITHIN) for process in processes]
    assert time.monotonic() - since < WITHIN
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_full_disk_under_a_checkpoint_ends_all(write, started, tmp_path: Path, strategy: str) -> None:
    (first, said), (other, silent) = both(write, started, strategy, "FullDisk")
    assert (first, other) == (2, 2), said + silent
    assert "xwam-ft: run: cannot be written (file too large); no checkpoint was written before" in said
    assert said.count("xwam-ft:") == 1
    assert "Traceback" not in said + silent
    assert list((tmp_path / "run/checkpoints").iterdir()) == []
    code, again = ends(started("train", "--resume", "run", "--set", "trainer.devices=2"))
    assert (code, again.count("cannot be written")) == (2, 1)  # processes that Lightning starts: the same


@pytest.mark.slow
def test_a_killed_first_process_ends_the_other(write, started) -> None:
    (first, said), (other, heard) = both(write, started, "ddp", "Killed")
    assert (first, other) == (-signal.SIGKILL, 2), said + heard
    assert "xwam-ft: run: its first process has ended. Fix: see what that one printed" in heard
    assert "Traceback" not in heard


@pytest.mark.slow
def test_another_one_that_fails_ends_the_first(write, started) -> None:
    (first, heard), (other, said) = both(write, started, "ddp", "Second")
    assert (first, other) == (2, 2), said + heard
    assert "xwam-ft: clip-7: cannot be read. Fix: record it again" in said
    assert "xwam-ft: process 1 of 2 has stopped: clip-7: cannot be read. Fix: record it again" in heard
    assert "Traceback" not in said + heard


@pytest.mark.slow
def test_a_bug_of_the_first_in_a_look_ends_the_other(write, started) -> None:
    (first, said), (other, _) = both(write, started, "ddp", "Bug")
    assert (first, other) == (1, 1), said
    assert "ZeroDivisionError: of nothing" in said


@pytest.mark.slow
def test_processes_that_do_not_fail_end_well_and_a_finished_run_is_left(write, started, tmp_path: Path) -> None:
    for code, said in both(write, started, "ddp", ""):
        assert code == 0, said
        assert "xwam-ft:" not in said
    assert (tmp_path / "run/adapter").is_dir()
    processes = [started("train", "--resume", "run", rank=rank) for rank in (0, 1)]
    for process in processes:
        assert ends(process)[0] == 0


@pytest.mark.slow
def test_a_process_that_waits_for_the_first_ends_with_it(write, started, tmp_path: Path) -> None:
    """Before any of them is joined to another: the first one encodes, say, and is killed."""
    recipe = write("ddp", "")
    holding = f"""
import time
from pathlib import Path
from xwam_ft.locks import sole_writer
with sole_writer(Path({str(tmp_path / "run")!r}), "training it"):
    print("held", flush=True)
    time.sleep(600)
"""
    first = subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        (tmp_path / "script.py").write_text(f"import xwam_ft.train.train\nprint('loaded', flush=True)\n{SCRIPT}")
        other = started("train", str(recipe), "--run", "run", rank=1)
        assert other.stdout is not None
        assert other.stdout.readline() == "loaded\n"
        time.sleep(8.0)
        assert other.poll() is None
    finally:
        first.kill()
        first.wait()
    code, said = ends(other, WITHIN)
    assert code == 2, said
    assert "run: its first process has ended" in said


def test_who_waits_looks_at_the_lock_alone_until_all_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console
) -> None:
    """A lock that is let go of ends a process that waits, not one that has joined, and not one whose run is done."""
    ended: list[str] = []
    monkeypatch.setattr(waiting, "EVERY", 0.02)
    monkeypatch.setattr(waiting.Together, "_end", lambda self, word, says: ended.append(word.text))
    for joined, finished in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(waiting.Together, "_finished", lambda self, finished=finished: finished)
        one = waiting.Together(tmp_path / "run", console)
        with one.beside_the_first():
            with sole_writer(tmp_path / "run", "training it"):
                time.sleep(0.3)
                assert not ended
                if joined:
                    one._joined.set()
            time.sleep(0.3)
        assert len(ended) == (not joined and not finished)
        ended.clear()
