"""Preparations that are killed, interrupted and run out of room: the same command ends with the same bytes.

Processes are forked from one that has everything loaded, so that a kill falls into the work and not into imports.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET, files_in
from xwam_ft.prepare.pipeline import prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork, no SIGKILL")

COMMAND = "from xwam_ft.cli import main; main()"
INTERRUPTED = """
import os, signal
import xwam_ft.prepare.pipeline as pipeline
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run = pipeline.run
def interrupted(job):
    outcome = run(job)
    os.kill(os.getpid(), signal.SIGINT)
    return outcome
pipeline.run = interrupted
"""  # ^C after an episode
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "


def work(raw: Path, out: Path, embodiment: Path) -> None:
    options: dict[str, Any] = {"depth": None, "strict": False, "urdf_dirs": [], "console": QUIET}
    prepare([raw], out, embodiment=embodiment, workers=0, **options)


def start(raw: Path, out: Path, embodiment: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=(raw, out, embodiment))
    process.start()
    return process


def finish(raw: Path, out: Path, embodiment: Path) -> dict[str, bytes]:
    """Run to the end; what it made, which is removed. Nothing else may be left beside it."""
    process = start(raw, out, embodiment)
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    made = files_in(out)
    for path in sorted(out.rglob("*"), reverse=True):
        path.unlink()
    out.rmdir()
    return made


def kill_and_rerun(times: int, raw: Path, out: Path, embodiment: Path) -> int:
    """Kill `times` runs at random moments, rerun each to the end; how many were killed with work begun and not done."""
    out.parent.mkdir()
    finish(raw, out, embodiment)  # loads what is loaded late
    began = time.perf_counter()
    whole = finish(raw, out, embodiment)
    lasts = time.perf_counter() - began
    random, within = np.random.default_rng(), 0
    for _ in range(times):
        process = start(raw, out, embodiment)
        time.sleep(random.uniform(0, lasts))
        process.kill()
        process.join()
        within += int(process.exitcode == -signal.SIGKILL and any(out.parent.glob(".*.preparing")))
        assert finish(raw, out, embodiment) == whole
    return within


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_same_bytes(v21: Path, toy: Path, tmp_path: Path) -> None:
    kill_and_rerun(2, v21, tmp_path / "place" / "out", toy)


@pytest.mark.soak
def test_thirty_kills_at_random_moments(v21: Path, toy: Path, tmp_path: Path) -> None:
    within = kill_and_rerun(30, v21, tmp_path / "place" / "out", toy)
    print(f"{within} of 30 kills fell into the work")
    assert within >= 10


def command(raw: Path, out: Path, embodiment: Path, before: str = "") -> list[str]:
    arguments = ["prepare", str(raw), str(out), "--embodiment", str(embodiment), "--workers", "0"]
    return [sys.executable, "-c", before + COMMAND, *arguments]


@pytest.mark.slow
def test_a_full_disk_and_an_interrupt_are_told_and_taken_up(v21: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    out.parent.mkdir()
    whole = finish(v21, out, toy)
    full = subprocess.run(command(v21, out, toy, LIMITED), capture_output=True, text=True, check=False)
    assert full.returncode == 2
    assert "there is no room to write" in full.stderr.replace("\n", " ")
    assert "Traceback" not in full.stderr + full.stdout
    assert not out.exists()
    assert finish(v21, out, toy) == whole

    stopped = subprocess.run(command(v21, out, toy, INTERRUPTED), capture_output=True, text=True, check=False)
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr + stopped.stdout
    assert any((out.parent / ".out.preparing").glob("episode-*"))
    assert not out.exists()
    assert finish(v21, out, toy) == whole
