"""Numbers of a step that are judged on the host without waiting for the device.

On a CPU a number is there at once, and is judged at once. On a GPU asking for one stops the host until every kernel
before it has run, and the device idles while the host catches up; so a step's numbers are copied beside the work and
judged a step later. The step they condemn has then been taken: whoever writes weights down calls `settle` first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

Judge = Callable[[float], None]


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
