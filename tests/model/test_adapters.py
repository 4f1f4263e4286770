"""What trains and what does not; adapters as peft knows them; merging; the audit of trained tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import Batch, make_network, make_transformer, outputs, relative

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import (
    load_trainable,
    parameter_groups,
    prepare_for_training,
    trainable_state,
    write_peft_adapter,
)
from xwam_ft.model.merge import merge_adapters
from xwam_ft.model.network import JointNetwork
from xwam_ft.model.summary import summary_table
from xwam_ft.recipe import OptimSpec
from xwam_ft.recipe_model import DepthSpec, LoraSpec

LORA = LoraSpec(rank=4, alpha=8.0)


def prepared(train: str = "lora", *, lora: LoraSpec = LORA, base: torch.dtype = torch.float32, seed: int = 0):
    network = make_network()
    network.transformer.to(base)
    network.depth_branch.to(base)
    return prepare_for_training(network, lora, DepthSpec(train=train, blocks=2), seed=seed)


def stirred(network: JointNetwork, seed: int = 0) -> JointNetwork:
    """Give the adapters something to say (they start at zero)."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    return network


def step(network: JointNetwork, batch: Batch) -> None:
    optim = torch.optim.AdamW(parameter_groups(network, OptimSpec()))
    sum(tensor.square().mean() for tensor in outputs(batch.run(network)).values()).backward()
    optim.step()


@pytest.mark.parametrize("train", ["lora", "full"])
def test_fresh_adapters_leave_every_output_as_it_was(batch: Batch, train: str) -> None:
    with torch.no_grad():
        wanted, ours = outputs(batch.run(make_network())), outputs(batch.run(prepared(train)))
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_step_changes_what_trains_and_nothing_else(batch: Batch, train: str) -> None:
    network = stirred(prepared(train).train())
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    step(network, batch)
    changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == trainable
    kinds = {"lora" if ".lora_" in n else n.split(".")[0] for n in trainable if not n.startswith("depth_branch")}
    heads = {f"{stream}_{way}" for stream in ("action", "proprio") for way in ("encoder", "decoder")}
    assert kinds == {"lora", "view_embedding"} | heads
    branch = {name for name in trainable if name.startswith("depth_branch")}
    everything = {name for name in before if name.startswith("depth_branch")}
    own = {n for n in everything if ".lora_" in n or "scale_shift_table" in n or "proj_out" in n}
    assert branch == (everything if train == "full" else own)
    assert any(".lora_" in name for name in branch) == (train == "lora")


