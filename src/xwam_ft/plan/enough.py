"""How many clips a task needs to be shown, as far as it was measured (docs/log.md: the Meta-World table)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xwam_ft.shards import ShardSet

FEW = 10_000
"""Clips a task at and below which the precise one of four tasks was hardly learned."""
TOLD_APART = 20
"""Instructions above which they are wordings of recordings rather than tasks, and nothing is said."""


def too_few_clips(shown: int, shard_set: ShardSet) -> str | None:
    """A sentence where a run shows each task so few clips that it disappointed here; None where it does not.

    Args:
        shown: clips of all optimizer steps.
    """
    tasks = len({entry.instruction for entry in shard_set.index.episodes if entry.split == "train"})
    if not 0 < tasks <= TOLD_APART or shown > FEW * tasks:
        return None
    each = "of one instruction" if tasks == 1 else f"of each of {tasks} instructions"
    return (
        f"about {shown / tasks:,.0f} clips {each} will be shown; with 8,000 of each task a button was pressed in 94 % "
        "of new scenes and a puck pushed to its goal in 14 %, with 64,000 in 100 and 50 % (docs/log.md): for what "
        "takes precision, raise trainer.max_steps and set data.augment"
    )
