#!/usr/bin/env python3
"""Peak memory and time of an import, against a plain copy of the same bytes.

Writes a synthetic checkpoint in X-WAM's DeepSpeed form (float32, random numbers, its own names), imports it in a
process of its own, and prints that process' peak resident memory beside the size of what it wrote. Nothing is kept.

    python benchmarks/import_checkpoint.py --gb 1
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

WIDTH = 1024
BLOCK_PARAMETERS = 16 * WIDTH**2

WRITE = """
import sys, torch
from xwam_ft.model.assemble import empty_network
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.reference import to_reference
blocks = int(sys.argv[2])
sizes = {"patch_size": [1, 2, 2], "num_attention_heads": 8, "attention_head_dim": 128, "in_channels": 48,
         "out_channels": 48, "text_dim": 64, "freq_dim": 256, "ffn_dim": 4096, "num_layers": blocks - blocks // 4}
state = empty_network(sizes, NetworkConfig(3, 14, 16, 4, depth_blocks=blocks // 4)).state_dict()
weights = {f"model.{name}": torch.randn(tensor.shape) for name, tensor in to_reference(state).items()}
torch.save({"module": weights}, sys.argv[1])
"""

IMPORT = """
import json, resource, sys, time
from pathlib import Path
from xwam_ft.bundled import bundled
from xwam_ft.convert.convert import ConvertOptions, import_checkpoint
import diffusers.models.transformers.transformer_wan, diffusers.models.autoencoders.autoencoder_kl_wan
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
import_checkpoint(
    Path(sys.argv[1]), Path(sys.argv[2]), ConvertOptions(vae_text=bundled("tiny"), shard_bytes=int(sys.argv[3]))
)
print(json.dumps({"before": before, "peak": peak(), "seconds": time.perf_counter() - start}))
"""


def main(
    gb: Annotated[float, typer.Option(min=0.1, help="Size of the checkpoint.")] = 1.0,
    shard_gb: Annotated[float, typer.Option(min=0.01, help="Size of an output file.")] = 0.25,
    folder: Annotated[Path | None, typer.Option(help="Where to work (default: the system's).")] = None,
) -> None:
    """Print peak memory and time of an import of GB beside output and plain copy."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source = Path(place) / "last.ckpt" / "checkpoint" / "mp_rank_00_model_states.pt"
        source.parent.mkdir(parents=True)
        blocks = max(4, round(gb * 1e9 / 4 / BLOCK_PARAMETERS))
        subprocess.run([sys.executable, "-c", WRITE, str(source), str(blocks)], check=True)
        start = time.perf_counter()
        with source.open("rb") as stream, (Path(place) / "copy").open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 24)
            copy.flush()
            os.fsync(copy.fileno())
        copied = time.perf_counter() - start
        out = Path(place) / "out"
        # Peaks are of the child alone: this process holds no torch, whose memory a child would be charged with.
        arguments = [str(Path(place) / "last.ckpt"), str(out), str(int(shard_gb * 1e9))]
        done = subprocess.run([sys.executable, "-c", IMPORT, *arguments], check=True, capture_output=True, text=True)
        seen = json.loads(done.stdout)
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        size = source.stat().st_size
    print(f"checkpoint            {size / 1e9:8.3f} GB, float32, {blocks} blocks of width {WIDTH}")
    print(f"output                {written / 1e9:8.3f} GB, bfloat16, files of {shard_gb} GB")
    print(f"peak memory           {seen['peak'] / 1e9:8.3f} GB = {seen['peak'] / written:.2f} x output")
    print(f"  libraries, before   {seen['before'] / 1e9:8.3f} GB")
    print(f"  the import itself   {(seen['peak'] - seen['before']) / 1e9:8.3f} GB")
    print(f"import                {seen['seconds']:8.1f} s")
    print(f"plain copy, synced    {copied:8.1f} s of the checkpoint's bytes")


if __name__ == "__main__":
    typer.run(main)
