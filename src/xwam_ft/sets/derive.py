"""Writing a shard set out of others: their episodes' files as they are, everything counted anew.

OUT appears complete or not at all; the same command gives the same bytes, and once more does nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError
from xwam_ft.files import (
    disk_errors,
    json_bytes,
    read_json,
    require_room,
    sha256,
    write_bytes_atomic,
    write_json_atomic,
)
from xwam_ft.locks import sole_folder
from xwam_ft.prepare.assemble import DEPTH, FINDINGS, REJECTED
from xwam_ft.prepare.findings import OF_DATASET
from xwam_ft.prepare.fingerprint import RECORD
from xwam_ft.progress import progress_bar
from xwam_ft.sets.recount import Pick, recounted, wordings
from xwam_ft.sets.stored import members_of
from xwam_ft.shard_index import META, SegmentMeta
from xwam_ft.shard_writer import ShardSetWriter, episode_entry, segment_key

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.contract import Contract
    from xwam_ft.sets.opened import OpenedSet

FORMAT = 2  # raise it when the bytes of what is made change for equal inputs
SPARE = 64 << 20  # beside the episodes: index, contract, the tars' own blocks


@dataclass(frozen=True)
class Derivation:
    """A set to be made: which episodes of which sets, under which numbers and splits, and by what command."""

    picks: tuple[Pick, ...]
    offsets: dict[int, int]  # id of a set -> what is added to the numbers of its episodes
    made: dict[str, Any]  # verb and options

    @property
    def sets(self) -> list[OpenedSet]:
        return list({id(pick.source): pick.source for pick in self.picks}.values())

    @property
    def fingerprint(self) -> str:
        """Of everything that the bytes of the new set depend on."""
        chosen = [[pick.episode.key, pick.number, pick.split] for pick in self.picks]
        names = ("index.json", FINDINGS, REJECTED, RECORD, DEPTH)
        files = [
            [sha256(one.folder / name) if (one.folder / name).is_file() else "" for name in names] for one in self.sets
        ]
        return hashlib.sha256(json_bytes([FORMAT, self.made, chosen, files])).hexdigest()

    @property
    def size(self) -> int:
        entries = [entry for pick in self.picks for entry in pick.source.segments[pick.episode]]
        return sum(size for entry in entries for _, size in entry.members.values())


def require_free(out: Path, sets: Sequence[OpenedSet], fingerprint: str) -> bool:
    """Whether OUT is still to be made; False where it is what this very command made.

    Raises:
        UserError: it is one of the sets or lies in one, or it is something else.
    """
    for one in sets:
        if out.resolve() == one.folder.resolve() or one.folder.resolve() in out.resolve().parents:
            raise UserError("is a set that is read, or lies in one", out, "give another OUT: sets are never changed")
    if (out / RECORD).is_file() and read_json(out / RECORD).get("fingerprint") == fingerprint:
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "was made from other inputs" if (out / RECORD).is_file() else "exists and is not an empty folder"
        raise UserError(what, out, "give another OUT")
    return True


def write_derived(out: Path, derivation: Derivation, console: Console) -> Contract:
    """Make the set at `out`.

    Raises:
        UserError: a shard is damaged, the disk is full, or another process makes `out` now.
    """
    for one in derivation.sets:
        one.require_sound([pick.episode for pick in derivation.picks if pick.source is one], console)
    with disk_errors(out), sole_folder(out, "writing it") as folder:
        require_room(folder, derivation.size + SPARE)
        with console.status("ranges of the training episodes"):
            contract = recounted(derivation.picks)
        _write_set(folder, contract, derivation, console)
        _write_records(folder, derivation)
    return contract


def _write_set(folder: Path, contract: Contract, derivation: Derivation, console: Console) -> None:
    with (
        ShardSetWriter(folder) as writer,
        progress_bar(console, "copy episodes", "bytes", derivation.size) as advance,
    ):
        entries = []
        for pick, told in zip(derivation.picks, wordings(derivation.picks), strict=True):
            keys: list[str] = []
            for segment in pick.source.segments[pick.episode]:
                members = members_of(pick.source.shards, segment)
                changed = {
                    "key": segment_key(pick.number, segment.first_frame),
                    "episode": pick.number,
                    "split": pick.split,
                    "instruction": told[0] if told else "",
                }
                meta = SegmentMeta.model_validate_json(members[META]).model_copy(update=changed)
                writer.add({**members, META: meta.model_dump_json().encode()})
                keys.append(meta.key)
                advance(sum(map(len, members.values())))
            entries.append(
                episode_entry(
                    pick.number,
                    keys,
                    frames=pick.episode.frames,
                    split=pick.split,
                    instructions=told,
                    source=pick.episode.source,
                    success=pick.episode.success,
                )
            )
        writer.finish(contract, entries)


def _write_records(folder: Path, derivation: Derivation) -> None:
    """Findings and rejected episodes under their new numbers, and what the set was made from."""
    findings: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for one in derivation.sets:
        offset = derivation.offsets[id(one)]
        there = {pick.episode.index for pick in derivation.picks if pick.source is one}
        there |= {int(line["episode"]) for line in one.rejected}
        kept = [line for line in one.findings if int(line["episode"]) in there or line["check"] in OF_DATASET]
        for lines, more in ((findings, kept), (rejected, one.rejected)):  # what parts of one set share stands once
            renumbered = [{**line, "episode": int(line["episode"]) + offset} for line in more]
            known = {json.dumps(line) for line in lines}
            lines += [line for line in renumbered if json.dumps(line) not in known]
    findings.sort(key=lambda line: line["episode"])
    rejected.sort(key=lambda line: line["episode"])
    for name, lines in ((FINDINGS, findings), (REJECTED, rejected)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_bytes_atomic(folder / name, text.encode())
    if depth := _depth(derivation):
        write_json_atomic(folder / DEPTH, depth)
    records = [one.record for one in derivation.sets]
    recordings = {json.dumps(each): each for record in records for each in record.get("recordings", [])}
    from_sets = [
        {
            "name": one.folder.resolve().name,
            "index_sha256": sha256(one.folder / "index.json"),
            "episodes": [pick.episode.index for pick in derivation.picks if pick.source is one],
            **({"made": one.record["made"]} if "made" in one.record else {}),
        }
        for one in derivation.sets
    ]
    record = {
        "fingerprint": derivation.fingerprint,
        "depth": records[0].get("depth", "none"),
        "recordings": list(recordings.values()),
        "embodiment": records[0].get("embodiment", {}),
        "made": {**derivation.made, "from": from_sets},
    }
    write_json_atomic(folder / RECORD, record)


def _depth(derivation: Derivation) -> dict[str, Any]:
    """depth.json of sets that are taken whole, weighed by their frames as `prepare` weighs episodes; else nothing."""
    parts: list[tuple[dict[str, Any], int]] = []
    for one in derivation.sets:
        frames = [pick.episode.frames for pick in derivation.picks if pick.source is one]
        if not one.depth or len(frames) < len(one.episodes):
            return {}
        parts.append((one.depth["cameras"], sum(frames)))
    if len(parts) == 1:
        return derivation.sets[0].depth
    cameras = {name: _weighed([(part[name], frames) for part, frames in parts]) for name in parts[0][0]}
    return {**derivation.sets[0].depth, "cameras": cameras}


def _weighed(parts: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in parts[0][0]:
        values = [(part[key], frames) for part, frames in parts if part[key] is not None]
        if not values:
            found[key] = None
        elif key == "check":
            pixels = sum(value["pixels"] for value, _ in values)
            means = {
                name: sum(value[name] * value["pixels"] for value, _ in values) / pixels
                for name in ("abs_rel", "delta1")
            }
            found[key] = {"pixels": pixels, **means}
        else:
            found[key] = sum(value * frames for value, frames in values) / sum(frames for _, frames in values)
    return found
