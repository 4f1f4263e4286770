"""A tiny recipe on the synthetic shard set, its latent cache and an untrained module around it; one CPU thread."""

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
from safetensors.torch import save_file

from shared import QUIET
from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.encode import encode
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import Layout
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet

from .training import train


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="package")
def shard_set(
    contract: Contract, make_shard_set: Callable[[Path, Contract], ShardSet], tmp_path_factory: pytest.TempPathFactory
) -> ShardSet:
    """A shard set of this package's own: training adds latent caches to it."""
    return make_shard_set(tmp_path_factory.mktemp("shards") / "set", contract)


@pytest.fixture(scope="package")
def recipe(shard_set: ShardSet) -> Recipe:
    return Recipe.model_validate(recipe_tree(shard_set.folder))


@pytest.fixture
def recipe_file(shard_set: ShardSet, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(shard_set.folder)))
    return path


@pytest.fixture(scope="package")
def cache(recipe: Recipe, shard_set: ShardSet) -> LatentCache:
    return encode(recipe, shard_set, torch.device("cpu"), QUIET)


@pytest.fixture(scope="package")
def finished(shard_set: ShardSet, cache: LatentCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing stopped; read it, do not change it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "toy.yaml").write_text(yaml.safe_dump(recipe_tree(shard_set.folder)))
    return train(folder / "toy.yaml", folder / "whole", [], QUIET)


@pytest.fixture
def console() -> Console:
    return QUIET


Change = Callable[..., Recipe]


@pytest.fixture(scope="package")
def changed(recipe: Recipe) -> Change:
    """The recipe with other values: changed(trainer={"batch_size": 8})."""

    def change(**sections: dict[str, Any]) -> Recipe:
        tree = recipe.model_dump(mode="json")
        for name, values in sections.items():
            tree[name] |= values
        return Recipe.model_validate(tree)

    return change


@pytest.fixture(scope="package")
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
