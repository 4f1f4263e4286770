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

from xwam_ft.api_use import doctor, evaluate, export, imagine, runs, serve, view
from xwam_ft.arguments import checked, place_of, plain
from xwam_ft.consoles import plain_console, setting, typed
from xwam_ft.errors import UserError
from xwam_ft.results import EncodedSet, Inspection, PreparedSet, Run

__all__ = [
    "doctor",
    "encode",
    "evaluate",
    "export",
    "imagine",
    "inspect",
    "plan",
    "prepare",
    "runs",
    "serve",
    "train",
    "view",
]

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.plan.plan import Plan
    from xwam_ft.recipe import Recipe
    from xwam_ft.results import Bundle, Made


@checked()
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

    console = plain_console(progress) if progress else plain_console(Console(file=io.StringIO(), width=120))
    console.record = True
    starter = None if write is None else Path(write)
    show(Path(raw), starter, console)
    return Inspection(Path(raw), console.export_text(), starter)


@checked(workers=0)
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
    if not several:
        raise UserError("got no recordings", "raws of prepare", "give a folder or file of recordings, or several")
    report = work(
        [Path(raw) for raw in several],
        Path(out),
        embodiment=Path(embodiment),
        depth=depth,
        workers=workers,
        strict=strict,
        urdf_dirs=[Path(folder) for folder in urdf_dirs],
        console=plain_console(progress),
        depth_check=depth_check,
        ray=ray,
        overrides={name: plain(value) for name, value in overrides.items()},
    )
    page = report.out / "report.html"
    return PreparedSet(report.out, report.episodes, report.frames, len(report.rejected), report.count("warning"), page)


@checked()
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
    from xwam_ft.plan.plan_report import plan_recipe

    return plan_recipe(_recipe(recipe, overrides), plain_console(progress), probe=probe, fit=fit)


@checked(workers=1)
def encode(
    shards: str | Path | Made,
    recipe: str | Path | Recipe,
    *,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool | Console = False,
    **overrides: object,
) -> EncodedSet:
    """Make the latent cache of a shard set; `train` does it too where it is missing.

    Args:
        shards: what `prepare` made.
        recipe: YAML file or `Recipe` whose backbone encodes.
        workers: processes that encode; default one a GPU of the recipe's `trainer.devices`, or of the cluster.
        ray: address of a Ray cluster that encodes instead of this machine.
        progress: print what is done.
        overrides: values of the recipe, as `**{"data.clip_stride": 8}`.

    Raises:
        UserError: a damaged shard, pictures that do not fit the VAE, a full disk.
    """
    from xwam_ft.encode.inputs import encode_shards

    console, place = plain_console(progress), place_of(shards)
    cache = encode_shards(place, _recipe(recipe, overrides), console, workers, ray)
    if isinstance(recipe, str | Path):
        given = overrides if "data.shards" in overrides else {**overrides, "data.shards": place}
        settings = " ".join(setting(key, value) for key, value in given.items())
        console.print(f"next: {typed('xwam-ft', 'train', recipe)} {settings}", soft_wrap=True)
    return EncodedSet(cache.folder, len(cache.clips))


@checked()
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
        values = {name: plain(value) for name, value in overrides.items()}
        resume_run(place_of(resume), plain_console(progress), values)
        return Run.open(place_of(resume))
    assert recipe is not None
    if init is not None:
        overrides["init_from"] = str(init if isinstance(init, str | Path) else init.path)
    loaded = _recipe(recipe, overrides)
    if run is None and not isinstance(recipe, str | Path):
        raise UserError("a Recipe has no name for its run", "run", "name the folder to make: run='runs/a'")
    folder = Path(run) if run is not None else Path("runs") / Path(str(recipe)).stem
    from xwam_ft.train.train import train_recipe

    train_recipe(loaded, folder, plain_console(progress))
    return Run.open(folder)


def _recipe(recipe: str | Path | Recipe, overrides: Mapping[str, object]) -> Recipe:
    from xwam_ft.recipe import load_recipe, overridden

    overrides = {name: plain(value) for name, value in overrides.items()}
    if isinstance(recipe, str | Path):
        return load_recipe(Path(recipe), overrides)
    return overridden(recipe, overrides)
