#!/usr/bin/env python3
"""What a training step costs by form of training: FLOPs at 5B, and samples a second and memory on this machine.

A step is the real one: noise, network, losses, backward, clipping, AdamW, as `xwam-ft train` takes it, on random
weights and clips. The share is of this machine's own bfloat16 matrix product, measured first; recomputation under
gradient checkpointing is not counted as work.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError

import slow_ways
from _measure import flops, machine, matmul_peak, peak_memory, pick_device, print_table, seconds
from _sizes import SIZES, Size, command, random_backbone
from xwam_ft.encode.batch import Batch
from xwam_ft.learn.draws import draw
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.memory import module_on_random_clips
from xwam_ft.recipe import Recipe

RANK = 32
FORMS: dict[str, dict[str, Any]] = {
    "LoRA, depth adapter": {"train": "lora", "depth": {"branch": "adapter"}},
    "LoRA, depth copy": {"train": "lora", "depth": {"branch": "copy"}},
    "full, depth copy": {"train": "full", "depth": {"branch": "copy", "train": "full"}},
}
ABSENT = "not in this version"


def main(
    size: Annotated[str, typer.Option(help="of the timed model: tiny or 5b")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    batch: Annotated[str, typer.Option(help="clips a micro-batch, separated by commas")] = "1,8,16",
    repeats: Annotated[int, typer.Option(help="timed steps; the median counts")] = 5,
    checkpointing: Annotated[bool, typer.Option(help="recompute activations in the backward pass")] = False,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed; default: 32-true on a CPU")] = "",
) -> None:
    """Print FLOPs of a training step at 5B, and samples a second, share of the peak and memory by micro-batch."""
    device = pick_device(device)
    precision = precision or ("bf16-mixed" if device == "cuda" else "32-true")
    size = size or ("5b" if device == "cuda" else "tiny")
    typer.echo(command(__file__, size=size, device=device, batch=batch, repeats=repeats, precision=precision), nl=False)
    typer.echo(" --checkpointing" if checkpointing else "")
    typer.echo(machine(device))
    header = ("form", "trained, M", "forward", "with backward", "ratio")
    print_table("TFLOP of a step at 5B, batch 1, 3 views of 256x320", header, _counted(SIZES["5b"]()))
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    peak = matmul_peak(device, dtype)
    typer.echo(f"\n{str(dtype).removeprefix('torch.')} matrix product of this machine: {peak / 1e12:.2f} TFLOP/s")
    timed = _Timed(SIZES[size](), device, precision, repeats, checkpointing, peak)
    counts = [int(count) for count in batch.split(",")]
    rows = [row for form in FORMS for row in timed.rows(form, counts)]
    print_table(f"steps at size {size}", ("form", "batch", "samples/s", "share of peak", "peak GB"), rows)
    if device == "cpu":
        rows = [timed.against_slow(form, counts[-1]) for form in FORMS]
        header = ("form", "batch", "CPU s, short ways", "CPU s, plain ones", "ratio")
        print_table(f"one step at size {size}, both ways in turn, 3 instructions a batch", header, rows)


def recipe_of(form: str, size: Size, *, batch: int, checkpointing: bool) -> Recipe | None:
    """The recipe of a form of training; None where this version does not know it."""
    form_of = FORMS[form]
    model = {
        **form_of,
        "lora": {"rank": RANK, "alpha": RANK},
        "depth": {**form_of["depth"], "blocks": size.depth_blocks},
        "gradient_checkpointing": checkpointing,
    }
    trainer = {"max_steps": 1000, "batch_size": batch}
    tree = {"backbone": {"path": "random"}, "data": {"shards": "none"}, "model": model, "trainer": trainer}
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        if any("depth" in item["loc"] for item in error.errors()):
            return None
        raise


def training(
    form: str, size: Size, device: str, batch: int, *, checkpointing: bool = False, dtype: torch.dtype = torch.bfloat16
) -> TrainingModule | None:
    """The training module of a form on random weights, the frozen ones in `dtype`."""
    recipe = recipe_of(form, size, batch=batch, checkpointing=checkpointing)
    if recipe is None:
        return None
    backbone = random_backbone(size, device, dtype, parts=("transformer",))
    with torch.device(device):
        network = trainable_network(backbone, recipe, size.contract).train()
    return module_on_random_clips(network, recipe, clips(size, batch, "meta")).to(device)


def clips(size: Size, batch: int, device: str) -> Batch:
    """Random clips, everything valid."""
    contract = size.contract
    timing = contract.timing
    factor = size.vae["scale_factor_spatial"]
    grid = len(contract.cameras), size.height // factor, size.width // factor
    latents, depth = (torch.randn(batch, 48, timing.latent_frames, *grid, device=device) for _ in range(2))
    action = torch.randn(batch, timing.action_steps, contract.action_dim, device=device)
    proprio = torch.randn(batch, timing.clip_frames, contract.state_dim, device=device)
    return Batch(
        positions=tuple(range(batch)),
        keys=tuple(map(str, range(batch))),
        latents=latents,
        video_mask=torch.ones(batch, timing.latent_frames, device=device),
        action=action,
        action_mask=torch.ones_like(action),
        proprio=proprio,
        proprio_mask=torch.ones_like(proprio),
        text=torch.randn(batch, size.text_len, size.transformer["text_dim"], device=device),
        depth=depth,
        depth_mask=torch.ones(batch, timing.latent_frames, *grid, dtype=torch.bool, device=device),
    )


def forward(module: TrainingModule, batch: Batch) -> torch.Tensor:
    """Everything of a training step before the backward pass, without the check for finite numbers."""
    draws = draw(batch, module.recipe.noise, module.recipe.loss.text_dropout, module.recipe.seed)
    terms = module.loss_terms(batch, draws, module.predict(module.add_noise(batch, draws), draws))
    return module.weigh(module.normalise(terms, 0))


def step_flops(form: str, size: Size) -> tuple[int, int, int] | None:
    """FLOPs of forward, of forward and backward, and numbers that train, for one clip."""
    module = training(form, size, "meta", 1)
    if module is None:
        return None
    batch = clips(size, 1, "meta")
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    with torch.no_grad():
        ahead = flops(lambda: forward(module, batch))
    return ahead, flops(lambda: forward(module, batch).backward()), trained


def _counted(size: Size) -> list[tuple[str | None, ...]]:
    rows: list[tuple[str | None, ...]] = []
    for form in FORMS:
        found = step_flops(form, size)
        if found is None:
            rows.append((form, ABSENT, None, None, None))
            continue
        ahead, both, trained = found
        rows.append((form, f"{trained / 1e6:.1f}", f"{ahead / 1e12:.2f}", f"{both / 1e12:.2f}", f"{both / ahead:.2f}"))
    return rows


@dataclass
class _Timed:
    """Steps on this machine."""

    size: Size
    device: str
    precision: str
    repeats: int
    checkpointing: bool
    peak: float

    def rows(self, form: str, counts: list[int]) -> list[tuple[str | None, ...]]:
        work = step_flops(form, self.size)
        if work is None:
            return [(form, ABSENT, None, None, None)]
        return [self.row(form, count, work[1]) for count in counts]

    def row(self, form: str, count: int, work: int) -> tuple[str | None, ...]:
        try:
            rate, memory = self.measured(form, count)
        except torch.OutOfMemoryError:
            return form, str(count), "out of memory", None, None
        finally:
            gc.collect()  # a module and its hooks refer to each other
            if self.device == "cuda":
                torch.cuda.empty_cache()
        share = f"{100 * rate * work / self.peak:.1f} %"
        return form, str(count), f"{rate:.2f}", share, None if memory is None else f"{memory:.1f}"

    def against_slow(self, form: str, count: int) -> tuple[str | None, ...]:
        """CPU seconds of a step, and with the operations it replaced (slow_ways.py), in turn; the best of each."""
        module = training(form, self.size, self.device, count, dtype=torch.float32)
        if module is None:
            return (form, ABSENT, None, None, None)
        batch = clips(self.size, count, self.device)
        step = optimizer_step(module, replace(batch, text=batch.text[:3].repeat(count, 1, 1)[:count]), self.precision)
        spent: dict[str, list[float]] = {"short": [], "plain": []}
        for _ in range(self.repeats + 1):
            for way, taken in spent.items():
                with nullcontext() if way == "short" else slow_ways.training_operations():
                    began = time.process_time()
                    step()
                    taken.append(time.process_time() - began)
        short, plain = (min(spent[way][1:]) for way in ("short", "plain"))
        return form, str(count), f"{short:.3f}", f"{plain:.3f}", f"{plain / short:.2f}"

    def measured(self, form: str, count: int) -> tuple[float, float | None]:
        """Samples a second, and GB."""
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        options: Any = {"checkpointing": self.checkpointing, "dtype": dtype}
        module = training(form, self.size, self.device, count, **options)
        assert module is not None
        step = optimizer_step(module, clips(self.size, count, self.device), self.precision)
        return count / seconds(step, self.device, self.repeats), peak_memory(step, self.device)


def optimizer_step(module: TrainingModule, batch: Batch, precision: str) -> Callable[[], torch.Tensor]:
    """One optimizer step, as Lightning takes it; called, it returns the loss before the step."""
    made = module.configure_optimizers()
    optimizer: torch.optim.Optimizer = made["optimizer"]
    device = batch.latents.device.type

    def step() -> torch.Tensor:
        mixed = torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
        with mixed:
            loss = module.training_step(batch, 0)
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


if __name__ == "__main__":
    typer.run(main)
