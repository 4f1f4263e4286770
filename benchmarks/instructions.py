#!/usr/bin/env python3
"""Host memory that the embeddings of many instructions take at 5B size: made, written, opened, and gathered in batches.

`held` is all of them in memory, as one tensor; `rows` what xwam-ft does. Numbers are made up; a row is 512 x 4096 in
bfloat16, 4.2 MB. Each way runs in a process of its own. Mapped pages count as resident until something else wants the
memory; `own` is what cannot be taken back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from _measure import machine, print_table
from _sizes import command
from xwam_ft.encode.texts import JoinedRows
from xwam_ft.model.tensor_files.stream import write_rows

BATCH = 16


def main(
    count: Annotated[int, typer.Option(help="instructions")] = 500,
    ways: Annotated[str, typer.Option(help="held, rows, or both with a comma")] = "held,rows",
    positions: int = 512,
    width: int = 4096,
    batches: Annotated[int, typer.Option(help="of 16 that are gathered")] = 20,
    folder: Annotated[Path | None, typer.Option(help="where files go; default: the temporary folder")] = None,
) -> None:
    """Print most resident MB and most own MB of each way, above what it took before; batches must be equal."""
    typer.echo(command(__file__, count=count, ways=ways, positions=positions, width=width, batches=batches))
    typer.echo(machine("cpu"))
    rows: list[tuple[str, ...]] = []
    sums: set[str] = set()
    for way in ways.split(","):
        with tempfile.TemporaryDirectory(prefix="xwam-ft-instructions-", dir=folder) as place:
            numbers = [str(value) for value in (count, positions, width, batches)]
            done = subprocess.run(
                [sys.executable, __file__, "--worker", way, place, *numbers], capture_output=True, text=True, check=True
            )
        told = json.loads(done.stdout.splitlines()[-1])
        sums.add(json.dumps(told.pop("digests")))
        rows += [(way, step, *(f"{value / 1e6:,.0f}" for value in values)) for step, values in told.items()]
    assert len(sums) == 1, "batches of one way are not those of the other"
    size = count * positions * width * 2
    title = f"{count:,} instructions, {size / 1e9:.1f} GB: MB above what was taken before"
    print_table(title, ("way", "step", "resident", "own"), rows)


def embeddings(count: int, positions: int, width: int) -> Iterator[Tensor]:
    """Made-up rows, each another."""
    line = torch.arange(positions * width, dtype=torch.int32).reshape(positions, width)
    for number in range(count):
        yield ((line + 7 * number) % 251 / 251).bfloat16()


def worker(way: str, place: Path, count: int, positions: int, width: int, batches: int) -> None:
    """One way in this process; prints its peaks and a digest of its batches."""
    import hashlib

    process, told = psutil.Process(), {}
    torch.set_num_threads(1)
    list(embeddings(2, positions, width))
    start = process.memory_info()

    def note(step: str) -> None:
        now = process.memory_info()
        before = told.get(step, (0, 0))
        own = now.rss - now.shared - (start.rss - start.shared)
        told[step] = (max(before[0], now.rss - start.rss), max(before[1], own))

    halves = [(place / "a.safetensors", count // 2), (place / "b.safetensors", count - count // 2)]
    made = embeddings(count, positions, width)
    for file, part in halves:  # two shard sets, each with its cache
        some = (row for _, row in zip(range(part), made, strict=False))
        if way == "held":
            whole = torch.empty(part, positions, width, dtype=torch.bfloat16)
            for index, row in enumerate(some):
                whole[index] = row
            note("made and written")
            save_file({"embeddings": whole}, file)
            note("made and written")
            del whole
        else:
            write_rows(file, "embeddings", (_noted(row, note) for row in some), part)
    parts = [row for file, _ in halves for row in load_file(file)["embeddings"]]
    opened = torch.stack(parts) if way == "held" else JoinedRows(parts)
    note("two caches opened as one")
    generator = torch.Generator().manual_seed(0)
    digests: list[str] = []
    for _ in range(batches):
        told_rows = torch.randint(count, (BATCH,), generator=generator).tolist()
        batch = opened[told_rows].float()
        digests.append(hashlib.sha256(batch.numpy().tobytes()).hexdigest())
        note("batches gathered")
    print(json.dumps({**told, "digests": digests}))


def _noted(row: Tensor, note: object) -> Tensor:
    note("made and written")  # pyright: ignore[reportCallIssue]
    return row


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
    else:
        typer.run(main)
