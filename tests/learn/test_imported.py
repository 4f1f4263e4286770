"""Training starts from imported weights: a recipe's network holds them under its adapters, and says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from xwam_ft.contract import Contract
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import JointWeights, Layout
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe


def test_a_recipes_network_starts_from_imported_weights(contract_with: Callable[..., Contract]) -> None:
    contract = contract_with()
    tiny = load_backbone("tiny", dtype="float32", parts=("transformer",))
    config = NetworkConfig(2, contract.action_dim, contract.state_dim, 2, depth_blocks=1)
    released = build_network(tiny, config, seed=11)
    own = {name: tensor for name, tensor in released.state_dict().items() if not name.startswith("transformer.")}
    backbone = dataclasses.replace(tiny, joint=JointWeights(config, own, Layout.of(contract)))
    values = {"backbone": {"path": "x"}, "data": {"shards": "x"}, "trainer": {"max_steps": 1}}
    recipe = Recipe.model_validate(values | {"model": {"depth": {"blocks": 1, "branch": "copy"}}, "seed": 5})

    report: list[str] = []
    network = trainable_network(backbone, recipe, contract, report)
    assert [line.split(":")[0] for line in report] == ["views", "proprio", "action", "depth branch"]
    for name in ("view_embedding.weight", "action_decoder.2.weight", "proprio_encoder.0.weight"):
        assert torch.equal(network.state_dict()[name], own[name]), name
    branch = {name.replace(".base_layer", ""): tensor for name, tensor in network.state_dict().items()}
    assert torch.equal(
        branch["depth_branch.blocks.0.attn1.to_q.weight"], own["depth_branch.blocks.0.attn1.to_q.weight"]
    )

    gripper = contract.slot("gripper").model_copy(update={"name": "claw"})
    report.clear()
    trainable_network(backbone, recipe, contract_with(slots=(contract.slot("tool"), gripper)), report)
    assert report[2] == "action: 6 of 7 numbers kept by name, new and zero: claw; not used: gripper"
