"""The Python door: every verb of the command line as a function, `xwam_ft.train(...)` and so on.

Paths may be texts, and where a folder was made by another function its result may be given in its place. Nothing is
printed unless `progress` asks for it. A user's mistake is a `UserError` with `.what`, `.where` and `.fix`. Heavy
imports stand inside the functions, so that importing this loads no torch.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.results import Bundle, EncodedSet, Evaluation, ImaginedEpisode, Inspection, PreparedSet, Run

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.recipe import Recipe
    from xwam_ft.results import Made
    from xwam_ft.shards import Split
    from xwam_ft.train.plan import Plan


def inspect(raw: str | Path, write: str | Path | None = None, *, progress: bool | Console = False) -> Inspection:
    """What recordings hold, and how to read them.

    Args:
        raw: folder or file of recordings.
        write: where to write a commented starter embodiment file.
        progress: print it too.

    Raises:
        UserError: not a dataset, or `write` exists already.
    """
    from rich.console import Console

    from xwam_ft.inspect.inspect import inspect as show

    console = _console(progress) if progress else Console(file=io.StringIO(), width=120)
    console.record = True
    starter = None if write is None else Path(write)
    show(Path(raw), starter, console)
    return Inspection(Path(raw), console.export_text(), starter)


def prepare(
    raws: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    embodiment: str | Path,
    depth: str | None = None,
    workers: int = 2,
    strict: bool = False,
    urdf_dirs: Sequence[str | Path] = (),
    depth_check: bool = False,
    ray: str | None = None,
    progress: bool | Console = False,
    **overrides: object,
) -> PreparedSet:
    """Turn recordings into a shard set at `out`; called again after a stop it goes on.

    Args:
        raws: a folder or file of recordings, or several.
        out: folder to make.
        embodiment: file that says cameras, timing, slots, or the name of one that ships.
        depth: sensor, stereo, tiny, marigold, transformers:ID, files:PATTERN or none; None is sensor where recorded.
        workers: processes; 0 works in this one. The result is the same.
        strict: stop at the first episode that fails a check.
        urdf_dirs: where to look for URDF files.
        depth_check: compare that depth with recorded depth.
        ray: address of a Ray cluster to work on instead.
        progress: print what is done.
        overrides: values of the embodiment, as `**{"timing.clip_frames": 5}`.

    Raises:
        UserError: anything wrong with recordings or embodiment; no episode left; `out` holds something else.
    """
    from xwam_ft.prepare.pipeline import prepare as work

    several = [raws] if isinstance(raws, str | Path) else raws
    report = work(
        [Path(raw) for raw in several],
        Path(out),
        embodiment=Path(embodiment),
        depth=depth,
        workers=workers,
        strict=strict,
        urdf_dirs=[Path(folder) for folder in urdf_dirs],
        console=_console(progress),
        depth_check=depth_check,
        ray=ray,
        overrides=overrides,
    )
    page = report.out / "report.html"
    return PreparedSet(report.out, report.episodes, report.frames, len(report.rejected), report.count("warning"), page)


def plan(
    recipe: str | Path | Recipe,
    *,
    probe: bool = False,
    fit: bool = False,
    progress: bool | Console = False,
    **overrides: object,
) -> Plan:
    """What a run will hold, fill and take, before any weight is loaded.

    Args:
        recipe: YAML file or `Recipe`.
        probe: time a few real steps; loads the weights.
        fit: find the largest micro-batch that fits in memory.
        progress: print tables.
        overrides: values of the recipe, as `**{"trainer.max_steps": 100}`.

    Raises:
        UserError: anything wrong with recipe or shards, or shapes that the backbone cannot hold.
    """
    from xwam_ft.train.plan_report import plan_recipe

    return plan_recipe(_recipe(recipe, overrides), _console(progress), probe=probe, fit=fit)


def encode(
    shards: str | Path | Made, recipe: str | Path | Recipe, *, progress: bool | Console = False, **overrides: object
) -> EncodedSet:
    """Make the latent cache of a shard set; `train` does it too where it is missing.

    Args:
        shards: what `prepare` made.
        recipe: YAML file or `Recipe` whose backbone encodes.
        progress: print what is done.
        overrides: values of the recipe, as `**{"data.clip_stride": 8}`.

    Raises:
        UserError: a damaged shard, pictures that do not fit the VAE, a full disk.
    """
    from xwam_ft.encode.inputs import encode_shards

    cache = encode_shards(_path(shards), _recipe(recipe, overrides), _console(progress))
    return EncodedSet(cache.folder, len(cache.clips))


def train(
    recipe: str | Path | Recipe | None = None,
    run: str | Path | None = None,
    *,
    resume: str | Path | Run | None = None,
    init: str | Path | Run | Bundle | None = None,
    progress: bool | Console = False,
    **overrides: object,
) -> Run:
    """Train by a recipe into a new run folder, or go on with a run that was interrupted.

        run = xwam_ft.train("recipe.yaml", run="runs/a", **{"data.shards": "shards", "trainer.max_steps": 400})
        run = xwam_ft.train(resume=run)

    Args:
        recipe: YAML file or `Recipe`.
        run: folder to make; default `runs/<recipe's name>`.
        resume: a run to go on with, to the same weights as if it had not been stopped; instead of recipe and run.
        init: a run (`RUN@STEP`: one of its checkpoints) or bundle to start from what it learned; the recipe's
            `init_from`. A report of what carried over lies in the run, in init/.
        progress: print what is done.
        overrides: values of the recipe; with `resume` those that change no result, and `trainer.max_steps`.

    Raises:
        UserError: anything wrong with recipe, shards, backbone or folder; a loss that is not finite.
        KeyboardInterrupt: the run is saved after the step at hand.
    """
    if (resume is None) == (recipe is None) or (resume is not None and run is not None):
        raise UserError("got neither just a recipe nor just --resume", "xwam-ft train", "give RECIPE, or --resume RUN")
    if resume is not None:
        from xwam_ft.train.train import resume_run

        if init is not None:
            raise UserError(
                "goes with a new run", "--init", "leave it out: a run that goes on has what it started from"
            )
        resume_run(_path(resume), _console(progress), overrides)
        return Run.open(_path(resume))
    assert recipe is not None
    if init is not None:
        overrides["init_from"] = str(init if isinstance(init, str | Path) else init.path)
    loaded = _recipe(recipe, overrides)
    if run is None and not isinstance(recipe, str | Path):
        raise UserError("a Recipe has no name for its run", "run", "name the folder to make: run='runs/a'")
    folder = Path(run) if run is not None else Path("runs") / Path(str(recipe)).stem
    from xwam_ft.train.train import train_recipe

    train_recipe(loaded, folder, _console(progress))
    return Run.open(folder)


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
    progress: bool | Console = False,
) -> Bundle:
    """Write a checkpoint of a run: a bundle that has proved itself, or the weights in another form.

    Args:
        run: its folder, or what `train` returned.
        out: folder to make.
        format: bundle, peft, diffusers or xwam.
        ema: take the averaged weights where the run has them.
        depth: keep the depth branch.
        dtype: float32 or bfloat16; default as trained.
        merged: fold adapters into the base; otherwise they stay beside it.
        prompts: further instructions to embed.
        wan: for xwam, the folder of Wan's own VAE and text encoder files.
        step: of the checkpoint; default the newest.
        progress: print the proofs.

    Raises:
        UserError: no run, no checkpoint, another backbone, a proof that fails, or `out` is taken.
    """
    from xwam_ft.export.export import export_run

    export_run(
        _path(run),
        Path(out),
        format=format,
        ema=ema,
        depth=depth,
        dtype=dtype,
        merged=merged,
        prompts=list(prompts),
        wan=None if wan is None else Path(wan),
        step=step,
        console=_console(progress),
    )
    page = Path(out) / "README.md"
    return Bundle(
        Path(out), format, Run.open(_path(run)).step if step is None else step, page if page.is_file() else None
    )


def imagine(
    bundle: str | Path | Bundle,
    shards: str | Path | Made,
    episode: int,
    out: str | Path,
    *,
    progress: bool | Console = False,
) -> ImaginedEpisode:
    """Write imagined beside recorded: RGB, depth and point cloud of an episode of a shard set.

    Args:
        out: folder to make.
        progress: print what is done.

    Raises:
        UserError: `out` is not empty; not a bundle or shard set, or they do not belong together; no such episode.
    """
    from xwam_ft.evaluate.imagine import imagine as work

    metrics = work(_path(bundle), _path(shards), episode, Path(out), _console(progress))
    return ImaginedEpisode(Path(out), Path(out) / "imagined.mp4", Path(out) / "contact_sheet.png", metrics)


def evaluate(
    bundle: str | Path | Bundle,
    shards: str | Path | Made | None = None,
    *,
    env: str | None = None,
    out: str | Path | None = None,
    clips: int = 64,
    split: Split = "held_out",
    latency: bool = True,
    camera_blackout: bool = False,
    episodes: int = 50,
    seed: int = 0,
    execute: int | None = None,
    max_steps: int | None = None,
    action_steps: int | None = None,
    films: int = 2,
    progress: bool | Console = False,
) -> Evaluation:
    """Open loop: action error on recorded episodes, in physical units. Closed loop: how often the task is done.

    Args:
        shards: open loop on this shard set; `clips`, `split`, `latency`, `camera_blackout` belong to it.
        env: closed loop in metaworld:TASK, or FILE.py:FUNCTION; the others belong to it.
        out: folder to make with report.html and metrics.json.
        clips: spread evenly over `split`, held_out or train.
        latency: also error and time of a call for 1 to 10 denoising steps.
        camera_blackout: also errors with each camera black.
        episodes: to act in, from starts and goals that `seed` fixes.
        execute: commands carried out before the policy looks again; default half a chunk.
        max_steps: of an episode; default the environment's.
        action_steps: denoising steps; default the bundle's.
        films: first episodes to film, with `out`.
        progress: print what is done.

    Raises:
        UserError: `out` is not empty; not a bundle; shards or environment that do not fit it.
    """
    if (shards is None) == (env is None):
        raise UserError("got neither just a shard set nor just --env", "xwam-ft evaluate", "give SHARDS, or --env NAME")
    if split not in ("held_out", "train"):
        raise UserError(f"is {split!r}", "--split", "give held_out or train")
    place, console = (None if out is None else Path(out)), _console(progress)
    if env is not None:
        from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment

        limits = {"execute": execute, "max_steps": max_steps, "action_steps": action_steps}
        metrics = evaluate_in_environment(
            _path(bundle), env, episodes=episodes, seed=seed, out=place, films=films, console=console, **limits
        )
    else:
        from xwam_ft.evaluate.open_loop import evaluate_bundle

        assert shards is not None
        options = {"latency": latency, "camera_blackout": camera_blackout}
        metrics = evaluate_bundle(_path(bundle), _path(shards), place, clips, console, split=split, **options).metrics()
    return Evaluation(metrics, place, None if place is None else place / "report.html")


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
        progress: print where it listens.

    Raises:
        UserError: the bundle, the key file or the address is not usable.
    """
    from xwam_ft.policy.serve import serve_bundle

    serve_bundle(
        _path(bundle),
        host=host,
        port=port,
        device=device,
        compile=compile,
        settings={"seed": seed, "action_steps": action_steps, "guidance": guidance},
        replay=replay,
        api_key_file=None if api_key_file is None else Path(api_key_file),
        console=_console(progress),
    )


def _recipe(recipe: str | Path | Recipe, overrides: Mapping[str, object]) -> Recipe:
    from xwam_ft.recipe import load_recipe, overridden

    if isinstance(recipe, str | Path):
        return load_recipe(Path(recipe), overrides)
    return overridden(recipe, overrides)


def _path(place: str | Path | Made) -> Path:
    return Path(place) if isinstance(place, str | Path) else place.path


def _console(progress: bool | Console) -> Console:
    from rich.console import Console

    return Console(quiet=not progress, highlight=False) if isinstance(progress, bool) else progress
