"""Guards that do not wait for a GPU: the same sentences, a step later, and before anything is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_training import train
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.errors import UserError
from xwam_ft.learn.counts import StepCounts
from xwam_ft.learn.guards import Guards, Late
from xwam_ft.learn.module import TrainingModule
from xwam_ft.learn.optimizer import trained_parameters
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe
from xwam_ft.runs.checkpoint import list_checkpoints
from xwam_ft.shards import ShardSet


def test_numbers_are_judged_a_step_later_in_order() -> None:
    seen: list[float] = []
    late = Late(waits=True)
    for step in range(3):
        late.watch(torch.tensor(10.0 * step), seen.append)
        late.watch(torch.tensor(10.0 * step + 1), seen.append)
        assert seen == [float(10 * k + i) for k in range(max(step - 1, 0)) for i in range(2)]
        late.next_step()
    late.settle()
    assert seen == [0, 1, 10, 11, 20, 21]
    Late(waits=False).watch(torch.tensor(5.0), seen.append)
    assert seen[-1] == 5


@pytest.fixture
def module(recipe: Recipe, cache: LatentCache, shard_set: ShardSet) -> TrainingModule:
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, shard_set.contract)
    geometry = StepGeometry(2)
    counts = StepCounts(cache, recipe.noise, recipe.seed, geometry)
    made = TrainingModule(network, recipe, geometry, counts.of_step, cache.prompt_embeddings[0])
    made._guards = Guards("shards", None, waits=True)
    return made


class Asked(TorchDispatchMode):
    """Counts numbers that the host asks a device for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def take_step(module: TrainingModule, batch: Any, optimizer: torch.optim.Optimizer) -> None:
    module.training_step(batch, 0).backward()
    module.on_before_optimizer_step(optimizer)
    module.configure_gradient_clipping(optimizer)
    optimizer.step()
    optimizer.zero_grad()
    module.on_train_batch_end(None, batch, 0)


def test_rates_far_too_high_are_told_within_the_first_steps() -> None:
    guards = Guards("shards", None, waits=False)
    for step, loss in enumerate((1.0, 900.0, 1.0, 990.0)):
        guards.total(torch.tensor(loss), step, ["a"])
    with pytest.raises(UserError, match=r"exploded: 5e\+05 at step 5, 450 in the steps .*lower the learning rates"):
        guards.total(torch.tensor(5e5), 4, ["a"])


def test_a_step_asks_the_device_for_nothing(module: TrainingModule, recipe: Recipe, cache: LatentCache) -> None:
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    optimizer = torch.optim.SGD(trained_parameters(module.network).values(), lr=1e-4)
    batches = [dataset[module.geometry.micro_batch(step, 0)] for step in range(4)]
    counts = {step: module.counts_of_step(step) for step in range(4)}  # of masks on the host, never on the device
    module.counts_of_step = counts.__getitem__
    take_step(module, batches[0], optimizer)
    take_step(module, batches[1], optimizer)  # of the first two the losses are looked at: is the start sound?
    with Asked() as asked:
        module.training_step(batches[2], 0).backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
    assert asked.count == 0
    with Asked() as asked:
        module.settle()
    assert asked.count > 0, "what is counted would be seen"


def test_the_sentence_names_the_step_it_happened_in(module: TrainingModule, recipe: Recipe, cache: LatentCache) -> None:
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    optimizer = torch.optim.SGD(trained_parameters(module.network).values(), lr=1e-4)
    batches = [dataset[module.geometry.micro_batch(step, 0)] for step in range(4)]
    batches[1].latents[0, 0, 1] = float("nan")
    take_step(module, batches[0], optimizer)
    take_step(module, batches[1], optimizer)
    with pytest.raises(UserError, match=r"the loss is nan at step 2, in clips ") as error:
        take_step(module, batches[2], optimizer)
    assert all(key in error.value.what for key in batches[1].keys)
    assert not any(key in error.value.what for key in batches[2].keys if key not in batches[1].keys)


def test_weights_of_a_step_that_is_condemned_are_never_saved(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ClipDataset.read

    def poisoned(self: ClipDataset, positions: Any) -> Any:
        batch = own(self, positions)
        if self.seed is not None and 8 in positions:  # of the third step: four clips a step
            batch.latents[:, :, 1] = float("nan")
        return batch

    monkeypatch.setattr(ClipDataset, "read", poisoned)
    monkeypatch.setattr("xwam_ft.learn.module.Guards", lambda where, run, waits: Guards(where, run, waits=True))
    with pytest.raises(UserError, match="the loss is nan at step 3, in clips "):
        train(recipe_file, tmp_path / "run", ["checkpoint.every_steps=1"], console)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-000001", "step-000002"]
