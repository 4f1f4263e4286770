"""A training micro-batch of Wan2.2-TI2V-5B without a GPU: fake tensors of its shapes, under the recipe's precision."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import train_step
from _sizes import SIZES
from xwam_ft.learn.draws import draw
from xwam_ft.plan.memory import Live, count_activations

from .fakes import Products, faked, place_fakes

WIDTH, HEAD = 3072, 4 * 48
NAMED = {
    (256, WIDTH): "time embedding, as the reference computes it",
    (WIDTH, WIDTH): "time embedding",
    (WIDTH, 6 * WIDTH): "modulation of three timesteps",
    (WIDTH, HEAD): "output heads: velocities and latents, not features",
}
"""Weights, inputs by outputs, of the only products that stay float32."""


@pytest.mark.slow
def test_a_micro_batch_in_mixed_precision() -> None:
    size = SIZES["5b"]()
    module = train_step.training("LoRA, depth adapter", size, "meta", 1, checkpointing=True)
    assert module is not None
    batch = train_step.clips(size, 1, "cpu")
    draws = draw(batch, module.recipe.noise, 0.1, 0)
    products = Products()
    with FakeTensorMode() as mode:  # which raises where a number is asked for: nothing here waits for a device
        batch, draws = faked(batch, mode), faked(draws, mode)
        place_fakes(module)
        with FlopCounterMode(display=False) as counter, products:
            with torch.autocast("cpu", torch.bfloat16):
                prediction = module.predict(module.add_noise(batch, draws), draws)
                loss = module.weigh(module.normalise(module.loss_terms(batch, draws, prediction), 0))
            loss.backward()
    full = {key for key in products.seen if key[0] != torch.bfloat16}
    odd = [key for key in full if not _named(*key[1:])]
    assert not odd, "a product that stays float32 for no reason that is named"
    # Twice the forward pass (recomputation) and a backward pass through inputs and adapters.
    assert counter.get_total_flops() / 1e12 == pytest.approx(FLOPS, rel=0.02)


FLOPS = 28.26
OPERATIONS = 22_990
"""Of a micro-batch of any size: what a GPU is told to do, views apart."""


@pytest.mark.slow
def test_what_lives_at_the_peak_is_what_the_plan_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of forward and backward pass followed from its making to its end, beside `plan`'s sum of parts."""
    size, clips = SIZES["5b"](), 8
    module = train_step.training("LoRA, depth adapter", size, "meta", clips, checkpointing=True)
    assert module is not None
    one = train_step.clips(size, 1, "meta")
    counted = count_activations(module.network, module.recipe, one, scores=False, mixed=True).of(module.recipe)
    batch = train_step.clips(size, clips, "cpu")
    draws = draw(batch, module.recipe.noise, 0.1, 0)
    # As on a GPU; a CPU looks whether instructions are alike.
    monkeypatch.setattr(module.network, "_project_batch", module.network._project_text)
    with FakeTensorMode() as mode:
        batch, draws = faked(batch, mode), faked(draws, mode)
        place_fakes(module)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in trained:  # as in every micro-batch but the first of a step
            parameter.grad = torch.empty_like(parameter)
        with Live() as live:
            with torch.autocast("cpu", torch.bfloat16):
                prediction = module.predict(module.add_noise(batch, draws), draws)
                loss = module.weigh(module.normalise(module.loss_terms(batch, draws, prediction), 0))
            loss.backward()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    there = weights + 4 * 4 * sum(parameter.numel() for parameter in trained)  # gradients, AdamW, averages
    assert there + counted == pytest.approx(there + live.peak, rel=0.05)
    assert counted == pytest.approx(live.peak, rel=0.15)
    assert live.operations == pytest.approx(OPERATIONS, rel=0.02)


def _named(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Whether a product, forward or backward, is of one of the weights that stay float32."""
    of = (left, right, (left[0], right[-1]))  # the last: where the product is a weight's gradient
    return any(weight in NAMED or weight[::-1] in NAMED for weight in of)
