#!/usr/bin/env python3
"""Import released X-WAM weights, or Wan2.2-TI2V under its own names, as a backbone folder.

CKPT is X-WAM's DeepSpeed folder (checkpoints/last.ckpt) or its states file, a torch file with a state dict, safetensors
under the reference's names, or a folder of Wan's own (diffusion_pytorch_model-*.safetensors). Nothing in a torch file
is run. OUT is then a `backbone.path`. Exit code 2: a file cannot be used; nothing of OUT is left.

    python data_tools/import_xwam.py robocasa_sft/checkpoints/last.ckpt out/xwam --vae-text Wan2.2-TI2V-5B-Diffusers
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError


def main(
    ckpt: Annotated[Path, typer.Argument(help="checkpoint file or folder", metavar="CKPT")],
    out: Annotated[Path, typer.Argument(help="folder to make", metavar="OUT")],
    vae_text: Annotated[
        Path | None,
        typer.Option(help="Diffusers folder whose vae, text_encoder and tokenizer serve where CKPT has none."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="X-WAM's config.yaml (default: beside CKPT); `none` to do without.")
    ] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the linears.")] = "bfloat16",
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads (default: width / 128).")] = None,
    actions_per_frame: Annotated[
        int | None, typer.Option(min=1, help="Actions a clip frame (default: config.yaml's, or 4).")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="Name of a view; repeat. Known for RoboCasa and RoboTwin.")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Frames a second of the training recordings.")] = None,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="Size of an output file, which is held in memory.")] = 1.0,
) -> None:
    """Write the backbone folder OUT from CKPT and print what was used, ignored and assumed."""
    import torch

    from xwam_ft.convert.convert import ConvertOptions, import_checkpoint
    from xwam_ft.progress import progress_bar

    console = plain_console()
    options = ConvertOptions(
        vae_text=vae_text,
        config=config,
        dtype=getattr(torch, dtype),
        heads=heads,
        actions_per_frame=actions_per_frame,
        cameras=tuple(camera or ()),
        fps=fps,
        shard_bytes=int(shard_gb * 1e9),
    )
    try:
        report = import_checkpoint(ckpt, out, options, progress=partial(progress_bar, console, "importing", "bytes"))
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    report.print(console)
    console.print(f"next: a recipe with backbone.path: {out}", soft_wrap=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped import takes its half-made folder away
    typer.run(main)
