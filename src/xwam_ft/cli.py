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
BUNDLE = "Bundle (or ORG/NAME of the Hub); or a checkpoint: RUN, RUN@STEP."
Bundle = Annotated[Path, typer.Argument(help=BUNDLE)]
OptionalBundle = Annotated[Path | None, typer.Argument(help=BUNDLE)]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Work on a Ray cluster instead; `auto`: this machine's.")
]
Shards = Annotated[Path, typer.Argument(help="Shard set made by `xwam-ft prepare`.")]


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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or RUN@STEP.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    format: Annotated[str, typer.Option(help="bundle, peft, diffusers or xwam.")] = "bundle",
    no_ema: Annotated[bool, typer.Option("--no-ema", help="Take the last weights, not their average.")] = False,
    no_depth: Annotated[bool, typer.Option("--no-depth", help="Leave the depth branch out.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; default as trained.")] = None,
    unmerged: Annotated[bool, typer.Option("--unmerged", help="Keep adapters beside the base.")] = False,
    prompt: Annotated[list[str] | None, typer.Option(help="A further instruction to embed; repeatable.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Of the checkpoint; default the newest.")] = None,
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="The step where a held-out number was lowest, such as total.")
    ] = None,
    with_text_encoder: Annotated[
        str | None, typer.Option(metavar="KIND", help="Take any text: bfloat16 (11 GB at 5B) or int8 (7 GB).")
    ] = None,
    wan: Annotated[Path | None, typer.Option(help="xwam: folder of Wan's own VAE and text encoder files.")] = None,
    push: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Upload the bundle to the Hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: nobody else sees it.")] = False,
) -> None:
    """Write a bundle that has proved itself, or another format."""
    from xwam_ft import api

    options: dict[str, Any] = {
        "ema": not no_ema,
        "depth": not no_depth,
        "merged": not unmerged,
        "prompts": prompt or [],
    }
    options |= {"dtype": dtype, "wan": wan, "step": step, "best": best, "with_text_encoder": with_text_encoder}
    api.export(run, out, format=format, push=push, private=private, progress=plain_console(), **options)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that runs lie in, or a run.")] = Path("runs"),
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Show by which keys two runs or recipes differ.")
    ] = None,
) -> None:
    """List runs: step, state, held-out numbers."""
    from xwam_ft import api

    api.runs(folder, diff=diff, progress=plain_console())


