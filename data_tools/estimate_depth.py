#!/usr/bin/env python3
"""The depth stage of `xwam-ft prepare` by itself, for trying estimators out or estimating on another machine.

    python data_tools/estimate_depth.py RAW OUT --embodiment FILE --depth transformers:ID [--depth-check]

Writes OUT/episode-NNNNNN/CAMERA.mkv (16 bit, lossless) and depth.json, and ends with what to give `prepare --depth`.
The same command goes on where a stopped one was. Exit code 2: what is given cannot be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError


def main(
    raw: Annotated[Path, typer.Argument(help="Recordings.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    embodiment: Annotated[Path, typer.Option(help="Embodiment file: which cameras, at which size.")],
    depth: Annotated[str, typer.Option(help="As in `xwam-ft prepare`.")],
    depth_check: Annotated[bool, typer.Option(help="Compare it with recorded depth.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one.")] = 2,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster instead.")] = None,
    urdf_dir: Annotated[list[Path] | None, typer.Option(help="Where to look for URDF files; repeatable.")] = None,
) -> None:
    """Estimate the depth of recordings, and write it where `--depth files:` finds it."""
    from xwam_ft.prepare.depth_only import estimate_depth

    try:
        made = estimate_depth(
            raw,
            out,
            embodiment=embodiment,
            depth=depth,
            check=depth_check,
            workers=workers,
            ray=ray,
            console=plain_console(),
            urdf_dirs=urdf_dir,
        )
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    for result in made.rejected:
        typer.echo(f"rejected episode {result.index}: {result.reason}")
    typer.echo(f"use it with: --depth '{made.spec}'")


if __name__ == "__main__":
    typer.run(main)
