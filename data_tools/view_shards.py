#!/usr/bin/env python3
"""Open an episode of a shard set in Rerun: RGB, depth, points, end-effector paths, series of states and commands.

    python data_tools/view_shards.py SHARDS --episode 3
    python data_tools/view_shards.py SHARDS --episode 3 --save episode-3.rrd

Needs `pip install 'xwam-ft[viz]'`. Exit code 2: the shard set cannot be used, or has no such episode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xwam_ft.errors import EXIT_CODE, UserError


def main(
    shards: Annotated[Path, typer.Argument(help="Shard set made by `xwam-ft prepare`.")],
    episode: Annotated[int, typer.Option(min=0, help="Episode of the shard set.")],
    save: Annotated[Path | None, typer.Option(help="Write a .rrd file instead of opening the viewer.")] = None,
) -> None:
    """Open an episode of a shard set in Rerun, or write it to a .rrd file."""
    from xwam_ft.evaluate.rerun_log import show_episode
    from xwam_ft.shards import ShardSet

    try:
        show_episode(ShardSet.open(shards), episode, save)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    if save is not None:
        typer.echo(f"{save}: open it with `rerun {save}`")


if __name__ == "__main__":
    typer.run(main)
