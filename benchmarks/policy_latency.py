#!/usr/bin/env python3
"""What a policy call costs, and what each exact acceleration saves: FLOPs at 5B, and time on this machine.

FLOPs are counted on the meta device, so that table is the same everywhere. Times are of random weights at `--size`,
with an acceleration and without it in one run (slow_ways.py has the slow ways).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import numpy as np
import torch
import typer

import slow_ways
from _measure import flops, machine, peak_memory, pick_device, print_table, seconds, seconds_of
from _sizes import PROMPT, SIZES, Size, command, random_backbone, token_ids
from xwam_ft.model.assemble import build_network
from xwam_ft.model.sampler import Conditions, sample
from xwam_ft.model.streams import Streams
from xwam_ft.observation import EncodedObservation
from xwam_ft.policy.policy import NO_TEXT, Policy, Settings

H200 = 790e12
"""Dense bfloat16 FLOP/s of an H200 in practice: what the floor of the table is for."""

ROLLOUT = 50
"""Video steps of a whole imagined clip, as released."""


@torch.no_grad()
def main(
    size: Annotated[str, typer.Option(help="of the timed model: tiny or 5b")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    steps: Annotated[str, typer.Option(help="action steps of a policy call, separated by commas")] = "10,5",
    rollout: Annotated[int, typer.Option(help="video steps of an imagined clip")] = ROLLOUT,
    repeats: Annotated[int, typer.Option(help="timed runs; the median counts")] = 5,
    compile: Annotated[bool | None, typer.Option(help="time torch.compile too; default: on a GPU")] = None,
) -> None:
    """Print FLOPs at 5B, times by stage, and the time with and without each acceleration."""
    device = pick_device(device)
    size = size or ("5b" if device == "cuda" else "tiny")
    compile = device == "cuda" if compile is None else compile
    typer.echo(command(__file__, size=size, device=device, steps=steps, rollout=rollout, repeats=repeats))
    typer.echo(machine(device))
    counted = _Counted(SIZES["5b"]())
    print_table("FLOPs at 5B, 3 views of 256x320, batch 1", ("what", "TFLOP", "saves"), counted.rows())
    timed = Timed(SIZES[size](), device, rollout, repeats)
    counts = [int(count) for count in steps.split(",")]
    print_table(f"one request at size {size}, ms", ("stage", *map(str, counts)), timed.stages(counts, compile))
    header = ("acceleration", "with, ms", "without, ms", "ratio")
    print_table(f"accelerations at size {size}, {counts[0]} action steps", header, timed.accelerations(counts[0]))


class _Counted:
    """FLOPs on the meta device."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.backbone = random_backbone(size, "meta", torch.bfloat16)
        self.network = build_network(self.backbone, size.network, 0).eval()
        contract = size.contract
        timing, image = contract.timing, contract.image
        shape = self.backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
        shapes = (shape, (timing.action_steps, contract.action_dim), (timing.clip_frames, contract.state_dim))
        self.streams = [torch.empty(1, *of, device="meta") for of in shapes]
        self.times = [torch.empty(1, device="meta") for _ in range(2)]
        self.text = torch.empty(1, size.text_len, size.transformer["text_dim"], device="meta", dtype=torch.bfloat16)

    def forward(self, text: Any, *, with_depth: bool, frames: int | None = None) -> int:
        video, *others = self.streams
        return flops(lambda: self.network(video[:, :, :frames], *others, text, *self.times, with_depth=with_depth))

    def vae(self, frames: int) -> int:
        image = self.size.contract.image
        pictures = torch.empty(self.size.network.num_views, 3, frames, image.height, image.width, device="meta")
        return flops(lambda: self.backbone.encode_pictures(pictures))

    def rows(self) -> list[tuple[str, str, str]]:
        plain, with_depth = (self.forward(self.text, with_depth=depth) for depth in (False, True))
        depth = with_depth - plain
        context = self.network.encode_text(self.text)
        cached = self.forward(context, with_depth=False)
        without = self.forward(context, with_depth=False, frames=1)
        encoder = flops(lambda: self.backbone.text_encoder(token_ids(self.size, "meta")))
        frames = self.size.contract.timing.clip_frames
        clip, first = self.vae(frames), self.vae(1)
        slow = encoder + clip + 10 * with_depth
        fast = first + 10 * cached
        always, last = ROLLOUT * with_depth, ROLLOUT * plain + depth
        return [
            ("one forward, without depth", _tera(plain), ""),
            ("depth branch, beside it", _tera(depth), ""),
            ("one forward, text encoded before", _tera(cached), _saved(plain, cached)),
            ("  the future left out (model.future)", _tera(without), _saved(cached, without)),
            ("text encoder, once an instruction", _tera(encoder), ""),
            (f"VAE, {frames} frames a view", _tera(clip), ""),
            ("VAE, 1 frame a view", _tera(first), _saved(clip, first)),
            (f"{ROLLOUT} steps, depth at each", _tera(always), ""),
            (f"{ROLLOUT} steps, depth at the last", _tera(last), _saved(always, last)),
            ("policy call of 10 steps, nothing saved", _tera(slow), ""),
            ("policy call of 10 steps, as it is", _tera(fast), _saved(slow, fast)),
            (f"  its floor at {H200 / 1e12:.0f} TFLOP/s, ms", f"{1e3 * fast / H200:.1f}", ""),
        ]


