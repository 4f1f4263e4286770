"""The command line: every verb answers --help at once, and a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

VERBS = ["inspect", "prepare", "plan", "encode", "train", "export", "imagine", "evaluate", "demo"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xwam_ft.cli", *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_lists_the_verbs() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prepare", "only_one", "--embodiment", "e.yaml"], ["got one path", "RAW... OUT"]),
        (["train"], ["neither just a recipe nor just --resume", "give RECIPE, or --resume RUN"]),
        (["train", "absent.yaml"], ["absent.yaml", "does not exist"]),
        (["train", "--resume", "absent"], ["absent"]),
        (["train", "--resume", "absent", "--set", "trainer.workers=2"], ["absent: is not a run folder"]),
        (["plan", "absent.yaml"], ["absent.yaml", "does not exist"]),
        (["inspect", "absent"], ["absent"]),
        (["export", "absent", "out"], ["absent"]),
        (["evaluate", "absent", "absent"], ["absent"]),
        (["imagine", "absent", "--shards", "absent", "--episode", "0", "--out", "out"], ["absent"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xwam_ft.cli", *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("xwam-ft: ")
    assert "Fix: " in lines[0]
    for part in parts:
        assert part in lines[0]
    assert not list(tmp_path.iterdir()), "something was written"
