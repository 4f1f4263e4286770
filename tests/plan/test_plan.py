"""The plan beforehand against what really happens: parameters, tensors kept, bytes written; and its sentences."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

import tiny_training
from xwam_ft.consoles import duration
from xwam_ft.contract import Contract, Image
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.sharding import gathered_bytes, shard, share
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.model.summary import summary_table
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.memory import count_activations, is_out_of_memory, random_batch
from xwam_ft.plan.plan import CHECKPOINTS, Plan, fitting_batch, make_plan, shape_network, warnings
from xwam_ft.plan.plan_report import plan_recipe
from xwam_ft.plan.probe import Prober, largest
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.shards import ShardSet

Change = Callable[..., Recipe]


@pytest.fixture(scope="module")
def plan(recipe: Recipe, shard_set: ShardSet) -> Plan:
    return make_plan(recipe, shard_set)


def test_the_plan_is_of_the_network_that_trains(plan: Plan, recipe: Recipe, shard_set: ShardSet) -> None:
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer", "vae"))
    network = trainable_network(backbone, recipe, shard_set.contract)
    assert list(plan.groups) == summary_table(network)
    image, timing = shard_set.contract.image, shard_set.contract.timing
    assert plan.latents == backbone.latent_shape(2, timing.clip_frames, image.height, image.width)


@pytest.mark.parametrize("mixed", [False, True])
def test_what_autograd_keeps_of_real_tensors_is_counted_without_computing(
    plan: Plan, recipe: Recipe, shard_set: ShardSet, mixed: bool
) -> None:
    shapes = shape_network(read_skeleton("tiny", dtype="float32"), recipe, shard_set)
    one = random_batch(shard_set.contract, plan.latents, plan.text, 1, "meta", depth=True)
    counted = count_activations(shapes, recipe, one, scores=True, mixed=mixed)
    network = trainable_network(
        load_backbone("tiny", dtype="float32", parts=("transformer",)), recipe, shard_set.contract
    )
    for clips in (1, 3):
        batch = random_batch(shard_set.contract, plan.latents, plan.text, clips, "cpu", depth=True)
        real = count_activations(network, recipe, batch, scores=True, mixed=mixed)
        assert real.plain == pytest.approx(clips * counted.plain, rel=0.01)
        assert real.checkpointed == pytest.approx(clips * counted.checkpointed, rel=0.01)
        assert (real.once_plain, real.once_checkpointed) == (counted.once_plain, counted.once_checkpointed)
    assert counted.checkpointed < counted.plain / 3
    # Autocast copies every weight of a product, two bytes a number, but for those that stay float32.
    weights = 2 * sum(parameter.numel() for parameter in network.parameters())
    assert (0.8 * weights < counted.once_plain < weights) if mixed else counted.once_plain == 0


def test_what_is_written_has_the_planned_size(plan: Plan, finished: Path, cache: LatentCache) -> None:
    sizes = {part.name: part.bytes for part in plan.disk}
    latents = sum(file.size for file in cache.files if file.path != "prompts.safetensors")
    assert sizes["latent cache"] == pytest.approx(latents, rel=0.1)
    assert len(cache.clips) == plan.train_clips + plan.held_out_clips
    kept = [path.stat().st_size for path in (finished / "checkpoints").glob("step-*/*.safetensors")]
    assert sizes[CHECKPOINTS] == pytest.approx(sum(kept), rel=0.03)  # and safetensors' headers
    stored = json.loads((finished / "plan.json").read_text())
    assert stored["peak"] == plan.peak == sum(part["bytes"] for part in stored["memory"])
    assert stored["epochs"] == pytest.approx(6 * 4 / plan.train_clips)


@pytest.mark.usefixtures("counted")
def test_recomputation_quantisation_and_averages_change_the_parts_they_should(
    plan: Plan, changed: Change, shard_set: ShardSet
) -> None:
    def parts(**sections: object) -> dict[str, int]:
        return {part.name: part.bytes for part in make_plan(changed(**sections), shard_set).memory}

    before = {part.name: part.bytes for part in plan.memory}
    less = parts(model={"gradient_checkpointing": True}, optim={"ema_decay": None, "adamw_8bit": True})
    assert (
        less["activations"]
        == 2 * plan.activations.checkpointed + plan.activations.once_checkpointed
        < before["activations"]
        == 2 * plan.activations.plain + plan.activations.once_plain
    )
    assert "averaged weights" in before
    assert "averaged weights" not in less
    assert less["AdamW"] == pytest.approx(before["AdamW"] / 4, rel=0.02)
    packed = parts(backbone={"quantize": "nf4"})
    linears = [
        module.weight.numel()
        for module in load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer.blocks.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    assert before["frozen weights"] - packed["frozen weights"] == pytest.approx(sum(linears) * (4 - 0.5625), abs=2)


@pytest.fixture
def counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are those of `plan`, where a test changes nothing of them: counting is most of a plan's time."""
    monkeypatch.setattr("xwam_ft.plan.plan.count_activations", lambda *_, **__: plan.activations)


