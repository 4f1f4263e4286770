"""The slow ways that the network's accelerations replace: same numbers, more work.

`policy_latency.py` and `train_step.py` time them beside the fast ones, and tests/model proves them equal. Context
managers put a slow way in place; the others stand in for the network.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xwam_ft.model import blocks, lora_forward, network, sampler
from xwam_ft.model.network import JointNetwork, Prediction
from xwam_ft.model.solver import SHIFT, Solver, flow_grid


@contextmanager
def per_token_modulation() -> Generator[None]:
    """Shift, scale and gate of every token, [B, L, D] each, in place of three a sample."""

    @lru_cache
    def times_of(spans: Any, device: torch.device) -> Tensor:
        return torch.tensor([span.time for span in spans for _ in range(span.start, span.stop)], device=device)

    def of_tokens(of_times: Tensor, spans: Any) -> Tensor:
        return of_times[:, times_of(spans, of_times.device)]

    def modulate(x: Tensor, shift: Tensor, scale: Tensor, spans: Any) -> Tensor:
        return x * (1 + of_tokens(scale, spans)) + of_tokens(shift, spans)

    def add_gated(x: Tensor, update: Tensor, gate: Tensor, spans: Any) -> Tensor:
        return x + of_tokens(gate, spans) * update.float()

    with (
        mock.patch.object(blocks, "modulate", modulate),
        mock.patch.object(blocks, "add_gated", add_gated),
        mock.patch.object(network, "modulate", modulate),
    ):
        yield


@contextmanager
def complex_rotary() -> Generator[None]:
    """Rotation as a complex product in double precision, as Wan's own code has it."""

    def rotate(x: Tensor, rotary: Any) -> Tensor:
        turn = torch.complex(rotary.cos.double(), rotary.sin.double())[:, None]
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)

    with mock.patch.object(blocks, "rotate", rotate):
        yield


@contextmanager
def library_solver() -> Generator[None]:
    """diffusers' UniPC, which works its weights out at every step, from tables on the CPU."""
    with mock.patch.object(sampler, "Solver", LibrarySolver):
        yield


class LibrarySolver(Solver):
    """diffusers' `UniPCMultistepScheduler` on our grid, with our solver's methods."""

    def __init__(self, steps: int, shift: float = SHIFT) -> None:
        from diffusers import UniPCMultistepScheduler

        self.scheduler: Any = UniPCMultistepScheduler(
            num_train_timesteps=1000,
            solver_order=2,
            solver_type="bh2",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=1.0,  # leaves the grid we hand over as it is
        )
        self.scheduler.set_timesteps(sigmas=flow_grid(steps, shift))
        self.scheduler.set_begin_index(0)
        self.timesteps, self.sigmas = self.scheduler.timesteps, self.scheduler.sigmas

    def step(self, velocity: Tensor, k: int, x: Tensor) -> Tensor:
        return self.scheduler.step(velocity, self.scheduler.timesteps[k], x, return_dict=False)[0]


Forward = Callable[..., Prediction]


def text_every_step(joint: JointNetwork, text: Tensor) -> Forward:
    """Projects the text, and makes its keys and values, at every step."""

    def forward(video: Tensor, action: Tensor, proprio: Tensor, context: Any, *times: Tensor, **options: Any) -> Any:
        return joint(video, action, proprio, text, *times, **options)

    return forward


def depth_every_step(joint: JointNetwork) -> Forward:
    """Runs the depth branch at every step."""

    def forward(*inputs: Any, with_depth: bool) -> Prediction:
        return joint(*inputs, with_depth=True)

    return forward


@contextmanager
def all_frames_encoded(codec: Any, frames: int) -> Generator[None]:
    """Encodes a whole clip of `frames` frames for its first latent frame."""
    encode = codec.encode_video

    def whole(pixels: Tensor) -> Tensor:
        later = torch.zeros(*pixels.shape[:2], frames - 1, *pixels.shape[3:], dtype=torch.uint8)
        return encode(torch.cat([pixels, later], dim=2))

    with mock.patch.object(codec, "encode_video", whole):
        yield


@contextmanager
def training_operations() -> Generator[None]:
    """A training step on a CPU as torch, peft and slices give it: what costs passes over memory beside the products."""

    def modulate(x: Tensor, shift: Tensor, scale: Tensor, spans: Any) -> Tensor:
        parts = [torch.addcmul(_of(shift, s), x[:, s.start : s.stop], 1 + _of(scale, s)) for s in spans]
        return torch.cat(parts, dim=1)

    def add_gated(x: Tensor, update: Tensor, gate: Tensor, spans: Any) -> Tensor:
        parts = [torch.addcmul(x[:, s.start : s.stop], update[:, s.start : s.stop], _of(gate, s)) for s in spans]
        return torch.cat(parts, dim=1)

    def rotate(x: Tensor, rotary: Any) -> Tensor:
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = rotary.cos[:, None], rotary.sin[:, None]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)

    def attention(query: Tensor, seen: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, seen.keys, seen.values)

    def text_of_each(joint: JointNetwork, text: Tensor) -> Tensor:
        return joint._project_text(text)  # pyright: ignore[reportPrivateUsage]

    with ExitStack() as stack:
        for module, name, slow in (
            (blocks, "modulate", modulate),
            (network, "modulate", modulate),
            (blocks, "add_gated", add_gated),
            (blocks, "rotate", rotate),
            (blocks, "plain_attention", attention),
            (lora_forward, "_lone_adapter", lambda layer, x: None),
            (JointNetwork, "_project_batch", text_of_each),
        ):
            stack.enter_context(mock.patch.object(module, name, slow))
        yield


def _of(values: Tensor, span: Any) -> Tensor:
    return values[:, span.time, None]
