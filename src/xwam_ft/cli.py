"""The verbs of `xwam-ft`: each reads its arguments and calls the function of its name in api.py, telling it to print.

Heavy imports stand inside the verbs, so that `--help` answers at once. A `UserError` ends in one sentence on stderr
and exit code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from xwam_ft.cli_shards import app as shards_app
from xwam_ft.cli_use import VERBS, Shards
from xwam_ft.consoles import plain_console
from xwam_ft.errors import EXIT_CODE, UserError, did_you_mean, listed

app = typer.Typer(name="xwam-ft", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(shards_app)


def _version(wanted: bool) -> None:
    if wanted:
        from xwam_ft import __version__

        print(f"xwam-ft {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune X-WAM, a 4D world-action model, on your own teleoperation recordings."""


Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value of the file; repeatable.")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster instead; `auto`: this machine's.")
]


@app.command()
def inspect(
    raw: Annotated[Path, typer.Argument(help="Recordings: a folder, or ORG/DATASET[@REV] of the Hub.")],
    write: Annotated[Path | None, typer.Option(help="Write a commented starter embodiment file here.")] = None,
) -> None:
    """Show what recordings hold, and propose how to read them."""
    from xwam_ft import api

    api.inspect(raw, write, progress=plain_console())


@app.command()
def prepare(
    paths: Annotated[list[Path], typer.Argument(metavar="RAW... OUT", help="Recordings or ORG/DATASET, then OUT.")],
    embodiment: Annotated[
        Path, typer.Option(help="Embodiment file (cameras, timing, slots), or the name of one that ships.")
    ],
    depth: Annotated[
        str | None,
        typer.Option(
            help="sensor, stereo, tiny, marigold, transformers:ID, files:PATTERN, none. Default: sensor where recorded."
        ),
    ] = None,
    depth_check: Annotated[bool, typer.Option(help="Compare that depth with recorded depth.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 works in this one. The result is the same.")] = 2,
    ray: RayAddress = None,
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first episode that fails a check.")] = False,
    urdf_dir: Annotated[list[Path] | None, typer.Option(help="Where to look for URDF files; repeatable.")] = None,
) -> None:
    """Turn raw recordings into shards."""
    if len(paths) < 2:
        raise UserError("got one path", "xwam-ft prepare", "give the recordings, then the folder to make: RAW... OUT")
    from xwam_ft import api

    *raws, out = paths
    api.prepare(
        raws,
        out,
        embodiment=embodiment,
        depth=depth,
        workers=workers,
        strict=strict,
        urdf_dirs=urdf_dir or [],
        depth_check=depth_check,
        ray=ray,
        progress=plain_console(),
        **_values(overrides, embodiment=True),
    )


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe: a YAML file, or the name of one that ships.")],
    overrides: Overrides = None,
    probe: Annotated[bool, typer.Option("--probe", help="Time a few real steps; loads the weights.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Find the largest micro-batch that fits in memory.")] = False,
) -> None:
    """Count what a run will hold, fill and take; loads no weights."""
    from xwam_ft import api

    api.plan(recipe, probe=probe, fit=fit, progress=plain_console(), **_values(overrides))


@app.command()
def encode(
    shards: Shards,
    recipe: Annotated[Path, typer.Option(help="The recipe (file or name) whose backbone encodes.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a GPU of the recipe.")] = None,
    ray: RayAddress = None,
    overrides: Overrides = None,
) -> None:
    """Make the latent cache of shards; `train` does it where missing."""
    from xwam_ft import api

    api.encode(shards, recipe, workers=workers, ray=ray, progress=plain_console(), **_values(overrides))


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe: a YAML file, or the name of one that ships.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder to make; default runs/<recipe>.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run; with --set trainer.max_steps=N to N steps.")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RUN|RUN@STEP|BUNDLE", help="Start from what that learned.")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Prove in a minute that RECIPE trains; makes no run.")] = False,
) -> None:
    """Train by a recipe, or go on with a run that was interrupted."""
    from xwam_ft import api

    if smoke and (recipe is None or resume is not None or run is not None):
        raise UserError("goes with a recipe, --init, --set", "--smoke", "give RECIPE, without --run and --resume")
    if smoke:
        from xwam_ft.recipe import load_recipe
        from xwam_ft.train.smoke import smoke_test

        assert recipe is not None
        values = _values(overrides) | ({} if init is None else {"init_from": init})
        smoke_test(load_recipe(recipe, values), plain_console())
    else:
        api.train(recipe, run, resume=resume, init=init, progress=plain_console(), **_values(overrides))


for verb in VERBS:
    app.command()(verb)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("out/demo")) -> None:
    """Do the whole job on bundled recordings, on a CPU, in minutes."""
    from xwam_ft.demo import demo

    demo(out, plain_console())


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what this machine has and lacks: a page for a bug report.

    Exit code 2 where something that everybody needs is wrong.
    """
    from xwam_ft import api

    found = api.doctor()
    print(json.dumps(found.as_json(), indent=2) if as_json else found.text)
    if found.wrong:
        raise typer.Exit(EXIT_CODE)


def _values(overrides: list[str] | None, *, embodiment: bool = False) -> dict[str, Any]:
    """{"a.b": c} of --set a.b=c, for a recipe or an embodiment."""
    from xwam_ft.prepare.embodiment.schema import Embodiment
    from xwam_ft.recipe import Recipe
    from xwam_ft.strict_yaml import parse_override

    what, fields = ("an embodiment", Embodiment.model_fields) if embodiment else ("a recipe", Recipe.model_fields)
    values = dict(map(parse_override, overrides or []))
    for name in values:
        # An argument of the function would take it for its own.
        if name.partition(".")[0] not in fields or name == "depth":
            hint = did_you_mean(name, fields)
            raise UserError(f"unknown key {name!r}{hint}", "--set", f"{what} has {listed(fields)}; write a.b=c")
    return values


def main() -> None:
    """Entry point: run a verb; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"xwam-ft: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.exit(EXIT_CODE)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); the interpreter must not complain while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
