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
from xwam_ft.train.draws import draw

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


def _named(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """Whether a product, forward or backward, is of one of the weights that stay float32."""
    of = (left, right, (left[0], right[-1]))  # the last: where the product is a weight's gradient
    return any(weight in NAMED or weight[::-1] in NAMED for weight in of)