@pytest.fixture
def four_processes() -> Iterator[None]:
    """This process as the first of four that are not there: torch's stand-in for a process group."""
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("four_processes")
@pytest.mark.parametrize("branch", ["adapter", "copy"])
def test_a_share_is_what_fsdp2_leaves_a_device(changed: Change, shard_set: ShardSet, branch: str) -> None:
    recipe = changed(model={"depth": {"blocks": 2, "branch": branch}})
    network = shape_network(read_skeleton("tiny", dtype="float32"), recipe, shard_set)
    rows = summary_table(network, lambda parameter: share(parameter, 4))
    whole, gathered = summary_table(network), gathered_bytes(network)
    sizes = {name: parameter.numel() * 4 for name, parameter in network.named_parameters()}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    shard(network, torch.device("cpu"), 4)
    held = {name: parameter.to_local().numel() * 4 for name, parameter in network.named_parameters()}
    assert sum(row.bytes for row in rows) == sum(held.values())
    assert 4 * sum(row.trainable for row in rows) == sum(held[name] for name in trained)
    assert sum(row.bytes for row in whole) / 4 <= sum(held.values()) < sum(row.bytes for row in whole) / 3.5
    # Each group is gathered by itself: what lies in no block and, at worst, the two largest blocks.
    in_a_block = r"(transformer|depth_branch)\.blocks\.\d+\." if branch == "copy" else r"transformer\.blocks\.\d+\."
    groups: dict[str, list[str]] = {}
    for name in sizes:
        inside = re.match(in_a_block, name)
        groups.setdefault(inside[0] if inside else "", []).append(name)
    assert len(groups) == sum(isinstance(module, FSDPModule) for module in network.modules())
    outside = groups.pop("")
    largest_two = sorted(sum(sizes[name] for name in group) for group in groups.values())[-2:]
    assert gathered.weights == sum(sizes[name] for name in outside) + sum(largest_two)
    most = max(sum(sizes[name] for name in group if name in trained) for group in groups.values())
    assert gathered.gradients == sum(sizes[name] for name in outside if name in trained) + most
    assert gathered.network == sum(sizes.values())


@pytest.mark.usefixtures("counted")
def test_devices_share_under_fsdp2_and_repeat_under_ddp(plan: Plan, changed: Change, shard_set: ShardSet) -> None:
    def planned(**trainer: object) -> Plan:
        return make_plan(changed(trainer=trainer), shard_set)

    def parts(plan: Plan) -> dict[str, int]:
        return {part.name: part.bytes for part in plan.memory}

    one, ddp = parts(plan), planned(devices=2, nodes=2)
    summed = "gradients to be summed over devices"
    assert parts(ddp) == one | {summed: one["gradients"]}
    assert ddp.batch == 4 * plan.batch
    assert planned(strategy="fsdp2").memory == plan.memory  # nothing to share, nothing to gather
    cut = planned(devices=2, nodes=2, strategy="fsdp2")
    assert (cut.groups, cut.batch, cut.disk) == (plan.groups, ddp.batch, plan.disk)
    now = parts(cut)
    assert now["AdamW"] == 2 * now["gradients"] == 2 * now["averaged weights"]
    weights = [name for name in one if "weights" in name]  # and averages
    for name in (*weights, "gradients", "AdamW"):
        assert one[name] / 4 <= now[name] < one[name] / 3, name  # rows are few here, and rounded up
    growing = ("activations", "latents and text of a micro-batch")
    assert [now[name] for name in growing] == [one[name] for name in growing]
    # A step and a validation do not come together: the sum is the larger of the two.
    fixed = [*weights, "gradients", "AdamW", "VAE, from the first validation on"]
    temporary = [part.bytes for part in cut.memory if part.name.startswith(("gathered", "whole gradients"))]
    step = sum(temporary) + sum(now[name] for name in growing)
    network = sum(row.bytes for row in plan.groups)
    assert cut.peak == sum(now[name] for name in fixed) + max(step, network)


