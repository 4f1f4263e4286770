"""What stops a run that has gone wrong: losses and gradients, judged without waiting for the device.

On a CPU a number is there at once, and is judged at once. On a GPU asking for one stops the host until every kernel
before it has run, and the device idles while the host catches up; so a step's numbers are copied beside the work and
judged a step later. The step they condemn has then been taken: whoever writes weights down calls `settle` first.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.runs.checkpoint import list_checkpoints

if TYPE_CHECKING:
    from torch import Tensor

Judge = Callable[[float], None]
EXPLODED = 100.0
"""A step's loss above this many times the median of the steps before it has exploded."""
EXPLODED_EARLY = 1000.0
"""The same while fewer than half of those steps are known: rates that are far too high need no 25 steps."""
REMEMBERED = 50
"""Steps that median is taken over."""


class Late:
    """Judges numbers in the order they were watched in.

    Args:
        waits: judge a step later; False: at once.
    """

    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self._watched: deque[tuple[int, Tensor, Any, Judge]] = deque()
        self._step = 0

    def watch(self, value: Tensor, judge: Judge) -> None:
        """Let `judge` see a scalar tensor's number: now, or in a later `next_step`."""
        value = value.detach()
        if not self.waits:
            judge(float(value))
            return
        host, there = value, None
        if value.device.type == "cuda":
            host = torch.empty((), dtype=value.dtype, pin_memory=True)
            host.copy_(value, non_blocking=True)
            there = torch.cuda.Event()
            there.record()
        else:
            host = value.clone()
        self._watched.append((self._step, host, there, judge))

    def next_step(self) -> None:
        """An optimizer step is done: judge what was watched in the one before it."""
        self._step += 1
        self._judge(self._step - 1)

    def settle(self) -> None:
        """Judge all that was watched, waiting for the device."""
        self._judge(self._step + 1)

    def _judge(self, before: int) -> None:
        while self._watched and self._watched[0][0] < before:
            _, host, there, judge = self._watched.popleft()
            if there is not None:
                there.synchronize()
            judge(float(host))


class Guards(Late):
    """Judges what a training step says of itself; steps are counted from 0.

    Args:
        where: what is trained on, for sentences.
        run: folder whose last checkpoint they name.
        waits: as `Late`.
    """

    def __init__(self, where: str, run: Path | None, *, waits: bool) -> None:
        super().__init__(waits)
        self.where, self.run = where, run
        self.history: deque[float] = deque(maxlen=REMEMBERED)  # losses of the last steps

    def finite(self, what: str, value: Tensor, step: int, keys: list[str]) -> None:
        """A loss or gradient; stops the run where it is no number."""

        def judge(number: float) -> None:
            if not math.isfinite(number):
                self._stop(f"the {what} is {number} at step {step + 1}, in clips {listed(keys)}")

        self.watch(value, judge)

    def total(self, value: Tensor, step: int, keys: list[str]) -> None:
        """The loss of a whole step; stops the run where it has exploded."""

        def judge(number: float) -> None:
            known = self.history
            usual = median(known) if known else math.inf
            if number > (EXPLODED if len(known) >= REMEMBERED // 2 else EXPLODED_EARLY) * usual:
                self._stop(
                    f"the loss has exploded: {number:.3g} at step {step + 1}, {usual:.3g} in the steps "
                    f"before, in clips {listed(keys)}"
                )
            known.append(number)

        self.watch(value, judge)

    def _stop(self, what: str) -> None:
        saved = list_checkpoints(self.run) if self.run is not None else []
        good = saved[-1] if saved else "none: the run had not saved one yet"
        raise UserError(
            what,
            self.where,
            f"look at those recordings, or lower the learning rates; the last good checkpoint is {good}",
        )
