"""Every used column there and finite; the instruction and its wordings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.findings import Finding
from xwam_ft.prompts import clean_prompt, plain

if TYPE_CHECKING:
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.prepare.episode import Episode, Table

PLACEHOLDERS = re.compile(
    r"(describe )?(my |your |the )?(dummy |default |test )?(task|instruction|prompt)( name| description| here)*|"
    r"todo|tbd|none|null|nan|n/?a|test|dummy|placeholder|default|unknown|untitled|string|x+"
)
MOST_WORDINGS = 8
"""Of an episode: every text is embedded once, 4 MB each at 5B size."""


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


def instructions_of(episode: Episode, table: Table, fallback: str | None) -> tuple[tuple[str, ...], list[Finding]]:
    """What the episode is told, the usual wording first: its most frequent task, else those listed for it (several
    wordings of one task; at most `MOST_WORDINGS`, evenly over the list), else the embodiment's."""
    if table.task_index is not None and len(table.task_index) and episode.tasks:
        numbers, counts = np.unique(table.task_index, return_counts=True)
        text = clean_prompt(episode.tasks.get(int(numbers[np.argmax(counts)]), ""))
        if text and says_nothing(text):
            return _instead(text, fallback)
        if text:
            listed_ones = [clean_prompt(one) for one in episode.instructions]
            if len(numbers) == 1 and listed_ones and plain(text) not in map(plain, listed_ones):
                said = f"its rows say {text!r}, and the list of episodes {listed_ones[0]!r}; the former is used"
                return (text,), [Finding("other-instruction", "warning", said)]
            several = f"{len(numbers)} instructions in one episode; {text!r} is used"
            return (text,), [] if len(numbers) == 1 else [Finding("several-instructions", "warning", several)]
    wordings = list(dict.fromkeys(filter(None, map(clean_prompt, episode.instructions))))
    if len(wordings) > MOST_WORDINGS:
        chosen = [wordings[index * len(wordings) // MOST_WORDINGS] for index in range(MOST_WORDINGS)]
        left_out = f"{MOST_WORDINGS} of {len(wordings)} wordings of the instruction are kept"
        return tuple(chosen), [Finding("many-wordings", "note", left_out)]
    if wordings and says_nothing(wordings[0]):
        return _instead(wordings[0], fallback)
    if wordings:
        return tuple(wordings), []
    if fallback and (text := clean_prompt(fallback)):
        return (text,), []
    text = "no instruction was recorded; add `instruction:` to the embodiment file"
    return (), [Finding("missing-instruction", "warning", text)]


def says_nothing(text: str) -> bool:
    """Whether an instruction is what a form held before somebody should have written one, or a number."""
    return PLACEHOLDERS.fullmatch(plain(text)) is not None or not any(letter.isalpha() for letter in text)


def _instead(text: str, fallback: str | None) -> tuple[tuple[str, ...], list[Finding]]:
    if fallback and (own := clean_prompt(fallback)):
        return (own,), []
    said = f"the instruction is {text!r}, which says nothing of what is done"
    return (text,), [Finding("placeholder-instruction", "warning", said)]
