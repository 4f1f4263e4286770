"""Workers in a container with little shared memory: a sentence before training, and no text in what they hand over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.recipe import Recipe
from xwam_ft.train import shared_memory

Change = Callable[..., Recipe]


def test_too_little_is_told(changed: Change, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = changed(trainer={"workers": 2, "batch_size": 8})
    latents = (48, 3, 3, 16, 20)
    monkeypatch.setattr(shared_memory.shutil, "disk_usage", lambda place: SimpleNamespace(free=52_000_000))
    with pytest.raises(UserError, match=r"has 52 MB free, and 2 workers hold batches of 53 MB ready.*--shm-size"):
        shared_memory.require_shared_memory(wanted, contract, latents, depth=True)
    shared_memory.require_shared_memory(wanted, contract, latents, depth=False)
    shared_memory.require_shared_memory(changed(trainer={"workers": 0}), contract, latents, depth=True)


def test_workers_leave_the_text_to_the_first_process(changed: Change, cache: LatentCache) -> None:
    recipe = changed(trainer={"workers": 1, "max_steps": 1})
    data = ClipDataModule(cache, recipe, "")
    alone = ClipDataModule(cache, changed(trainer={"workers": 0, "max_steps": 1}), "")
    for made, expected in zip(data.train_dataloader(), alone.train_dataloader(), strict=True):
        assert made.text.numel() == 0
        whole = data.on_after_batch_transfer(data.on_before_batch_transfer(made, 0), 0)
        assert whole.text.dtype == torch.float32
        for name, value in vars(expected).items():
            same = torch.equal(value, getattr(whole, name)) if isinstance(value, torch.Tensor) else True
            assert same, name
