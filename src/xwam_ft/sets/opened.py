"""A finished shard set with what `prepare` wrote beside it: findings, rejected episodes, what it was made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError
from xwam_ft.files import read_json, require_local
from xwam_ft.locks import holder
from xwam_ft.prepare.assemble import DEPTH, FINDINGS, REJECTED
from xwam_ft.prepare.fingerprint import RECORD
from xwam_ft.prepare.jobs import staging_of
from xwam_ft.progress import progress_bar
from xwam_ft.sets.stored import SegmentsByKey
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from xwam_ft.shard_index import EpisodeEntry

Line = dict[str, Any]  # of rejected.jsonl or findings.jsonl; `episode` is the number in the set


@dataclass(frozen=True)
class OpenedSet:
    shards: ShardSet
    findings: tuple[Line, ...]
    rejected: tuple[Line, ...]
    record: dict[str, Any]  # prepared.json; empty where there is none
    depth: dict[str, Any]  # depth.json; empty where there is none

    @property
    def folder(self) -> Path:
        return self.shards.folder

    @property
    def episodes(self) -> tuple[EpisodeEntry, ...]:
        return self.shards.index.episodes

    @cached_property
    def segments(self) -> SegmentsByKey:
        return SegmentsByKey(self.shards)

    def require_sound(self, episodes: Sequence[EpisodeEntry], console: Console) -> None:
        """Check the SHA-256 of every shard that holds these episodes: a copy would hide the damage.

        Raises:
            UserError: names the first that is damaged.
        """
        used = {entry.shard for episode in episodes for entry in self.segments[episode]}
        shards = [shard for shard in self.shards.index.shards if shard.name in used]
        with progress_bar(console, "check shards", "bytes", sum(shard.bytes for shard in shards)) as advance:
            for shard in shards:
                if (found := self.shards.files.damage(shard)) is not None:
                    fix = "copy the shard again, or run `xwam-ft prepare` again"
                    raise UserError(found, self.folder / shard.name, fix)
                advance(shard.bytes)


def open_set(folder: str | Path) -> OpenedSet:
    """Open a shard set that nobody writes now.

    Raises:
        UserError: a URL, it is being written, its preparation was stopped, or it is no finished shard set.
    """
    folder = Path(folder)
    require_local(folder, "a set that is merged, chosen from or exported")
    if (who := holder(folder)) is not None:
        raise UserError(f"is in use: {who}", folder, "wait until it has ended")
    if not folder.exists() and staging_of(folder).is_dir():
        what = "its preparation was stopped before it was finished"
        raise UserError(what, folder, "give the same `xwam-ft prepare` command again, which goes on where it was")
    shards = ShardSet.open(folder)
    record, depth = (read_json(folder / name) if (folder / name).is_file() else {} for name in (RECORD, DEPTH))
    return OpenedSet(shards, _lines(folder / FINDINGS), _lines(folder / REJECTED), record, depth)


def _lines(path: Path) -> tuple[Line, ...]:
    if not path.is_file():
        return ()
    found: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            int(line["episode"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"line {number} is no finding of an episode", path, "copy the file again") from None
        found.append(line)
    return tuple(found)
