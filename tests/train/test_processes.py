"""One step in several processes on a CPU (gloo), started by torchrun: the gradients and files of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

import tiny_training
from shared import QUIET
from xwam_ft.encode.cache import LatentCache
from xwam_ft.recipe import Recipe

ONE = {"batch_size": 8, "accumulate": 1}
DDP = {"batch_size": 4, "accumulate": 1, "devices": 2, "strategy": "ddp"}
FSDP2 = {"batch_size": 2, "accumulate": 2, "devices": 2, "strategy": "fsdp2"}
FULL = {"train": "full", "gradient_checkpointing": True, "depth": {"blocks": 1, "train": "full"}}
OPTIONAL = {"future": "optional", "gradient_checkpointing": True}
FILES = ("fsdp2", "one")
SCRIPT = """
import json, sys
from pathlib import Path
from rich.console import Console
from xwam_ft.recipe import load_recipe
from xwam_ft.train.train import train_recipe
for recipe in json.loads(sys.argv[1]):
    train_recipe(load_recipe(Path(recipe)), Path(recipe).with_suffix(""), Console(quiet=True))
"""


@pytest.fixture(scope="module")
def runs(changed: Callable[..., Recipe], cache: LatentCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs of the same step, cut up differently; those of two processes are made by one torchrun."""
    folder = tmp_path_factory.mktemp("processes")
    quick = {"clips": 1, "action_steps": 1, "video_steps": 1}

    def recipe(name: str, trainer: dict[str, object], steps: int = 1, **model: object) -> Path:
        path = folder / f"{name}.yaml"
        every = {"every_steps": 1}
        tree = changed(trainer={**trainer, "max_steps": steps}, model=model, checkpoint=every, validation=quick)
        path.write_text(yaml.safe_dump(tree.model_dump(mode="json")))
        return path

    console = QUIET
    for path in (
        recipe("one", ONE),
        recipe("eight", {"batch_size": 1, "accumulate": 8}),
        recipe("one-full", ONE, 2, **FULL),
        recipe("one-optional", ONE, **OPTIONAL),
    ):
        tiny_training.train(path, path.with_suffix(""), [], console)
    two = [recipe("ddp", DDP), recipe("fsdp2", FSDP2), recipe("fsdp2-full", FSDP2, 2, **FULL)]
    two.append(recipe("fsdp2-optional", FSDP2, **OPTIONAL))
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "script.py"), json.dumps([str(path) for path in two])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def gradients(run: Path) -> dict[str, Tensor]:
    """Of the first step, clipped, times 1 - beta_1: AdamW's first moment."""
    stored = load_file(run / "checkpoints/step-000001/optimizer.safetensors")
    return {name: value for name, value in stored.items() if name.startswith("exp_avg.")}


def same(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], of_the_largest: float, where: dict[str, Tensor] | None = None
) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    assert scale > 0
    for name, value in theirs.items():
        told = where[name] if where is not None else torch.ones_like(value, dtype=torch.bool)
        torch.testing.assert_close(ours[name][told], value[told], atol=of_the_largest * scale, rtol=1e-5, msg=name)


def above_rounding(moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where a gradient is 0 or more than rounding: AdamW's first step goes by the sign of a gradient, nearly."""
    scale = max(float(value.abs().max()) for value in moments.values())
    return {
        name.removeprefix("exp_avg."): (value == 0) | (value.abs() > 1e-5 * scale) for name, value in moments.items()
    }


@pytest.mark.slow
def test_a_step_does_not_depend_on_how_it_is_cut(runs: Path) -> None:
    for name in ("eight", "ddp", "fsdp2"):
        same(gradients(runs / name), gradients(runs / "one"), 1e-6)
    told = above_rounding(gradients(runs / "one"))
    assert sum(int(where.sum()) for where in told.values()) > 0.8 * sum(where.numel() for where in told.values())
    for file in ("trainable", "ema"):
        ours, theirs = (load_file(runs / name / f"checkpoints/step-000001/{file}.safetensors") for name in FILES)
        same(ours, theirs, 1e-6, told)
    ours, theirs = (load_file(runs / name / "adapter/adapter_model.safetensors") for name in FILES)
    same(ours, theirs, 1e-5)
    losses = [json.loads((runs / name / "validation/step-000001/metrics.json").read_text())["losses"] for name in FILES]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_hidden_futures_are_cut_over_processes_as_well(runs: Path) -> None:
    ours, theirs, joint = (gradients(runs / name) for name in ("fsdp2-optional", "one-optional", "one"))
    same(ours, theirs, 1e-6)
    scale = max(float(value.abs().max()) for value in joint.values())
    assert any(float((theirs[name] - value).abs().max()) > 1e-3 * scale for name, value in joint.items())


@pytest.mark.slow
def test_full_fine_tuning_is_sharded_and_goes_on_in_one_process(runs: Path, tmp_path: Path, console: Console) -> None:
    one, run = runs / "one-full", shutil.copytree(runs / "fsdp2-full", tmp_path / "run")
    same(gradients(run), gradients(one), 1e-6)
    shutil.rmtree(run / "checkpoints/step-000002")
    cut = {**ONE, "devices": 1, "strategy": "auto"}
    tiny_training.resume(run, console, [f"trainer.{key}={value}" for key, value in cut.items()])
    for again in (run, runs / "fsdp2-full"):
        ours, theirs = (load_file(each / "checkpoints/step-000002/trainable.safetensors") for each in (again, one))
        same(ours, theirs, 1e-5)
