"""Parts of a GPU day around the network: the machine, text encoder, VAE, a policy's latency, attention kernels."""

from __future__ import annotations

import platform
import shutil
from typing import Any

import psutil
import torch

import policy_latency
from _gpu_shards import recorded
from _gpu_work import ON_CPU, RANDOM, Cell, Day, Found, Say, figure, tried
from _measure import matmul_peak
from _sizes import PROMPT
from xwam_ft.machine import cpu_has_bfloat16, gpu_driver, gpu_has_bfloat16, installed_versions
from xwam_ft.model.attention import SDPA_BACKENDS, choose_attention
from xwam_ft.model.plausible import latent_trouble, reconstruction_trouble

LIBRARIES = (
    "xwam-ft", "torch", "triton", "lightning", "diffusers", "transformers", "peft", "accelerate", "safetensors",
    "bitsandbytes", "flash-attn", "numpy",
)  # fmt: skip
GOALS = {10: 130.0, 5: 70.0}
"""Milliseconds of a policy call by action steps, on an H200."""
GOALS_ON = "H200"
OTHER_PROMPT = "open the drawer"


def machine(day: Day, say: Say) -> Found:
    """What all other numbers were measured on."""
    found = Found()
    rows: list[list[Cell]] = [
        ["Python", platform.python_version()],
        ["system", f"{platform.system()} {platform.release()}"],
        ["CPU cores", psutil.cpu_count(logical=False) or "not measured: the system does not say"],
        ["memory, GB", round(psutil.virtual_memory().total / 1e9, 1)],
        ["disk free for the day, GB", round(shutil.disk_usage(day.out).free / 1e9, 1)],
        ["weights", "the built-in small backbone" if day.toy else "random" if day.weights is None else day.weights],
    ]
    if day.toy:
        seen: list[list[Cell]] = [
            ["GPU", "not measured: --toy runs on the CPU"],
            ["bfloat16 on this CPU", cpu_has_bfloat16()],
        ]
    else:
        properties = torch.cuda.get_device_properties(0)
        seen = [
            ["GPU", properties.name],
            ["GPUs", torch.cuda.device_count()],
            ["GPU memory, GB", round(properties.total_memory / 1e9, 1)],
            ["GPU memory free, GB", round(torch.cuda.mem_get_info()[0] / 1e9, 1)],
            ["compute capability", f"{properties.major}.{properties.minor}"],
            ["multiprocessors", properties.multi_processor_count],
            ["driver", gpu_driver() or "not measured: /sys/module/nvidia/version is not there"],
            ["CUDA of torch", torch.version.cuda or "not measured: torch does not say"],
            ["cuDNN", torch.backends.cudnn.version() or "not measured: torch does not say"],
            ["bfloat16 on this GPU", gpu_has_bfloat16()],
        ]
    found.table("machine", ("what", "value"), rows + seen)
    found.table("libraries", ("library", "version"), [[*pair] for pair in installed_versions(LIBRARIES).items()])
    found.table("matrix product of this machine", ("numbers", "TFLOP/s"), _peaks(day, say))
    return found


def _peaks(day: Day, say: Say) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("float32 as TF32", torch.float32, "high"),
    ):
        say(f"matrix product, {name}")
        if precision == "high" and day.toy:
            rows.append([name, "not measured: a CPU has no TF32"])
            continue
        torch.set_float32_matmul_precision(precision)
        rows.append([name, matmul_peak(day.device, dtype, repeats=1 if day.toy else 10) / 1e12])
    torch.set_float32_matmul_precision("highest")
    return rows


@torch.no_grad()
def text(day: Day, say: Say) -> Found:
    """The text encoder: is its embedding the file's, do two prompts differ, what does a prompt cost."""
    found = Found()
    say("loading the text encoder")
    backbone = day.backbone("text")  # which refuses an embedding that is not the file's
    encoder = backbone.text_encoder
    if day.weights is None:
        length = day.size.text_len
        ids = [torch.full((1, length), number, device=day.device) for number in (1, 2)]
        calls = [lambda one=one: encoder(one).last_hidden_state for one in ids]
    else:
        calls = [lambda one=one: backbone.encode_prompts([one]) for one in (PROMPT, OTHER_PROMPT)]
    say("two prompts")
    first, second = (call().float() for call in calls)
    differ = float((first - second).norm() / first.norm())
    finite = bool(torch.isfinite(first).all() and torch.isfinite(second).all())
    same = f"equal, {len(encoder.shared.weight)} rows" if day.weights is not None else RANDOM
    found.table(
        "text encoder",
        ("what", "value"),
        [
            ["embedding against its file", same],
            ["outputs are finite", finite],
            ["two prompts differ by, of the first", differ],
            ["seconds a prompt", day.seconds(calls[0])],
            ["peak, GB", day.peak(calls[0])],
        ],
    )
    good = finite and differ > 1e-3
    found.say(f"text encoder: embedding {same.split(',')[0]}, two prompts differ by {figure(differ)}", good)
    return found


