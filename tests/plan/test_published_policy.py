"""A policy call of Wan2.2-TI2V-5B without a GPU: fake tensors of its shapes, with the frozen base in bfloat16."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _sizes import SIZES, random_backbone
from xwam_ft.model import sampler
from xwam_ft.model.assemble import build_network
from xwam_ft.model.streams import Streams

from .fakes import Products, place_fakes

STEPS, VIDEO_STEPS = 10, 50
BLOCKS, D, FFN, TEXT = 30, 3072, 14336, 512
VIDEO, ACTIONS, STATES, ACTION, STATE, PATCH = 3 * 3 * 8 * 10, 32, 9, 14, 16, 4 * 48
TOKENS = VIDEO + ACTIONS + STATES
NAMED = {
    (256, D): "time embedding, as the reference computes it",
    (D, D): "time embedding, and the second layer of what reads and writes actions and states",
    (D, 6 * D): "modulation of three timesteps",
    (D, PATCH): "output head of the video: velocities, not features",
    (ACTION, D): "actions in", (D, ACTION): "actions out: numbers that move a robot",
    (STATE, D): "states in", (D, STATE): "states out",
}  # fmt: skip
"""Weights, inputs by outputs, of the only products of the network in float32."""
FEW = {3, ACTIONS, STATES, VIDEO}
"""Rows of those: never the stream of all tokens, where the work is."""


@pytest.mark.slow
def test_a_policy_call_computes_in_bfloat16_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIZES["5b"]()
    contract = size.contract
    backbone = random_backbone(size, "meta", torch.bfloat16, parts=("transformer", "vae"))
    with torch.device("meta"):
        network = build_network(backbone, size.network, 0).eval()
    shape = backbone.latent_shape(len(contract.cameras), contract.timing.clip_frames, 256, 320)
    # What a solver works out from numbers of steps is the host's own business, before anything is asked of a device.
    solvers = {steps: [sampler.Solver(steps) for _ in range(2)] for steps in (STEPS, VIDEO_STEPS)}
    monkeypatch.setattr(sampler, "Solver", lambda steps, shift: solvers[steps].pop())
    of_network, of_vae = Products(), Products()
    # Where a number is asked for, fake tensors raise.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        place_fakes(network)
        place_fakes(backbone.vae)
        shapes = (shape, (ACTIONS, ACTION), (STATES, STATE))
        noise = Streams(*(torch.empty(1, *of) for of in shapes))
        text = network.encode_text(torch.empty(1, TEXT, 4096, dtype=torch.bfloat16))  # known from an earlier call
        known = sampler.Conditions(torch.empty(1, *shape[:1], *shape[2:]), torch.empty(1, STATE))
        with FlopCounterMode(display=False) as counter, of_network:
            answer = sampler.sample(
                network,
                known,
                text,
                noise=noise,
                video_steps=VIDEO_STEPS,
                action_steps=STEPS,
                actions_only=True,
            )
        with of_vae:
            backbone.vae.encode(torch.empty(3, 3, 1, 256, 320))
    assert answer.action.shape == (1, ACTIONS, ACTION)
    assert answer.action.dtype == torch.float32
    full = {(left, right) for dtype, left, right in of_network.seen if dtype != torch.bfloat16}
    assert {right for _, right in full} == set(NAMED), "float32 products are those named, each with its reason"
    assert {left[0] for left, _ in full} == FEW
    assert {dtype for dtype, _, _ in of_vae.seen} == {torch.float32}, "the VAE computes in float32, as it was trained"
    # torch does not count attention where a CPU's kernel computes it, so those are counted by hand.
    attended = {
        left: number for (_, left, right), number in of_network.seen.items() if left == right and len(left) == 4
    }
    assert attended == {(1, 24, length, 128): STEPS * BLOCKS for length in (TOKENS, TEXT)}
    assert counter.get_total_flops() == STEPS * forward_flops()


def forward_flops() -> int:
    """One forward pass without depth and attention, the text's keys and values known: a multiply-add is two."""
    block = 2 * TOKENS * (6 * D * D + 2 * D * FFN)
    robot = 2 * 2 * (ACTIONS * (ACTION * D + D * D) + STATES * (STATE * D + D * D))
    patches = 2 * 2 * VIDEO * PATCH * D
    times = 2 * 3 * (256 * D + D * D + 6 * D * D)
    return BLOCKS * block + robot + patches + times
