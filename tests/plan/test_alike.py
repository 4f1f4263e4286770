"""Of blocks that are alike one is run, and the count is that of running every one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from xwam_ft.model.branch import run_block
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.plan import alike
from xwam_ft.plan.memory import count_activations, random_batch
from xwam_ft.plan.plan import shape_network
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet


@pytest.mark.parametrize(
    ("model", "mixed", "kinds"),
    [
        ({"depth": {"blocks": 3}}, True, 5),  # the first, further ones, twins, and those that follow one
        pytest.param({"train": "full", "depth": {"blocks": 2, "train": "full"}}, True, 5, marks=pytest.mark.slow),
        pytest.param({"depth": {"blocks": 6, "branch": "copy"}}, False, 5, marks=pytest.mark.slow),
    ],
    ids=["shared branch", "full", "copied branch"],
)
def test_the_count_is_that_of_running_every_block(
    changed: Callable[..., Recipe],
    shard_set: ShardSet,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    mixed: bool,
    kinds: int,
) -> None:
    recipe, skeleton = changed(model=model), read_skeleton("tiny", dtype="float32")
    network = shape_network(skeleton, recipe, shard_set)
    contract, ran = shard_set.contract, count()
    latents = skeleton.backbone.latent_shape(
        2, contract.timing.clip_frames, contract.image.height, contract.image.width
    )
    text = skeleton.backbone.text_len, int(skeleton.backbone.transformer.config.text_dim)
    batch = random_batch(contract, latents, text, 1, "meta", depth=True)

    def counted(*given: Any) -> Any:
        next(ran)
        return run_block(*given)

    monkeypatch.setattr(network, "run_block", counted)
    found = count_activations(network, recipe, batch, scores=True, mixed=mixed)
    assert network.run_block is counted
    assert next(ran) <= kinds + 2, "and of the last two what they take on the way back"
    each = count()
    monkeypatch.setattr(alike, "_structure", lambda block: next(each))
    assert count_activations(network, recipe, batch, scores=True, mixed=mixed) == found
    assert next(ran) > 2 * len(network.transformer.blocks)