@torch.no_grad()
def vae(day: Day, say: Say) -> Found:
    """The VAE: a recorded clip there and back, and what encoding costs by clips a call."""
    found = Found()
    backbone = day.backbone("vae")
    contract = day.size.contract
    pixels = torch.from_numpy(recorded(contract, contract.timing.clip_frames))[None]
    say("a recorded clip there and back")
    latents = backbone.encode_video(pixels)
    back = backbone.decode_video(latents).cpu()
    decibels, trouble = reconstruction_trouble(back[0], pixels[0])
    trouble = latent_trouble(latents.cpu(), pixels) or trouble
    judged = day.weights is not None
    found.table(
        "a recorded clip through the VAE and back",
        ("what", "value"),
        [
            ["reconstruction, dB", round(decibels, 2) if judged else RANDOM],
            ["spread of latents (near 1)", float(latents.std()) if judged else RANDOM],
            ["bounds of a sound VAE", (trouble or "kept") if judged else RANDOM],
            ["decoding a clip, s", day.seconds(lambda: backbone.decode_video(latents))],
            ["decoding, peak GB", day.peak(lambda: backbone.decode_video(latents))],
        ],
        "Renders of Meta-World's table, enlarged: sharper pictures come back with fewer dB.",
    )
    if judged:
        found.say(f"VAE: a recorded clip comes back at {decibels:.1f} dB", trouble is None)
    rows: list[list[Cell]] = []
    for count in (1,) if day.toy else (1, 2, 4, 8):
        say(f"encoding, {count} clips a call")
        several = pixels.expand(count, *pixels.shape[1:])

        def encode(several: Any = several, videos: int = count * pixels.shape[1]) -> object:
            return backbone.encode_video(several, batch=videos)

        def row(count: int = count, encode: Any = encode) -> list[Cell]:
            return [day.seconds(encode, min(day.repeats, 3)) / count, day.peak(encode)]

        rows.append([count, *tried(row, 2)])
        day.free()
    columns = ("clips a call (data.encode_batch)", "s a clip, RGB alone", "peak GB")
    found.table("encoding", columns, rows, "With depth twice the time: depth goes through the same VAE.")
    return found


@torch.no_grad()
def policy(day: Day, say: Say) -> Found:
    """Milliseconds of a policy call, and what each acceleration is worth; weights do not change them."""
    found, counts = Found(), list(GOALS)
    say("building the policy")
    timed = policy_latency.Timed(day.size, day.device, 2 if day.toy else policy_latency.ROLLOUT, day.repeats)
    say("stages of a request, plain and compiled")
    stages = timed.stages(counts, compile=not day.toy)
    rows = [[name, *(_number(cell) for cell in cells)] for name, *cells in stages]
    found.table("one request, ms", ("stage", *(f"{count} action steps" for count in counts)), rows)
    best = {count: _best(stages, index) for index, count in enumerate(counts)}
    for count, ms in best.items():
        on_goal = not day.toy and GOALS_ON in torch.cuda.get_device_name()
        text = f"a policy call of {count} action steps: {ms:.0f} ms (goal on an {GOALS_ON}: {GOALS[count]:.0f} ms)"
        found.say(text, ms <= GOALS[count] if on_goal else None)
    if day.toy:
        found.say("compiled policy: not measured, since compiling for a CPU takes minutes")
    say("accelerations, with and without")
    worth = [[name, *map(_number, cells)] for name, *cells in timed.accelerations(counts[0])]
    columns = ("acceleration", "with, ms", "without, ms", "ratio")
    found.table(f"what each acceleration is worth, {counts[0]} action steps", columns, worth)
    return found


def _number(cell: str) -> Cell:
    return ON_CPU if cell == "-" else float(cell)


def _best(stages: list[tuple[str, ...]], column: int) -> float:
    return min(float(cells[column]) for name, *cells in stages if name.startswith("request in all"))


def attention(day: Day, say: Say) -> Found:
    """Each kernel of `scaled_dot_product_attention` in a training micro-batch and in a policy's forward pass."""
    found, count = Found(), 1 if day.toy else 4
    module = day.module(day.recipe(f"trainer.batch_size={count}"))
    network, batch = module.network, day.clips(count)
    one = day.clips(1)
    times = torch.full((1,), 500.0, device=day.device), torch.full((1,), 500.0, device=day.device)
    mixed = day.precision != "32-true"

    def ahead() -> object:
        with torch.no_grad(), torch.autocast(day.device, torch.bfloat16, enabled=mixed):
            return network(one.latents, one.action, one.proprio, one.text, *times, with_depth=False)

    def step() -> None:
        with torch.autocast(day.device, torch.bfloat16, enabled=mixed):
            loss = module.training_step(batch, 0)
        loss.backward()
        module.zero_grad()

    rows: list[list[Cell]] = []
    for name in SDPA_BACKENDS:
        say(name)

        def row(name: Any = name) -> list[Cell]:
            choose_attention(network, name)
            return [1e3 * day.seconds(step), day.peak(step), 1e3 * day.seconds(ahead)]

        rows.append([name, *tried(row, 3)])
        day.free()
    columns = ("kernel", f"forward and backward of {count} clips, ms", "peak GB", "forward of one clip, ms")
    found.table("attention kernels", columns, rows, "auto: torch chooses.")
    timed = [(float(row[1]), str(row[0])) for row in rows if isinstance(row[1], float)]
    if timed:
        found.say(f"attention: the fastest kernel is {min(timed)[1]}, {min(timed)[0]:.0f} ms a micro-batch")
    return found
