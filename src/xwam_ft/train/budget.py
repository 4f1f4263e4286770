"""How much of a run's time goes into looking at it, and a bar for that beside the one of steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xwam_ft.train.callbacks import StepBar

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from rich.console import Console

    from xwam_ft.train.callbacks import Clock

TRAINING, LOOKING = ("network", "data"), ("validation", "imagining")
"""Names under which the clock books seconds."""
FREE_SECONDS = 60.0
"""So much looking in all is not counted: short runs are looked at as often as they say."""


class Budget:
    """Whether there is time to look, by `validation.budget`: the share of training time that looks may take.

    Args:
        share: None: any.
        before: seconds of the sessions before this one, by name.
    """

    def __init__(self, share: float | None, clock: Clock, before: Mapping[str, float]) -> None:
        self.share, self._clock, self._before = share, clock, before

    def exceeded(self) -> str | None:
        """A phrase where looks have taken more than their share so far; None: there is time for one."""
        looked, trained = self._seconds(LOOKING), self._seconds(TRAINING)
        if self.share is None or looked - FREE_SECONDS <= self.share * trained:
            return None
        bound = f"more than validation.budget ({self.share:g})"
        return f"looks took {looked:.0f} s beside {trained:.0f} s of training, {bound}"

    def _seconds(self, names: tuple[str, ...]) -> float:
        return sum(spent.get(name, 0.0) for spent in (self._clock.spent, self._before) for name in names)


@contextmanager
def look_bar(trainer: pl.Trainer, what: str, total: int, console: Console) -> Generator[Callable[[int], None]]:
    """A bar of its own below the one of steps; where none is shown, a line that says what is done.

    Yields:
        A function that is told how much more is done.
    """
    bar = trainer.progress_bar_callback
    progress = bar.progress if isinstance(bar, StepBar) else None
    if progress is None or not console.is_terminal:
        console.print(f"{what}: {total} clips", markup=False)
        yield lambda amount: None
        return
    task = progress.add_task(f"[white]{what}", total=total)
    try:
        yield lambda amount: progress.advance(task, amount)
    finally:
        progress.remove_task(task)
