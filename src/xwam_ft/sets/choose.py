"""Which episodes of a set are meant: by number, instruction, finding, split or a share of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, get_args

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare.findings import CHECKS, OF_DATASET, numbers_text
from xwam_ft.prompts import plain
from xwam_ft.shard_index import Split

if TYPE_CHECKING:
    from xwam_ft.sets.opened import OpenedSet
    from xwam_ft.shard_index import EpisodeEntry

OPTIONS = "--episodes, --instruction, --finding, --split or --share"


@dataclass(frozen=True)
class Choice:
    """What all that is given fits; within a list, one is enough.

    Args:
        episodes: numbers in the set, as "0-9,14".
        instructions: patterns (`*`, `?`) of any wording of the instruction; case and a last period do not matter.
        findings: names of findings, of any severity.
        split: train or held_out.
        share: this part of what the others leave of each split, chosen by hash.
    """

    episodes: str | None = None
    instructions: Sequence[str] = ()
    findings: Sequence[str] = ()
    split: str | None = None
    share: float | None = None

    @property
    def given(self) -> dict[str, object]:
        """What was asked for, without what was not."""
        lists = {name: list(value) for name in ("instructions", "findings") if (value := getattr(self, name))}
        single = {name: value for name in ("episodes", "split", "share") if (value := getattr(self, name)) is not None}
        return {**single, **lists}

    def of(self, opened: OpenedSet) -> set[int]:
        """The numbers of the episodes that are meant: at least one.

        Raises:
            UserError: nothing is asked for, something in it is not known, or no episode fits.
        """
        if not self.given:
            raise UserError("does not say which episodes are meant", "xwam-ft shards", f"give {OPTIONS}")
        left = list(opened.episodes)
        if self.episodes is not None:
            wanted = parse_numbers(self.episodes)
            require_known(wanted, opened)
            left = [episode for episode in left if episode.index in wanted]
        if self.instructions:
            left = [episode for episode in left if _told(episode, self.instructions)]
        if self.findings:
            marked = _with_findings(opened, self.findings)
            left = [episode for episode in left if episode.index in marked]
        if self.split is not None:
            if self.split not in get_args(Split):
                hint = did_you_mean(self.split, get_args(Split))
                raise UserError(f"there is no split {self.split!r}{hint}", "--split", "write train or held_out")
            left = [episode for episode in left if episode.split == self.split]
        if left and self.share is not None:
            left = _share(left, self.share)
        if not left:
            told = ", ".join(f"{name} {value}" for name, value in self.given.items())
            texts = listed(sorted({repr(episode.instruction) for episode in opened.episodes}), 6)
            raise UserError(f"no episode fits {told}", opened.folder, f"its instructions are {texts}")
        return {episode.index for episode in left}


def parse_numbers(text: str) -> set[int]:
    """ "0-9,14" -> 0 to 9 and 14; a `UserError` where it is something else."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 10_000_000:
            raise UserError(f"{part.strip()!r} is no episode or range of them", "--episodes", "write it like 0-9,14")
        found |= set(range(first, last + 1))
    return found


def require_known(wanted: set[int], opened: OpenedSet) -> None:
    """Raise a `UserError` where the set has no episode of a number; says why where it was rejected."""
    known = [episode.index for episode in opened.episodes]
    rejected = {int(line["episode"]): str(line["reason"]) for line in opened.rejected}
    if absent := sorted(wanted - set(known)):
        about = f"there is no episode {numbers_text(absent)}"
        if absent[0] in rejected:
            about += f" ({absent[0]} was rejected when it was prepared: {rejected[absent[0]]})"
        raise UserError(about, opened.folder, f"its episodes are {numbers_text(known)}")


def _told(episode: EpisodeEntry, patterns: Sequence[str]) -> bool:
    texts = episode.instructions or (episode.instruction,)
    return any(fnmatchcase(plain(text), plain(pattern)) for text in texts for pattern in patterns)


def _with_findings(opened: OpenedSet, names: Sequence[str]) -> set[int]:
    there = {episode.index for episode in opened.episodes}
    found = sorted({line["check"] for line in opened.findings if int(line["episode"]) in there})
    for name in names:
        if name not in CHECKS:
            hint = did_you_mean(name, CHECKS)
            raise UserError(f"there is no finding {name!r}{hint}", "--finding", f"found here: {listed(found, 20)}")
        if name in OF_DATASET:
            what = f"{name!r} is about the recordings' files, not about an episode"
            raise UserError(what, "--finding", "give --episodes")
        if name not in found:
            raise UserError(f"no episode has the finding {name!r}", opened.folder, f"found here: {listed(found, 20)}")
    return {int(line["episode"]) for line in opened.findings if line["check"] in names}


def _share(episodes: Sequence[EpisodeEntry], share: float) -> list[EpisodeEntry]:
    """Of each split alike; not by the hash that chooses the held-out ones, which would all come first."""
    if not 0 < share < 1:
        raise UserError(f"is {share:g}", "--share", "give a part of the episodes, between 0 and 1")
    chosen: set[int] = set()
    for split in get_args(Split):
        numbers = [episode.index for episode in episodes if episode.split == split]
        ranked = sorted(numbers, key=lambda number: hashlib.sha256(f"share {number}".encode()).digest())
        chosen |= set(ranked[: round(share * len(numbers))])
    return [episode for episode in episodes if episode.index in (chosen or {episodes[0].index})]
