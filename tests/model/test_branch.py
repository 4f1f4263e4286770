"""The depth branch on shared blocks against the same branch on copies: outputs, gradients, what trains, conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import CONFIG, Batch, make_batch, make_network, make_transformer, outputs, relative

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import (
    load_trainable,
    parameter_groups,
    prepare_for_training,
    trainable_state,
    write_peft_adapter,
)
from xwam_ft.model.branch import DEPTH, MAIN, SharedBlock, lora_layers
from xwam_ft.model.merge import drop_branch, fit_depth_adapter, materialise_branch, merge_adapters, share_branch
from xwam_ft.model.network import JointNetwork
from xwam_ft.recipe import OptimSpec
from xwam_ft.recipe_model import DepthSpec, LoraSpec

SHARED = dataclasses.replace(CONFIG, depth_shared=True)
LORA = LoraSpec(rank=4, alpha=8.0)


def fresh(*, shared: bool) -> JointNetwork:
    """A network whose branch is as the transformer's blocks are; new parts with values that matter."""
    network = JointNetwork(make_transformer(), SHARED if shared else CONFIG, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in network.named_parameters():
            if not name.startswith(("transformer", "depth_branch.blocks")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def prepared(*, shared: bool, train: str = "lora", lora: LoraSpec = LORA) -> JointNetwork:
    return prepare_for_training(fresh(shared=shared), lora, DepthSpec(blocks=2), train=train)  # pyright: ignore


def stirred(network: JointNetwork) -> JointNetwork:
    """Everything that trains moved, by amounts that depend on its stable name alone."""
    with torch.no_grad():
        for index, (_, tensor) in enumerate(sorted(trainable_state(network).items())):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
    return network


def gradients(network: JointNetwork, batch: Batch) -> dict[str, Tensor]:
    network.zero_grad()
    sum(tensor.square().mean() for tensor in outputs(batch.run(network)).values()).backward()
    named = zip(trainable_state(network), (p for p in network.parameters() if p.requires_grad), strict=True)
    return {name: parameter.grad.clone() for name, parameter in named}


def assert_equal(ours: Mapping[str, Tensor], wanted: Mapping[str, Tensor], bound: float) -> None:
    assert ours.keys() == wanted.keys()
    scale = max(float(tensor.abs().max()) for tensor in wanted.values())
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=bound * scale, msg=name)


@pytest.mark.parametrize("dora", [False, True])
def test_at_initialisation_both_forms_give_the_same_outputs(batch: Batch, dora: bool) -> None:
    lora = LoraSpec(rank=4, dora=dora)
    with torch.no_grad():
        plain = outputs(batch.run(fresh(shared=False)))
        for shared in (False, True):
            for network in (fresh(shared=shared), prepared(shared=shared, lora=lora)):
                assert_equal(outputs(batch.run(network)), plain, 1e-6)


@pytest.mark.parametrize("train", ["lora", "heads"])
def test_what_trains_has_the_same_names_values_and_groups_in_both_forms(train: str) -> None:
    copies, shared = prepared(shared=False, train=train), prepared(shared=True, train=train)
    assert_equal(trainable_state(shared), trainable_state(copies), 0)
    groups = [parameter_groups(network, OptimSpec()) for network in (copies, shared)]
    for ours, theirs in zip(*groups, strict=True):
        assert ours["name"] == theirs["name"]
        assert sum(p.numel() for p in ours["params"]) == sum(p.numel() for p in theirs["params"])
    held = sum(parameter.numel() for parameter in shared.parameters())
    assert sum(parameter.numel() for parameter in copies.parameters()) - held == sum(
        parameter.numel()
        for block in make_transformer().blocks[-2:]
        for name, parameter in block.named_parameters()
        if name != "scale_shift_table"
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("train", "lora"),
    [("lora", LORA), ("heads", LORA), ("lora", LoraSpec(rank=4, dora=True, rslora=True, targets=["attn*.to_*"]))],
)
def test_outputs_and_gradients_are_those_of_untied_copies(
    batch: Batch, train: str, lora: LoraSpec, checkpointing: bool
) -> None:
    copies, shared = (stirred(prepared(shared=form, train=train, lora=lora)) for form in (False, True))
    shared.gradient_checkpointing = checkpointing
    wanted, ours = gradients(copies, batch), gradients(shared, batch)
    assert_equal(ours, wanted, 1e-6)
    assert all(bool(gradient.any()) for gradient in ours.values())
    with torch.no_grad():
        assert_equal(outputs(batch.run(shared)), outputs(batch.run(copies)), 1e-6)


def test_on_a_bfloat16_base_what_trains_is_float32_and_the_two_forms_agree(batch: Batch) -> None:
    found = []
    for shared in (False, True):
        network = fresh(shared=shared)
        network.transformer.blocks.to(torch.bfloat16)
        network.depth_branch.blocks.to(torch.bfloat16)
        prepare_for_training(network, LORA, DepthSpec(blocks=2))
        assert {tensor.dtype for tensor in trainable_state(network).values()} == {torch.float32}
        found.append(gradients(stirred(network), batch))
    assert_equal(found[1], found[0], 1e-6)


def test_choosing_an_adapter_leaves_the_layers_as_they_were(batch: Batch) -> None:
    network = prepared(shared=True).train()
    network.gradient_checkpointing = True
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    gradients(network, batch)
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == before
    assert all(layer.active_adapters == [MAIN] for layer in lora_layers(network.transformer))
    assert any(f".{DEPTH}." in name and trains for name, trains in before.items())
    assert any(f".{MAIN}." in name and trains for name, trains in before.items())


def test_each_adapter_moves_its_own_stream_alone(batch: Batch) -> None:
    network = prepared(shared=True)
    with torch.no_grad():
        first = outputs(batch.run(network))
        for name, parameter in network.named_parameters():
            if f".lora_B.{DEPTH}." in name:
                parameter.normal_(std=0.1)
        second = outputs(batch.run(network))
    assert relative(second["depth"], first["depth"]) > 1e-3
    for name in ("video", "action", "proprio"):
        assert torch.equal(second[name], first[name])


def test_an_encoded_instruction_goes_through_the_depth_adapter(batch: Batch) -> None:
    network = stirred(prepared(shared=True))
    with torch.no_grad():
        wanted = outputs(batch.run(network))
        batch.text = network.encode_text(batch.text)
        assert_equal(outputs(batch.run(network)), wanted, 1e-6)


def test_with_heads_the_main_stream_has_no_adapter(batch: Batch) -> None:
    network = stirred(prepared(shared=True, train="heads"))
    plain = fresh(shared=True)
    heads = {name: tensor for name, tensor in trainable_state(network).items() if "depth_branch" not in name}
    plain.load_state_dict(heads, strict=False)
    with torch.no_grad():
        ours, wanted = outputs(batch.run(network)), outputs(batch.run(plain))
    for name in ("video", "action", "proprio"):
        assert torch.equal(ours[name], wanted[name])
    assert relative(ours["depth"], wanted["depth"]) > 1e-3


def test_what_trained_in_one_form_loads_into_the_other(batch: Batch) -> None:
    shared, copies = stirred(prepared(shared=True)), prepared(shared=False)
    load_trainable(copies, trainable_state(shared), "trainable.safetensors")
    with torch.no_grad():
        assert_equal(outputs(batch.run(copies)), outputs(batch.run(shared)), 1e-6)


@pytest.mark.parametrize(("train", "dora"), [("lora", True), ("lora", False), ("heads", True)])
def test_shared_blocks_become_copies_exactly(batch: Batch, train: str, dora: bool) -> None:
    network = stirred(prepared(shared=True, train=train, lora=LoraSpec(rank=4, alpha=8.0, dora=dora)))
    with torch.no_grad():
        wanted = outputs(batch.run(network))
        materialised = outputs(batch.run(materialise_branch(network)))
        assert_equal(materialised, wanted, 1e-6)
        assert not any(isinstance(block, SharedBlock) for block in network.depth_branch.blocks)
        assert not any(f".{DEPTH}." in name for name in network.state_dict())
        merged = merge_adapters(network)
        assert_equal(outputs(batch.run(merged)), wanted, 1e-6)
    assert merged.state_dict().keys() == make_network().state_dict().keys()
    assert merged.config == CONFIG


def test_materialising_leaves_the_shared_blocks_alone() -> None:
    network = stirred(prepared(shared=True))
    base = network.transformer.blocks[2].attn1.to_q.get_base_layer().weight
    before = base.clone()
    merge_adapters(network)
    assert torch.equal(base, before)


def test_without_its_branch_a_network_merges_to_the_main_stream(batch: Batch) -> None:
    network = stirred(prepared(shared=True))
    with torch.no_grad():
        wanted = outputs(batch.run(network, with_depth=False))
        ours = outputs(batch.run(merge_adapters(drop_branch(network))))
    assert_equal(ours, wanted, 1e-6)
    assert not any("lora" in name or "depth" in name for name in network.state_dict())


def copies_with(rank: int, *, bias: float = 0.0) -> JointNetwork:
    """A network whose branch's linears moved by an update of this rank."""
    network = fresh(shared=False)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.depth_branch.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                rows, columns = module.weight.shape
                update = torch.randn(rows, rank, generator=g) @ torch.randn(rank, columns, generator=g)
                module.weight += 0.05 * update
                module.bias += bias * torch.randn(rows, generator=g)
    return network


@pytest.mark.parametrize("dora", [False, True])
def test_copies_whose_update_has_the_adapters_rank_become_an_adapter_exactly(batch: Batch, dora: bool) -> None:
    network = copies_with(rank=3)
    with torch.no_grad():
        wanted = outputs(batch.run(network))
    copies = share_branch(network)
    prepare_for_training(network, LoraSpec(rank=4, dora=dora), DepthSpec(blocks=2))
    fits = fit_depth_adapter(network, copies)
    assert max(fit.error for fit in fits) < 1e-5
    with torch.no_grad():
        assert_equal(outputs(batch.run(network)), wanted, 1e-5)
    # The spare row of A keeps random values and the spare column of B is zero, as at the start: it can still learn.
    layer = network.transformer.blocks[2].attn1.to_q
    assert bool(layer.lora_A[DEPTH].weight[3].any())
    assert not bool(layer.lora_B[DEPTH].weight[:, 3].any())


def test_the_reported_loss_is_the_tail_of_the_singular_values() -> None:
    network = copies_with(rank=6)
    name = "block 1, attn1.to_v"
    weight = network.transformer.blocks[2].attn1.to_v.weight.clone()
    copies = share_branch(network)
    prepare_for_training(network, LORA, DepthSpec(blocks=2))
    found = {fit.name: fit.error for fit in fit_depth_adapter(network, copies, limit=1.0)}
    sizes = torch.linalg.svdvals(copies.blocks[1].attn1.to_v.weight - weight)
    assert found[name] == pytest.approx(float(sizes[4:].norm() / sizes.norm()), rel=1e-4)
    assert found["block 0, norm2"] == 0.0


@pytest.mark.parametrize(("rank", "bias"), [(12, 0.0), (3, 1.0)])
def test_copies_that_do_not_fit_are_refused(rank: int, bias: float) -> None:
    network = copies_with(rank=rank, bias=bias)
    copies = share_branch(network)
    prepare_for_training(network, LORA, DepthSpec(blocks=2))
    with pytest.raises(UserError, match=r"cannot hold the depth branch.*layers lose more than 10%.*set it to copy"):
        fit_depth_adapter(network, copies)


def test_peft_itself_reads_both_adapters(tmp_path: Path) -> None:
    from peft import PeftModel

    network = stirred(prepared(shared=True, lora=LoraSpec(rank=4, dora=True)))
    write_peft_adapter(network, tmp_path / "adapter")
    write_peft_adapter(network, tmp_path / "adapter-depth", adapter=DEPTH)
    for folder, name in (("adapter", MAIN), ("adapter-depth", DEPTH)):
        model = PeftModel.from_pretrained(make_transformer(), str(tmp_path / folder)).base_model.model
        theirs = {raw: tensor for raw, tensor in model.state_dict().items() if ".lora_" in raw}
        ours = network.transformer.state_dict()
        assert len(theirs) == (3 if name == MAIN else 2) * 10 * 3
        for raw, tensor in theirs.items():
            assert torch.equal(ours[raw.replace(".default.", f".{name}.")], tensor)


def test_a_sample_of_one_view_and_frame_runs_on_shared_blocks() -> None:
    config = dataclasses.replace(SHARED, num_views=1)
    network = JointNetwork(make_transformer(), config)
    prepare_for_training(network, LORA, DepthSpec(blocks=2))
    prediction = make_batch(config, size=1).run(network)
    assert prediction.depth is not None
    assert prediction.depth.shape == (1, 4, 2, 1, 4, 6)
