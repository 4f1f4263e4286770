"""The SLURM files, run by bash with an srun of ours: which command a task gets, its CPUs, and when it is requeued."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from xwam_ft import hub
from xwam_ft.bundled import bundled
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.recipe import load_recipe

FILES = sorted(bundled("recipes/slurm").glob("*.sbatch"))


def run(script: Path, folder: Path, code: int, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines that srun and scontrol were called with."""
    for name in ("srun", "scontrol"):
        program = folder / name
        status = code if name == "srun" else 0
        program.write_text(f'#!/bin/sh\necho "{name} cpus=$SRUN_CPUS_PER_TASK $*" >> {folder}/calls\nexit {status}\n')
        program.chmod(0o755)
    given = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", str(script), *arguments], env=given, cwd=folder, capture_output=True, text=True)
    return done.returncode, (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", FILES, ids=lambda path: path.stem)
def test_a_task_gets_its_cpus_and_a_stopped_run_is_requeued(script: Path, tmp_path: Path) -> None:
    """From Slurm 22.05 on srun does not take --cpus-per-task from sbatch."""
    code, [first, requeued] = run(script, tmp_path, 143, "recipe.yaml", "run", "--set", "data.shards=out/my shards")
    assert code == 143
    assert first.startswith("srun cpus=8 --kill-on-bad-exit=1 xwam-ft train recipe.yaml --run run --set data.shards=")
    assert requeued.endswith("requeue 7")
    (tmp_path / "calls").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    code, calls = run(script, tmp_path, 2, "recipe.yaml", "run")
    assert code == 2
    assert len(calls) == 1, "a mistake is not tried again"
    assert " xwam-ft train --resume run" in calls[0]


@pytest.mark.parametrize("path", sorted(bundled("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_asks_the_hub_for_nothing_but_the_published_weights(path: Path) -> None:
    backbone = load_recipe(path).backbone.path
    assert backbone in (PUBLISHED, "tiny") or hub.repo_of(backbone, "model") is None