@app.command()
def imagine(
    bundle: Bundle,
    shards: Annotated[Path, typer.Option(help="Shard set.")],
    episode: Annotated[int, typer.Option(min=0, help="Episode of the shard set.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
) -> None:
    """Write imagined beside recorded: RGB, depth and point cloud."""
    from xwam_ft import api

    api.imagine(bundle, shards, episode, out, progress=plain_console())


Execute = Annotated[int | None, typer.Option(min=1, help="Closed loop: commands executed a chunk; default half of it.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Closed loop: default the environment's own.")]
Films = Annotated[int, typer.Option(min=0, help="Closed loop, with --out: first episodes to film.")]
Latency = Annotated[bool, typer.Option("--latency/--no-latency", help="Open loop: error and ms of 1 to 10 steps.")]
Blackout = Annotated[bool, typer.Option("--camera-blackout", help="Open loop: errors with each camera black too.")]
CLOSED = ("episodes", "seed", "execute", "max_steps", "action_steps", "films")
Seams = Annotated[bool, typer.Option("--seams/--no-seams", help="Open loop: jerk where one chunk follows another.")]
World = Annotated[bool, typer.Option("--world", help="Open loop: judge what is imagined, and if it follows actions.")]
ActionSteps = Annotated[int | None, typer.Option(min=1, max=1000, help="Closed loop: denoising steps.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="A B", help="Lay two OUT folders beside each other; with --out alone."),
]
OPEN = ("clips", "split", "latency", "camera_blackout", "seams", "world")


@app.command()
def evaluate(
    ctx: typer.Context,
    bundle: OptionalBundle = None,
    shards: Annotated[Path | None, typer.Argument(help="Shard set made by `xwam-ft prepare`: open loop.")] = None,
    env: Annotated[
        str | None,
        typer.Option(help="Closed loop in metaworld:TASK, or FILE.py:FUNCTION (see evaluate/environment.py)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write report.html, metrics.json and films here.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Open loop: clips, spread evenly over the split.")] = 64,
    split: Annotated[str, typer.Option(help="Open loop: held_out or train.")] = "held_out",
    latency: Latency = True,
    camera_blackout: Blackout = False,
    seams: Seams = True,
    world: World = False,
    episodes: Annotated[int, typer.Option(min=1, help="Closed loop: episodes.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Closed loop: fixes starts and goals.")] = 0,
    execute: Execute = None,
    max_steps: MaxSteps = None,
    action_steps: ActionSteps = None,
    films: Films = 2,
    compare: Compare = None,
) -> None:
    """Measure errors on recordings, or success in an environment.

    Open loop (SHARDS): action error on recorded episodes, in physical units. Closed loop (--env): how often the task
    is done.
    """
    from xwam_ft import api

    if compare is not None:
        _require_unused(ctx, (*OPEN, *CLOSED), "leave it out: --compare goes with --out alone")
    elif (shards is None) != (env is None):
        idle = CLOSED if shards is not None else OPEN
        _require_unused(ctx, (*idle, "films") if out is None else idle)
    looks = {"latency": latency, "camera_blackout": camera_blackout, "seams": seams, "world": world}
    open_loop = {"clips": clips, "split": split, **looks}
    closed_loop = {"episodes": episodes, "seed": seed, "execute": execute, "max_steps": max_steps, "films": films}
    options: dict[str, Any] = {**open_loop, **closed_loop, "action_steps": action_steps}
    api.evaluate(bundle, shards, env=env, out=out, compare=compare, progress=plain_console(), **options)


@app.command()
def serve(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="Bundle, or ORG/NAME of the Hub; with --replay a shard set.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, cpu, ...")] = "auto",
    api_key_file: Annotated[Path | None, typer.Option(help="Clients must send the key this file holds.")] = None,
    replay: Annotated[int | None, typer.Option(metavar="EPISODE", help="Answer from a recorded episode.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network's step first.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of the first request's noise.")] = None,
    action_steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Denoising steps; default the bundle's.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=100, help="Of text; default the bundle's.")] = None,
) -> None:
    """Answer robots over the network, by openpi's protocol."""
    from xwam_ft import api

    if replay is not None:
        idle = ("device", "compile", "seed", "action_steps", "guidance")
        _require_unused(ctx, idle, "leave it out: a replay answers what was recorded")
    options: dict[str, Any] = {"device": device, "compile": compile, "seed": seed, "guidance": guidance}
    options |= {"replay": replay, "api_key_file": api_key_file, "action_steps": action_steps}
    api.serve(bundle, host=host, port=port, progress=plain_console(), **options)


@app.command()
def view(
    target: Annotated[Path, typer.Argument(help="Shard set, run, bundle, or what `imagine` or `evaluate` wrote.")],
    shards: Annotated[Path | None, typer.Option(help="With a bundle or run: imagine clips of this set.")] = None,
    results: Annotated[list[Path] | None, typer.Option(help="Also what `imagine` wrote here; repeatable.")] = None,
    episode: Annotated[int | None, typer.Option(min=0, help="Episode to begin with.")] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Open the episode in Rerun instead.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the episode to a .rrd file of Rerun instead.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; default for this machine alone.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, open nothing.")] = False,
) -> None:
    """Watch episodes, a run or a bundle on a page in the browser."""
    from xwam_ft import api

    options: dict[str, Any] = {"host": host, "port": port, "browser": not no_browser, "rerun": rerun, "save": save}
    options |= {"shards": shards, "results": results or [], "episode": episode}
    api.view(target, progress=plain_console(), **options)


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


EVALUATES = (
    "leave it out: --clips, --split, --latency, --seams, --camera-blackout, --world belong to SHARDS, --films to --env "
    "with --out, the others to --env"
)


def _require_unused(ctx: typer.Context, names: tuple[str, ...], fix: str = EVALUATES) -> None:
    """Raise a `UserError` where an option was given that would change nothing."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UserError("changes nothing here", option, fix)


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