class Timed:
    """Wall time of a policy with random weights."""

    def __init__(self, size: Size, device: str, rollout: int, repeats: int) -> None:
        self.size, self.device, self.rollout, self.repeats = size, device, rollout, repeats
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.backbone = random_backbone(size, device, dtype)
        self.network = build_network(self.backbone, size.network, 0).eval()
        self.embedding = self.encode()[0]
        contract = size.contract
        draw = np.random.default_rng(0)
        shape = (len(contract.cameras), contract.image.height, contract.image.width, 3)
        state = draw.normal(size=contract.state_dim)
        self.inputs = EncodedObservation(draw.integers(0, 256, shape, dtype=np.uint8), state, state, PROMPT)

    def encode(self) -> torch.Tensor:
        return self.backbone.text_encoder(token_ids(self.size, self.device)).last_hidden_state

    def policy(self, action_steps: int, compile: bool = False) -> Policy:
        settings = Settings(action_steps=action_steps, video_steps=max(ROLLOUT, action_steps))
        prompts = {PROMPT: self.embedding, NO_TEXT: self.embedding}
        return Policy(self.network, self.backbone, prompts, self.size.contract, settings, compile=compile)

    def ms(self, call: Callable[[], object]) -> float:
        return 1e3 * seconds(call, self.device, self.repeats)

    def stages(self, counts: list[int], compile: bool) -> list[tuple[str, ...]]:
        policies = [self.policy(count) for count in counts]
        first = policies[0]
        requests = [lambda policy=policy: policy.infer_batch([self.inputs], [0]) for policy in policies]
        observe = self.ms(lambda: first.condition(self.inputs.pictures[None]))
        wholes = [self.ms(request) for request in requests]
        clip = self.noise().video
        rows: list[tuple[str, ...]] = [
            _same("new instruction: text encoder", self.ms(self.encode), counts),
            _same("new instruction: keys and values", self.ms(self.keys_and_values), counts),
            _same("VAE encode, 1 frame a view", observe, counts),
            ("steps", *(f"{whole - observe:.1f}" for whole in wholes)),
            ("request in all, known instruction", *(f"{whole:.1f}" for whole in wholes)),
        ]
        if compile:
            compiled = [self.policy(count, compile=True) for count in counts]
            calls = [lambda policy=policy: policy.infer_batch([self.inputs], [0]) for policy in compiled]
            rows.append(("request in all, compiled", *(f"{self.ms(call):.1f}" for call in calls)))
        rows.append(_same("imagine: VAE decode", self.ms(lambda: self.backbone.decode_video(clip)), counts))
        memory = [peak_memory(request, self.device) for request in requests]
        rows.append(("peak GPU memory, GB", *("-" if of is None else f"{of:.1f}" for of in memory)))
        return rows

    def keys_and_values(self) -> object:
        return self.network.encode_text(self.embedding[None])

    def accelerations(self, action_steps: int) -> list[tuple[str, str, str, str]]:
        policy, network, text = self.policy(action_steps), self.network, self.embedding[None]

        def request() -> object:
            return policy.infer_batch([self.inputs], [0])

        def asked_anew() -> object:
            policy.texts.clear()
            self.encode()
            return request()

        def inside(way: Callable[[], AbstractContextManager[None]]) -> Callable[[], object]:
            def call() -> object:
                with way():
                    return request()

            return call

        def imagined(forward: Any = None) -> Callable[[], object]:
            return lambda: self.imagine(forward)

        other = self.policy(action_steps)
        other.forward = slow_ways.text_every_step(network, text)  # pyright: ignore
        frames = self.size.contract.timing.clip_frames
        clip_encoded = inside(lambda: slow_ways.all_frames_encoded(self.backbone, frames))
        pairs: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("1 instruction encoded once", request, asked_anew),
            ("2 one frame a view to the VAE", request, clip_encoded),
            (f"3 depth at the last of {self.rollout}", imagined(), imagined(slow_ways.depth_every_step(network))),
            ("4 text's keys and values once", request, lambda: other.infer_batch([self.inputs], [0])),
            ("5 modulation by token range", request, inside(slow_ways.per_token_modulation)),
            ("6 real rotary", request, inside(slow_ways.complex_rotary)),
            ("6 solver's weights known before", request, inside(slow_ways.library_solver)),
        ]
        rows: list[tuple[str, str, str, str]] = []
        for name, fast, slow in pairs:
            a, b = seconds_of([fast, slow], self.device, self.repeats)
            rows.append((name, f"{1e3 * a:.1f}", f"{1e3 * b:.1f}", f"{b / a:.2f}"))
        return rows

    def noise(self) -> Streams:
        contract = self.size.contract
        timing, image = contract.timing, contract.image
        shape = self.backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
        actions, states = (timing.action_steps, contract.action_dim), (timing.clip_frames, contract.state_dim)
        return Streams.normal(((1, *shape), (1, *actions), (1, *states)), torch.Generator(self.device).manual_seed(0))

    def imagine(self, forward: Any) -> object:
        """A whole clip, without the VAE."""
        noise = self.noise()
        start = Conditions(noise.video[:, :, 0], noise.proprio[:, 0]), self.embedding[None]
        options: Any = {"video_steps": self.rollout, "action_steps": min(10, self.rollout), "forward": forward}
        return sample(self.network, *start, noise=noise, **options)


def _tera(count: float) -> str:
    return f"{count / 1e12:.2f}"


def _saved(before: float, after: float) -> str:
    return f"{100 * (1 - after / before):.1f} %"


def _same(name: str, ms: float, counts: list[int]) -> tuple[str, ...]:
    return (name, *(f"{ms:.1f}" for _ in counts))


if __name__ == "__main__":
    typer.run(main)
