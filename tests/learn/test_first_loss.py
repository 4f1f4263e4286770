"""A first step whose losses cannot be right stops the run and says what is probably wrong."""

from __future__ import annotations

import pytest
import torch

from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.errors import UserError
from xwam_ft.learn.counts import StepCounts
from xwam_ft.learn.first_loss import require_sound_start
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet


@pytest.mark.parametrize(
    ("name", "words"), [("video", "never trained on clips"), ("depth", "near and far"), ("action", "quantiles")]
)
def test_the_stream_is_named_with_its_likely_cause(name: str, words: str) -> None:
    sound = {"video": 1.9, "action": 1.1, "proprio": 1.0, "depth": 1.2, "total": 400.0}
    losses = {key: torch.tensor(value) for key, value in sound.items()}
    require_sound_start(losses, "shards")
    with pytest.raises(UserError, match=f"the first step's {name} loss is 5.22e.03.*{words}"):
        require_sound_start(losses | {name: torch.tensor(5219.0)}, "shards")


def test_latents_eighty_times_too_large_stop_the_first_step(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet
) -> None:
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, shard_set.contract)
    geometry = StepGeometry(4)
    counts = StepCounts(cache, recipe.noise, recipe.seed, geometry)
    module = TrainingModule(network, recipe, geometry, counts.of_step, cache.prompt_embeddings[0])
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[geometry.micro_batch(0, 0)]
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.0)
    module.training_step(batch, 0).backward()
    module._require_steady()  # pyright: ignore[reportPrivateUsage]
    assert len(module.history) == 1, "a sound start is remembered"
    module.history.clear()
    module.losses = {}
    batch.latents[:, :, 1:] *= 80
    module.training_step(batch, 0)
    with pytest.raises(UserError, match="the first step's video loss is"):
        module.on_before_optimizer_step(optimizer)
