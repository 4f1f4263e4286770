"""What training holds in memory: the transformer alone, a table that adds up, AdamW's three forms, a quantised base."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import tiny_training
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.export.export import export_run
from xwam_ft.learn import module as modules
from xwam_ft.learn import start
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from xwam_ft.machine import gigabytes
from xwam_ft.model import quantize
from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import JointWeights, Layout
from xwam_ft.model.summary import MemoryNeed, SummaryRow, memory_need, summary_table
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.plan import make_plan
from xwam_ft.plan.plan_report import print_plan
from xwam_ft.recipe import OptimSpec, Recipe
from xwam_ft.shards import ShardSet


def test_with_cached_latents_the_module_loads_the_transformer_alone(
    recipe: Recipe, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

    asked: list[object] = []

    def loading(*args: object, **options: object) -> object:
        asked.append(options["parts"])
        return load_backbone(*args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(start, "load_backbone", loading)

    def encoders() -> int:
        gc.collect()
        return sum(isinstance(item, AutoencoderKLWan | UMT5EncoderModel) for item in gc.get_objects())

    before = encoders()
    module = modules.TrainingModule.from_recipe(recipe)
    data = ClipDataModule.from_recipe(recipe)
    assert asked == [("transformer",)]
    assert encoders() <= before
    assert (module.contract, data.contract) == (cache.identity.contract,) * 2


def test_the_table_is_printed_and_adds_up(recipe: Recipe, shard_set: ShardSet) -> None:
    shown = io.StringIO()
    print_plan(make_plan(recipe, shard_set), recipe, Console(file=shown, width=120))
    network = modules.TrainingModule.of_contract(recipe, shard_set.contract).network
    rows = summary_table(network)
    trained = sum(tensor.numel() for tensor in trainable_state(network).values())
    assert sum(row.bytes for row in rows) == 4 * sum(parameter.numel() for parameter in network.parameters())
    need = memory_need(rows, average=True)
    assert need.total == need.weights + trained * (4 + 8 + 4)
    lines = shown.getvalue().splitlines()
    for part in ("transformer", "transformer (LoRA)", "depth_branch (LoRA)", "action_encoder"):
        assert any(f" {part} " in line for line in lines), part
    for part, size in (("gradients", need.gradients), ("AdamW", need.optimizer), ("averaged weights", need.average)):
        assert any(f" {part} " in line and f" {gigabytes(size)} " in line for line in lines), part


def test_memory_in_closed_form() -> None:
    rows = [SummaryRow("a", 1000, 0, ("bfloat16",), 2000), SummaryRow("b", 100, 100, ("float32",), 400)]
    assert memory_need(rows, average=True) == MemoryNeed(2400, 400, 800, 400)
    assert memory_need(rows, adamw_8bit=True) == MemoryNeed(2400, 400, 203, 0)


@pytest.mark.parametrize(
    ("override", "key"),
    [("backbone.quantize=int8", "backbone.quantize"), ("optim.adamw_8bit=true", "optim.adamw_8bit")],
)
def test_a_missing_library_is_named_before_any_work(
    recipe_file: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, override: str, key: str
) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'bitsandbytes' is not installed") as error:
        tiny_training.train(recipe_file, tmp_path / "run", [override], console)
    assert error.value.where == key
    assert error.value.fix == "pip install 'xwam-ft[quant]'"
    assert not (tmp_path / "run").exists()


Parameters = dict[str, torch.nn.Parameter]


def parameters() -> Parameters:
    g = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(n, generator=g)) for name, n in (("w.big", 8192), ("w.small", 5))}


def steps(optimizer: torch.optim.Optimizer, held: Parameters, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        sum((parameter**4).sum() for parameter in held.values()).backward()
        optimizer.step()


def interrupted(optim: OptimSpec, tmp_path: Path) -> tuple[Parameters, Parameters]:
    """Five steps in one go, and the same with the optimizer made anew after two."""

    def made(held: Parameters) -> torch.optim.Optimizer:
        return make_optimizer([{"name": "all", "params": list(held.values()), "lr": 1e-2}], optim)

    whole, first = parameters(), parameters()
    steps(made(whole), whole, 5)
    before = made(first)
    steps(before, first, 2)
    second = {name: torch.nn.Parameter(value.detach().clone()) for name, value in first.items()}
    after = made(second)
    restore_optimizer(after, second, optimizer_tensors(before, first), tmp_path)
    steps(after, second, 3)
    return whole, second


@pytest.mark.parametrize("fused", [True, False, "auto"])
def test_fused_or_not_the_optimizer_resumes_to_the_bit(fused: bool | str, tmp_path: Path) -> None:
    optim = OptimSpec(fused=fused)  # pyright: ignore[reportArgumentType]
    whole, second = interrupted(optim, tmp_path)
    for name, parameter in whole.items():
        assert torch.equal(parameter, second[name])
    made = make_optimizer([{"params": list(whole.values()), "lr": 1e-2}], optim)
    assert made.defaults["fused"] == (fused is True)  # auto: not on a CPU
    plain = parameters()
    steps(torch.optim.AdamW(plain.values(), lr=1e-2, betas=optim.betas), plain, 5)
    for name, parameter in plain.items():
        torch.testing.assert_close(whole[name], parameter)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_auto_is_fused() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
    assert make_optimizer([{"params": [parameter], "lr": 1e-2}], OptimSpec()).defaults["fused"]


def test_adamw_in_8_bits_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the [quant] extra")
    optim = OptimSpec(adamw_8bit=True)
    whole, second = interrupted(optim, tmp_path)
    for name, parameter in whole.items():
        assert torch.equal(parameter, second[name])
    held = parameters()
    optimizer = make_optimizer([{"name": "all", "params": list(held.values()), "lr": 1e-2}], optim)
    steps(optimizer, held, 1)
    stored = optimizer_tensors(optimizer, held)
    assert stored["state1.w.big"].dtype == torch.uint8
    assert stored["state1.w.small"].dtype == torch.float32  # too small to be worth packing
    assert int(stored["step.w.big"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_run_on_a_quantized_base_resumes_to_the_bit_and_is_exported(
    recipe_file: Path, tmp_path: Path, console: Console, kind: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the [quant] extra")
    overrides = [f"backbone.quantize={kind}", "optim.adamw_8bit=true", "optim.lr_lora=1e-2", "optim.lr_depth=1e-2"]
    whole = tiny_training.train(recipe_file, tmp_path / "whole", overrides, console)
    checkpoint = whole / "checkpoints/step-000006"
    before = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()
    tiny_training.resume(whole, console)
    assert {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")} == before
    bundle = export_run(whole, tmp_path / "bundle", console=console)
    stored = load_file(bundle / "model.safetensors")
    assert all(tensor.is_floating_point() for tensor in stored.values())


Change = Callable[..., Recipe]


@pytest.mark.parametrize("train", ["lora", "heads", "full"])
def test_auto_shares_the_blocks_wherever_they_are_frozen(changed: Change, shard_set: ShardSet, train: str) -> None:
    recipe = changed(model={"train": train, "depth": {"blocks": 1}})
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, shard_set.contract)
    assert network.config.depth_shared == (train != "full")


def test_a_branch_that_the_backbone_brings_is_copied(recipe: Recipe, changed: Change, shard_set: ShardSet) -> None:
    contract = shard_set.contract
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    shared = trainable_network(backbone, changed(model={"depth": {"blocks": 1}}), contract).config
    source = build_network(backbone, replace(shared, depth_shared=False), seed=3)
    own = ("view_embedding", "action_", "proprio_", "depth_branch")
    tensors = {name: value.detach() + 0.01 for name, value in source.named_parameters() if name.startswith(own)}
    backbone.joint = JointWeights(source.config, tensors, Layout.of(contract))
    copied = trainable_network(backbone, recipe, contract)
    assert not copied.config.depth_shared
    assert torch.equal(copied.depth_branch.proj_out.weight, tensors["depth_branch.proj_out.weight"])
    other = changed(model={"depth": {"blocks": 2}})  # that branch does not fit one of two blocks
    assert trainable_network(backbone, other, contract).config.depth_shared
    # Asked for, the adapter takes over what the branch learned: an update of rank one on every matrix, but the biases
    # and norms learned as well, and those it cannot hold.
    asked = changed(model={"lora": {"rank": 2}, "depth": {"blocks": 1, "branch": "adapter"}})
    with pytest.raises(UserError, match=r"model.depth.branch: the adapter cannot hold the depth branch"):
        trainable_network(backbone, asked, contract)
    unmoved = dict(source.named_parameters())
    for name in tensors:
        if ".blocks." in name and not name.endswith(("to_q.weight", "to_out.0.weight", "scale_shift_table")):
            tensors[name] = unmoved[name].detach()
    report: list[str] = []
    assert trainable_network(backbone, asked, contract, report).config.depth_shared
    (sentence,) = [line for line in report if "held by an adapter" in line]
    lost = float(sentence.split("at most ")[1].split()[0])
    assert lost < 1e-4
