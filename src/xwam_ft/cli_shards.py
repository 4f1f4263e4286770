"""The verbs of `xwam-ft shards`: what is done with shard sets between `prepare` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xwam_ft.consoles import plain_console
from xwam_ft.errors import UserError, did_you_mean, listed

app = typer.Typer(name="shards", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

FORMATS = ("lerobot",)
Set = Annotated[Path, typer.Argument(metavar="SET", help="Shard set; it is read and never changed.")]
Out = Annotated[Path, typer.Argument(help="Folder to make.")]
Episodes = Annotated[str | None, typer.Option(help="Numbers in the set, as 0-9,14.")]
Instruction = Annotated[list[str] | None, typer.Option(help="Pattern (*, ?) of the instruction; repeatable.")]
Finding = Annotated[list[str] | None, typer.Option(help="Name of a finding of `prepare`; repeatable.")]
SplitName = Annotated[str | None, typer.Option("--split", help="train or held_out.")]
Share = Annotated[float | None, typer.Option(help="This part of those that fit, of each split alike.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be made.")]
HeldOut = Annotated[
    float | None, typer.Option("--held-out", metavar="SHARE", help="Choose the held-out ones anew, as prepare does.")
]


@app.callback()
def _shards() -> None:
    """Merge, choose, split and export shard sets."""


@app.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="SET SET... OUT", help="Shard sets, then the folder to make.")],
    held_out: HeldOut = None,
    duplicates: Annotated[
        str, typer.Option(help="An episode that two sets have: refuse, skip the later, or keep both.")
    ] = "refuse",
    dry_run: DryRun = False,
) -> None:
    """Make one set of several; ranges are counted over all of them."""
    if len(paths) < 3:
        raise UserError("got fewer than two sets", "xwam-ft shards merge", "give SET SET... OUT")
    from xwam_ft import sets

    *folders, out = paths
    options: dict[str, Any] = {"held_out": held_out, "duplicates": duplicates, "dry_run": dry_run}
    sets.merge(folders, out, **options, progress=plain_console())


@app.command()
def subset(
    shards: Set,
    out: Out,
    episodes: Episodes = None,
    instruction: Instruction = None,
    finding: Finding = None,
    split: SplitName = None,
    share: Share = None,
    dry_run: DryRun = False,
) -> None:
    """Keep the episodes that fit all that is given."""
    from xwam_ft import sets

    sets.subset(shards, out, **_choice(episodes, instruction, finding, split, share), **_how(dry_run))


@app.command()
def drop(
    shards: Set,
    out: Out,
    episodes: Episodes = None,
    instruction: Instruction = None,
    finding: Finding = None,
    split: SplitName = None,
    share: Share = None,
    dry_run: DryRun = False,
) -> None:
    """Leave out the episodes that fit all that is given."""
    from xwam_ft import sets

    sets.drop(shards, out, **_choice(episodes, instruction, finding, split, share), **_how(dry_run))


@app.command("split")
def split_(
    shards: Set,
    out: Out,
    rest: Annotated[Path, typer.Argument(help="Folder to make for all others.")],
    episodes: Episodes = None,
    instruction: Instruction = None,
    finding: Finding = None,
    split: SplitName = None,
    share: Share = None,
    dry_run: DryRun = False,
) -> None:
    """Make two sets: what fits, and the rest."""
    from xwam_ft import sets

    sets.split(shards, out, rest, **_choice(episodes, instruction, finding, split, share), **_how(dry_run))


@app.command()
def resplit(
    shards: Set, out: Out, held_out: HeldOut = None, episodes: Episodes = None, dry_run: DryRun = False
) -> None:
    """Hold other episodes out: a share of them, or exactly those."""
    from xwam_ft import sets

    sets.resplit(shards, out, held_out=held_out, episodes=episodes, **_how(dry_run))


@app.command()
def export(
    shards: Set,
    out: Out,
    format: Annotated[str, typer.Option(help="lerobot: a LeRobot v3.0 dataset.")] = "lerobot",
    no_depth: Annotated[bool, typer.Option("--no-depth", help="Leave depth out.")] = False,
) -> None:
    """Write a set as a LeRobot dataset, in the robot's own units."""
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS)
        raise UserError(f"there is no format {format!r}{hint}", "--format", f"write {listed(FORMATS)}")
    from xwam_ft import sets

    sets.export_lerobot(shards, out, depth=not no_depth, progress=plain_console())


def _choice(
    episodes: str | None,
    instruction: list[str] | None,
    finding: list[str] | None,
    split: str | None,
    share: float | None,
) -> dict[str, Any]:
    chosen = {"episodes": episodes, "instruction": instruction or (), "finding": finding or ()}
    return {**chosen, "split": split, "share": share}


def _how(dry_run: bool) -> dict[str, Any]:
    return {"dry_run": dry_run, "progress": plain_console()}
