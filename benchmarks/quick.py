#!/usr/bin/env python3
"""The small form of each benchmark that has one, one after another, and a table of their ratios with their commands.

Sizes are small, so these say whether something got slower, not what it costs: for that run the command without them.
The training step (train_step.py, training.py) and the 5B's sizes (checkpoint.py) take longer and are not among them.

    python benchmarks/quick.py            (or `make bench-quick`)
"""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from _measure import machine, print_table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ratio:
    """A number that a command prints, or one over another; the patterns' groups hold them."""

    what: str
    command: str
    found: str
    over: str = ""


PREPARE, GROWTH = "prepare.py --frames 40", "prepare.py --growth 4,40"
LOADING = "loading.py --frames 40 --clips 4 --height 240"
CACHED = "cached.py --clips 10000 --batches 40"
ENCODER = 'encoder.py --frames 48 --clips 6 --settings "medium 18 16,veryfast 15 16 fastdecode"'
LATENCY = "policy_latency.py --size tiny --steps 2,1 --rollout 2 --repeats 1"
SERVING, EXPORT = "serving.py --requests 40", "export.py --blocks 2 --width 256"
IMPORT = "import_checkpoint.py --gb 0.1 --shard-gb 0.05"
RATIOS = (
    Ratio("prepare / bare work, CPU, start-up apart", PREPARE, r"^prepare / bare, start-up apart +\S+ +(\S+)"),
    Ratio("prepare of 40 episodes / of 4, CPU", GROWTH, r"^40(?: +\S+){4} +(\S+)"),
    Ratio("clips from recordings by PyAV / from shards, time", LOADING, r"^recordings, PyAV(?: +\S+){2} +(\S+)"),
    Ratio("clips from recordings by decord / from shards, time", LOADING, r"^recordings, decord(?: +\S+){2} +(\S+)"),
    Ratio("clips from a latent cache / copied from its files", CACHED, r"^10,000(?: +\S+){4} +(\S+)"),
    Ratio(
        "size of a stored picture / x264 medium, crf 18",
        ENCODER,
        r"^veryfast 15 16 fastdecode +(\S+)",
        r"^medium 18 16 +(\S+)",
    ),
    Ratio(
        "time to encode one / the same",
        ENCODER,
        r"^veryfast 15 16 fastdecode(?: +\S+){2} +(\S+)",
        r"^medium 18 16(?: +\S+){2} +(\S+)",
    ),
    Ratio("policy call: text anew / known", LATENCY, r"^1 instruction encoded once +\S+ +\S+ +(\S+)"),
    Ratio("policy call: nine frames / one", LATENCY, r"^2 one frame a view to the VAE +\S+ +\S+ +(\S+)"),
    Ratio("a request over loopback / in process", SERVING, r"^over loopback +(\S+)", r"^in process +(\S+)"),
    Ratio(
        "memory of writing a bundle / allowed",
        EXPORT,
        r"^bundle +the writing +(\S+)",
        r"^bundle.* of (\S+) GB allowed",
    ),
    Ratio("an import / a plain copy, time", IMPORT, r"^import +(\S+) s", r"^plain copy, synced +(\S+) s"),
)


def main(only: Annotated[str, typer.Option(help="commands with this in them alone")] = "") -> None:
    """Print every command's own tables as it runs, then the ratios."""
    rows: list[list[str]] = []
    failed = False
    for text in dict.fromkeys(ratio.command for ratio in RATIOS if only in ratio.command):
        typer.echo(f"\n=== python benchmarks/{text}")
        started, before = time.perf_counter(), _cpu_of_children()
        script, *options = shlex.split(text)
        done = subprocess.run([sys.executable, HERE / script, *options], stdout=subprocess.PIPE, text=True, check=False)
        typer.echo(done.stdout)
        spent = f"{time.perf_counter() - started:.0f}", f"{_cpu_of_children() - before:.0f}"
        for ratio in RATIOS:
            if ratio.command == text:
                value = ratio_of(ratio, done.stdout) if done.returncode == 0 else None
                failed = failed or value is None
                said = "failed" if value is None else f"{value:.2f}"
                rows.append([ratio.what, said, *spent, f"python benchmarks/{text}"])
    typer.echo(machine("cpu"))
    print_table("ratios", ("what", "ratio", "wall s", "CPU s", "command"), rows)
    if failed:
        raise typer.Exit(1)


def ratio_of(ratio: Ratio, printed: str) -> float | None:
    """What a command printed of it; None where it is not there."""
    numbers: list[float] = []
    for pattern in filter(None, (ratio.found, ratio.over)):
        if (seen := re.search(pattern, printed, flags=re.MULTILINE)) is None:
            return None
        numbers.append(float(seen[1]))
    return numbers[0] / max(numbers[1], 1e-9) if len(numbers) == 2 else numbers[0]


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    typer.run(main)
