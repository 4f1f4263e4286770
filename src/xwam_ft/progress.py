"""A rich progress bar with count, rate and time left, for work whose size is known."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
SCALES = {"bytes": (1e6, "MB")}


@contextmanager
def progress_bar(console: Console, what: str, unit: str, total: int) -> Generator[Advance]:
    """Show a bar over `total` units; yields a function that advances it. `bytes` are shown in MB."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    scale, name = SCALES.get(unit, (1.0, unit))
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, rate="")

        def advance(amount: int) -> None:
            progress.advance(task, amount)
            state = progress.tasks[0]
            overall = state.completed / state.elapsed if state.elapsed else 0.0
            speed = (overall if state.finished else state.speed or overall) / scale
            shown = f"{state.completed / scale:.0f}/{total / scale:.0f} {name}, {speed:.1f} {name}/s"
            progress.update(task, rate=shown)

        yield advance
