"""A network from a backbone, and again from its description and weights alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from toy import CONFIG, Batch, make_network, make_transformer, outputs

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import prepare_for_training
from xwam_ft.model.assemble import build_network, empty_network, load_network_state, network_config_dict
from xwam_ft.model.backbone import Backbone
from xwam_ft.model.network import NetworkConfig
from xwam_ft.recipe_model import DepthSpec, LoraSpec


@pytest.fixture
def backbone() -> Backbone:
    return Backbone("toy", make_transformer(), None, None, None, 7, False, lambda part: part)


@pytest.mark.parametrize("depth_blocks", [2, 0])
def test_a_network_is_rebuilt_from_its_description_and_weights(batch: Batch, depth_blocks: int) -> None:
    network = make_network(dataclasses.replace(CONFIG, depth_blocks=depth_blocks))
    network.transformer.blocks[0].to(torch.bfloat16)
    described = json.loads(json.dumps(network_config_dict(network)))
    rebuilt = empty_network(described["transformer"], NetworkConfig.from_dict(described["network"]))
    assert all(parameter.is_meta for parameter in rebuilt.parameters())
    load_network_state(rebuilt, network.state_dict(), "model.safetensors")
    assert not any(tensor.is_meta for tensor in (*rebuilt.parameters(), *rebuilt.buffers()))
    with torch.no_grad():
        wanted, ours = outputs(batch.run(network)), outputs(batch.run(rebuilt))
    assert wanted.keys() == ours.keys()
    for name, tensor in wanted.items():
        assert torch.equal(ours[name], tensor)


def test_weights_that_do_not_fit_are_refused(batch: Batch) -> None:
    network = make_network()
    described = network_config_dict(network)
    state = network.state_dict()
    state.pop("transformer.proj_out.bias")
    empty = empty_network(described["transformer"], network.config)
    with pytest.raises(UserError, match=r"model\.safetensors: 1 tensors missing: transformer\.proj_out\.bias"):
        load_network_state(empty, state, "model.safetensors")


def test_networks_share_the_backbones_tensors_but_not_its_modules(backbone: Backbone) -> None:
    network = build_network(backbone, CONFIG, seed=0)
    names = list(backbone.transformer.state_dict())
    own = network.transformer.state_dict()
    assert all(own[name].data_ptr() == tensor.data_ptr() for name, tensor in backbone.transformer.state_dict().items())
    prepare_for_training(network, LoraSpec(), DepthSpec(blocks=2))
    assert list(backbone.transformer.state_dict()) == names


def test_new_parts_follow_the_seed(backbone: Backbone) -> None:
    first, second, other = (build_network(backbone, CONFIG, seed).action_encoder[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_branch_longer_than_the_backbone_is_refused(backbone: Backbone) -> None:
    with pytest.raises(UserError, match=r"model\.depth\.blocks is 4, but backbone toy has 3 blocks.*at most 3"):
        build_network(backbone, dataclasses.replace(CONFIG, depth_blocks=4), 0)
