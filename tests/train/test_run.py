"""Whole runs at toy size: the exact files, resuming to the same bits, what resuming refuses, signals."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

import tiny_training
from tiny_training import cut_back, same_checkpoint
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.plan.plan_report import plan_recipe
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.runs.checkpoint import latest_checkpoint, write_checkpoint
from xwam_ft.runs.folder import open_run
from xwam_ft.shards import ShardSet
from xwam_ft.train.exact import restore_weights

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "embodiments")
Rerun = Callable[[int], Path]


def test_a_run_folder_holds_exactly_this(finished: Path, shard_set: ShardSet) -> None:
    checkpoint = {"trainable.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "recipe.yaml",
        "contract.json",
        "plan.json",
        "metrics.jsonl",
        "report.html",
        "time.json",
        "validation/step-000006/metrics.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter-depth/adapter_config.json",
        "adapter-depth/adapter_model.safetensors",
        *(f"checkpoints/step-{step:06d}/{name}" for step in (3, 6) for name in checkpoint),
    }
    assert (finished / "contract.json").read_bytes() == (shard_set.folder / "contract.json").read_bytes()
    assert load_recipe(finished / "recipe.yaml").data.shards == str(shard_set.folder)


def test_frozen_weights_are_not_in_a_checkpoint(finished: Path) -> None:
    with safe_open(finished / "checkpoints/step-000006/trainable.safetensors", framework="pt") as stored:
        names = list(stored.keys())
    backbone = [name for name in names if name.startswith("transformer.") and ".lora_" not in name]
    copied = [name for name in names if name.startswith("depth_branch.blocks") and ".attn" in name]
    assert backbone == []
    assert all(".lora_" in name for name in copied)


def test_training_learns(finished: Path) -> None:
    # Six steps on toy data: the adapters have left zero, and the network fits what it is shown better.
    trained = load_file(finished / "checkpoints/step-000006/trainable.safetensors")
    assert all(float(value.abs().max()) > 0 for name, value in trained.items() if "lora_B" in name)


@pytest.mark.slow
def test_resuming_gives_the_same_bits(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    tiny_training.resume(run, console)
    # What was logged after the checkpoint is forgotten, not logged twice.
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train/" in line]
    assert steps == sorted(set(steps))
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")
    for name in ("adapter", "adapter-depth"):
        ours, theirs = (folder / name / "adapter_model.safetensors" for folder in (run, finished))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    finished: Path, tmp_path: Path, console: Console
) -> None:
    run = cut_back(finished, tmp_path / "cut", 0)
    tiny_training.resume(run, console)
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


def with_weights(run: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """The run with other weights in its newest checkpoint."""
    old = latest_checkpoint(run)
    assert old is not None
    trainable, ema, optimizer = old.trainable(), old.ema(), old.optimizer()
    shutil.rmtree(old.folder)
    write_checkpoint(run, old.state, change(trainable), optimizer, ema, keep=2)
    return run


def restore(run: Path, console: Console) -> None:
    """A fresh network with the weights of the run's newest checkpoint."""
    folder = open_run(run)
    assert folder.checkpoint is not None
    module = TrainingModule.of_contract(folder.recipe, folder.contract)
    restore_weights(folder.checkpoint, module.network, console)


def test_resuming_says_which_adapters_are_still_zero(finished: Path, tmp_path: Path) -> None:
    name = "depth_branch.blocks.0.attn1.to_k.lora_B.weight"
    run = cut_back(finished, tmp_path / "cut", 3)
    with_weights(run, lambda weights: weights | {name: torch.zeros_like(weights[name])})
    shown = io.StringIO()
    restore(run, Console(file=shown, width=200))
    assert re.search(
        r"after 3 steps 1 of \d+ adapters are still zero: depth_branch.blocks.0.attn1.to_k", shown.getvalue()
    )


