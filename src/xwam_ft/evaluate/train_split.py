"""Errors on clips a policy was trained on, beside those on held-out clips: how much of what it does is remembered.

A policy that errs little on its training clips and much on others has no need of more steps: it needs more recordings,
or pictures that vary more (augmentation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.open_loop import OpenLoopResult, open_loop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.policy.policy import Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shards import ShardSet

WIDE = 2.0
"""Times as large an error on held-out clips from which on it is said."""
FEW = 16
"""Clips of a split below which nothing is said: they may be of one or two episodes."""


def train_split_table(
    policy: Policy,
    shards: ShardSet,
    held_out: OpenLoopResult,
    *,
    clips: int,
    mean: Float[ndarray, "ta da"] | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """{"clips", "slots": {slot: {quantity: {"unit", "train", "held_out"}}}}; quantities nowhere recorded are left out.

    Args:
        held_out: the policy's errors on held-out clips of the same set.
        clips, mean, advance: as in `open_loop`, of the train split.
    """
    found = open_loop(policy, shards, split="train", clips=clips, mean=mean, advance=advance)
    seen, unseen = found.mean("policy"), held_out.mean("policy")
    slots: dict[str, dict[str, Any]] = {}
    for index, measure in enumerate(held_out.measures):
        values = {"unit": measure.unit, "train": float(seen[index]), "held_out": float(unseen[index])}
        if not measure.dimension and np.isfinite([seen[index], unseen[index]]).all():
            slots.setdefault(measure.slot, {})[measure.name] = values
    return {"clips": found.clips, "slots": slots}


def said_of(metrics: Mapping[str, Any]) -> list[str]:
    """What the table of an evaluation means, in sentences: the widest gap, where it is wide."""
    table = metrics.get("train_split")
    if not table or min(table["clips"], metrics["clips"]) < FEW:
        return []
    gaps = {
        f"{slot} {name}": cell["held_out"] / cell["train"]
        for slot, cells in table["slots"].items()
        for name, cell in cells.items()
        if cell["train"] > 0
    }
    if not gaps or max(gaps.values()) < WIDE:
        return []
    name = max(gaps, key=lambda key: gaps[key])
    return [
        f"{name} errs {gaps[name]:.1f} times as much on held-out clips as on those it was trained on: more recordings, "
        "or augmentation (data.augment), will help more than more steps"
    ]
