"""The command line: every verb answers --help at once, and a user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xwam_ft.cli import main

VERBS = ["inspect", "prepare", "plan", "encode", "train", "export", "imagine", "evaluate", "view", "doctor", "demo"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xwam_ft.cli", *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_process_ends_with_the_code_and_without_a_traceback() -> None:
    done = run("prepare", "only_one", "--embodiment", "absent.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("xwam-ft: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_help_lists_the_verbs_with_whole_summaries() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb in VERBS:
        [summary] = [line for line in done.stdout.splitlines() if line.startswith(f"  {verb} ")]
        assert summary.endswith("."), "cut short"
    assert "--install-completion" in done.stdout


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"xwam-ft {version('xwam-ft')}\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["prepare", "only_one", "--embodiment", "e.yaml"], ["got one path", "RAW... OUT"]),
        (["train"], ["neither just a recipe nor just --resume", "give RECIPE, or --resume RUN"]),
        (
            ["train", "absent.yaml"],
            ["absent.yaml", "is neither a file", "nor one of the recipes that ship", "tiny_cpu"],
        ),
        (["train", "--resume", "absent"], ["absent"]),
        (["train", "--resume", "absent", "--set", "trainer.workers=2"], ["absent: is not a run folder"]),
        (["plan", "tiny_cup"], ["tiny_cup", "did you mean 'tiny_cpu'?"]),
        (["inspect", "absent"], ["absent"]),
        (["export", "absent", "out"], ["absent"]),
        (["evaluate", "absent", "absent"], ["absent"]),
        (["evaluate"], ["got no bundle", "BUNDLE and SHARDS or --env, or --compare A B"]),
        (["evaluate", "--compare", "a", "b"], ["a: holds no metrics.json", "--out OUT"]),
        (
            ["evaluate", "--compare", "a", "b", "--clips", "3"],
            ["--clips: changes nothing", "--compare goes with --out"],
        ),
        (["evaluate", "bundle", "--compare", "a", "b"], ["--compare: goes with --out alone", "BUNDLE"]),
        (["evaluate", "bundle", "--env", "e", "--world"], ["--world: changes nothing here"]),
        (["serve", "absent", "--replay", "0", "--seed", "1"], ["--seed", "changes nothing here", "a replay answers"]),
        (["view", "absent"], ["absent: is not there", "a shard set, a run, a bundle"]),
        (["view", "absent", "--rerun", "--port", "1"], ["go with the page, not with Rerun", "leave them out"]),
        (["imagine", "absent", "--shards", "absent", "--episode", "0", "--out", "out"], ["absent"]),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xwam-ft", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    lines = said.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("xwam-ft: ")
    assert "Fix: " in lines[0]
    for part in parts:
        assert part in lines[0]
    assert not list(tmp_path.iterdir()), "something was written"
