"""Every used column there and finite; the instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import listed
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from xwam_ft.prepare.embodiment_slots import SlotPlan
    from xwam_ft.prepare.episode import Episode, Table


def check_table(table: Table, plans: list[SlotPlan]) -> list[Finding]:
    """Errors of the columns that slots are made of; others may hold anything."""
    found: list[Finding] = []
    for plan in plans:
        for reading in (plan.state, plan.command):
            for name in reading.columns if reading else ():
                if name not in table.columns:
                    text = f"column {name!r} of slot {plan.slot.name!r} was not recorded"
                    found.append(Finding("missing-column", "error", text, name))
                    continue
                if name in table.problems:
                    found.append(Finding("unreadable-recording", "error", table.problems[name], name))
                    continue
                bad = np.flatnonzero(~np.isfinite(table.columns[name]))
                if len(bad):
                    text = (
                        f"column {name!r} of slot {plan.slot.name!r} holds {table.columns[name][bad[0]]} "
                        f"at frame {bad[0]} ({len(bad)} of {len(table.columns[name])} frames)"
                    )
                    found.append(Finding("not-a-number", "error", text, name, frame=int(bad[0])))
    return list(dict.fromkeys(found))


def instruction_of(episode: Episode, table: Table, fallback: str | None) -> tuple[str, list[Finding]]:
    """The episode's instruction: its most frequent task, else its first listed one, else the embodiment's."""
    if table.task_index is not None and len(table.task_index) and episode.tasks:
        numbers, counts = np.unique(table.task_index, return_counts=True)
        text = episode.tasks.get(int(numbers[np.argmax(counts)]), "").strip()
        if text:
            several = f"{len(numbers)} instructions in one episode; {text!r} is used"
            return text, [] if len(numbers) == 1 else [Finding("several-instructions", "warning", several)]
    for text in episode.instructions:
        if text.strip():
            several = f"of {listed(episode.instructions)} the first is used"
            one = len(episode.instructions) == 1
            return text.strip(), [] if one else [Finding("several-instructions", "warning", several)]
    if fallback and fallback.strip():
        return fallback.strip(), []
    text = "no instruction was recorded; add `instruction:` to the embodiment file"
    return "", [Finding("missing-instruction", "warning", text)]
