#!/usr/bin/env python3
"""How much host memory the processes of an FSDP2 run take until their network is cut, whole loading beside by rank.

A random Wan transformer of some hundred MB and its depth branch are trained whole, in float32, on CPUs (gloo). Measured
is what the kernel says was resident at most (`getrusage`), mapped files included, less what it was before.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from _measure import machine, print_table
from _sizes import SIZES, command

WIDE = {"num_attention_heads": 16, "attention_head_dim": 64, "ffn_dim": 4096, "text_dim": 512}


def main(
    processes: Annotated[list[int] | None, typer.Option(help="how many; may be repeated")] = None,
    blocks: Annotated[int, typer.Option(help="of the transformer; one is 67 MB")] = 6,
    wide: Annotated[bool, typer.Option(help="1024 wide; otherwise as the tiny backbone")] = True,
) -> None:
    """Print the peak of each process, whole and by rank."""
    counts = processes or [2, 4]
    typer.echo(command(__file__, blocks=blocks, wide=wide, processes=counts))
    typer.echo(machine("cpu"))
    with tempfile.TemporaryDirectory(prefix="xwam-ft-rank-memory-") as place:
        size = make_backbone(Path(place) / "backbone", blocks, wide=wide)
        rows = [
            (str(count), way, *measured(Path(place), count, way)) for count in counts for way in ("whole", "by rank")
        ]
    title = f"network of {size / 1e6:,.0f} MB in its file: MB above what a process took before"
    print_table(title, ("processes", "loading", "most of a process", "least", "all together", "held at the end"), rows)


def make_backbone(folder: Path, blocks: int, *, wide: bool) -> int:
    """Write a transformer with random weights, in several files; returns its bytes."""
    from diffusers import WanTransformer3DModel

    from xwam_ft.model.tiny import tiny_folder

    config: dict[str, Any] = {**SIZES["tiny"]().transformer, "num_layers": blocks, **(WIDE if wide else {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WanTransformer3DModel(**config).save_pretrained(folder / "transformer", max_shard_size="200MB")
    (folder / "vae").symlink_to(tiny_folder() / "vae")
    return sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))


def measured(place: Path, count: int, way: str) -> tuple[str, ...]:
    """Run `count` processes; MB of the largest, the smallest, all, and what they hold of parameters at the end."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, __file__, "--worker", str(place), way], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    told = [json.loads((place / f"{way}-{count}-{rank}.json").read_text()) for rank in range(count)]
    peaks, held = [one["peak"] for one in told], [one["held"] for one in told]
    return tuple(f"{value / 1e6:,.0f}" for value in (max(peaks), min(peaks), sum(peaks), max(held)))


def worker(place: Path, way: str) -> None:
    """One process of them: the network of a recipe at its start, cut; writes its peak."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    for library in ("peft", "diffusers.models.transformers.transformer_wan"):  # they are no part of it
        importlib.import_module(library)

    from xwam_ft.learn import start as starting
    from xwam_ft.model.sharding import shard
    from xwam_ft.recipe import Recipe

    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    if way == "whole":
        starting.defers = lambda recipe: False
    values: dict[str, Any] = {
        "backbone": {"path": str(place / "backbone"), "dtype": "float32"},
        "data": {"shards": "none"},
        "model": {"train": "full", "depth": {"blocks": 2, "branch": "copy", "train": "full"}},
        "trainer": {"max_steps": 1, "strategy": "fsdp2", "devices": count},
    }
    recipe, contract = Recipe.model_validate(values), SIZES["tiny"]().contract
    before = peak()
    begun = starting.start_network(recipe, contract, None, None, None)
    shard(begun.network, torch.device("cpu"), count)
    if begun.unread is not None:
        begun.unread.read_into(begun.network, torch.device("cpu"))
    held = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel() * p.element_size() for p in begun.network.parameters()
    )
    told = {"peak": peak() - before, "held": held}
    (place / f"{way}-{count}-{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def peak() -> int:
    """Most bytes of this process that were resident."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), sys.argv[3])
    else:
        typer.run(main)
