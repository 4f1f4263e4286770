#!/usr/bin/env python3
"""Compare our network, sampler or training step with a golden file of the reference implementation.

Prints the largest relative error of every output. Exit code 0: all within bounds (1e-5 for forward and guided
outputs, 1e-4 for sampled ones, 1e-6 for losses and 5e-5 for gradients of a training step); 1: some are not; 2: the
file cannot be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xwam_ft.errors import EXIT_CODE, UserError


def main(file: Annotated[Path, typer.Argument(help="golden .safetensors file", metavar="FILE")]) -> None:
    """Print the largest relative error (largest difference over largest value) of each output in FILE."""
    from xwam_ft.model.parity import check_parity

    try:
        report = check_parity(file)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    for row in report.rows:
        verdict = "ok" if row.passed else "FAILED"
        typer.echo(f"{row.name:<42} {row.error:9.2e}  (bound {row.bound:.0e})  {verdict}")
    for name in report.absent:
        typer.echo(f"{name:<42} not in the file, not checked")
    raise typer.Exit(0 if report.passed else 1)


if __name__ == "__main__":
    typer.run(main)
