#!/usr/bin/env python3
"""What a checkpoint weighs and how long it takes to write, beside saving the whole state.

Ours holds what trains (weights, their average, AdamW's state); the whole state holds the frozen weights too. Both are
written by the same code, synced to the disk and hashed. At 5B the sizes are counted, not written.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from _measure import machine, print_table, seconds_of
from _sizes import SIZES, command
from train_step import FORMS, clips, forward, training
from xwam_ft.learn.module import TrainingModule
from xwam_ft.learn.optimizer import optimizer_tensors, trained_parameters
from xwam_ft.model.adapters import trainable_state
from xwam_ft.runs.checkpoint import RunState, write_checkpoint


def main(
    repeats: Annotated[int, typer.Option(help="timed saves; the median counts")] = 5,
    folder: Annotated[Path | None, typer.Option(help="where to write; default: the temporary folder")] = None,
) -> None:
    """Print size and save time of a checkpoint and of the whole state, by form of training."""
    typer.echo(command(__file__, repeats=repeats))
    typer.echo(machine("cpu"))
    counted = [(form, *_in_gb(counted_bytes(form))) for form in FORMS]
    print_table("at 5B, counted, GB", ("form", "checkpoint", "whole state", "share"), counted)
    rows = [(form, *_timed(form, repeats, folder)) for form in FORMS]
    header = ("form", "checkpoint MB", "s", "whole state MB", "s")
    print_table("at size tiny, written", header, rows)


def counted_bytes(form: str) -> tuple[int, int]:
    """Bytes of a checkpoint and of the whole state at 5B; the average and AdamW's two moments are float32."""
    module = _module(form, "5b", "meta")
    trained = trained_parameters(module.network).values()
    frozen = [parameter for parameter in module.network.parameters() if not parameter.requires_grad]
    ours = sum(parameter.numel() * (parameter.element_size() + 3 * 4) for parameter in trained)
    return ours, ours + sum(parameter.numel() * parameter.element_size() for parameter in frozen)


def saved_parts(form: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """What a checkpoint of a stepped tiny network holds, by file, and the frozen tensors beside it."""
    module = _module(form, "tiny", "cpu")
    optimizer = module.configure_optimizers()["optimizer"]
    forward(module, clips(SIZES["tiny"](), 1, "cpu")).backward()
    optimizer.step()
    trainable = trainable_state(module.network)
    average = {name: value.float().clone() for name, value in trainable.items()}
    state = optimizer_tensors(optimizer, trained_parameters(module.network))
    frozen = {name: value.detach() for name, value in module.network.named_parameters() if not value.requires_grad}
    return {"trainable": trainable, "optimizer": state, "ema": average}, frozen


def _timed(form: str, repeats: int, folder: Path | None) -> tuple[str, str, str, str]:
    parts, frozen = saved_parts(form)
    whole = {**parts, "trainable": {**frozen, **parts["trainable"]}}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        sizes: dict[str, int] = {}
        step = iter(range(1, 10_000))

        def save(name: str, tensors: dict[str, dict[str, Tensor]]) -> None:
            saved = tensors["trainable"], tensors["optimizer"], tensors["ema"]
            done = write_checkpoint(Path(place) / name, _state(next(step)), *saved, keep=1)
            sizes[name] = sum(path.stat().st_size for path in done.iterdir())

        times = seconds_of([lambda: save("ours", parts), lambda: save("whole", whole)], "cpu", repeats)
    return f"{sizes['ours'] / 1e6:.1f}", f"{times[0]:.2f}", f"{sizes['whole'] / 1e6:.1f}", f"{times[1]:.2f}"


def _module(form: str, size: str, device: str) -> TrainingModule:
    dtype = torch.bfloat16 if size == "5b" else torch.float32
    module = training(form, SIZES[size](), device, 1, dtype=dtype)
    assert module is not None, form
    return module


def _in_gb(sizes: tuple[int, int]) -> tuple[str, str, str]:
    ours, whole = sizes
    return f"{ours / 1e9:.2f}", f"{whole / 1e9:.2f}", f"{100 * ours / whole:.0f} %"


def _state(step: int) -> RunState:
    return RunState(step, step, 0, 0, 1, {}, {}, "", "", "", "", {}, {})


if __name__ == "__main__":
    typer.run(main)
