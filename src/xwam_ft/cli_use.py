"""The verbs of `xwam-ft` from a run to a robot: the second half of cli.py, as api_use.py is of api.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xwam_ft.consoles import plain_console
from xwam_ft.errors import UserError

BUNDLE = "Bundle (or ORG/NAME of the Hub); or a checkpoint: RUN, RUN@STEP."
Bundle = Annotated[Path, typer.Argument(help=BUNDLE)]
OptionalBundle = Annotated[Path | None, typer.Argument(help=BUNDLE)]
Shards = Annotated[Path, typer.Argument(help="Shard set made by `xwam-ft prepare`.")]


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


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that runs lie in, or a run.")] = Path("runs"),
    diff: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Show by which keys two runs or recipes differ.")
    ] = None,
) -> None:
    """List runs: step, state, held-out numbers."""
    from xwam_ft import api

    api.runs(folder, diff=diff, progress=plain_console())


WithFuture = Annotated[
    bool, typer.Option("--with-future", help="Act with the imagined frames, where a bundle's future is optional.")
]


def imagine(
    bundle: Bundle,
    shards: Annotated[Path, typer.Option(help="Shard set.")],
    episode: Annotated[int, typer.Option(min=0, help="Episode of the shard set.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    with_future: WithFuture = False,
) -> None:
    """Write imagined beside recorded: RGB, depth and point cloud."""
    from xwam_ft import api

    api.imagine(bundle, shards, episode, out, with_future=with_future, progress=plain_console())


Execute = Annotated[int | None, typer.Option(min=1, help="Closed loop: commands executed a chunk; default half of it.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Closed loop: default the environment's own.")]
Films = Annotated[int, typer.Option(min=0, help="Closed loop, with --out: first episodes to film.")]
Latency = Annotated[bool, typer.Option("--latency/--no-latency", help="Open loop: error and ms of 1 to 10 steps.")]
TrainSplit = Annotated[
    bool, typer.Option("--train-split/--no-train-split", help="Open loop: errors on clips it was trained on, too.")
]
Blackout = Annotated[bool, typer.Option("--camera-blackout", help="Open loop: errors with each camera black too.")]
CLOSED = ("episodes", "seed", "execute", "max_steps", "action_steps", "answer_delay", "meanwhile", "perturb", "films")
AnswerDelay = Annotated[int, typer.Option(min=0, help="Closed loop: commands that pass until an answer is there.")]
Meanwhile = Annotated[
    str | None,
    typer.Option(metavar="WAY", help="With --answer-delay: hold, switch, or prefix (see docs/evaluate.md)."),
]
Perturb = Annotated[
    list[str] | None,
    typer.Option(metavar="AXIS=STRENGTH", help="Closed loop: light, colour, camera, noise, delay; repeatable."),
]
Seams = Annotated[bool, typer.Option("--seams/--no-seams", help="Open loop: jerk where one chunk follows another.")]
World = Annotated[bool, typer.Option("--world", help="Open loop: judge what is imagined, and if it follows actions.")]
Lpips = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --world: weights for LPIPS; default $XWAM_FT_LPIPS.")
]
ActionSteps = Annotated[int | None, typer.Option(min=1, max=1000, help="Closed loop: denoising steps.")]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="A B", help="Lay two OUT folders beside each other; with --out alone."),
]
OPEN = ("clips", "split", "train_split", "latency", "camera_blackout", "seams", "world", "lpips")


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
    train_split: TrainSplit = True,
    latency: Latency = True,
    camera_blackout: Blackout = False,
    seams: Seams = True,
    world: World = False,
    lpips: Lpips = None,
    with_future: WithFuture = False,
    episodes: Annotated[int, typer.Option(min=1, help="Closed loop: episodes.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Closed loop: fixes starts and goals.")] = 0,
    execute: Execute = None,
    max_steps: MaxSteps = None,
    action_steps: ActionSteps = None,
    answer_delay: AnswerDelay = 0,
    meanwhile: Meanwhile = None,
    perturb: Perturb = None,
    films: Films = 2,
    compare: Compare = None,
) -> None:
    """Measure errors on recordings, or success in an environment.

    Open loop (SHARDS): action error on recorded episodes, in physical units. Closed loop (--env): how often the task
    is done.
    """
    from xwam_ft import api

    if compare is not None:
        _require_unused(ctx, (*OPEN, *CLOSED, "with_future"), "leave it out: --compare goes with --out alone")
    elif (shards is None) != (env is None):
        idle = CLOSED if shards is not None else OPEN
        _require_unused(ctx, (*idle, "films") if out is None else idle)
    looks = {
        "train_split": train_split,
        "latency": latency,
        "camera_blackout": camera_blackout,
        "seams": seams,
        "world": world,
        "lpips": lpips,
    }
    open_loop = {"clips": clips, "split": split, **looks}
    closed_loop = {"episodes": episodes, "seed": seed, "execute": execute, "max_steps": max_steps, "films": films}
    options: dict[str, Any] = {**open_loop, **closed_loop, "action_steps": action_steps, "perturb": perturb or ()}
    options |= {"with_future": with_future, "answer_delay": answer_delay, "meanwhile": meanwhile}
    api.evaluate(bundle, shards, env=env, out=out, compare=compare, progress=plain_console(), **options)


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
    with_future: WithFuture = False,
    looks: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture of each client's first observation, beside a recorded one."),
    ] = None,
) -> None:
    """Answer robots over the network, by openpi's protocol."""
    from xwam_ft import api

    if replay is not None:
        idle = ("device", "compile", "seed", "action_steps", "guidance", "with_future")
        _require_unused(ctx, idle, "leave it out: a replay answers what was recorded")
    options: dict[str, Any] = {"device": device, "compile": compile, "seed": seed, "guidance": guidance}
    options |= {"replay": replay, "api_key_file": api_key_file, "action_steps": action_steps}
    options |= {"with_future": with_future, "looks": looks}
    api.serve(bundle, host=host, port=port, progress=plain_console(), **options)


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


EVALUATES = (
    "leave it out: --clips, --split, --train-split, --latency, --seams, --camera-blackout, --world belong to SHARDS, "
    "--films to --env with --out, the others to --env"
)


def _require_unused(ctx: typer.Context, names: tuple[str, ...], fix: str = EVALUATES) -> None:
    """Raise a `UserError` where an option was given that would change nothing."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise UserError("changes nothing here", option, fix)


VERBS = (export, runs, imagine, evaluate, serve, view)
"""In the order of `--help`."""
