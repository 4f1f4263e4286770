"""docs/week.md as one scripted week: its blocks, as they stand, in one shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xwam_ft.policy.bundle import verify_bundle
from xwam_ft.runs.runs import list_runs

ROOT = Path(__file__).parents[2]


@pytest.mark.soak  # minutes, and each of its steps has quicker tests of its own
def test_the_week_goes_as_its_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "week.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = "set -eu\n" + "".join(f"echo '=== {number}'\n{block}" for number, block in enumerate(blocks))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    said = re.split(r"^=== \d\n", done.stdout, flags=re.MULTILINE)[1:]
    assert "6 of 6" in said[2], "the table of runs"
    assert "init_from" in said[3], "what two runs differ by"
    assert "best by held_out/total: step " in said[4]
    assert "commands sent" in said[6]
    week = tmp_path / "elsewhere" / "week"
    assert not (tmp_path / "week").exists()
    verify_bundle(week / "bundle")
    runs = {run.name: run for run in list_runs(week / "runs")}
    assert {name: (run.step, run.state) for name, run in runs.items()} == {
        "first": (6, "finished"),
        "second": (5, "finished"),
    }
    config = json.loads((week / "bundle" / "config.json").read_text())
    assert f"best by held_out/total: step {config['step']} with" in said[4]
    assert (week / "imagined" / "imagined.mp4").stat().st_size > 0
