"""Seconds, FLOPs, memory, and tables of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode


def pick_device(name: str) -> str:
    """`auto`: the GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions and attention (a multiply-add is two)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median wall time of a call, after one that is not counted."""
    return seconds_of([call], device, repeats)[0]


def seconds_of(calls: Sequence[Callable[[], object]], device: str, repeats: int) -> list[float]:
    """The same of several calls taken in turn, so that what else the machine does falls on all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, spent in zip(calls, times, strict=True):
            synchronize(device)
            started = time.perf_counter()
            call()
            synchronize(device)
            spent.append(time.perf_counter() - started)
    return [statistics.median(spent[1:]) for spent in times]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(call: Callable[[], object], device: str) -> float | None:
    """Most GPU memory allocated during a call, in GB; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def matmul_peak(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a big matrix product on this machine."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, repeats)


def machine(device: str) -> str:
    """What the numbers were measured on."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns two spaces apart, numbers to the right; None is a dash."""
    cells = [["-" if value is None else str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    typer.echo(f"\n{title}")
    for row in cells:
        first, *rest = zip(row, widths, strict=True)
        columns = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        typer.echo("  ".join(columns).rstrip())
