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
from xwam_ft.learn.start import start_network
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.model.summary import memory_need, summary_table
from xwam_ft.plan import plan as plans
from xwam_ft.plan.host_memory import PROCESS_BYTES, HostMemory, host_memory, in_files, too_little
from xwam_ft.plan.plan import make_plan, shape_network
from xwam_ft.plan.plan_report import print_plan
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import ShardSet

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _sizes import SIZES

Change = Callable[..., Recipe]
GB = 1e9


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "process", "first", "machine"),
    [
        ("wan22_5b_lora", 12.1, 12.1, 12.1),
        ("wan22_5b_lora_24gb", 12.1, 12.1, 12.1),
        ("wan22_5b_lora_80gb", 12.1, 12.1, 12.1),
        ("xwam_5b_lora", 15.4, 15.4, 15.4),
        ("xwam_5b_full_8gpu", 4.3, 54.9, 85.0),
    ],
)
def test_shipped_5b_recipes_on_gpus(
    shard_set: ShardSet, name: str, process: float, first: float, machine: float
) -> None:
    recipe = load_recipe(bundled(f"recipes/{name}.yaml"), [f"backbone.path={PUBLISHED}", "data.shards=none"])
    recordings = replace(shard_set, contract=SIZES["5b"]().contract)
    network = shape_network(read_skeleton(PUBLISHED, dtype=recipe.backbone.dtype), recipe, recordings)
    need = memory_need(summary_table(network), average=recipe.optim.ema_decay is not None)
    devices = recipe.trainer.devices
    assert isinstance(devices, int)
    host = host_memory(recipe, network, need, 0, int(2.8 * GB), devices, on_gpu=True)
    found = [value / GB for value in (host.process, host.first, host.machine)]
    assert found == pytest.approx([process, first, machine], abs=0.06)
    if name == "xwam_5b_full_8gpu":  # as it was: every process its own whole network
        ddp = recipe.model_copy(update={"trainer": recipe.trainer.model_copy(update={"strategy": "ddp"})})
        whole = sum(p.numel() * p.element_size() for p in network.parameters())
        assert host_memory(ddp, network, need, 0, 0, 8, on_gpu=True).machine > 8 * whole > 200 * GB


@pytest.mark.slow
def test_a_machine_with_too_little_is_told_before_any_work(
    changed: Change, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` and `train` print the same warnings, and nothing is loaded for them."""
    several = {"devices": 4, "strategy": "ddp", "accelerator": "cpu"}
    recipe = changed(trainer=several)
    monkeypatch.setattr(plans, "free_memory", lambda gpu: int(64 * GB))
    assert not any("host memory" in line for line in make_plan(recipe, shard_set).warnings)
    monkeypatch.setattr(plans, "free_memory", lambda gpu: int(6 * GB))
    plan = make_plan(recipe, shard_set)
    shown = io.StringIO()
    print_plan(plan, recipe, Console(file=shown, width=400))
    printed = shown.getvalue()
    assert "host memory, at most" in printed
    assert "a machine of 4" in printed
    assert "of host memory are needed on a machine (4 processes, the first 1.5" in printed
    assert "6.00 GB are free: set trainer.strategy=fsdp2, where each process reads its share" in printed
    sharded = changed(trainer=several | {"strategy": "fsdp2"})
    assert "take a machine with more, or fewer trainer.devices of it" in "".join(make_plan(sharded, shard_set).warnings)


@pytest.mark.slow
def test_what_is_loaded_whole_under_fsdp2_is_counted_whole_and_said(
    changed: Change, shard_set: ShardSet, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `plan` says of it is what training does: whole weights are counted exactly where they are loaded."""
    dora = {"lora": {"rank": 2, "dora": True}, "depth": {"blocks": 1}}
    fitted = {"lora": {"rank": 64, "alpha": 64}, "depth": {"blocks": 1, "branch": "adapter"}}
    trainer = {"devices": 4, "strategy": "fsdp2"}
    monkeypatch.setattr(plans, "free_memory", lambda gpu: int(6 * GB))
    for model, path, whole in (
        (dora, "tiny", "model.lora.dora=true"),
        (fitted, str(imported), "model.depth.branch=adapter"),
        ({"depth": {"blocks": 1}}, "tiny-untrained", "backbone.path=tiny-untrained"),
        ({"depth": {"blocks": 1}}, str(imported), None),
    ):
        recipe = changed(model=model, trainer=trainer, backbone={"path": path, "dtype": "float32"})
        plan = make_plan(recipe, shard_set)
        assert plan.host.whole == whole
        skeleton = read_skeleton(path, dtype="float32")
        network = shape_network(skeleton, recipe, shard_set)
        need = memory_need(summary_table(network))
        host = host_memory(recipe, network, need, 0, 0, 4, on_gpu=True, fits=whole == "model.depth.branch=adapter")
        held = sum(p.numel() * p.element_size() for p in network.parameters())
        assert (host.process == PROCESS_BYTES + held) == (whole is not None)
        shown = io.StringIO()
        print_plan(plan, recipe, Console(file=shown, width=400))
        assert (f"a process, which loads the whole network ({whole})" in shown.getvalue()) == (whole is not None)
        said = f"with {whole} every process loads the whole network; leave that, or take a machine with more"
        assert (said in "".join(plan.warnings)) == (whole is not None)
        assert "set trainer.strategy" not in "".join(plan.warnings)


def test_where_the_device_is_not_here_nothing_is_said_of_this_machine(
    changed: Change, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(plans, "free_memory", lambda gpu: 1)
    plan = make_plan(changed(trainer={"accelerator": "gpu"}), shard_set)
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
