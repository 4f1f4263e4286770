"""Shard sets -> shard sets, and out again as a LeRobot dataset: `xwam_ft.sets.merge(...)` and its like.

The Python door of `xwam-ft shards`. Paths may be texts, and what another function made may be given in its place.
Sets that are read are never changed. Nothing is printed unless `progress` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.arguments import checked, place_of

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.sets.choose import Choice
    from xwam_ft.sets.lerobot import ExportedSet
    from xwam_ft.sets.verbs import DerivedSet

__all__ = ["drop", "export_lerobot", "merge", "resplit", "split", "subset"]


@checked()
def merge(
    shards: Sequence[Any],
    out: str | Path,
    *,
    held_out: float | None = None,
    duplicates: str = "refuse",
    dry_run: bool = False,
    progress: bool | Console = False,
) -> DerivedSet:
    """Several shard sets of one contract as one set at `out`; ranges are counted over all training episodes.

    Episodes are numbered on from set to set; where all of a set's numbers are higher than those before, they stay.
    Videos are copied as they are.

    Args:
        shards: the sets, in the order of their episodes.
        held_out: choose this share of the episodes as held-out ones, as `prepare` does; None: each keeps its split.
        duplicates: an episode that an earlier set has too: refuse, skip (leave it out) or keep.
        dry_run: only say what would be made.

    Raises:
        UserError: contracts differ (names the first thing), an episode is in two sets, a set is damaged or in use,
            `out` holds something else, no room on the disk.
    """
    from xwam_ft.consoles import plain_console
    from xwam_ft.sets import verbs

    folders = [place_of(one) for one in shards]
    console = plain_console(progress)
    return verbs.merge(folders, Path(out), share=held_out, duplicates=duplicates, dry_run=dry_run, console=console)


@checked()
def subset(
    shards: Any,
    out: str | Path,
    *,
    episodes: str | Sequence[int] | None = None,
    instruction: str | Sequence[str] = (),
    finding: str | Sequence[str] = (),
    split: str | None = None,
    share: float | None = None,
    dry_run: bool = False,
    progress: bool | Console = False,
) -> DerivedSet:
    """The episodes of a set that fit all that is given, as a set at `out`; they keep their numbers.

    Args:
        episodes: numbers in the set, as "0-9,14" or a list.
        instruction: pattern (`*`, `?`) of the instruction, or several of which one is enough.
        finding: name of a finding that `prepare` wrote down, or several.
        split: train or held_out.
        share: this part of what the others leave of each split, chosen by hash.
        dry_run: only list them.

    Raises:
        UserError: nothing fits, something is not known, a set is damaged or in use, `out` holds something else.
    """
    choice = _choice(episodes, instruction, finding, split, share)
    return _subset(shards, out, choice, drop=False, dry_run=dry_run, progress=progress)


@checked()
def drop(
    shards: Any,
    out: str | Path,
    *,
    episodes: str | Sequence[int] | None = None,
    instruction: str | Sequence[str] = (),
    finding: str | Sequence[str] = (),
    split: str | None = None,
    share: float | None = None,
    dry_run: bool = False,
    progress: bool | Console = False,
) -> DerivedSet:
    """All episodes of a set but those that fit what is given; arguments and errors as of `subset`."""
    choice = _choice(episodes, instruction, finding, split, share)
    return _subset(shards, out, choice, drop=True, dry_run=dry_run, progress=progress)


@checked()
def split(
    shards: Any,
    out: str | Path,
    rest: str | Path,
    *,
    episodes: str | Sequence[int] | None = None,
    instruction: str | Sequence[str] = (),
    finding: str | Sequence[str] = (),
    split: str | None = None,
    share: float | None = None,
    dry_run: bool = False,
    progress: bool | Console = False,
) -> tuple[DerivedSet, DerivedSet]:
    """The episodes that fit at `out`, all others at `rest`; arguments and errors as of `subset`."""
    from xwam_ft.consoles import plain_console
    from xwam_ft.sets import verbs

    choice = _choice(episodes, instruction, finding, split, share)
    console = plain_console(progress)
    return verbs.split(place_of(shards), Path(out), Path(rest), choice, dry_run=dry_run, console=console)


@checked()
def resplit(
    shards: Any,
    out: str | Path,
    *,
    held_out: float | None = None,
    episodes: str | Sequence[int] | None = None,
    dry_run: bool = False,
    progress: bool | Console = False,
) -> DerivedSet:
    """The same set with other held-out episodes; ranges are counted over the new training episodes.

    Args:
        held_out: share of the episodes, chosen as `prepare` chooses them.
        episodes: or exactly these numbers.
        dry_run: only say which episodes change their split.

    Raises:
        UserError: neither or both are given, or no training episode would be left.
    """
    from xwam_ft.consoles import plain_console
    from xwam_ft.sets import verbs

    options = {"share": held_out, "episodes": _numbers(episodes), "dry_run": dry_run}
    return verbs.resplit(place_of(shards), Path(out), **options, console=plain_console(progress))  # pyright: ignore[reportArgumentType]


@checked()
def export_lerobot(
    shards: Any, out: str | Path, *, depth: bool = True, progress: bool | Console = False
) -> ExportedSet:
    """A shard set as a LeRobot v3.0 dataset at `out`, in the robot's own names and units.

    Args:
        depth: write metric depth too.

    Raises:
        UserError: the set is damaged or in use, `out` is there, or commands are a controller's own.
    """
    from xwam_ft.consoles import plain_console
    from xwam_ft.sets.lerobot import export

    return export(place_of(shards), Path(out), depth=depth, console=plain_console(progress))


def _subset(shards: Any, out: str | Path, choice: Choice, *, drop: bool, dry_run: bool, progress: Any) -> DerivedSet:
    from xwam_ft.consoles import plain_console
    from xwam_ft.sets import verbs

    console = plain_console(progress)
    return verbs.subset(place_of(shards), Path(out), choice, drop=drop, dry_run=dry_run, console=console)


def _choice(episodes: Any, instruction: Any, finding: Any, split: str | None, share: float | None) -> Choice:
    from xwam_ft.sets.choose import Choice

    several = [(value,) if isinstance(value, str) else tuple(value) for value in (instruction, finding)]
    return Choice(_numbers(episodes), several[0], several[1], split, share)


def _numbers(episodes: str | Sequence[int] | None) -> str | None:
    return episodes if episodes is None or isinstance(episodes, str) else ",".join(map(str, episodes))
