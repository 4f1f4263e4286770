"""Short ways through a training step give the numbers and gradients of the long ones."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xwam_ft.model import blocks
from xwam_ft.model.blocks import KeysValues, Rotary, add_gated, modulate, plain_attention, rotate
from xwam_ft.model.lora_forward import use_short_forward
from xwam_ft.model.tokens import Span

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import slow_ways

G = torch.Generator()


def randn(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float32).requires_grad_(grad)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    G.manual_seed(0)


def same(ours: torch.Tensor, theirs: torch.Tensor, *inputs: torch.Tensor) -> None:
    """Outputs and gradients of `inputs` agree to 1e-6 of the largest."""
    weight = torch.randn(ours.shape, generator=G)
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    wanted = torch.autograd.grad((theirs * weight).sum(), inputs)
    for a, b in ((ours, theirs), *zip(found, wanted, strict=True)):
        assert float((a - b).abs().max()) <= 1e-6 * max(float(b.abs().max()), 1.0)


def test_rotation_as_a_complex_product_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = randn(2, 7, 3, 10)
    angle = randn(7, 5, grad=False)
    rotary = Rotary(angle.cos(), angle.sin(), torch.complex(angle.cos(), angle.sin()))
    assert "ViewAsReal" in str(rotate(x, rotary).grad_fn.next_functions[0][0]), "the short way was not taken"
    same(rotate(x, rotary), rotate(x, rotary._replace(turn=None)), x)
    same(rotate(x[:, 2:5], rotary.part(2, 5)), rotate(x, rotary)[:, 2:5], x)
    ours = rotate(x, rotary)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # compilers take the real one
    same(ours, rotate(x, rotary), x)


def test_spans_cut_in_one_split_are_slices() -> None:
    spans = (Span(0, 3, 0), Span(3, 4, 1), Span(4, 9, 2))
    x, update, values, gates = randn(2, 9, 6), randn(2, 9, 6), randn(2, 3, 6), randn(2, 3, 6)
    time = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    same(modulate(x, values, gates, spans), x * (1 + gates[:, time]) + values[:, time], x, values, gates)
    same(add_gated(x, update, gates, spans), x + update * gates[:, time], x, update, gates)


def test_plain_attention_is_torch_s() -> None:
    query, keys, values = randn(2, 3, 5, 8), randn(2, 3, 9, 8), randn(2, 3, 9, 8)
    ours = plain_attention(query, KeysValues(keys, values))
    same(ours, F.scaled_dot_product_attention(query, keys, values), query, keys, values)


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_in_one_product_is_peft_s(rslora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], use_rslora=rslora)
    inject_adapter_in_model(config, model, adapter_name="default")
    layer: LoraLayer = model[0]  # pyright: ignore[reportAssignmentType]
    nn.init.normal_(layer.lora_B["default"].weight)
    x = randn(2, 4, 6)
    trained = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    long = layer(x)
    use_short_forward(layer)
    short = layer(x)
    assert "AddmmBackward" in str(short.grad_fn.next_functions[0][0]), "the short way was not taken"
    same(short, long, x, *trained)
    layer._disable_adapters = True
    same(layer(x), layer.base_layer(x), x)
    layer._disable_adapters = False
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer.lora_dropout["default"] = nn.Dropout(0.5)
    torch.manual_seed(1)
    dropped = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(dropped, type(layer).forward(layer, x))


def test_text_that_samples_share_is_projected_once_to_the_same_keys_and_values() -> None:
    class Block:
        class attn2:
            heads = 2
            to_k, to_v, norm_k = nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity()

    rows, place = randn(2, 3, 4), torch.tensor([1, 0, 1, 1])
    once = blocks.text_keys_values(Block, blocks.SharedText(rows, place))
    each = blocks.text_keys_values(Block, rows[place])
    weights = Block.attn2.to_k.weight, Block.attn2.to_v.weight
    same(torch.cat(once), torch.cat(each), rows, *weights)


def test_a_whole_training_step_has_the_gradients_of_the_slow_ways() -> None:
    import train_step
    from _sizes import SIZES

    size = SIZES["tiny"]()
    for form in ("LoRA, depth adapter", "full, depth copy"):
        module = train_step.training(form, size, "cpu", 2, dtype=torch.float32)
        assert module is not None
        for name, parameter in module.network.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.02, generator=G)
        batch = train_step.clips(size, 2, "cpu")
        batch = replace(batch, text=batch.text[:1].repeat(2, 1, 1))
        found: list[list[torch.Tensor]] = []
        for way in (nullcontext(), slow_ways.training_operations()):
            with way:
                module.training_step(batch, 0).backward()
            trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
            found.append([parameter.grad.clone() for parameter in trained])  # pyright: ignore[reportOptionalMemberAccess]
            module.zero_grad()
        largest = max(float(gradient.abs().max()) for gradient in found[1])
        for ours, theirs in zip(*found, strict=True):
            assert float((ours - theirs).abs().max()) <= 1e-6 * largest
