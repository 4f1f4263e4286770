"""The Python door's second half, from a run to a robot: its verbs are those of api.py, which has them too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.arguments import checked, place_of
from xwam_ft.consoles import plain_console
from xwam_ft.errors import UserError, spelled
from xwam_ft.results import Bundle, Evaluation, ImaginedEpisode, Run, Runs

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.diagnosis import Diagnosis
    from xwam_ft.policy.source import PolicySource
    from xwam_ft.results import Made
    from xwam_ft.shard_index import Split


@checked(step=0)
def export(
    run: str | Path | Run,
    out: str | Path,
    *,
    format: str = "bundle",
    ema: bool = True,
    depth: bool = True,
    dtype: str | None = None,
    merged: bool = True,
    prompts: Sequence[str] = (),
    wan: str | Path | None = None,
    step: int | None = None,
    best: str | None = None,
    with_text_encoder: str | None = None,
    push: str | None = None,
    private: bool = False,
    progress: bool | Console = False,
) -> Bundle:
    """Write a checkpoint of a run: a bundle that has proved itself, or the weights in another form.

    Args:
        run: its folder, `RUN@STEP`, or what `train` returned.
        out: folder to make.
        format: bundle, peft, diffusers or xwam.
        ema: take the averaged weights where the run has them.
        depth: keep the depth branch.
        dtype: float32 or bfloat16; default as trained.
        merged: fold adapters into the base; otherwise they stay beside it.
        prompts: further instructions to embed.
        wan: for xwam, the folder of Wan's own VAE and text encoder files.
        step: of the checkpoint; default the newest.
        best: a held-out number as logged ("total", "held_out/tool_position"): the checkpoint where it was lowest.
        with_text_encoder: bfloat16 or int8: put the text encoder into the bundle, so that it takes any text.
        push: upload the bundle to the Hub under this name, ORG/NAME.
        private: let nobody else see it there.
        progress: print the proofs.

    Raises:
        UserError: no run, no checkpoint, no such number, another backbone, a proof that fails, or `out` is taken; no
            right to upload, or no network.
    """
    from xwam_ft.export.checkpoint import chosen_checkpoint
    from xwam_ft.export.export import export_run
    from xwam_ft.export.push import push as upload
    from xwam_ft.export.push import require_pushable

    console = plain_console(progress)
    if private and push is None:
        raise UserError("changes nothing without --push", "--private", "leave it out, or add --push ORG/NAME")
    if push is not None:
        if format != "bundle":
            raise UserError(f"uploads bundles, and the format is {format}", "--push", "leave --format out")
        require_pushable(push, private=private, console=console)
    place, step, choice = chosen_checkpoint(place_of(run), step, best)
    if choice is not None:
        console.print(choice, soft_wrap=True, markup=False)
    export_run(
        place,
        Path(out),
        format=format,
        ema=ema,
        depth=depth,
        dtype=dtype,
        merged=merged,
        prompts=list(prompts),
        wan=None if wan is None else Path(wan),
        step=step,
        with_text_encoder=with_text_encoder,
        name=push,
        console=console,
    )
    pushed = None if push is None else upload(Path(out), push, private=private, console=console)
    page = Path(out) / "README.md"
    step = Run.open(place).step if step is None else step
    return Bundle(Path(out), format, step, page if page.is_file() else None, pushed)


@checked()
def runs(
    folder: str | Path = "runs",
    *,
    diff: tuple[str | Path | Run, str | Path | Run] | None = None,
    progress: bool | Console = False,
) -> Runs:
    """The runs of a folder: how far each is, whether it is running, its held-out numbers.

    Args:
        folder: that they lie in, up to three folders deep; or a run.
        diff: two runs (paths, or names below `folder`) or recipes, which are compared instead of listing all.
        progress: print a table.

    Raises:
        UserError: no such folder, or neither a run nor a recipe.
    """
    from xwam_ft.runs.runs import differences, list_runs, print_differences, print_runs

    place, console = Path(folder), plain_console(progress)
    if diff is None:
        found = list_runs(place)
        print_runs(found, place, console)
        return Runs(place, tuple(found), {})
    first, second = map(place_of, diff)
    keys = differences(first, second, place)
    print_differences(first, second, keys, console)
    return Runs(place, (), keys)


@checked(episode=0)
def imagine(
    bundle: str | Path | Bundle | Run,
    shards: str | Path | Made,
    episode: int,
    out: str | Path,
    *,
    with_future: bool = False,
    progress: bool | Console = False,
) -> ImaginedEpisode:
    """Write imagined beside recorded: RGB, depth and point cloud of an episode of a shard set.

    Args:
        bundle: a bundle, or a run's checkpoint: RUN (the newest) or RUN@STEP, which need not be exported.
        out: folder to make.
        with_future: of a bundle whose future is optional: actions are denoised together with the imagined frames.
        progress: print what is done.

    Raises:
        UserError: `out` is not empty; not a bundle, run or shard set, or they do not belong together; no such episode.
    """
    console = plain_console(progress)
    console.print(
        f"imagining episode {episode} of {spelled(place_of(shards))} by {spelled(place_of(bundle))}", soft_wrap=True
    )
    console.file.flush()  # before torch is loaded, and where the output goes into a file
    from xwam_ft.evaluate.imagine import imagine as work

    metrics = work(_source(bundle, console, with_future), place_of(shards), episode, Path(out), console)
    return ImaginedEpisode(Path(out), Path(out) / "imagined.mp4", Path(out) / "contact_sheet.png", metrics)


@checked(clips=1, episodes=1, seed=0, execute=1, max_steps=1, action_steps=1, answer_delay=0, films=0)
def evaluate(
    bundle: str | Path | Bundle | Run | None = None,
    shards: str | Path | Made | None = None,
    *,
    env: str | None = None,
    out: str | Path | None = None,
    clips: int = 64,
    split: Split = "held_out",
    latency: bool = True,
    train_split: bool = True,
    camera_blackout: bool = False,
    seams: bool = True,
    world: bool = False,
    lpips: str | Path | None = None,
    with_future: bool = False,
    episodes: int = 50,
    seed: int = 0,
    execute: int | None = None,
    max_steps: int | None = None,
    action_steps: int | None = None,
    answer_delay: int = 0,
    meanwhile: str | None = None,
    perturb: Sequence[str] = (),
    films: int = 2,
    compare: tuple[str | Path | Evaluation, str | Path | Evaluation] | None = None,
    progress: bool | Console = False,
) -> Evaluation:
    """Open loop: action error on recorded episodes, in physical units. Closed loop: how often the task is done.

    With `compare` neither: two evaluations that were written are laid beside each other.

    Args:
        bundle: a bundle, or a run's checkpoint: RUN (the newest) or RUN@STEP, which need not be exported.
        shards: open loop on this shard set; `clips`, `split`, `train_split`, `latency`, `seams`, `camera_blackout`,
            `world` belong to it.
        env: closed loop in metaworld:TASK, or FILE.py:FUNCTION; the others belong to it.
        out: folder to make with report.html and metrics.json.
        clips: spread evenly over `split`, held_out or train.
        train_split: also errors on clips it was trained on: far below the held-out ones, they are remembered.
        latency: also error and time of a call for 1 to 10 denoising steps.
        camera_blackout: also errors with each camera black.
        seams: also how hard commands jerk where one chunk follows another.
        world: also the imagined future: how good it is by horizon, whether it follows the actions, whether the
            spread of samples tells their error.
        lpips: with `world`: a file of AlexNet's weights, for LPIPS; default $XWAM_FT_LPIPS.
        with_future: of a bundle whose future is optional: actions are denoised together with the imagined frames.
        episodes: to act in, from starts and goals that `seed` fixes.
        execute: commands carried out before the policy looks again; default half a chunk.
        max_steps: of an episode; default the environment's.
        action_steps: denoising steps; default the bundle's.
        answer_delay: commands that pass until an answer is there; meanwhile: what the robot does until then, "hold"
            (default), "switch" or "prefix".
        perturb: what Meta-World makes harder, as "light=0.5"; axes: light, colour, camera, noise, delay.
        films: first episodes to film, with `out`.
        compare: the `out` folders of two earlier evaluations; with it, no more than `out` is given.
        progress: print what is done.

    Raises:
        UserError: `out` is not empty; not a bundle; shards or environment that do not fit it.
    """
    place, console = (None if out is None else Path(out)), plain_console(progress)
    if compare is not None:
        from xwam_ft.evaluate.compare import compare as lay_beside

        if not bundle is shards is env is None:
            raise UserError("goes with --out alone", "--compare", "leave BUNDLE, SHARDS and --env out")
        first, second = (Path(str(one.path if isinstance(one, Evaluation) else one)) for one in compare)
        found = lay_beside(first, second, place, console)
        return Evaluation(found, place, None if place is None else place / "compare.html")
    if bundle is None:
        raise UserError("got no bundle", "xwam-ft evaluate", "give BUNDLE and SHARDS or --env, or --compare A B")
    if (shards is None) == (env is None):
        raise UserError("got neither just a shard set nor just --env", "xwam-ft evaluate", "give SHARDS, or --env NAME")
    if lpips is not None and not world:
        raise UserError("changes nothing here", "--lpips", "give --world too, which judges pictures")
    if split not in ("held_out", "train"):
        raise UserError(f"is {split!r}", "--split", "give held_out or train")
    source = _source(bundle, console, with_future)
    if env is not None:
        from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment

        asked: dict[str, Any] = {"episodes": episodes, "seed": seed, "films": films, "perturb": perturb}
        asked |= {"execute": execute, "max_steps": max_steps, "action_steps": action_steps}
        asked |= {"answer_delay": answer_delay, "meanwhile": meanwhile}
        metrics = evaluate_in_environment(source, env, out=place, console=console, **asked)
    else:
        from xwam_ft.evaluate.evaluate import evaluate_bundle

        assert shards is not None
        options: dict[str, Any] = {
            "train_split": train_split,
            "latency": latency,
            "camera_blackout": camera_blackout,
            "seams": seams,
            "world": world,
            "lpips": None if lpips is None else Path(lpips),
        }
        _, metrics = evaluate_bundle(source, place_of(shards), place, clips, console, split=split, **options)
    return Evaluation(metrics, place, None if place is None else place / "report.html")


@checked(port=0, replay=0, seed=0, action_steps=1)
def serve(
    bundle: str | Path | Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    api_key_file: str | Path | None = None,
    replay: int | None = None,
    compile: bool = False,
    seed: int | None = None,
    action_steps: int | None = None,
    guidance: float | None = None,
    with_future: bool = False,
    looks: str | Path | None = None,
    progress: bool | Console = False,
) -> None:
    """Answer robots over the network, by openpi's protocol, until SIGTERM or Ctrl-C.

    Args:
        bundle: with `replay` a shard set, whose episode of that number is answered from.
        host: 0.0.0.0 for every network.
        port: 0 takes a free one.
        api_key_file: clients must send the key this file holds.
        compile: compile the network's step first.
        seed: of the first request's noise.
        action_steps, guidance: instead of the bundle's.
        with_future: of a bundle whose future is optional: actions are denoised together with the imagined frames.
        looks: a folder for a picture of each client's first observation, beside a recorded one.
        progress: print where it listens, what it expects, and what each client sends first.

    Raises:
        UserError: the bundle, the key file or the address is not usable.
    """
    from xwam_ft.policy.serve import serve_bundle

    serve_bundle(
        place_of(bundle),
        host=host,
        port=port,
        device=device,
        compile=compile,
        settings={"seed": seed, "action_steps": action_steps, "guidance": guidance},
        with_future=with_future,
        replay=replay,
        api_key_file=None if api_key_file is None else Path(api_key_file),
        looks=None if looks is None else Path(looks),
        console=plain_console(progress),
    )


@checked(episode=0, port=0)
def view(
    target: str | Path | Made,
    *,
    shards: str | Path | Made | None = None,
    results: Sequence[str | Path | Made] = (),
    episode: int | None = None,
    rerun: bool = False,
    save: str | Path | None = None,
    host: str | None = None,
    port: int = 0,
    browser: bool = True,
    progress: bool | Console = False,
) -> None:
    """Open a page in the browser that shows what is known of a shard set, a run or a bundle, until Ctrl-C or SIGTERM.

    Args:
        target: a shard set; a run (RUN, RUN@STEP); a bundle; or a folder that `imagine` or `evaluate` wrote.
        shards: with a bundle, a run or results: a shard set to watch beside it, of which clips are imagined on demand.
        results: further folders that `imagine` or `evaluate` wrote.
        episode: that the page begins with, or that Rerun shows.
        rerun: open an episode of a shard set in Rerun's viewer instead.
        save: write that episode to a .rrd file instead of opening it.
        host: listen at this address, for others too; default this machine alone.
        port: 0 takes a free one.
        browser: open the page.
        progress: print its address.

    Raises:
        UserError: none of what can be shown, no such episode, a port in use, or Rerun is not installed.
    """
    from xwam_ft.view.view import show_in_rerun
    from xwam_ft.view.view import view as work

    console, place = plain_console(progress), place_of(target)
    if rerun or save is not None:
        if shards is not None or results or host is not None or port or not browser:
            given = "--shards, --results, --host, --port, --no-browser"
            raise UserError("go with the page, not with Rerun", given, "leave them out")
        if rerun and save is not None:
            raise UserError("writes a file, and --rerun opens the viewer", "--save", "leave one of them out")
        show_in_rerun(place, episode, None if save is None else Path(save), console)
        return
    work(
        place,
        shards=None if shards is None else place_of(shards),
        results=[place_of(one) for one in results],
        host=host,
        port=port,
        browser=browser,
        episode=episode,
        console=console,
    )


def _source(place: str | Path | Made, console: Console, with_future: bool) -> PolicySource:
    from xwam_ft.export.checkpoint import policy_source

    source = policy_source(place_of(place), console)
    return source.with_future() if with_future else source


@checked()
def doctor(*, progress: bool | Console = False) -> Diagnosis:
    """What this machine has and lacks: libraries, processors, decoders, room. Nothing is fetched, written or sent.

    Args:
        progress: print the page.

    Raises:
        Nothing: what is wrong is in `.wrong` of what is returned.
    """
    from xwam_ft.diagnosis import diagnose

    found = diagnose()
    plain_console(progress).print(found.text, soft_wrap=True)
    return found
