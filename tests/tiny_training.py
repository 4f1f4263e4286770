"""Training as tests call it: a recipe's file and `--set` strings; and what the tests of the rooms that train share.

A tiny recipe on the synthetic shard set, its latent cache and a run by it, made once for all of them (conftest.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from shared import QUIET
from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import Layout
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import ShardSet
from xwam_ft.train import smoke
from xwam_ft.train.train import resume_run, train_recipe


def train(recipe: Path, run: Path, overrides: list[str], console: Console) -> Path:
    train_recipe(load_recipe(recipe, overrides), run, console)
    return run


def resume(run: Path, console: Console, overrides: list[str] | None = None) -> None:
    resume_run(run, console, overrides)


def smoke_test(recipe: Path, overrides: list[str], console: Console) -> None:
    smoke.smoke_test(load_recipe(recipe, overrides), console)


def same_checkpoint(left: Path, right: Path) -> None:
    for name in ("trainable", "optimizer", "ema"):
        ours, theirs = load_file(left / f"{name}.safetensors"), load_file(right / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), f"{name}: {key}"


def cut_back(finished: Path, target: Path, step: int) -> Path:
    """The run as it was when its checkpoint of `step` was the newest."""
    shutil.copytree(finished, target)
    shutil.rmtree(target / "adapter")
    shutil.rmtree(target / "adapter-depth")
    for folder in (target / "checkpoints").iterdir():
        if folder.name > f"step-{step:06d}":
            shutil.rmtree(folder)
    return target


def recipe_tree(shards: Path) -> dict[str, Any]:
    return {
        "backbone": {"path": "tiny", "dtype": "float32"},
        "data": {"shards": str(shards), "clip_stride": 3},
        "model": {"lora": {"rank": 2, "alpha": 2}, "depth": {"blocks": 1}},
        "optim": {"lr_lora": 1e-3, "lr_heads": 1e-3, "lr_depth": 1e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "trainer": {"max_steps": 6, "batch_size": 2, "accumulate": 2, "threads": 1, "accelerator": "cpu"},
        "checkpoint": {"every_steps": 3, "keep": 2},
        "validation": {"every_steps": 0, "clips": 2, "action_steps": 2, "video_steps": 2, "imagine_clips": 0},
        "logging": {"every_steps": 2},
    }


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shard_set(toy_set: ShardSet) -> ShardSet:
    """A shard set of these rooms' own: training adds latent caches to it."""
    return toy_set


@pytest.fixture(scope="session")
def recipe(shard_set: ShardSet) -> Recipe:
    return Recipe.model_validate(recipe_tree(shard_set.folder))


@pytest.fixture
def recipe_file(shard_set: ShardSet, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(shard_set.folder)))
    return path


@pytest.fixture(scope="session")
def cache(toy_cache: LatentCache) -> LatentCache:
    return toy_cache


@pytest.fixture(scope="session")
def finished(toy_run: Path) -> Path:
    """A run of six steps that nothing stopped; read it, do not change it."""
    return toy_run


@pytest.fixture
def console() -> Console:
    return QUIET


Change = Callable[..., Recipe]


@pytest.fixture(scope="session")
def changed(recipe: Recipe) -> Change:
    """The recipe with other values: changed(trainer={"batch_size": 8})."""

    def change(**sections: dict[str, Any]) -> Recipe:
        tree = recipe.model_dump(mode="json")
        for name, values in sections.items():
            tree[name] |= values
        return Recipe.model_validate(tree)

    return change


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory, contract: Contract) -> Path:
    """The tiny backbone as an imported one that brings a depth branch."""
    folder = shutil.copytree(tiny_folder(), tmp_path_factory.mktemp("backbone") / "imported")
    tiny = load_backbone("tiny", dtype="float32", parts=("transformer",))
    config = NetworkConfig(
        len(contract.cameras), contract.action_dim, contract.state_dim, contract.timing.actions_per_frame, 1
    )
    own = build_network(tiny, config, seed=11).state_dict()
    own = {name: tensor + 0.01 for name, tensor in own.items() if not name.startswith("transformer.")}
    (folder / "joint").mkdir()
    save_file(own, folder / "joint/model.safetensors")
    described = {"network": config.to_dict(), "layout": Layout.of(contract).to_dict()}
    (folder / "joint/config.json").write_text(json.dumps(described))
    return folder
