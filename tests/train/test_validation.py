"""Validation: the same numbers every time, of the averaged weights, leaving the network as it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared import QUIET
from xwam_ft.encode.cache import LatentCache
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.held_out import sigma_edges
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.network import JointNetwork
from xwam_ft.policy.policy import clip_observation
from xwam_ft.runs.folder import open_run
from xwam_ft.shards import ShardSet
from xwam_ft.train.exact import restore_weights
from xwam_ft.train.validation import evaluation_mode, live_policy

Losses = dict[str, float]


@pytest.fixture(scope="module")
def module(finished: Path) -> TrainingModule:
    """The network of the finished run, as it ended."""
    folder = open_run(finished)
    assert folder.checkpoint is not None
    made = TrainingModule.of_contract(folder.recipe, folder.contract)
    restore_weights(folder.checkpoint, made.network, QUIET)
    return made


def held_out(module: TrainingModule, cache: LatentCache) -> Losses:
    """What a Trainer's validation comes to."""
    data = ClipDataModule(cache, module.recipe, module.contract)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    [logged] = trainer.validate(module, datamodule=data, verbose=False)
    assert logged["step"] == 0
    return {name: logged[name] for name in module.held_out.means()}


def test_the_run_logged_the_losses_and_errors_of_its_averaged_weights(
    finished: Path, module: TrainingModule, cache: LatentCache
) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "held_out/video" in line)
    assert logged["step"] == 6
    named = {"held_out/total", "held_out/action", "held_out/proprio", "held_out/depth", "held_out/tool_position"}
    assert named < logged.keys()
    averaged = load_file(finished / "checkpoints/step-000006/ema.safetensors")
    with evaluation_mode(module.network, averaged):
        losses = held_out(module, cache)
    assert {name: logged[name] for name in losses} == pytest.approx(losses, rel=1e-6)
    assert held_out(module, cache) != losses


def test_evaluation_mode_gives_the_network_back_as_it_was(module: TrainingModule) -> None:
    network: JointNetwork = module.network.train()
    before = {name: value.clone() for name, value in trainable_state(network).items()}
    with evaluation_mode(network, {name: value + 1 for name, value in before.items()}) as shown:
        assert not shown.training
        assert all(torch.equal(value, before[name] + 1) for name, value in trainable_state(network).items())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(network).items())


def test_the_live_policy_sees_what_training_saw(
    module: TrainingModule, shard_set: ShardSet, cache: LatentCache
) -> None:
    codec = load_backbone("tiny", dtype="float32", parts=("vae",))
    policy = live_policy(module.network, cache, codec, module.recipe, shard_set.contract)
    stored = cache.of_split("held_out")[1]
    reference = next(ref for ref in shard_set.clips("held_out", 3) if ref.key == stored.key)
    inputs = clip_observation(shard_set.contract, shard_set.read_clip(reference))
    cached = cache.read(stored)
    torch.testing.assert_close(policy.condition(inputs.pictures[None])[0], cached.rgb[:, 0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(inputs.proprio, cached.proprio[0], atol=1e-6)
    embedded = cache.prompt_embeddings[cache.prompt_index[stored.instruction]]
    assert torch.equal(policy.embedding(inputs.prompt), embedded)


def test_losses_by_noise_level_are_parts_of_the_whole(module: TrainingModule, cache: LatentCache) -> None:
    edges = sigma_edges(5.0)
    assert edges == pytest.approx([0, 0.625, 5 / 6, 0.9375, 1])
    losses = held_out(module, cache)
    for term in ("video", "action", "proprio", "depth"):
        bins = {name: loss for name, loss in losses.items() if name.startswith(f"held_out_sigma/{term}_")}
        assert bins
        assert min(bins.values()) <= losses[f"held_out/{term}"] * (1 + 1e-6)
        assert max(bins.values()) >= losses[f"held_out/{term}"] * (1 - 1e-6)
        named = [tuple(map(float, name.rsplit("_", 2)[1:])) for name in bins]
        assert set(named) <= {(round(low, 2), round(high, 2)) for low, high in pairwise(edges)}
    weights = module.recipe.loss.model_dump()
    total = sum(weights[term] * losses[f"held_out/{term}"] for term in ("video", "action", "proprio", "depth"))
    assert losses["held_out/total"] == pytest.approx(total)


def test_looking_leaves_torchs_generators_alone(module: TrainingModule) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with evaluation_mode(module.network):
        torch.randn(5)
    assert torch.equal(torch.get_rng_state(), state)
