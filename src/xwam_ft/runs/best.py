"""Which of a run's checkpoints was best by a held-out number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.runs.checkpoint import kept_steps
from xwam_ft.runs.history import History

GROUPS = ("held_out/", "held_out_dim/", "held_out_sigma/")
"""Losses and errors: of all of them less is better."""


@dataclass(frozen=True)
class Best:
    """The best checkpoint that is kept, and a better step whose checkpoint is gone."""

    metric: str
    step: int
    value: float
    gone: tuple[int, float] | None
    other: tuple[int, ...] = ()  # steps whose number is none, or was taken over other clips

    def __str__(self) -> str:
        said = f"best by {self.metric}: step {self.step} with {self.value:.4g}"
        if self.other:
            said += f" (not compared, since measured on other clips: step {listed(self.other)})"
        if self.gone is None:
            return said
        step, value = self.gone
        return f"{said}, of the checkpoints that are kept; step {step} had {value:.4g}, and its checkpoint is gone"


def best_checkpoint(run: Path, metric: str) -> Best:
    """The checkpoint with the lowest value of a held-out number; of equal ones the latest.

    Args:
        metric: its name in metrics.jsonl, `held_out/` left out or not.

    Raises:
        UserError: no such number (the sentence lists those there are), or no checkpoint that was validated is kept.
    """
    rows = History(run).metrics()
    known = sorted({name for row in rows for name in row if name.startswith(GROUPS)})
    name = metric if metric in known else f"{GROUPS[0]}{metric}"
    if name not in known:
        if not known:
            raise UserError("was never validated", run, "choose a checkpoint by --step, or train with validation on")
        raise UserError(
            f"is {metric!r}, which {run} did not log{did_you_mean(metric, known)}", "--best", _one_of(known)
        )
    alike = History(run).comparable()
    values = {int(row["step"]): row[name] for row in alike if name in row and math.isfinite(row[name])}
    other = sorted({int(row["step"]) for row in rows if name in row} - values.keys())
    order = sorted(values, key=lambda step: (values[step], -step))
    kept = kept_steps(run)
    chosen = next((step for step in order if step in kept), None)
    if chosen is None:
        said = f"keeps checkpoints of steps {listed(kept)}, and {name} was measured at {listed(sorted(values))}"
        raise UserError(said, run, "choose a checkpoint by --step")
    first = order[0]
    better = (first, values[first]) if first != chosen and values[first] < values[chosen] else None
    return Best(name, chosen, values[chosen], better, tuple(other))


def _one_of(known: list[str]) -> str:
    """Those people choose by; the others are details of them."""
    main = [name for name in known if name.startswith(GROUPS[0])]
    rest = len(known) - len(main)
    return f"use one of: {listed(main, 40)}" + (f" (or one of {rest} by number and noise level)" if rest else "")
