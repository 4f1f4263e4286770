#!/usr/bin/env python3
"""How far codecs move what the network sees: latents of raw pictures beside those of recorded and stored ones.

A camera gives raw pictures, or JPEG; recorders compress them, and `prepare` does so once more. Pictures are
Meta-World's, as its renderer gives them; latents are the built-in VAE's, after the crop.

Needs `pip install 'xwam-ft[sim]'`.

    python benchmarks/codecs.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import torch
import typer
from rich.console import Console

from _measure import machine, print_table
from xwam_ft.bundled import bundled
from xwam_ft.contract import Contract
from xwam_ft.evaluate.metaworld import MetaWorld
from xwam_ft.media import H264, REPRODUCIBLE, compressed, encoded, read_rgb
from xwam_ft.model.backbone import load_backbone
from xwam_ft.pictures import centre_crop
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.shards import ShardSet

FPS, FRAMES, SKIP = 20.0, 5, 4
Codec = Callable[[np.ndarray], np.ndarray]


def main(
    episodes: Annotated[int, typer.Option(min=1, help="starts of `push` that are rendered")] = 4,
) -> None:
    """Print, for each way a picture goes, how far latents move, as a share of their spread, and the pictures' dB."""
    typer.echo(f"python benchmarks/codecs.py --episodes {episodes}")
    typer.echo(f"{machine('cpu')}, PyAV {av.__version__}")
    vae = load_backbone("tiny", dtype="float32", parts=("vae",))
    contract = _contract()
    clips = [_raw(contract, seed) for seed in range(episodes)]

    def latents(views: np.ndarray) -> torch.Tensor:
        shown = np.stack([centre_crop(view, contract.image.crop) for view in views])
        with torch.no_grad():
            return vae.encode_video(torch.from_numpy(np.ascontiguousarray(shown))[None])

    raw = [latents(clip) for clip in clips]
    spread = torch.stack(raw).std()
    rows: list[list[str]] = []
    for name, codec in _ways().items():
        seen = [np.stack([codec(view) for view in clip]) for clip in clips]
        moved = [(latents(views) - before).pow(2).mean() for views, before in zip(seen, raw, strict=True)]
        wrong = np.mean([(a.astype(float) - b) ** 2 for a, b in zip(seen, clips, strict=True)])
        share = float(torch.stack(moved).mean().sqrt() / spread)
        rows.append([name, f"{share:.3f}", f"{10 * np.log10(255**2 / wrong):.1f}"])
    print_table(f"{episodes} clips of {FRAMES} pictures in {len(clips[0])} views", ("way", "latents", "dB"), rows)


def _ways() -> dict[str, Codec]:
    def h264(crf: int, preset: str = "medium") -> Codec:
        options = {"preset": preset, "crf": str(crf), **REPRODUCIBLE}
        return lambda view: read_rgb(encoded(view, FPS, "libx264", options))

    def stored(crf: str = H264["crf"]) -> Codec:
        return lambda view: read_rgb(encoded(view, FPS, "libx264", {**H264, "crf": crf}))

    ways = {f"shards, crf {crf}": stored(crf) for crf in ("5", "10", H264["crf"], "18", "23")}
    recorders = {"H.264 crf 18": h264(18), "H.264 crf 23": h264(23)}
    if "libsvtav1" in av.codecs_available:
        recorders["AV1 crf 30 (LeRobot)"] = lambda view: read_rgb(
            encoded(view, FPS, "libsvtav1", {"crf": "30", "g": "2"})
        )
    for name, recorder in recorders.items():
        ways[f"recorded by {name}"] = recorder
        ways[f"recorded by {name}, then shards"] = lambda view, of=recorder: stored()(of(view))
    return ways | {
        f"JPEG {quality}": lambda view, q=quality: compressed(view, "jpeg", q) for quality in (95, 80, 60, 30)
    }


def _contract() -> Contract:
    """That of the bundled recordings."""
    embodiment = bundled("recipes/embodiments/metaworld_sawyer_rgb.yaml")
    with tempfile.TemporaryDirectory() as place:
        prepare(
            [bundled("recordings/metaworld_demo")], Path(place) / "shards", embodiment=embodiment, depth="none",
            workers=0, strict=True, urdf_dirs=[], console=Console(quiet=True),
        )  # fmt: skip
        return ShardSet.open(Path(place) / "shards").contract


def _raw(contract: Contract, seed: int) -> np.ndarray:
    """A clip of a hand that goes down and away [V, T, H, W, 3], as the renderer gives it."""
    world = MetaWorld("push", contract)
    world.reset(seed)
    target, pictures = world.simulator.target(), list[np.ndarray]()
    for step in range(SKIP * (FRAMES - 1) + 1):
        if step % SKIP == 0:
            pictures.append(np.stack(list(world.observe()["images"].values())))
        target = target + np.array([0.004, 0.006, -0.004, 0, 0, 0, 0])
        world.step({"arm": target, "gripper": np.array([1.0])})
    world.close()
    return np.stack(pictures, axis=1)


if __name__ == "__main__":
    typer.run(main)
