"""A base in 8 or 4 bits: refused by name without the library; with it, close to the base and to what export merges."""

from __future__ import annotations

import pytest
import torch
from toy import CONFIG, Batch, make_network, make_transformer, outputs, relative

from xwam_ft.errors import UserError
from xwam_ft.model import quantize
from xwam_ft.model.adapters import prepare_for_training, trainable_state
from xwam_ft.model.assemble import build_network
from xwam_ft.model.backbone import Backbone, load_backbone
from xwam_ft.model.merge import merge_adapters
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.summary import summary_table
from xwam_ft.recipe_model import DepthSpec, LoraSpec

SHARED = NetworkConfig(**(CONFIG.to_dict() | {"depth_shared": True}))


def test_without_the_library_the_sentence_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^backbone\.quantize: the package 'bitsandbytes' is not installed") as error:
        load_backbone("tiny", parts=("transformer",), quantize="nf4")
    assert error.value.fix == "pip install 'xwam-ft[quant]'"


def quantized(kind: quantize.Quantize) -> Backbone:
    pytest.importorskip("bitsandbytes", reason="needs the [quant] extra")
    packed = quantize.quantize_blocks(make_transformer(), kind)
    return Backbone("toy", packed, None, None, None, 7, False, lambda part: part)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("nf4", 0.3)])
def test_a_quantized_base_answers_as_the_base_nearly_and_trains_its_adapters(
    batch: Batch, kind: quantize.Quantize, bound: float
) -> None:
    backbone = quantized(kind)
    network = build_network(backbone, SHARED, 0)
    prepare_for_training(network, LoraSpec(rank=4), DepthSpec(blocks=2))
    plain = build_network(Backbone("toy", make_transformer(), None, None, None, 7, False, str), SHARED, 0)
    with torch.no_grad():
        wanted, ours = outputs(batch.run(plain)), outputs(batch.run(network))
    for name, tensor in wanted.items():
        assert 0 < relative(ours[name], tensor) < bound, name
    assert quantize.is_quantized(network.transformer.blocks[0].attn1.to_q.get_base_layer())
    assert not quantize.is_quantized(network.transformer.condition_embedder.time_embedder.linear_1)
    gradients = []
    for checkpointing in (False, True):
        network.gradient_checkpointing = checkpointing
        network.zero_grad()
        sum(tensor.square().mean() for tensor in outputs(batch.run(network)).values()).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.requires_grad])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6)
    # Zero only where it must be: A gets none while B is zero.
    names = list(trainable_state(network))
    assert all(bool(g.any()) for name, g in zip(names, gradients[0], strict=True) if ".lora_A." not in name)


def test_export_merges_into_the_values_that_were_trained_on(batch: Batch) -> None:
    backbone = quantized("nf4")
    network = build_network(backbone, SHARED, 0)
    prepare_for_training(network, LoraSpec(rank=4), DepthSpec(blocks=2))
    state = trainable_state(network)
    with torch.no_grad():
        for index, tensor in enumerate(state.values()):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
        wanted = outputs(batch.run(network))
    quantize.dequantize_blocks(backbone.transformer)
    exported = build_network(backbone, SHARED, 0)
    prepare_for_training(exported, LoraSpec(rank=4), DepthSpec(blocks=2))
    with torch.no_grad():
        for name, tensor in trainable_state(exported).items():
            tensor.copy_(state[name])
        ours = outputs(batch.run(merge_adapters(exported)))
    for name, tensor in wanted.items():
        assert relative(ours[name], tensor) < 1e-5
    assert exported.state_dict().keys() == make_network().state_dict().keys()


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("int8", 1.0), ("nf4", 0.5)])
def test_the_summary_counts_weights_not_their_packing(kind: quantize.Quantize, bytes_a_weight: float) -> None:
    backbone = quantized(kind)
    rows = {row.group: row for row in summary_table(build_network(backbone, SHARED, 0))}
    plain = make_transformer()
    packed = sum(module.weight.numel() for module in plain.blocks.modules() if isinstance(module, torch.nn.Linear))
    every = sum(parameter.numel() for parameter in plain.parameters())
    assert rows["transformer"].parameters == every
    assert rows["transformer"].bytes == pytest.approx(4 * (every - packed) + bytes_a_weight * packed)