def test_the_published_backbone_is_planned_without_a_file() -> None:
    skeleton = read_skeleton(PUBLISHED, dtype="bfloat16")
    transformer = skeleton.backbone.transformer
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 4_999_787_712
    assert {parameter.device.type for parameter in transformer.parameters()} == {"meta"}
    assert skeleton.backbone.latent_shape(3, 9, 256, 320) == (48, 3, 3, 16, 20)


def test_shapes_that_do_not_go_together_are_refused_before_weights_are_read(
    changed: Change, shard_set: ShardSet, contract_with: Callable[..., Contract]
) -> None:
    with pytest.raises(UserError, match=r"model\.depth\.blocks is 99, but backbone tiny has 6 blocks"):
        make_plan(changed(model={"depth": {"blocks": 99}}), shard_set)
    odd = replace(shard_set, contract=contract_with(image=Image(height=48, width=64)))
    with pytest.raises(UserError, match=r"pictures of 48x64\. Fix: make their height a multiple of 32"):
        make_plan(changed(), odd)
    with pytest.raises(UserError, match="absent/folder/x: no such folder"):
        make_plan(changed(backbone={"path": "absent/folder/x"}), shard_set)


@pytest.mark.parametrize(("has", "told"), [(False, True), (True, False)])
def test_frozen_bfloat16_on_a_cpu_that_has_none_is_told(
    plan: Plan, recipe: Recipe, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch, has: bool, told: bool
) -> None:
    monkeypatch.setattr("xwam_ft.plan.plan.cpu_has_bfloat16", lambda: has)
    rounded = replace(plan, groups=tuple(replace(row, dtypes=("bfloat16", "float32")) for row in plan.groups))
    for given, expected in ((plan, False), (rounded, told)):
        said = any("set backbone.dtype=float32" in line for line in warnings(given, recipe, shard_set))
        assert said == expected


def test_each_warning_names_the_value_to_change(
    plan: Plan, recipe: Recipe, changed: Change, shard_set: ShardSet
) -> None:
    assert plan.batch == 4
    assert any("below 32 losses flatten" in line and "accumulate=16" in line for line in plan.warnings)
    assert any(line.startswith("1 held-out episode:") for line in plan.warnings)

    def said(**values: object) -> str:
        return "\n".join(warnings(replace(plan, **values), recipe, shard_set))  # pyright: ignore[reportArgumentType]

    calm = {"batch": 32, "held_out_episodes": 3, "train_clips": 3_000, "steps": 1_000}
    assert said(**calm) == ""
    assert "nothing is held out" in said(**calm | {"held_out_episodes": 0})
    assert "fewer than validation.clips=2" in said(**calm | {"held_out_clips": 1})
    assert "not every training clip" in said(**calm | {"train_clips": 100_000})
    assert "every training clip is seen 640 times" in said(**calm | {"steps": 60_000})
    assert "try, in this order, model.gradient_checkpointing=true" in said(**calm | {"memory_available": 1})
    tight = tuple(replace(part, bytes=1) for part in plan.disk_free)
    assert "raise data.clip_stride" in said(**calm | {"disk_free": tight})
    assert "lower checkpoint.keep" in said(**calm | {"disk_free": tight})
    silent = changed(loss={"action": 0.0})
    assert any("loss.action=0: actions are not learned" in line for line in warnings(plan, silent, shard_set))
    late = changed(optim={"warmup_steps": 6}, checkpoint={"every_steps": 7})
    lines = "\n".join(warnings(plan, late, shard_set))
    assert "optim.warmup_steps=6 lasts the whole run" in lines
    assert "the only checkpoint is the last step's" in lines
    long = replace(
        shard_set,
        index=shard_set.index.model_copy(
            update={"episodes": tuple(e.model_copy(update={"frames": 8}) for e in shard_set.index.episodes)}
        ),
    )
    assert any("a clip spans 9 frames and most episodes are shorter" in line for line in warnings(plan, recipe, long))


