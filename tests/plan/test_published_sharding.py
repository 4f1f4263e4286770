"""Every weight of Wan2.2-TI2V-5B and its depth branch cut over 8 and 16 GPUs by FSDP2, on the meta device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _sizes import SIZES
from xwam_ft.bundled import bundled
from xwam_ft.model.sharding import gathered_bytes, shard
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.plan.plan import make_plan, shape_network
from xwam_ft.recipe import load_recipe
from xwam_ft.shards import ShardSet

BLOCKS, BRANCH = 30, 10


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[int]:
    """This process as one of several that are not there."""
    count, rank = request.param
    torch.distributed.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())
    yield count
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(8, 0), (8, 7), (16, 0)], indirect=True, ids=["8", "the last of 8", "16"])
def test_every_parameter_is_cut_and_a_device_holds_what_the_plan_says(processes: int, shard_set: ShardSet) -> None:
    here = [f"backbone.path={PUBLISHED}", "data.shards=none", f"trainer.nodes={processes // 8}"]
    recipe = load_recipe(bundled("recipes/xwam_5b_full_8gpu.yaml"), here)
    recordings = replace(shard_set, contract=SIZES["5b"]().contract)
    plan = {part.name: part.bytes for part in make_plan(recipe, recordings).memory}
    network = shape_network(read_skeleton(PUBLISHED, dtype="float32"), recipe, recordings)
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert 6.6e9 < sum(shapes[name].numel() for name in trained) < 6.8e9
    counted = gathered_bytes(network, mixed=True)

    shard(network, torch.device("cpu"), processes, mixed=True)
    assert sum(isinstance(module, FSDPModule) for module in network.modules()) == BLOCKS + BRANCH + 1
    rank = torch.distributed.get_rank()
    held: dict[str, int] = {}
    padded = 0
    for name, parameter in network.named_parameters():
        cut: Any = parameter
        rows, inner = shapes[name][0], shapes[name][1:].numel()
        most = -(-rows // processes)
        mine = min(max(rows - rank * most, 0), most)  # the last ones hold less, or nothing
        assert cut.to_local().shape == (mine, *shapes[name][1:]), name
        assert cut.dtype == torch.float32, name
        held[name] = mine * inner
        padded += (processes * most - rows) * inner
    whole = sum(shape.numel() for shape in shapes.values())
    assert padded < 0.002 * whole, "what does not divide is small: modulation tables, biases, what reads actions"
    assert sum(held.values()) <= 1.002 * whole / processes

    weights = plan.get("frozen weights", 0) + plan["weights that train, and their groups"]
    kept = 4 * sum(held.values())
    learning = 4 * sum(held[name] for name in trained)
    # The plan is of the first process, which holds the most.
    if rank == 0:
        assert weights == kept
        assert plan["gradients"] == learning
        assert plan["AdamW"] == 2 * learning
    else:
        assert kept <= weights
        assert learning <= plan["gradients"]
    # Two blocks in bfloat16, what lies outside in float32: little beside what one device would hold.
    assert plan["gathered: two blocks, and what lies outside"] == counted.weights < 2e9
    assert counted.network < 4 * whole
