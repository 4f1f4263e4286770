"""Parts of a GPU day about training: memory against `plan`, precision, micro-batches, compilation, quantised bases."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

import torch

from _gpu_work import AS_SAID, ON_CPU, RANDOM, Cell, Day, Found, NotHere, Say, figure, tried
from _measure import matmul_peak
from train_step import optimizer_step, step_flops
from xwam_ft.model.backbone import cast_weights
from xwam_ft.model.compiled import INDUCTOR, compile_blocks
from xwam_ft.model.quantize import quantize_blocks
from xwam_ft.plan.plan import make_plan

FORM = "LoRA, depth adapter"
"""What the 5B recipes train, as train_step.py names it."""
STEPS = 5
"""Optimizer steps whose losses are compared."""
MOST = 128
WITHIN = 0.10
"""How near the counted memory is to be to the measured."""
BESIDE = ("CUDA", "VAE", "averaged")
"""Parts of a plan that a bare step does not take."""


def memory(day: Day, say: Say) -> Found:
    """What `plan` counts against what a step takes."""
    found, rows = Found(), []
    away: list[float] = []
    for clips in (1,) if day.toy else (1, 4, 16):
        say(f"{clips} clips a micro-batch")
        recipe = day.recipe(f"trainer.batch_size={clips}")
        plan = make_plan(recipe, day.shards)
        tensors = {part.name: part.bytes for part in plan.memory if not part.name.startswith(BESIDE)}
        if clips == 1:
            parts = [[part.name, part.bytes / 1e9] for part in plan.memory]
            found.table(
                "what `plan` counts at one clip a micro-batch", ("part", "GB"), [*parts, ["sum", plan.peak / 1e9]]
            )
        counted = sum(tensors.values()) / 1e9

        def row(recipe: Any = recipe, clips: int = clips, counted: float = counted) -> list[Cell]:
            step = optimizer_step(day.module(recipe), day.clips(clips), day.precision)
            step()  # the first makes AdamW's moments
            peak = day.peak(step)
            if isinstance(peak, str):
                return [peak, ON_CPU, ON_CPU]
            reserved = torch.cuda.max_memory_reserved() / 1e9
            return [peak, reserved, counted / peak]

        cells = tried(row, 3)
        rows.append([clips, counted, *cells])
        if isinstance(cells[2], float):
            away.append(abs(cells[2] - 1))
        day.free()
    columns = ("clips", "counted, GB", "measured, GB", "reserved by torch, GB", "counted / measured")
    note = "Both without CUDA's own memory, the VAE of a validation and averaged weights."
    found.table("memory of a training step", columns, rows, note)
    if away:
        text = f"`plan` is within {100 * max(away):.0f} % of the measured memory ({100 * WITHIN:.0f} % are aimed at)"
        found.say(text, max(away) <= WITHIN)
    return found


def precision(day: Day, say: Say) -> Found:
    """Step time, memory and losses in float32, with TF32, and in mixed precision, from the same weights and noise."""
    found, count = Found(), 1 if day.toy else 4
    ways = {
        "32-true": ("32-true", torch.float32, "false"),
        "32-true with TF32": ("32-true", torch.float32, "true"),
        "bf16-mixed, base in bfloat16": ("bf16-mixed", torch.bfloat16, "false"),
        "bf16-mixed with TF32": ("bf16-mixed", torch.bfloat16, "true"),
    }
    losses: dict[str, list[float]] = {}
    rows: list[list[Cell]] = []
    for name, (mode, dtype, products) in ways.items():
        say(name)
        if day.toy and products == "true":
            rows.append([name, "not measured: a CPU has no TF32", *[AS_SAID] * 3])
            continue

        def row(name: str = name, mode: str = mode, dtype: Any = dtype, products: str = products) -> list[Cell]:
            kept = str(dtype).removeprefix("torch.")
            recipe = day.recipe(
                f"trainer.precision={mode}", f"trainer.tf32={products}", f"backbone.dtype={kept}",
                f"trainer.batch_size={count}", "optim.warmup_steps=0",
            )  # fmt: skip
            module = day.module(recipe, day.backbone("transformer", dtype=dtype))
            step = optimizer_step(module, day.clips(count), mode)
            losses[name] = [float(step()) for _ in range(2 if day.toy else STEPS)]
            first = losses.get("32-true")
            away = max(abs(a / b - 1) for a, b in zip(losses[name], first, strict=True)) if first else None
            apart: Cell = "not measured: 32-true was not" if away is None else away
            if day.weights is None:
                apart = RANDOM  # whose outputs are next to nothing, and so are their differences
            return [1e3 * day.seconds(step), day.peak(step), apart, losses[name][0]]

        rows.append([name, *tried(row, 4)])
        day.free()
    columns = ("precision", f"step of {count} clips, ms", "peak GB", "losses apart from 32-true, at most", "first loss")
    note = f"The same weights (rounded to bfloat16), noise and clips; {STEPS} optimizer steps, largest difference."
    found.table("precision", columns, rows, note)
    mixed = next(row for row in rows if str(row[0]).startswith("bf16-mixed"))
    if isinstance(mixed[3], float) and isinstance(mixed[1], float):
        found.say(f"bf16-mixed: {mixed[1]:.0f} ms a step, losses within {figure(mixed[3])} of float32's")
    return found


def steps(day: Day, say: Say) -> Found:
    """Step time, clips a second and share of the matmul peak by micro-batch, up to what fits."""
    found = Found()
    say("counting operations, and the peak of matrix products")
    counted = step_flops(FORM, day.size)
    assert counted is not None
    peak = matmul_peak(day.device, day.dtype, repeats=1 if day.toy else 10)
    rows: list[list[Cell]] = []
    for clips in (1,) if day.toy else [2**power for power in range(MOST.bit_length())]:
        say(f"{clips} clips a micro-batch")

        def row(clips: int = clips) -> list[Cell]:
            module = day.module(day.recipe(f"trainer.batch_size={clips}"))
            step = optimizer_step(module, day.clips(clips), day.precision)
            spent = day.seconds(step)
            return [1e3 * spent, clips / spent, 100 * counted[1] * clips / spent / peak, day.peak(step)]

        rows.append([clips, *tried(row, 4)])
        day.free()
        if isinstance(rows[-1][1], str):
            break
    columns = ("clips a micro-batch", "step, ms", "clips/s", "share of the matmul peak, %", "peak GB")
    note = (
        f"{counted[1] / 1e12:.3g} TFLOP a clip, forward and backward, recomputation under gradient checkpointing not "
        f"counted as work; the peak is this machine's own {peak / 1e12:.4g} TFLOP/s."
    )
    found.table("training steps by micro-batch", columns, rows, note)
    timed = [row for row in rows if isinstance(row[2], float)]
    if timed:
        best = max(timed, key=lambda row: float(row[2]))
        rate, share = figure(best[2]), figure(best[3])
        found.say(f"training: {rate} clips/s at {best[0]} clips a micro-batch, {share} % of the matmul peak")
    return found


def compiled(day: Day, say: Say) -> Found:
    """Blocks compiled while training, against as they are."""
    from torch._dynamo.utils import counters

    found, count = Found(), 1 if day.toy else 4
    backend = "eager" if day.toy else INDUCTOR
    rows: list[list[Cell]] = []
    for name in ("plain", backend):
        say(name)

        def row(name: str = name) -> list[Cell]:
            module = day.module(day.recipe(f"trainer.batch_size={count}"))
            if name != "plain":
                counters.clear()
                compile_blocks(module.network, name)
            step = optimizer_step(module, day.clips(count), day.precision)
            began = time.perf_counter()
            step()
            first = time.perf_counter() - began
            breaks: Cell = sum(counters["graph_break"].values()) if name != "plain" else "none: not compiled"
            return [first, 1e3 * day.seconds(step), day.peak(step), breaks]

        rows.append([name, *tried(row, 4)])
        day.free()
    columns = ("blocks", "first step, s", f"step of {count} clips, ms", "peak GB", "graph breaks")
    note = "--toy takes a backend that needs no C++ compiler; what it gains means nothing." if day.toy else ""
    found.table("blocks compiled (model.compile)", columns, rows, note)
    plain, other = (row[2] for row in rows)
    if isinstance(plain, float) and isinstance(other, float):
        found.say(f"model.compile: a step takes {other / plain:.2f} of the plain one's time")
    return found


def quantised(day: Day, say: Say) -> Found:
    """A base in 8 and in 4 bits against the plain one."""
    if find_spec("bitsandbytes") is None:
        raise NotHere("bitsandbytes is not installed: pip install 'xwam-ft[quant]'")
    found, count = Found(), 1 if day.toy else 4
    plain = 0.0
    rows: list[list[Cell]] = []
    for kind in (None, "int8", "nf4"):
        say(kind or "not quantised")

        def row(kind: Any = kind) -> list[Cell]:
            nonlocal plain
            recipe = day.recipe(f"trainer.batch_size={count}", *([f"backbone.quantize={kind}"] if kind else []))
            backbone = day.backbone("transformer", device="cpu")
            began = time.perf_counter()
            if kind:
                quantize_blocks(cast_weights(backbone.transformer, day.dtype), kind)
            packed: Cell = time.perf_counter() - began if kind else "none: not packed"
            step = optimizer_step(day.module(recipe, backbone), day.clips(count), day.precision)
            loss = float(step())
            plain = loss if kind is None else plain
            return [packed, 1e3 * day.seconds(step), day.peak(step), abs(loss / plain - 1)]

        rows.append([kind or "none", *tried(row, 4)])
        day.free()
    columns = (
        "backbone.quantize",
        "packing, s",
        f"step of {count} clips, ms",
        "peak GB",
        "first loss apart from plain",
    )
    found.table("quantised bases", columns, rows)
    return found
