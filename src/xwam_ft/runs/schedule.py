"""How the learning rates go over a run, as a function of the step alone: any step can be asked for, at any length."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xwam_ft.recipe import OptimSpec


def learning_rate_factor(step: int, optim: OptimSpec, max_steps: int) -> float:
    """What multiplies the base learning rates at optimizer step `step` (counted from 0).

    Linear over the first `warmup_steps` steps, reaching 1 on the last of them. Then by `optim.schedule`:
        cosine               half a cosine that is 0 at `max_steps`, the first step that is not taken
        constant             1
        warmup-stable-decay  1, and over the last `decay_share` of the steps a straight line to 0 at `max_steps`
    """
    warmup = optim.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    if step >= max_steps:
        return 0.0
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (max_steps - warmup)))
    falls = max_steps - max(warmup, decay_start(optim, max_steps))
    return min(1.0, (max_steps - step) / falls) if falls else 1.0


def decay_start(optim: OptimSpec, max_steps: int) -> int:
    """The first step of warmup-stable-decay whose rate falls."""
    return max_steps - round(optim.decay_share * max_steps)


def when_extended(optim: OptimSpec, step: int, before: int, after: int) -> str:
    """One sentence: what another number of steps does to the rates of a run that has done `step` steps."""
    was, now = learning_rate_factor(max(step - 1, 0), optim, before), learning_rate_factor(step, optim, after)
    change = f"{optim.schedule}, now to step {after} (was {before})"
    if step < optim.warmup_steps:
        return f"{change}: the warm-up goes on as before"
    if optim.schedule == "constant":
        return f"{change}: the rates stay as they are"
    if optim.schedule == "cosine":
        moves = "rise again" if now > was else "fall"
        return f"{change}: the rates {moves} from {_share(was)} to {_share(now)} of their full value, and fall to 0"
    falls = decay_start(optim, after)
    if step >= falls:
        return f"{change}: the rates go on at {_share(now)} of their full value (were at {_share(was)}), and fall to 0"
    again = f" (the rates had fallen to {_share(was)} and rise again)" if was < 1.0 else ""
    return f"{change}: it goes on at the plateau{again}, and falls to 0 from step {falls} on"


def _share(factor: float) -> str:
    return f"{100 * factor:.3g} %"
