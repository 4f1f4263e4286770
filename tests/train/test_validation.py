"""Validation: the same numbers every time, of the averaged weights, leaving the network as it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.network import JointNetwork
from xwam_ft.policy.policy import clip_observation
from xwam_ft.shards import ShardSet
from xwam_ft.train.cache import LatentCache
from xwam_ft.train.folder import open_run
from xwam_ft.train.session import Session
from xwam_ft.train.validation import evaluation_mode, held_out_losses, live_policy, sigma_edges


@pytest.fixture
def session(finished: Path, shard_set: ShardSet, cache: LatentCache, console: Console) -> Session:
    return Session(open_run(finished), shard_set, cache, console)


def test_the_run_logged_the_losses_and_errors_of_its_averaged_weights(finished: Path, session: Session) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "val/loss_video" in line)
    assert logged["step"] == 6
    assert {"val/loss_action", "val/loss_proprio", "val/loss_depth", "val/tool_position"} < logged.keys()
    assert session.average is not None
    with evaluation_mode(session.network, session.average.weights):
        losses = held_out_losses(session.module, session.source)
    assert {name: logged[name] for name in losses} == pytest.approx(losses, rel=1e-6)
    assert held_out_losses(session.module, session.source) != losses


def test_evaluation_mode_gives_the_network_back_as_it_was(session: Session) -> None:
    network: JointNetwork = session.network.train()
    before = {name: value.clone() for name, value in trainable_state(network).items()}
    with evaluation_mode(network, {name: value + 1 for name, value in before.items()}) as shown:
        assert not shown.training
        assert all(torch.equal(value, before[name] + 1) for name, value in trainable_state(network).items())
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(network).items())


def test_the_live_policy_sees_what_training_saw(session: Session, shard_set: ShardSet, cache: LatentCache) -> None:
    codec = load_backbone("tiny", dtype="float32", parts=("vae",))
    policy = live_policy(session.network, cache, codec, session.recipe, shard_set.contract)
    stored = cache.of_split("held_out")[1]
    reference = next(ref for ref in shard_set.clips("held_out", 3) if ref.key == stored.key)
    inputs = clip_observation(shard_set.contract, shard_set.read_clip(reference))
    cached = cache.read(stored)
    torch.testing.assert_close(policy.condition(inputs.pictures[None])[0], cached.rgb[:, 0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(inputs.proprio, cached.proprio[0], atol=1e-6)
    embedded = cache.prompt_embeddings[cache.prompt_index[stored.instruction]]
    assert torch.equal(policy.embedding(inputs.prompt), embedded)


def test_losses_by_noise_level_are_parts_of_the_whole(session: Session) -> None:
    edges = sigma_edges(5.0)
    assert edges == pytest.approx([0, 0.625, 5 / 6, 0.9375, 1])
    losses = held_out_losses(session.module, session.source)
    for term in ("video", "action", "proprio", "depth"):
        bins = {name: loss for name, loss in losses.items() if name.startswith(f"val_sigma/{term}_")}
        assert bins
        assert min(bins.values()) <= losses[f"val/loss_{term}"] * (1 + 1e-6)
        assert max(bins.values()) >= losses[f"val/loss_{term}"] * (1 - 1e-6)
        named = [tuple(map(float, name.rsplit("_", 2)[1:])) for name in bins]
        assert set(named) <= {(round(low, 2), round(high, 2)) for low, high in pairwise(edges)}


def test_looking_leaves_torchs_generators_alone(session: Session) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with evaluation_mode(session.network):
        torch.randn(5)
    assert torch.equal(torch.get_rng_state(), state)
