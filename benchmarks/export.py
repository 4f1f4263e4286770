#!/usr/bin/env python3
"""Peak memory and time of writing a network tensor by tensor with adapters merged, against a plain copy of its bytes:
as a bundle holds it (safetensors) and as `--format xwam` does (torch's own).

Makes a synthetic backbone of several blocks and a LoRA of rank 16 on all their linears (random numbers), then writes
the merged network in a process of its own. The proofs, which run the network, are not part of this. Nothing is kept.

    python benchmarks/export.py --blocks 8 --width 1024
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

MAKE = """
import sys, torch
from pathlib import Path
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from xwam_ft.model.adapters import prepare_for_training, trainable_state
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.recipe_model import DepthSpec, LoraSpec
place, blocks, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
transformer = WanTransformer3DModel(
    patch_size=(1, 2, 2), num_attention_heads=width // 64, attention_head_dim=64, in_channels=48, out_channels=48,
    text_dim=64, freq_dim=256, ffn_dim=4 * width, num_layers=blocks).bfloat16()
transformer.save_pretrained(place / "base" / "transformer")
network = JointNetwork(transformer, NetworkConfig(2, 7, 8, 2, depth_blocks=0), torch.Generator().manual_seed(0))
prepare_for_training(network, LoraSpec(rank=16), DepthSpec())
trained = {name: torch.randn_like(tensor) * 0.02 for name, tensor in trainable_state(network).items()}
save_file(trained, place / "trainable.safetensors")
"""

WRITE = """
import json, resource, sys, time
from pathlib import Path
import peft, torch
from diffusers import WanTransformer3DModel
from xwam_ft.export.torch_file import write_torch
from xwam_ft.export.weights import RunWeights
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import write_stream
from xwam_ft.model.network import NetworkConfig
from xwam_ft.recipe import Recipe
place = Path(sys.argv[1])
recipe = Recipe.model_validate({
    "backbone": {"path": str(place / "base")}, "data": {"shards": "none"}, "model": {"lora": {"rank": 16}},
    "trainer": {"max_steps": 1}})
values = json.loads((place / "base" / "transformer" / "config.json").read_text())
weights = RunWeights(
    recipe, NetworkConfig(2, 7, 8, 2, depth_blocks=0),
    {key: value for key, value in values.items() if not key.startswith("_")},
    open_checkpoint(place / "base" / "transformer").tensors, {},
    open_checkpoint(place / "trainable.safetensors").tensors, place / "trainable.safetensors", False,
    tuple(WanTransformer3DModel._keep_in_fp32_modules))
pieces = weights.pieces(torch.bfloat16, merged=True)
groups = {}
for piece in pieces:
    parts = piece.name.split(".")
    group = ".".join(parts[:3]) if parts[1] == "blocks" else parts[0]
    groups[group] = groups.get(group, 0) + piece.bytes
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
if sys.argv[2] == "bundle":
    write_stream(place / "bundle", pieces, {"format": "pt"}, lambda size: None)
else:
    write_torch(place / "xwam", "module", pieces, lambda size: None)
seconds = time.perf_counter() - start
print(json.dumps({"before": before, "peak": peak(), "seconds": seconds, "group": max(groups.values())}))
"""


def main(
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the synthetic transformer.")] = 8,
    width: Annotated[int, typer.Option(min=64, help="Its width, a multiple of 64.")] = 1024,
    folder: Annotated[Path | None, typer.Option(help="Where to work (default: the system's).")] = None,
) -> None:
    """Print peak memory and time of writing a merged network beside its largest group and a plain copy."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        subprocess.run([sys.executable, "-c", MAKE, name, str(blocks), str(width)], check=True)
        # Peaks are of the child alone: this process holds no torch, whose memory a child would be charged with.
        for number, form in enumerate(("bundle", "xwam")):
            done = subprocess.run([sys.executable, "-c", WRITE, name, form], check=True, capture_output=True, text=True)
            seen = json.loads(done.stdout)
            size = (place / form).stat().st_size
            own, limit = seen["peak"] - seen["before"], 1.3 * seen["group"] + 1e9
            if number == 0:
                print(f"written               {size / 1e9:8.3f} GB, bfloat16, {blocks} blocks of width {width}")
                print(f"largest group         {seen['group'] / 1e9:8.3f} GB")
                print(f"plain copy, synced    {_copied(place / form, place / 'copy'):8.1f} s")
            print(f"{form:6}  write, merged {seen['seconds']:8.1f} s")
            print(f"{form:6}  peak memory   {seen['peak'] / 1e9:8.3f} GB")
            print(f"{form:6}    libraries   {seen['before'] / 1e9:8.3f} GB")
            print(f"{form:6}    the writing {own / 1e9:8.3f} GB, of {limit / 1e9:.3f} GB allowed")


def _copied(source: Path, target: Path) -> float:
    start = time.perf_counter()
    with source.open("rb") as stream, target.open("wb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 24)
        copy.flush()
        os.fsync(copy.fileno())
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