def test_adapters_of_another_rank_are_named_as_such(finished: Path, tmp_path: Path, console: Console) -> None:
    def doubled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: torch.cat([t, t], dim=int("lora_B" in n)) if ".lora_" in n else t for n, t in weights.items()}

    run = with_weights(cut_back(finished, tmp_path / "cut", 3), doubled)
    with pytest.raises(UserError, match="holds adapters of rank 4, and the recipe's are of rank 2") as error:
        restore(run, console)
    assert error.value.where.endswith("step-000003/trainable.safetensors")
    assert "set model.lora.rank to 4" in error.value.fix


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path, console: Console) -> None:
    run = shutil.copytree(finished, tmp_path / "again")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    tiny_training.resume(run, console)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_computes_its_float32_products_as_its_recipe_says(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xwam_ft.model.precision.runs_on_gpu", lambda spec: True)  # the step itself is on the CPU
    seen: list[str] = []
    step = TrainingModule.training_step

    def noted(self: TrainingModule, *given: Any) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return step(self, *given)

    monkeypatch.setattr(TrainingModule, "training_step", noted)
    tiny_training.train(recipe_file, tmp_path / "run", ["trainer.max_steps=1", "trainer.tf32=true"], console)
    assert set(seen) == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_existing_run_is_not_overwritten(finished: Path, recipe_file: Path, console: Console) -> None:
    with pytest.raises(UserError, match="the run folder exists already") as error:
        tiny_training.train(recipe_file, finished, [], console)
    assert f"--resume {finished}" in error.value.fix
    with pytest.raises(UserError, match=r"toy.yaml: is a file, and a run is a folder\. Fix: name another by --run"):
        tiny_training.train(recipe_file, recipe_file, [], console)


def test_what_is_no_run_is_refused(tmp_path: Path, console: Console) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(no recipe.yaml\)"):
        tiny_training.resume(tmp_path, console)


def test_another_contract_is_refused(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    text = (run / "contract.json").read_text()
    (run / "contract.json").write_text(text.replace('"embodiment": "test-arm"', '"embodiment": "other-arm"'))
    with pytest.raises(UserError, match="does not hold the contract of") as error:
        tiny_training.resume(run, console)
    assert "embodiment is 'other-arm' there and 'test-arm' in" in str(error.value)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("backbone", "was trained with backbone tiny 0000, and now it is "),
        ("encoders", "was trained with encoders of tiny 0000, and now it is "),
        ("shards", "was trained with index of "),
        ("samples_per_step", "was trained with clips an optimizer step 0000, and now it is 4"),
    ],
)
def test_other_surroundings_are_refused(
    finished: Path, tmp_path: Path, console: Console, field: str, said: str
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    state = run / "checkpoints/step-000003/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {field: "0000"}))
    with pytest.raises(UserError) as error:
        tiny_training.resume(run, console)
    assert said in str(error.value)
    assert "step-000003" in error.value.where


def test_a_changed_recipe_is_refused(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["optim"]["lr_lora"] = 1.0
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"was trained with optim\.lr_lora [\d.e-]+, and .*recipe\.yaml says 1\.0"):
        tiny_training.resume(run, console)


def test_resuming_refuses_before_it_encodes(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["data"]["clip_stride"] = 4
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    shards = Path(tree["data"]["shards"])
    caches = sorted(shards.glob("latents-*"))
    with pytest.raises(UserError, match=r"was trained with data\.clip_stride \d, and .*recipe\.yaml says 4"):
        tiny_training.resume(run, console)
    assert sorted(shards.glob("latents-*")) == caches


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["step-000006", "step-000003"])
def test_a_look_that_a_kill_prevented_is_made_up_for(
    finished: Path, tmp_path: Path, console: Console, kept: str
) -> None:
    run = cut_back(finished, tmp_path / "cut", int(kept[-6:]))
    shutil.rmtree(run / "validation")
    (run / "report.html").unlink()
    tiny_training.resume(run, console, ["validation.every_steps=3"])
    seen = sorted(path.parent.name for path in run.glob("validation/*/metrics.json"))
    assert seen == sorted({kept, "step-000006"})
    ours, theirs = (folder / "validation/step-000006/metrics.json" for folder in (run, finished))
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
    assert (run / "report.html").is_file()
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


def test_a_run_that_cannot_be_made_is_refused_before_any_work(recipe_file: Path, console: Console) -> None:
    with pytest.raises(UserError, match=r"cannot be made: .*toy\.yaml is not a folder"):
        tiny_training.train(recipe_file, recipe_file / "run", [], console)


@pytest.mark.parametrize("harm", ["missing", "cut off", "other"])
def test_a_transformer_that_cannot_be_trained_is_refused_before_clips_are_encoded(
    recipe_file: Path, shard_set: ShardSet, finished: Path, tmp_path: Path, console: Console, harm: str
) -> None:
    """Encoding needs VAE and text encoder alone, and takes hours."""
    folder = shutil.copytree(tiny_folder(), tmp_path / "weights")
    weights, config = folder / "transformer/diffusion_pytorch_model.safetensors", folder / "transformer/config.json"
    if harm == "missing":
        weights.unlink()
    elif harm == "cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 7}))
    told = {
        "missing": "'transformer' is incomplete",
        "cut off": "is cut off or damaged",
        "other": r"blocks\.6\..* none",
    }
    caches = sorted(shard_set.folder.glob("latents-*"))
    changes = [f"backbone.path={folder}", "data.clip_stride=7"]
    with pytest.raises(UserError, match=told[harm]):
        tiny_training.train(recipe_file, tmp_path / "run", changes, console)
    assert not (tmp_path / "run").exists()
    run = cut_back(finished, tmp_path / "cut", 3)
    with pytest.raises(UserError, match=told[harm]):
        tiny_training.resume(run, console, [f"backbone.path={folder}"])
    assert sorted(shard_set.folder.glob("latents-*")) == caches


def test_weights_of_episodes_are_looked_at_before_any_work(
    recipe_file: Path, shard_set: ShardSet, tmp_path: Path, console: Console
) -> None:
    caches = sorted(shard_set.folder.glob("latents-*"))
    changes = ["data.clip_stride=7", "data.episode_weights=[{instruction: 'pik *', weight: 2}]"]
    with pytest.raises(UserError, match="fits no training episode"):
        tiny_training.train(recipe_file, tmp_path / "run", changes, console)
    with pytest.raises(UserError, match="fits no training episode"):
        plan_recipe(load_recipe(recipe_file, changes), console, probe=False, fit=False)
    assert sorted(shard_set.folder.glob("latents-*")) == caches


def test_resuming_refuses_by_name_what_changes_the_result(finished: Path, console: Console) -> None:
    before = (finished / "recipe.yaml").read_bytes()
    changes = ["optim.lr_lora=1", "trainer.workers=2", "seed=7", "model.lora.rank=2"]  # of rank 2 it is already
    with pytest.raises(UserError, match=r"under optim\.lr_lora=1\.0 \(was 0\.001\), seed=7 \(was 0\)\.") as error:
        tiny_training.resume(finished, console, changes)
    assert "workers" not in error.value.what
    assert "trainer.workers" in error.value.fix
    assert (finished / "recipe.yaml").read_bytes() == before


def test_resuming_with_other_clips_a_step_is_refused(finished: Path, console: Console) -> None:
    with pytest.raises(UserError, match="with clips an optimizer step 4, and now it is 8"):
        tiny_training.resume(finished, console, ["trainer.batch_size=4"])


@pytest.mark.slow
def test_a_signal_saves_the_step_at_hand(
    finished: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    honest = TrainingModule.training_step
    before = signal.getsignal(signal.SIGTERM)

    def killed(self: TrainingModule, batch: object, batch_idx: int) -> object:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, batch, batch_idx)  # pyright: ignore

    monkeypatch.setattr(TrainingModule, "training_step", killed)
    with pytest.raises(SystemExit) as stop:
        tiny_training.resume(run, console)
    monkeypatch.undo()
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
    assert not (run / "validation/step-000004").exists()  # a stopping run does not look first
    tiny_training.resume(run, console)
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


@pytest.mark.slow
def test_a_signal_after_the_last_step_does_not_leave_the_run_unfinished(
    finished: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    honest = TrainingModule.on_validation_epoch_end

    def killed(self: TrainingModule) -> None:  # in the last look
        os.kill(os.getpid(), signal.SIGTERM)
        honest(self)

    monkeypatch.setattr(TrainingModule, "on_validation_epoch_end", killed)
    tiny_training.resume(run, console)
    assert (run / "adapter").is_dir()
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(recipe_file: Path, tmp_path: Path, console: Console) -> None:
    steps = ["trainer.max_steps=40", "checkpoint.every_steps=4"]
    whole = tiny_training.train(recipe_file, tmp_path / "whole", steps, console)
    run = tmp_path / "killed"
    code = (
        "from pathlib import Path; from rich.console import Console; from xwam_ft.recipe import Recipe, load_recipe;"
        "from xwam_ft.train.train import train_recipe;"
        f"train_recipe(load_recipe(Path({str(recipe_file)!r}), {steps!r}), Path({str(run)!r}), Console(quiet=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 120
    while not (run / "checkpoints/step-000008").exists() and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (run / "checkpoints/step-000040").exists()
    tiny_training.resume(run, console, ["trainer.workers=2"])
    same_checkpoint(run / "checkpoints/step-000040", whole / "checkpoints/step-000040")


@pytest.mark.parametrize("path", ["sharinka0715/X-WAM", "sharinka0715/X-WAM-RoboCasa"])
def test_released_weights_are_refused(recipe_file: Path, tmp_path: Path, console: Console, path: str) -> None:
    with pytest.raises(UserError, match=r"holds X-WAM's own checkpoints, which are imported once") as error:
        tiny_training.train(recipe_file, tmp_path / "run", [f"backbone.path={path}"], console)
    assert "data_tools/import_xwam.py CKPT OUT --vae-text FOLDER" in error.value.fix
    assert not (tmp_path / "run").exists()


def test_a_folder_of_released_weights_is_refused(recipe_file: Path, tmp_path: Path, console: Console) -> None:
    states = tmp_path / "weights/checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt"
    states.parent.mkdir(parents=True)
    states.touch()
    with pytest.raises(UserError, match=r"holds weights under the names of .* python data_tools/import_xwam\.py"):
        tiny_training.train(recipe_file, tmp_path / "run", [f"backbone.path={tmp_path / 'weights'}"], console)


def test_a_gpu_that_is_not_there_is_refused(recipe_file: Path, tmp_path: Path, console: Console) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="is 'gpu', and no CUDA device is available"):
        tiny_training.train(recipe_file, tmp_path / "run", ["trainer.accelerator=gpu"], console)


def test_pictures_that_are_no_whole_patches_are_refused(
    recipe: Recipe, shard_set: ShardSet, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xwam_ft.model.network import JointNetwork

    module = TrainingModule.of_contract(recipe, shard_set.contract)

    monkeypatch.setattr(JointNetwork, "patch_size", property(lambda self: (1, 4, 3)))
    with pytest.raises(UserError, match="make latents of 2x2x4 cells, and the transformer reads patches of 1x4x3"):
        module.train_on(ClipDataModule(cache, recipe, shard_set.contract.sha256))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_parses_and_says_what_it_is_for(path: Path) -> None:
    load_recipe(path)
    header = path.read_text().split("\n\n")[0]
    for word in ("# Purpose:", "# Command:", "# Hardware:"):
        assert word in header


def test_a_prefix_as_long_as_a_chunk_is_refused(recipe_file: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(UserError, match=r"is 99, and a chunk of .* has \d+ actions"):
        tiny_training.train(recipe_file, tmp_path / "run", ["noise.action_prefix.max=99"], console)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_adapters_that_do_not_move_stop_the_run(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xwam_ft.train.callbacks.MOVED_BY", 2)
    with pytest.raises(UserError, match=r"\d+ of \d+ adapters have not moved in 2 steps: depth_branch") as error:
        tiny_training.train(recipe_file, tmp_path / "run", ["loss.depth=0", "trainer.accumulate=1"], console)
    assert "loss.*" in error.value.fix
    assert (tmp_path / "run/report.html").is_file()  # how it came to that
