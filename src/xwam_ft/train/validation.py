"""Validation on held-out clips: losses at fixed noise, and the errors of the actions a policy would give.

The same clips and the same random numbers every time, so curves compare. Where the run keeps averaged weights, they
are what is validated, since they are what is exported. The policy is the class that runs on the robot, around the
live network; for it alone the VAE is loaded.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from xwam_ft.evaluate.open_loop import open_loop, summary_lines
from xwam_ft.policy.policy import Policy, Settings
from xwam_ft.train.clips import Stream
from xwam_ft.train.data import ClipDataset
from xwam_ft.train.draws import draw
from xwam_ft.train.optimizer import trained_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet
    from xwam_ft.train.cache import CachedClip, LatentCache
    from xwam_ft.train.module import TrainingModule


def spread(clips: list[CachedClip], count: int) -> list[CachedClip]:
    """At most `count` clips, evenly over the list."""
    if len(clips) <= count:
        return clips
    return [clips[index] for index in np.linspace(0, len(clips) - 1, count).round().astype(int)]


@torch.no_grad()
def held_out_losses(module: TrainingModule, cache: LatentCache) -> dict[str, float]:
    """Mean loss of each term over held-out clips, as `val/loss_<term>`; empty where nothing is held out."""
    recipe = module.recipe
    dataset = ClipDataset(cache, spread(cache.of_split("held_out"), recipe.validation.clips), seed=None)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    size = recipe.trainer.batch_size
    for first in range(0, len(dataset), size):
        batch = dataset[range(first, min(first + size, len(dataset)))].to(module.device)
        draws = draw(batch, recipe.noise, 0.0, recipe.seed, Stream.VALIDATION)
        for name, term in module.loss_terms(
            batch, draws, module.predict(module.add_noise(batch, draws), draws)
        ).items():
            sums[name] = sums.get(name, 0.0) + float(term.sum)
            counts[name] = counts.get(name, 0.0) + float(term.count)
    return {f"val/loss_{name}": sums[name] / max(counts[name], 1.0) for name in sums}


def live_policy(
    network: JointNetwork, cache: LatentCache, codec: Backbone, recipe: Recipe, contract: Contract
) -> Policy:
    """A policy around the network as it is; its instructions are those of the cache.

    Args:
        codec: a backbone of which the VAE is loaded.
    """
    validation = recipe.validation
    embedded = zip(cache.prompts, cache.prompt_embeddings, strict=True)
    settings = Settings(
        seed=recipe.seed,
        action_steps=validation.action_steps,
        video_steps=max(validation.video_steps, validation.action_steps),
        shift=recipe.noise.shift,
    )
    prompts = {" ".join(prompt.split()): embedding for prompt, embedding in embedded}
    return Policy(network, codec, prompts, contract, settings, trained=codec.trained)


def open_loop_errors(policy: Policy, shard_set: ShardSet, clips: int) -> tuple[dict[str, float], list[str]]:
    """Errors of the policy's actions in physical units, as `val/<slot>_<quantity>`, and as lines for people."""
    metrics = open_loop(policy, shard_set, clips=clips).metrics()
    values = {
        f"val/{slot}_{quantity}": float(row["policy"])
        for slot, quantities in metrics["slots"].items()
        for quantity, row in quantities.items()
        if row["policy"] is not None
    }
    return values, summary_lines(metrics)


@contextmanager
def evaluation_mode(network: JointNetwork, weights: Mapping[str, Tensor] | None = None) -> Generator[JointNetwork]:
    """The network without dropout and, where given, with other trained weights; as it was afterwards."""
    training, parameters = network.training, trained_parameters(network)
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()} if weights else {}
    try:
        network.eval()
        _copy_into(parameters, weights or {})
        yield network
    finally:
        _copy_into(parameters, kept)
        network.train(training)


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        parameters[name].copy_(value)
