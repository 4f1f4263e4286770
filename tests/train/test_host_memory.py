"""Host memory that is counted: what is really held, the shipped 5B recipes, and machines with too little."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from xwam_ft.bundled import bundled
from xwam_ft.model.backbone import PUBLISHED
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import ShardSet
from xwam_ft.train import plan as plans
from xwam_ft.train.host_memory import PROCESS_BYTES, HostMemory, in_files, too_little
from xwam_ft.train.plan import make_plan
from xwam_ft.train.plan_report import print_plan
from xwam_ft.train.start import defers, start_network

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _sizes import SIZES

Change = Callable[..., Recipe]
GB = 1e9


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Pretend a GPU and this much free memory: its own, and the machine's, in GB."""

    def pretend(own: float, machine: float) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
        monkeypatch.setattr(plans, "free_memory", lambda gpu: int((own if gpu else machine) * GB))

    return pretend


@pytest.mark.parametrize(
    "model", [{"train": "full"}, {"lora": {"rank": 3}}, {"depth": {"branch": "copy", "blocks": 1}}]
)
def test_what_is_drawn_and_what_is_in_files_is_told_apart_by_name(
    changed: Change, shard_set: ShardSet, model: dict[str, object]
) -> None:
    if model.get("train") == "full":
        model = model | {"depth": {"train": "full", "blocks": 1}}
    recipe = changed(model=model, trainer={"strategy": "fsdp2"})
    network = start_network(recipe, shard_set.contract, None, None, None).network
    for name, parameter in network.named_parameters():
        # A table of a shared branch is a copy of one in the files, too.
        assert parameter.is_meta == in_files(name), name


def planned(name: str, shard_set: ShardSet, *more: str) -> tuple[Recipe, plans.Plan]:
    recipe = load_recipe(bundled(f"recipes/{name}.yaml"), [f"backbone.path={PUBLISHED}", "data.shards=none", *more])
    return recipe, make_plan(recipe, replace(shard_set, contract=SIZES["5b"]().contract))


def test_the_full_5b_run_on_8_gpus_holds_no_network_a_process(
    shard_set: ShardSet, a_gpu: Callable[[float, float], None]
) -> None:
    a_gpu(80, 128)
    recipe, plan = planned("xwam_5b_full_8gpu", shard_set)
    network = sum(row.bytes for row in plan.groups)
    assert 26 * GB < network < 28 * GB
    assert plan.host.processes == 8
    assert plan.host.process < PROCESS_BYTES + 3 * GB  # the VAE, not an eighth of the network
    trained = sum(row.trainable for row in plan.groups)
    assert plan.host.first == PROCESS_BYTES + 8 * trained  # AdamW's state, the largest file of a checkpoint
    assert not any("host memory" in line for line in plan.warnings)
    shown = io.StringIO()
    print_plan(plan, recipe, Console(file=shown, width=120))
    assert "host memory, at most" in shown.getvalue()
    assert "a machine of 8" in shown.getvalue()

    a_gpu(80, 64)
    [line] = [line for line in planned("xwam_5b_full_8gpu", shard_set)[1].warnings if "host memory" in line]
    assert "8 processes" in line
    assert "64.00 GB are free: take a machine with more, or fewer trainer.devices" in line
    # As it was: every process its own whole network.
    ddp = planned("xwam_5b_full_8gpu", shard_set, "trainer.strategy=ddp")[1]
    assert ddp.host.machine > 8 * network
    assert any("set trainer.strategy=fsdp2, where each process reads its share" in line for line in ddp.warnings)


@pytest.mark.parametrize("name", ["wan22_5b_lora", "wan22_5b_lora_24gb", "wan22_5b_lora_80gb", "xwam_5b_lora"])
def test_the_shipped_5b_recipes_on_one_gpu_load_it_once(
    name: str, shard_set: ShardSet, a_gpu: Callable[[float, float], None]
) -> None:
    a_gpu(80, 64)
    recipe, plan = planned(name, shard_set)
    assert not defers(recipe)
    assert plan.host.processes == 1
    assert 10 * GB < plan.host.machine < 24 * GB
    assert not any("host memory" in line for line in plan.warnings)
    a_gpu(80, 8)
    assert any(
        "host memory are needed on a machine (1 process," in line for line in planned(name, shard_set)[1].warnings
    )


def test_where_the_device_is_not_here_nothing_is_said_of_this_machine(shard_set: ShardSet) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    plan = planned("xwam_5b_full_8gpu", shard_set)[1]
    assert plan.host_available is None
    assert not any("host memory" in line for line in plan.warnings)


def test_on_a_cpu_the_run_itself_lies_there(changed: Change, shard_set: ShardSet) -> None:
    recipe = changed(trainer={"devices": 2, "strategy": "ddp"})
    plan = make_plan(recipe, shard_set)
    assert plan.host == HostMemory(PROCESS_BYTES + plan.peak, PROCESS_BYTES + plan.peak, 2)
    assert too_little(plan.host, plan.host.machine, recipe) is None
    assert too_little(plan.host, plan.host.machine - 1, recipe) is not None


def test_what_a_run_starts_from_is_worked_out_on_a_whole_network(changed: Change, shard_set: ShardSet) -> None:
    recipe = changed(trainer={"devices": 2, "strategy": "fsdp2"})
    alone = make_plan(recipe, shard_set).host
    begun = recipe.model_copy(update={"init_from": "runs/other"})
    assert make_plan(begun, shard_set).host.first >= alone.first
    host = HostMemory(1, 2, 2)
    assert "init_from names is worked out on a whole network" in (too_little(host, 2, begun) or "")