def test_targets_choose_the_adapted_layers() -> None:
    def adapted(*targets: str) -> set[str]:
        names = trainable_state(prepared(lora=LoraSpec(targets=list(targets))))
        return {n.split("blocks.0.")[1].split(".lora")[0] for n in names if n.startswith("transformer.blocks.0.")}

    attention = {f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    assert adapted("attention") == attention
    assert adapted("feedforward") == {"ffn.net.0.proj", "ffn.net.2"}
    assert adapted("attention", "feedforward") == attention | {"ffn.net.0.proj", "ffn.net.2"}
    assert adapted("attn1.to_q") == {"attn1.to_q"}
    assert adapted("attn2.*", "*.to_v", "feedforward") == {
        "attn1.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2",
    }  # fmt: skip


def test_what_trains_is_float32_on_a_bfloat16_base_and_a_step_runs(batch: Batch) -> None:
    for train in ("lora", "full"):
        network = prepared(train, base=torch.bfloat16).train()
        trained = {p.dtype for p in network.parameters() if p.requires_grad}
        assert trained == {torch.float32}
        assert network.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
        step(network, batch)
        assert all(bool(tensor.isfinite().all()) for tensor in trainable_state(network).values())


def test_checkpointing_gives_the_same_gradients_under_adapters(batch: Batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = stirred(prepared())
        network.gradient_checkpointing = checkpointing
        sum(tensor.square().sum() for tensor in outputs(batch.run(network)).values()).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_unmerged(batch: Batch, rslora: bool, dora: bool) -> None:
    network = stirred(prepared(lora=LoraSpec(rank=4, alpha=8.0, rslora=rslora, dora=dora))).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(1.2)  # a length of its own
        base, wanted = outputs(batch.run(make_network())), outputs(batch.run(network))
        merged = merge_adapters(network)
        ours = outputs(batch.run(merged))
    assert merged.state_dict().keys() == make_network().state_dict().keys()
    for name, tensor in wanted.items():
        assert relative(base[name], tensor) > 1e-3
        assert relative(ours[name], tensor) < 1e-5


def test_a_merged_dora_layer_in_closed_form_on_a_bfloat16_base() -> None:
    network = stirred(prepared(lora=LoraSpec(rank=4, alpha=8.0, dora=True), base=torch.bfloat16))
    layer = network.transformer.blocks[0].attn1.to_q
    torch.nn.init.uniform_(layer.lora_magnitude_vector.default.weight, 0.5, 1.5)
    length, direction = layer.lora_magnitude_vector.default.weight, layer.get_base_layer().weight.float()
    direction = direction + 8.0 / 4 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    wanted = length[:, None] * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(merge_adapters(network).transformer.blocks[0].attn1.to_q.weight, wanted)


def test_dropout_belongs_to_training_alone(batch: Batch) -> None:
    network = stirred(prepared(lora=LoraSpec(rank=4, dropout=0.5))).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = batch.run(network).action, batch.run(network).action
        assert torch.equal(first, second)
        network.train()
        assert relative(batch.run(network).action, batch.run(network).action) > 1e-4


def test_merging_a_small_adapter_is_float32_and_in_bfloat16_would_lose_it() -> None:
    network = prepared(base=torch.bfloat16)
    layer = network.transformer.blocks[0].attn1.to_q
    base = layer.get_base_layer().weight.float().clone()
    torch.nn.init.normal_(layer.lora_B.default.weight, std=1e-4)
    delta = layer.get_delta_weight("default")
    kept = merge_adapters(network).transformer.blocks[0].attn1.to_q.weight - base
    torch.testing.assert_close(kept, delta, rtol=1e-3, atol=1e-7)
    lost = (base + delta).bfloat16().float() - base
    assert float((lost - delta).norm() / delta.norm()) > 0.5


def test_merging_leaves_the_backbones_own_tensors_alone() -> None:
    network = stirred(prepared())
    layer = network.transformer.blocks[0].attn1.to_q.get_base_layer()
    before, bias = layer.weight.clone(), layer.bias
    merged = merge_adapters(network).transformer.blocks[0].attn1.to_q
    assert torch.equal(layer.weight, before)
    assert merged.bias.data_ptr() != bias.data_ptr()


def test_a_trained_state_goes_into_a_fresh_network(batch: Batch) -> None:
    network = stirred(prepared()).train()
    step(network, batch)
    state = {name: tensor.clone() for name, tensor in trainable_state(network).items()}
    assert not any("default" in name for name in state)
    fresh = prepared(seed=5)
    load_trainable(fresh, state, "trainable.safetensors")
    with torch.no_grad():
        wanted, ours = outputs(batch.run(network)), outputs(batch.run(fresh))
    for name, tensor in wanted.items():
        assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s.pop("view_embedding.weight"), "1 tensors missing: view_embedding.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 tensors unexpected: extra"),
        (lambda s: s.update({"view_embedding.weight": torch.zeros(3, 24)}), r"of another shape: view_embedding.weight"),
        (lambda s: s["view_embedding.weight"].fill_(torch.nan), "1 tensors not finite: view_embedding.weight"),
    ],
)
def test_a_trained_state_that_does_not_fit_is_refused_whole(spoil, sentence: str) -> None:
    network = prepared()
    state = {name: tensor.clone() + 1 for name, tensor in trainable_state(network).items()}
    spoil(state)
    before = {name: tensor.clone() for name, tensor in trainable_state(network).items()}
    with pytest.raises(UserError, match=r"trainable\.safetensors: .*" + sentence):
        load_trainable(network, state, "trainable.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainable_state(network).items())


def test_peft_itself_reads_the_adapter_folder(batch: Batch, tmp_path: Path) -> None:
    from peft import PeftModel

    network = stirred(prepared()).eval()
    write_peft_adapter(network, tmp_path / "adapter", base="tiny")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    with torch.no_grad():
        wanted = batch.run(network, with_depth=False)
    other = make_network()
    loaded = PeftModel.from_pretrained(make_transformer(), str(tmp_path / "adapter"))
    assert loaded.peft_config["default"].base_model_name_or_path == "tiny"
    other.transformer = loaded.base_model.model
    with torch.no_grad():
        ours = batch.run(other, with_depth=False)
    assert relative(ours.video, wanted.video) < 1e-6
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == 3 * 10 * 2


def test_groups_have_their_rates_and_hold_everything_that_trains() -> None:
    network = prepared()
    groups = parameter_groups(network, OptimSpec(lr_lora=1e-3, lr_heads=2e-3, lr_depth=3e-3, weight_decay=0.02))
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("lora", 1e-3, 0.02), ("heads", 2e-3, 0.02), ("depth", 3e-3, 0.02),
    ]  # fmt: skip
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_the_summary_counts_every_parameter_once() -> None:
    network = prepared(base=torch.bfloat16)
    rows = {row.group: row for row in summary_table(network)}
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in network.parameters())
    assert sum(row.trainable for row in rows.values()) == sum(t.numel() for t in trainable_state(network).values())
    assert rows["transformer"].trainable == 0
    assert rows["transformer"].dtypes == ("bfloat16",)
    assert rows["transformer (LoRA)"].dtypes == ("float32",)
    # 3 blocks of 8 attention layers (24 -> 24) and 2 feed-forward ones (24 <-> 32), rank 4
    assert rows["transformer (LoRA)"].trainable == 3 * 4 * (8 * (24 + 24) + 2 * (24 + 32))


def test_adapters_are_a_function_of_their_seed_and_leave_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (trainable_state(prepared(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "transformer.blocks.0.attn1.to_q.lora_A.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize(("train", "groups"), [("heads", {"heads", "depth"}), ("full", {"backbone", "heads", "depth"})])
def test_without_adapters_heads_train_alone_or_with_the_whole_transformer(
    batch: Batch, train: str, groups: set[str]
) -> None:
    network = prepare_for_training(make_network(), LORA, DepthSpec(train="full", blocks=2), train=train)  # pyright: ignore[reportArgumentType]
    assert not any(".lora_" in name for name in network.state_dict())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rates = OptimSpec(lr_backbone=1e-3)
    found = {group["name"]: group for group in parameter_groups(network, rates)}
    assert set(found) == groups
    if train == "full":
        assert found["backbone"]["lr"] == 1e-3
        own = [name for name, _ in network.named_parameters() if name.startswith("transformer.")]
        assert len(found["backbone"]["params"]) == len(own)
    step(network, batch)
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    inside = {name for name in moved if name.startswith("transformer.")}
    assert bool(inside) == (train == "full")
    assert any(name.startswith("action_encoder.") for name in moved)
    assert set(trainable_state(network)) >= moved
