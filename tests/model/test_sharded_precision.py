"""FSDP2 that gathers blocks in bfloat16: what is gathered, summed and held, and how far results move."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from xwam_ft.model.adapters import prepare_for_training
from xwam_ft.model.sharding import gathered, gathered_bytes, shard
from xwam_ft.recipe_model import DepthSpec, LoraSpec

sys.path.append(str(Path(__file__).parents[1] / "model"))
import toy


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone: it gathers and sums as several do."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(*, mixed: bool) -> tuple[toy.JointNetwork, dict[str, torch.Tensor]]:
    network = toy.make_network().train()
    prepare_for_training(network, LoraSpec(rank=2), DepthSpec(blocks=1), seed=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    shard(network, torch.device("cpu"), 1, mixed=mixed)
    sum(value.square().mean() for value in toy.outputs(toy.make_batch().run(network)).values()).backward()
    held = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    return network, gathered(held)


@pytest.mark.usefixtures("group")
def test_gradients_are_summed_in_float32_and_near_the_plain_ones() -> None:
    _, plain = gradients(mixed=False)
    network, mixed = gradients(mixed=True)
    assert plain.keys() == mixed.keys()
    for name, gradient in plain.items():
        assert mixed[name].dtype == torch.float32, name
        assert torch.dist(mixed[name], gradient) <= 0.05 * gradient.norm() + 1e-6, name
    assert any(not torch.equal(mixed[name], gradient) for name, gradient in plain.items()), "bfloat16 was used"
    for parameter in network.parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.dtype == torch.float32


def test_half_the_bytes_of_blocks_are_gathered() -> None:
    network = toy.make_network()
    whole, half = gathered_bytes(network), gathered_bytes(network, mixed=True)
    blocks = sum(p.numel() for block in network.transformer.blocks for p in block.parameters())
    blocks += sum(p.numel() for p in network.depth_branch.blocks.parameters())
    assert whole.network - half.network == 2 * blocks
    assert half.weights < whole.weights
