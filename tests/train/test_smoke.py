"""The smoke test of a recipe: what passes on a sound one, and that each proof can fail."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tiny_training
from shared import QUIET
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.module import TrainingModule
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet
from xwam_ft.train import smoke

FAST = {"optim": {"lr_lora": 1e-2, "lr_heads": 1e-2, "lr_depth": 1e-2}}


def test_a_sound_recipe_passes_and_leaves_nothing(recipe_file: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    shown = io.StringIO()
    folder = shutil.copytree(shard_set.folder, tmp_path / "set", ignore=shutil.ignore_patterns("latents-*"))
    before = sorted(folder.rglob("*"))
    rates = [f"optim.{name}=1e-2" for name in ("lr_lora", "lr_heads", "lr_depth")]
    tiny_training.smoke_test(recipe_file, [*rates, f"data.shards={folder}"], Console(file=shown, width=200))
    for said in ("video equal to the bit", "finite gradients", "learned by heart", "reads back"):
        assert said in shown.getvalue()
    assert sorted(folder.rglob("*")) == before  # no latent cache either


def test_adapters_that_start_off_zero_fail(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TrainingModule.train_on

    def spoilt(self: TrainingModule, data: ClipDataModule) -> None:
        honest(self, data)
        for name, parameter in self.network.named_parameters():
            if ".lora_B.default" in name:
                torch.nn.init.constant_(parameter, 0.1)

    monkeypatch.setattr(TrainingModule, "train_on", spoilt)
    with pytest.raises(UserError, match=r"the adapters change the video by up to .* before any training"):
        smoke.smoke(changed(**FAST), shard_set, cache, QUIET)


def test_a_clip_that_is_not_learned_fails(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoke, "OVERFIT_STEPS", 3)
    still = changed(optim={"lr_lora": 1e-9, "lr_heads": 1e-9, "lr_depth": 1e-9})
    with pytest.raises(UserError, match=r"3 steps on one clip took the loss from .* only") as error:
        smoke.smoke(still, shard_set, cache, QUIET)
    assert "raise optim.lr_lora" in error.value.fix