def test_steps_on_pictures_of_the_5b_size_are_not_taken_for_a_broken_vae(
    recipe: Recipe, shard_set: ShardSet, plan: Plan
) -> None:
    """The losses of made-up clips are means, whatever their size: the guard of a first step looks at them too."""
    device, latents = torch.device("cpu"), (48, 2, 2, 16, 20)
    micro, step = Prober(recipe, shard_set.contract, device, latents, plan.text).seconds(3, 1)
    assert micro > 0
    assert step > 0


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 9, 100, 127, 128, 500])
def test_the_largest_that_fits_is_found_by_few_trials(limit: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    assert largest(fits, 128) == min(limit, 128)
    assert len(tried) <= 15
    assert max(tried) <= 128


def test_fitting_by_the_estimate_stays_below_what_is_free(plan: Plan, recipe: Recipe) -> None:
    growing = sum(part.bytes for part in plan.memory if part.name.startswith(("activations", "latents and text")))
    growing -= plan.activations.once(recipe)
    free = (plan.peak - growing + 10 * growing / plan.batch_size) / 0.9 + 1
    assert fitting_batch(plan, recipe, int(free)) == 10
    assert fitting_batch(plan, recipe, 1000) == 0


@pytest.mark.slow
def test_probing_measures_and_says_so(recipe_file: Path) -> None:
    shown = io.StringIO()
    threads = torch.get_num_threads()
    plan = plan_recipe(load_recipe(recipe_file), Console(file=shown, width=140), probe=True, fit=True)
    torch.set_num_threads(threads)
    assert plan.probe is not None
    assert plan.probe.step_seconds > 0
    assert plan.probe.peak_bytes is None
    clips = plan.train_clips + plan.held_out_clips
    assert plan.seconds == pytest.approx(6 * plan.probe.step_seconds + clips * plan.probe.encode_seconds)
    page = shown.getvalue()
    assert "median of 3" in page
    assert "unknown" not in page
    assert "largest micro-batch: " in page


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_running_out_of_memory_ends_in_advice(
    finished: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def fails(*given: object) -> None:
        raise raised

    monkeypatch.setattr("xwam_ft.train.train.fit", fails)
    with pytest.raises(UserError) as error:
        tiny_training.resume(finished, console)
    assert error.value.where == "trainer.batch_size"
    assert "model.gradient_checkpointing=true; trainer.batch_size=1 with trainer.accumulate=4" in error.value.fix
    assert "--fit" in error.value.fix
    raised = RuntimeError("shapes do not match")  # a bug keeps its traceback
    with pytest.raises(RuntimeError, match="shapes"):
        tiny_training.resume(finished, console)


def test_durations_are_readable() -> None:
    assert [duration(seconds) for seconds in (12, 89, 240, 12_000)] == ["12 s", "89 s", "4 min", "3 h 20 min"]


def test_too_few_clips_for_a_task_are_said_with_what_was_measured(shard_set: ShardSet) -> None:
    from xwam_ft.plan.enough import FEW, too_few_clips

    tasks = len({entry.instruction for entry in shard_set.index.episodes if entry.split == "train"})
    assert tasks == 2
    said = too_few_clips(3_000, shard_set)
    assert said is not None
    assert said.startswith("about 1,500 clips of each of 2 instructions")
    assert "14 %" in said
    assert too_few_clips(FEW * tasks + 1, shard_set) is None


def test_clips_of_a_length_the_vae_does_not_know_are_refused_before_any_work(
    recipe: Recipe, shard_set: ShardSet
) -> None:
    longer = shard_set.contract.timing.model_copy(update={"clip_frames": 17})
    contract = shard_set.contract.model_copy(update={"timing": longer})
    with pytest.raises(UserError, match=r"backbone tiny: clips of 17 frames, .* trained on clips of .*clip_frames to"):
        make_plan(recipe, replace(shard_set, contract=contract))
