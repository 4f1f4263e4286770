#!/usr/bin/env python3
"""What a training step costs by form of training: FLOPs at 5B, and samples a second and memory on this machine.

A step is the real one: noise, network, losses, backward, clipping, AdamW, as `xwam-ft train` takes it, on random
weights and clips. The share is of this machine's own bfloat16 matrix product, measured first; recomputation under
gradient checkpointing is not counted as work.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import torch
import typer
from pydantic import ValidationError

from _measure import flops, machine, matmul_peak, peak_memory, pick_device, print_table, seconds
from _sizes import SIZES, Size, command, random_backbone
from xwam_ft.recipe import Recipe
from xwam_ft.train.clips import StepGeometry
from xwam_ft.train.data import Batch
from xwam_ft.train.draws import draw
from xwam_ft.train.module import TrainingModule
from xwam_ft.train.session import trainable_network

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
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed, as trainer.precision")] = "bf16-mixed",
) -> None:
    """Print FLOPs of a training step at 5B, and samples a second, share of the peak and memory by micro-batch."""
    device = pick_device(device)
    size = size or ("5b" if device == "cuda" else "tiny")
    typer.echo(command(__file__, size=size, device=device, batch=batch, repeats=repeats, precision=precision), nl=False)
    typer.echo(" --checkpointing" if checkpointing else "")
    typer.echo(machine(device))
    header = ("form", "trained, M", "forward", "with backward", "ratio")
    print_table("TFLOP of a step at 5B, batch 1, 3 views of 256x320", header, _counted(SIZES["5b"]()))
    peak = matmul_peak(device)
    typer.echo(f"\nbfloat16 matrix product of this machine: {peak / 1e12:.2f} TFLOP/s")
    counts = [int(count) for count in batch.split(",")]
    rows = [
        row
        for form in FORMS
        for row in _timed(form, SIZES[size](), device, counts, repeats, checkpointing, precision, peak)
    ]
    print_table(f"steps at size {size}", ("form", "batch", "samples/s", "share of peak", "peak GB"), rows)


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


def training(form: str, size: Size, device: str, batch: int, *, checkpointing: bool = False) -> TrainingModule | None:
    """The training module of a form on random weights."""
    recipe = recipe_of(form, size, batch=batch, checkpointing=checkpointing)
    if recipe is None:
        return None
    backbone = random_backbone(size, device, torch.bfloat16, parts=("transformer",))
    with torch.device(device):
        network = trainable_network(backbone, recipe, size.contract).train()
    empty = torch.zeros(size.text_len, size.transformer["text_dim"])
    counts = dict.fromkeys(("video", "action", "proprio", "depth"), 1000.0 * batch)
    return TrainingModule(network, recipe, StepGeometry(batch), lambda step: counts, empty).to(device)


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


def _timed(
    form: str,
    size: Size,
    device: str,
    counts: list[int],
    repeats: int,
    checkpointing: bool,
    precision: str,
    peak: float,
) -> list[tuple[str | None, ...]]:
    work = step_flops(form, size)
    rows: list[tuple[str | None, ...]] = []
    for count in counts if work is not None else []:
        try:
            module = training(form, size, device, count, checkpointing=checkpointing)
            assert module is not None
            step = _step(module, clips(size, count, device), precision)
            rate = count / seconds(step, device, repeats)
            memory = peak_memory(step, device)
        except torch.OutOfMemoryError:
            rows.append((form, str(count), "out of memory", None, None))
            continue
        finally:
            module = step = None
            if device == "cuda":
                torch.cuda.empty_cache()
        share = 100 * rate * work[1] / peak
        rows.append((form, str(count), f"{rate:.2f}", f"{share:.1f} %", None if memory is None else f"{memory:.1f}"))
    return rows or [(form, ABSENT, None, None, None)]


def _step(module: TrainingModule, batch: Batch, precision: str) -> Any:
    """One optimizer step, as Lightning takes it."""
    made = module.configure_optimizers()
    optimizer: torch.optim.Optimizer = made["optimizer"]
    device = batch.latents.device.type

    def step() -> None:
        mixed = torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
        with mixed:
            loss = module.training_step(batch, 0)
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    typer.run(main)
