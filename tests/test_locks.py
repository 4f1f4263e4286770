"""One writer a place: the second is told whose it is; what a killed process leaves holds nobody up."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from xwam_ft import locks
from xwam_ft.errors import UserError
from xwam_ft.locks import sole_folder, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from xwam_ft.locks import sole_writer
with sole_writer(Path(sys.argv[1]), "exporting to it"):
    print("held", flush=True)
    time.sleep(60)
"""

COUNT = """
import sys, time
from pathlib import Path
from xwam_ft.errors import UserError
from xwam_ft.locks import sole_writer
done, target, number = 0, Path(sys.argv[1]), Path(sys.argv[2])
while done < 40:
    try:
        with sole_writer(target, "counting"):
            before = int(number.read_text())
            time.sleep(0.0005)
            number.write_text(str(before + 1))
            done += 1
    except UserError:
        time.sleep(0.0005)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Generator[Callable[[Path], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def hold(target: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, target], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_the_second_is_told_whose_it_is_and_a_killed_one_holds_nobody_up(
    holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    process = holder(target)
    sentence = rf"bundle: is in use: process {process.pid} on \S+ is exporting to it since 20.*Fix: wait"
    with pytest.raises(UserError, match=sentence), sole_writer(target, "exporting to it"):
        pytest.fail("two at once")
    with sole_writer(tmp_path / "another", "exporting to it"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    assert (tmp_path / ".bundle.lock").exists(), "a killed process cleans nothing up"
    with sole_writer(target, "exporting to it"):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "run", "training it"):
        raise ZeroDivisionError
    with sole_writer(tmp_path / "run", "training it"):
        pass


def test_nobody_is_ever_in_together(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    command = [sys.executable, "-c", COUNT, tmp_path / "place", number]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert number.read_text() == "120"


def test_who_holds_it_can_be_looked_at_without_holding_anybody_up(
    holder: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    target = tmp_path / "run"
    assert locks.holder(target) is None
    process = holder(target)
    assert (said := locks.holder(target)) is not None
    assert said.startswith(f"process {process.pid} on ")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    assert locks.holder(target) is None, "stale"
    with sole_writer(target, "training it"):
        assert (said := locks.holder(target)) is not None
        assert f"process {os.getpid()} on " in said


@pytest.mark.parametrize("alive", [True, False])
def test_on_a_disk_without_locks_what_is_written_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def none(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        owner = {"pid": process.pid, "host": socket.gethostname(), "doing": "training it", "since": "2026-01-01"}
        (tmp_path / ".run.lock").write_text(json.dumps(owner))
        if not alive:
            process.kill()
            process.wait()
        if alive:
            with (
                pytest.raises(UserError, match=rf"process {process.pid} on .* is training it .* remove \S+\.run\.lock"),
                sole_writer(tmp_path / "run", "training it"),
            ):
                pytest.fail("two at once")
        else:
            assert locks.holder(tmp_path / "run") is None
            with sole_writer(tmp_path / "run", "training it"):
                pass
            assert not (tmp_path / ".run.lock").exists()
    finally:
        process.kill()
        process.wait()


def test_what_killed_writers_left_half_written_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "run [a]"
    left = [tmp_path / ".run [a].ab_cd012.tmp", target / "x/.metrics.01234567.tmp.json", target / ".step.abcdefgh.tmp"]
    kept = [tmp_path / ".run a.ab_cd012.tmp", target / ".mine.tmp", target / "x/.notes.tmp.md", tmp_path / ".b.tmp"]
    for path in (left[0] / "half", left[1], left[2] / "half", *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    with sole_writer(target, "training it"):
        assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_a_new_folder_is_made_by_one(tmp_path: Path) -> None:
    with (
        sole_folder(tmp_path / "out", "evaluating into it") as folder,
        pytest.raises(UserError, match=r"is in use: process .* is evaluating into it since"),
        sole_folder(tmp_path / "out", "evaluating into it"),
    ):
        pytest.fail("two at once")
    assert folder.name.startswith(".out.")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_write_inside_or_under_a_longer_name_is_left_alone(tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "run" / "bundle"
    run.mkdir()
    with sole_folder(bundle, "exporting to it") as inside, sole_folder(tmp_path / "run.v2", "training it") as longer:
        (inside / "deep").mkdir()
        half = inside / "deep" / ".model.safetensors.abcd_123.tmp"
        half.touch()
        with sole_writer(run, "training it"):
            assert half.is_file()
            assert longer.is_dir()
    assert bundle.is_dir()
    assert (tmp_path / "run.v2").is_dir()
