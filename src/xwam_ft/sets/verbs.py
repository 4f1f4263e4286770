"""`xwam-ft shards merge`, `subset`, `drop`, `split`, `resplit`: which episodes go where; derive.py writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from xwam_ft.consoles import print_table, setting
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare.assemble import held_out
from xwam_ft.prepare.findings import numbers_text
from xwam_ft.sets.choose import parse_numbers, require_known
from xwam_ft.sets.compared import compare_sets
from xwam_ft.sets.derive import Derivation, require_free, write_derived
from xwam_ft.sets.opened import open_set
from xwam_ft.sets.recount import Pick
from xwam_ft.sets.same import require_mergeable
from xwam_ft.sets.stored import StoredMotions, content_of

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.sets.choose import Choice
    from xwam_ft.sets.opened import Line, OpenedSet
    from xwam_ft.shard_index import EpisodeEntry

Duplicates = Literal["refuse", "skip", "keep"]
LISTED = 40  # episodes that a listing shows one by one


@dataclass(frozen=True)
class DerivedSet:
    """What a verb made, or with `dry_run` would make: folder, episodes and frames of each split, numbers left out;
    `warnings` say where sets that were merged contradict each other."""

    path: Path
    train: int
    held_out: int
    frames: int
    left_out: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def episodes(self) -> int:
        return self.train + self.held_out


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    share: float | None,
    duplicates: str,
    dry_run: bool,
    console: Console,
) -> DerivedSet:
    """Several sets as one; see `xwam_ft.sets.merge`."""
    if duplicates not in get_args(Duplicates):
        hint = did_you_mean(duplicates, get_args(Duplicates))
        raise UserError(f"{duplicates!r} is not a way{hint}", "--duplicates", f"write {listed(get_args(Duplicates))}")
    if len(folders) < 2:
        raise UserError("got fewer than two sets", "xwam-ft shards merge", "give SET SET... OUT")
    for number, folder in enumerate(folders):
        if any(folder.resolve() == other.resolve() for other in folders[:number]):
            raise UserError("is given twice", folder, "give each set once")
    sets = [open_set(folder) for folder in folders]
    require_mergeable(sets)
    offsets = _offsets(sets)
    picks = [
        Pick(one, episode, offsets[id(one)] + episode.index, episode.split) for one in sets for episode in one.episodes
    ]
    again = _again(picks, console)
    if again and duplicates == "refuse":
        number, twin = next(iter(again.items()))
        mine, theirs = _pick(picks, number), _pick(picks, twin)
        raise UserError(
            f"episode {mine.episode.index} is episode {theirs.episode.index} of {theirs.source.folder} "
            f"({len(again)} such in all), and would be learned twice",
            mine.source.folder,
            "leave one out with --duplicates skip, or take both with --duplicates keep",
        )
    twins = again if duplicates == "keep" else {}
    again = {} if twins else again
    picks = [pick for pick in picks if pick.number not in again]
    if share is not None:
        _require_share(share)
        picks = _split_anew(picks, held_out([pick.number for pick in picks], share))
    made = {"verb": "merge", "duplicates": duplicates, "held_out": share}
    if again:
        console.print(f"left out, since an earlier set has them: {len(again)} episodes", markup=False)
    merged = _make(out, Derivation(tuple(picks), offsets, made), sets, dry_run, console, tuple(again))
    places = {str(one.folder): [(one.shards, episode) for episode in one.episodes] for one in sets}
    found = (*_torn(picks, twins), *(finding.sentence for finding in compare_sets(places)))
    for sentence in found:
        console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
    return replace(merged, warnings=found)


def subset(folder: Path, out: Path, choice: Choice, *, drop: bool, dry_run: bool, console: Console) -> DerivedSet:
    """The chosen episodes of a set, or with `drop` all others; see `xwam_ft.sets.subset`."""
    opened = open_set(folder)
    chosen = choice.of(opened)
    _say_chosen(opened, chosen, "go" if drop else "stay", console)
    kept = [episode for episode in opened.episodes if (episode.index in chosen) != drop]
    _require_some(kept, opened, choice)
    made = {"verb": "drop" if drop else "subset", **choice.given}
    return _make_of(opened, out, kept, made, dry_run, console)


def split(
    folder: Path, out: Path, rest: Path, choice: Choice, *, dry_run: bool, console: Console
) -> tuple[DerivedSet, DerivedSet]:
    """The chosen episodes at `out`, all others at `rest`; see `xwam_ft.sets.split`."""
    if out.resolve() == rest.resolve():
        raise UserError("is given for both parts", out, "give two folders")
    opened = open_set(folder)
    chosen = choice.of(opened)
    _say_chosen(opened, chosen, f"go to {out}", console)
    parts = [[episode for episode in opened.episodes if (episode.index in chosen) == first] for first in (True, False)]
    _require_some(parts[1], opened, choice)
    derivations = [
        _derivation(opened, part, {"verb": "split", "part": number, **choice.given})
        for number, part in enumerate(parts)
    ]
    for place, derivation in zip((out, rest), derivations, strict=True):  # both, before the first is written
        require_free(place, [opened], derivation.fingerprint)
    one, other = (
        _make(place, derivation, [opened], dry_run, console)
        for place, derivation in zip((out, rest), derivations, strict=True)
    )
    return one, other


def resplit(
    folder: Path, out: Path, *, share: float | None, episodes: str | None, dry_run: bool, console: Console
) -> DerivedSet:
    """A set with other held-out episodes; see `xwam_ft.sets.resplit`."""
    if (share is None) == (episodes is None):
        raise UserError("wants one of two", "xwam-ft shards resplit", "give --held-out SHARE or --episodes 3,7")
    opened = open_set(folder)
    numbers = [episode.index for episode in opened.episodes]
    if share is not None:
        _require_share(share)
        chosen = held_out(numbers, share)
    else:
        chosen = parse_numbers(episodes or "")
        require_known(chosen, opened)
    if chosen == set(numbers):
        raise UserError("no training episode would be left", opened.folder, "hold fewer episodes out")
    picks = _split_anew(_picks(opened, opened.episodes), chosen)
    moved = [pick.number for pick in picks if pick.split != pick.episode.split]
    told = f"{len(moved)} episodes change their split: {numbers_text(moved) if moved else 'none'}"
    console.print(told, markup=False, soft_wrap=True)
    made = {"verb": "resplit", "held_out": sorted(chosen)}
    return _make(out, Derivation(tuple(picks), {id(opened): 0}, made), [opened], dry_run, console)


def _offsets(sets: Sequence[OpenedSet]) -> dict[int, int]:
    """What is added to the numbers of each set, by its id: they go on as in `prepare`.

    Nothing where all are higher than those before, as in a later part of one set; its parts share rejected episodes.
    """
    found: dict[int, int] = {}
    episodes: list[int] = []
    rejected: list[Line] = []
    for one in sets:
        new = [episode.index for episode in one.episodes]
        new += [int(line["episode"]) for line in one.rejected if line not in rejected]
        before = [*episodes, *(int(line["episode"]) for line in rejected if line not in one.rejected)]
        later = min(new) > max(before, default=-1)
        every = [*episodes, *(int(line["episode"]) for line in rejected)]
        found[id(one)] = offset = 0 if later else 1 + max(every)
        episodes += [episode.index + offset for episode in one.episodes]
        rejected += [{**line, "episode": int(line["episode"]) + offset} for line in one.rejected]
    return found


def _require_share(share: float) -> None:
    if not 0 <= share < 1:
        raise UserError(f"is {share:g}", "--held-out", "give a part of the episodes, from 0 to below 1")


def _require_some(kept: Sequence[EpisodeEntry], opened: OpenedSet, choice: Choice) -> None:
    if not kept:
        told = ", ".join(f"{name} {value}" for name, value in choice.given.items())
        raise UserError(f"no episode would be left ({told} fits all of them)", opened.folder, "choose fewer")


def _pick(picks: Sequence[Pick], number: int) -> Pick:
    return next(pick for pick in picks if pick.number == number)


def _picks(opened: OpenedSet, episodes: Sequence[EpisodeEntry]) -> list[Pick]:
    return [Pick(opened, episode, episode.index, episode.split) for episode in episodes]


def _split_anew(picks: Sequence[Pick], chosen: set[int]) -> list[Pick]:
    return [
        Pick(pick.source, pick.episode, pick.number, "held_out" if pick.number in chosen else "train") for pick in picks
    ]


def _again(picks: Sequence[Pick], console: Console) -> dict[int, int]:
    """Episodes that are another set's too: number -> that of the first. Twins within a set are prepare's to find."""
    motions = StoredMotions([(pick.source.shards, pick.episode) for pick in picks])
    seen: dict[str, Pick] = {}
    found: dict[int, int] = {}
    with console.status("the same episode twice?"):
        for pick, motion in zip(picks, motions, strict=True):
            first = seen.setdefault(content_of(pick.source.shards, pick.episode, motion), pick)
            if first.source is not pick.source:
                found[pick.number] = first.number
    return found


def _torn(picks: Sequence[Pick], twins: dict[int, int]) -> list[str]:
    """A sentence where one of two equal episodes is held out and the other trained on."""
    split = {pick.number: pick.split for pick in picks}
    torn = sorted(one if split[one] == "held_out" else two for one, two in twins.items() if split[one] != split[two])
    if not torn:
        return []
    what = f"held-out episodes {numbers_text(torn)} are training episodes too, so held-out numbers mean nothing of them"
    return [f"{what}; give --duplicates skip, or `xwam-ft shards drop` one of each"]


def _derivation(opened: OpenedSet, kept: Sequence[EpisodeEntry], made: dict[str, object]) -> Derivation:
    return Derivation(tuple(_picks(opened, kept)), {id(opened): 0}, made)


def _make_of(
    opened: OpenedSet, out: Path, kept: Sequence[EpisodeEntry], made: dict[str, object], dry: bool, console: Console
) -> DerivedSet:
    there = {episode.index for episode in kept}
    left_out = tuple(episode.index for episode in opened.episodes if episode.index not in there)
    return _make(out, _derivation(opened, kept, made), [opened], dry, console, left_out)


def _make(
    out: Path,
    derivation: Derivation,
    sets: Sequence[OpenedSet],
    dry_run: bool,
    console: Console,
    left_out: tuple[int, ...] = (),
) -> DerivedSet:
    """Write it, unless it is there already or only asked about; and say what it holds."""
    picks = derivation.picks
    train = sum(pick.split == "train" for pick in picks)
    frames = sum(pick.episode.frames for pick in picks)
    made = DerivedSet(out, train, len(picks) - train, frames, left_out)
    said = f"{made.episodes} episodes ({made.train} training, {made.held_out} held out), {made.frames} frames"

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    free = require_free(out, sets, derivation.fingerprint)
    if dry_run:
        say(f"{out} would hold {said}; nothing is written")
        return made
    if not free:
        say(f"{out}: already made from these inputs; nothing to do")
        return made
    write_derived(out, derivation, console)
    say(f"{out}: {said}")
    for note in _notes(derivation, made):
        say(f"note: {note}")
    say(f"next: xwam-ft plan wan22_5b_lora {setting('data.shards', out)}")
    return made


def _notes(derivation: Derivation, made: DerivedSet) -> list[str]:
    notes: list[str] = []
    contracts = [one.shards.contract for one in derivation.sets]
    if not made.train:
        notes.append("no training episode is in it, so it keeps the ranges of the set it comes from")
    elif not made.held_out:
        notes.append("no episode is held out; `xwam-ft shards resplit` chooses some")
    if made.train and any(slot.chain is not None and slot.commanded for slot in contracts[0].slots):
        notes.append("joints of poses computed from joints are not stored: their limits are the widest of the inputs'")
    own = [contract.aliases and contract.aliases.model_copy(update={"unused": ()}) for contract in contracts]
    if any(names != own[0] for names in own):
        notes.append("the sets' recordings have other names or units of their own, so the contract has none")
    return notes


def _say_chosen(opened: OpenedSet, chosen: set[int], what: str, console: Console) -> None:
    """The episodes that are meant, one a line where they are few."""
    episodes = [episode for episode in opened.episodes if episode.index in chosen]
    console.print(f"{len(episodes)} of {len(opened.episodes)} episodes {what}: {numbers_text(sorted(chosen))}")
    rows = [
        [str(episode.index), episode.source, str(episode.frames), episode.split, episode.instruction]
        for episode in episodes[:LISTED]
    ]
    columns = ("number", "recording", "frames", "split", "instruction")
    if not print_table(columns, rows, console):
        for row in rows:
            console.print("  ".join(row), markup=False, soft_wrap=True)
    if len(episodes) > LISTED:
        console.print(f"and {len(episodes) - LISTED} more")
