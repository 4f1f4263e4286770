#!/usr/bin/env python3
"""Training clips a second from a latent cache, beside copying the same bytes, as the cache grows.

A cache of the 5B's sizes (3 views at 256x320, 9 frames, depth or not) is made of one segment's file under many names
(hard links), so that a million clips take no disk and every read is of the page cache: what is measured is what the
loader does beside the disk. `copy` copies the rows of the same clips from the mapped files into a batch's float32, and
does nothing else.

    python benchmarks/cached.py
    python benchmarks/cached.py --clips 10000,100000,1000000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from safetensors.torch import save_file

from _measure import machine, print_table
from _sizes import command
from xwam_ft.encode.cache import CLIP_TENSORS, DEPTH_TENSORS, INDEX_FILE, PROMPTS_FILE, LatentCache
from xwam_ft.encode.dataset import ClipDataset

SEGMENT = 40  # clips in a segment's file
SHAPES = {
    "rgb": (48, 3, 3, 16, 20),
    "video_mask": (3,),
    "action": (32, 14),
    "action_mask": (32, 14),
    "proprio": (9, 14),
    "proprio_mask": (9, 14),
    "depth": (48, 3, 3, 16, 20),
    "depth_mask": (3, 3, 16, 20),
}
BATCH, TEXT = 16, (8, 512, 4096)
IDENTITY = {
    "backbone": "made up",
    "contract": "made up",
    "shards": "made up",
    "clip_stride": 1,
    "dtype": "bfloat16",
    "augment": "none",
    "libraries": "none",
}


def main(
    clips: Annotated[str, typer.Option(help="of the caches, one after another")] = "10000,1000000",
    depth: Annotated[bool, typer.Option(help="with latents of depth")] = True,
    batches: Annotated[int, typer.Option(min=2, help="of 16 clips that are read")] = 60,
    folder: Annotated[Path | None, typer.Option(help="where to work (default: the system's)")] = None,
) -> None:
    """Print seconds and memory to open each cache, clips a CPU second of the loader and of a copy, and their ratio."""
    typer.echo(command(__file__, clips=clips, depth=depth, batches=batches))
    typer.echo(machine("cpu"))
    rows: list[list[str]] = []
    size = 0.0
    for count in map(int, clips.split(",")):
        with tempfile.TemporaryDirectory(prefix="xwam-ft-cached-", dir=folder) as place:
            make(Path(place), count, depth)
            arguments = [place, str(batches), str(int(depth))]
            done = subprocess.run(
                [sys.executable, __file__, "--worker", *arguments], stdout=subprocess.PIPE, text=True, check=True
            )
        told = json.loads(done.stdout.splitlines()[-1])
        speeds = [told["clips"] / told[way] for way in ("loader", "copy")]
        row = [f"{count:,}", f"{told['open']:.1f}", f"{told['memory'] / 1e6:,.0f}", *(f"{one:,.0f}" for one in speeds)]
        rows.append([*row, f"{speeds[0] / speeds[1]:.2f}"])
        size = told["bytes"] / told["clips"] / 1e3
    title = f"batches of {BATCH} clips, {size:,.0f} kB a clip in bfloat16, text of {TEXT[1]} x {TEXT[2]} left out"
    print_table(title, ("clips", "open s", "index MB", "loader, clips a CPU s", "copy", "loader / copy"), rows)


def make(place: Path, count: int, depth: bool) -> None:
    """A cache of `count` clips whose segments are all the same file."""
    names = CLIP_TENSORS + (DEPTH_TENSORS if depth else ())
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(SEGMENT, *SHAPES[name], generator=generator).bfloat16() for name in names}
    (place / "segments").mkdir()
    whole = place / "segments/whole.safetensors"
    save_file(made, whole)
    save_file({"embeddings": torch.zeros(1, 1, 4)}, place / PROMPTS_FILE)
    files: list[dict[str, Any]] = [{"path": PROMPTS_FILE, "size": 0, "sha256": ""}]
    clips: list[dict[str, Any]] = []
    for segment in range((count + SEGMENT - 1) // SEGMENT):
        path = f"segments/{segment:07d}.safetensors"
        os.link(whole, place / path)
        files.append({"path": path, "size": whole.stat().st_size, "sha256": ""})
        for row in range(min(SEGMENT, count - segment * SEGMENT)):
            key = f"episode-{segment:07d}-000000-{row:06d}"
            clips.append({"key": key, "file": path, "row": row, "split": "train", "instruction": "push", "copies": 1})
    identity = {**IDENTITY, "with_depth": depth}
    index = {"identity": identity, "clips": clips, "prompts": ["push"], "files": files}
    (place / INDEX_FILE).write_text(json.dumps(index))


def worker(place: Path, batches: int, depth: bool) -> None:
    """Open a cache and read batches of random clips both ways, in turn; prints seconds and the memory of the index."""
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    cache = LatentCache.open(place, verify=False)
    dataset = ClipDataset(cache, cache.of_split("train"), seed=0)
    dataset.clip(0)
    opened = time.perf_counter() - started
    memory = process.memory_info().rss - before
    names = CLIP_TENSORS + (DEPTH_TENSORS if depth else ())
    spent, size = {"loader": 0.0, "copy": 0.0}, 0
    for number in range(batches):
        positions = range(number * BATCH, (number + 1) * BATCH)
        chosen, mapped = [dataset.clip(position) for position in positions], dict[str, Any]()
        for clip in chosen:
            cache.read(clip)  # opened, and its pages there, before either is timed
            mapped[clip.file] = cache._handle(clip.file)  # pyright: ignore[reportPrivateUsage]
        for way in ("loader", "copy") if number % 2 else ("copy", "loader"):
            clock = time.process_time()
            if way == "loader":
                dataset.read(positions)
            else:
                batch = {name: torch.empty(BATCH, *SHAPES[name]) for name in names}  # all at once, as a batch is
                for name, copied in batch.items():
                    for clip, target in zip(chosen, copied, strict=True):
                        target.copy_(mapped[clip.file][name][clip.row])
            spent[way] += time.process_time() - clock
        size += sum(row.nbytes for clip in chosen for row in vars(cache.read(clip)).values() if row is not None)
    print(json.dumps({**spent, "open": opened, "memory": memory, "clips": batches * BATCH, "bytes": size}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1")
    else:
        typer.run(main)
