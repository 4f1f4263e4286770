#!/usr/bin/env python3
"""Training from the latent cache against training from pixels: samples a second, and the share of a step spent waiting.

The same recipe on the same shards, both ways in turn. The cache is made before anything is timed; waiting is everything
between two steps: reading, decoding, and from pixels the VAE.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from _measure import machine, print_table
from xwam_ft.bundled import bundled
from xwam_ft.encode.inputs import encode_shards
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.recipe import load_recipe
from xwam_ft.train.train import train_recipe

RECORDINGS, EMBODIMENT = "recordings/metaworld_demo", "recipes/embodiments/metaworld_sawyer_rgb.yaml"
QUIET = Console(quiet=True)
WAYS = {"from the cache": "auto", "from pixels": "none"}


def main(
    recipe: Annotated[Path | None, typer.Option(help="default: recipes/tiny_cpu.yaml")] = None,
    shards: Annotated[Path | None, typer.Option(help="default: the bundled recordings, prepared here")] = None,
    steps: Annotated[int, typer.Option(help="optimizer steps of a run")] = 20,
    repeats: Annotated[int, typer.Option(help="runs of each way; medians count")] = 3,
    workers: Annotated[int, typer.Option(help="loader processes")] = 0,
) -> None:
    """Print samples a second and the share of waiting, both ways."""
    typer.echo(f"python benchmarks/training.py --steps {steps} --repeats {repeats} --workers {workers}")
    typer.echo(machine("cpu"))
    recipe = recipe or bundled("recipes/tiny_cpu.yaml")
    with tempfile.TemporaryDirectory(prefix="xwam-ft-") as place:
        shards = shards or _prepared(Path(place))
        sets = [f"data.shards={json.dumps(str(shards))}", f"trainer.workers={workers}"]
        encode_shards(shards, load_recipe(recipe, sets), QUIET)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for number in range(repeats):
            for way, cache in WAYS.items():
                run = Path(place) / f"{cache}-{number}"
                found[way].append(timed(recipe, run, [*sets, f"data.cache={cache}"], steps))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in found.items()}
    cached = medians["from the cache"][0]
    rows = [
        (way, f"{rate:.1f}", f"{100 * share:.1f} %", f"{rate / cached:.2f}") for way, (rate, share) in medians.items()
    ]
    print_table("training", ("clips", "samples/s", "waiting", "rate, cached = 1"), rows)


def timed(recipe: Path, run: Path, sets: list[str], steps: int) -> tuple[float, float]:
    """Samples a second of a run without validation, setup apart, and the share of that time spent waiting for data."""
    off = ["validation.every_steps=0", "validation.imagine_clips=0", "validation.clips=1", "logging.to=[]"]
    overrides = [*sets, *off, f"trainer.max_steps={steps}", f"checkpoint.every_steps={steps}"]
    train_recipe(load_recipe(recipe, overrides), run, QUIET)
    spent = json.loads((run / "time.json").read_text())
    samples = steps * json.loads((run / "plan.json").read_text())["batch"]
    return samples / (spent["network"] + spent["data"]), spent["data"] / (spent["network"] + spent["data"])


def _prepared(place: Path) -> Path:
    prepare(
        [bundled(RECORDINGS)], place / "shards", embodiment=bundled(EMBODIMENT),
        depth="tiny", workers=0, strict=True, urdf_dirs=[], console=QUIET,
    )  # fmt: skip
    return place / "shards"


if __name__ == "__main__":
    typer.run(main)
