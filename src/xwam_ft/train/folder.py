"""The run folder: what lies in it, how it is made, and how a checkpoint is compared with what it belongs to.

recipe.yaml     the recipe with every default and override, paths absolute
contract.json   the shard set's, byte for byte; of several sets the one they share (data_sets.py)
plan.json       what was known of the run beforehand (see plan.py)
wandb.json      the id of its W&B run, where there is one (loggers.py)
extensions.json where it was given another number of steps than it began with (longer.py)
moved.json      where its shards lay before, where they were moved (moved.py)
checkpoints/    see checkpoint.py
init/           what a run started as that started from another (warm_start.py)
adapter/        the transformer's LoRA in peft's folder form, written at the end
adapter-depth/  the depth branch's on the same blocks, where it shares them
tensorboard/    events; metrics.jsonl holds the same numbers, metrics.csv too where `logging.to` says csv
validation/     see history.py; time.json likewise
report.html     how it learned and what it was (report.py)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from xwam_ft import hub, remote
from xwam_ft.consoles import typed
from xwam_ft.contract import Contract, load_contract, require_same
from xwam_ft.errors import UserError, listed, spelled
from xwam_ft.files import atomic_folder, remove_folder, require_local, write_text_atomic
from xwam_ft.places import RECIPE_FILE, run_at, step_of
from xwam_ft.recipe import BackboneSpec, DataSpec, Recipe, load_recipe
from xwam_ft.strict_yaml import Overrides, override_names
from xwam_ft.train.checkpoint import Checkpoint, checkpoint_of, latest_checkpoint, list_checkpoints
from xwam_ft.train.longer import (
    Extension,
    extension,
    planned_at,
    read_extensions,
    up_to_date,
    with_steps,
    write_extensions,
)
from xwam_ft.train.moved import found_again, moved_to, places, remember

if TYPE_CHECKING:
    from xwam_ft.encode.cache import CacheIdentity
    from xwam_ft.shards import ShardSet

CONTRACT_FILE = "contract.json"
PLAN_FILE = "plan.json"
ADAPTER = "adapter"
DEPTH_ADAPTER = "adapter-depth"
FREE = ("trainer.workers", "data.cache_dir", "data.local_gb", "checkpoint.*", "validation.*", "logging.*")
"""Keys of the recipe that may differ when a run goes on: the weights do not depend on them."""
LENGTH = "trainer.max_steps"
"""This too: the run is then longer, or shorter, for good."""
CUT = tuple(f"trainer.{key}" for key in ("devices", "nodes", "strategy", "batch_size", "accumulate"))
"""These too once there is a checkpoint to hold the clips of a step against; they change a step by rounding."""


@dataclass(frozen=True)
class RunFolder:
    """A run as it lies on disk; `checkpoint` is the newest, None before the first.

    `extensions` are the changes of its length, `extends` whether the last of them is not written yet.
    """

    path: Path
    recipe: Recipe
    contract: Contract
    checkpoint: Checkpoint | None
    extensions: tuple[Extension, ...] = ()
    extends: bool = False

    @property
    def decided(self) -> tuple[Contract, Path] | None:
        """The contract that its shards are read under, where they do not say all of it themselves (inherit.py)."""
        return None if self.recipe.init_from is None else (self.contract, self.path / CONTRACT_FILE)

    @property
    def first_step(self) -> int:
        """The optimizer steps done so far."""
        return 0 if self.checkpoint is None else self.checkpoint.state.step


def make_run(path: Path, recipe: Recipe, contract: Contract) -> RunFolder:
    """Make a new run folder, whole or not at all."""
    require_free(path)
    with atomic_folder(path) as temporary:
        (temporary / RECIPE_FILE).write_text(_absolute(recipe).to_yaml(), encoding="utf-8")
        (temporary / CONTRACT_FILE).write_bytes(contract.to_bytes())
    return open_run(path)


def open_run(path: Path, overrides: Overrides | None = None, *, step: int | None = None) -> RunFolder:
    """Read a run folder; its recipe with `overrides`, which are not written to it.

    Args:
        path: the run, or one of its checkpoints: its folder, or RUN@STEP.
        step: of the checkpoint; default the newest.

    Raises:
        UserError: it is not one, that checkpoint is damaged or not there, or an override is not of `FREE` or `CUT`.
    """
    if step is None:
        path, step = run_at(path)
    if not (path / RECIPE_FILE).is_file():
        require_run(path)
    checkpoint = latest_checkpoint(path) if step is None else checkpoint_of(path, step)
    newest = step_of(folders[-1]) if (folders := list_checkpoints(path)) else None
    extensions = read_extensions(path, newest or 0)
    written = load_recipe(path / RECIPE_FILE)
    recipe = before = up_to_date(written, extensions)
    if overrides:
        after = load_recipe(path / RECIPE_FILE, overrides)
        if LENGTH in override_names(overrides):  # counts from what the run was trained for, whatever its recipe says
            before = with_steps(before, _length(extensions, checkpoint, before))
        elif before != written:
            after = with_steps(after, before.trainer.max_steps)
        recipe = _changed(before, after, (*FREE, LENGTH) if checkpoint is None else (*FREE, LENGTH, *CUT), path)
    if not overrides or "data.shards" not in override_names(overrides):
        recipe = found_again(recipe, path)
    done, steps = checkpoint.state.step if checkpoint else 0, recipe.trainer.max_steps
    if extends := steps != before.trainer.max_steps:
        extensions = (*extensions, extension(before, done, steps, path))
    return RunFolder(path, recipe, load_contract(path / CONTRACT_FILE), checkpoint, extensions, extends)


def require_run(text: Path) -> Path:
    """The folder of a run that is to go on.

    Raises:
        UserError: it is not one, or a step is named that is not its newest: going on from there is a run of its own.
    """
    path, step = run_at(text)
    if not (path / RECIPE_FILE).is_file():
        raise UserError(f"is not a run folder (no {RECIPE_FILE})", path, "give a folder that `xwam-ft train` made")
    folders = list_checkpoints(path)
    if step is not None and (not folders or step != step_of(folders[-1])):
        newest = step_of(folders[-1]) if folders else "none"
        raise UserError(
            f"names step {step}, and a run goes on from its newest checkpoint, {newest}",
            text,
            f"begin a new run with what it knew then: --init {quote(f'{path}@{step}')}",
        )
    return path


def _length(extensions: Sequence[Extension], checkpoint: Checkpoint | None, recipe: Recipe) -> int:
    """The steps that a run is planned for."""
    if extensions:
        return extensions[-1].max_steps
    return int((checkpoint.state.recipe if checkpoint else {}).get(LENGTH, recipe.trainer.max_steps))


def keep_length(run: RunFolder) -> RunFolder:
    """Write down the steps that a run is planned for, and take away what was the end of a shorter one."""
    if run.extensions:
        write_extensions(run.path, run.extensions)
    recipe = load_recipe(run.path / RECIPE_FILE)
    followed = with_steps(recipe, run.recipe.trainer.max_steps)
    if followed != recipe:
        write_text_atomic(run.path / RECIPE_FILE, followed.to_yaml())
    if run.first_step < run.recipe.trainer.max_steps:
        for name in (ADAPTER, DEPTH_ADAPTER):
            if (run.path / name).exists():
                remove_folder(run.path / name)
    return replace(run, extends=False)


def keep_places(run: RunFolder) -> bool:
    """Write down where the run's shards lie now, once they are known to be its own; True where that is new."""
    recipe = load_recipe(run.path / RECIPE_FILE)
    before, now = places(recipe.data), places(_absolute_data(run.recipe.data))
    if before == now:
        return False
    remember(run.path, before)
    write_text_atomic(run.path / RECIPE_FILE, moved_to(recipe, now).to_yaml())
    return True


def keep_backbone(run: RunFolder) -> str | None:
    """Write down where the run's backbone lies now, once it is known to be its own; that place where it is new."""
    recipe = load_recipe(run.path / RECIPE_FILE)
    place = _absolute_backbone(run.recipe.backbone).path
    if place == recipe.backbone.path:
        return None
    moved = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"path": place})})
    write_text_atomic(run.path / RECIPE_FILE, moved.to_yaml())
    return place


def require_sealed(run: RunFolder) -> None:
    """Raise a `UserError` unless recipe and contract are those that the checkpoint was trained under.

    Where shards and backbone lie is free: both are known by their content.
    """
    assert run.checkpoint is not None
    state, now, typed = run.checkpoint.state, record(run.recipe), quote(str(run.path))
    now[LENGTH] = planned_at(state.step, run.extensions, now[LENGTH])
    for key, then in state.recipe.items():
        if key in now and now[key] != then:  # a key that only one of the two versions knows is not compared
            raise UserError(
                f"was trained with {key} {then}, and {run.path / RECIPE_FILE} says {now[key]}",
                run.checkpoint.folder,
                f"to train so long: xwam-ft train --resume {typed} --set {key}={now[key]}"
                if key == LENGTH
                else "restore it; a changed recipe is a new run",
            )
    if run.contract.sha256 != state.contract:
        raise UserError(
            f"is not the contract this run was trained under: its hash is {_short(run.contract.sha256)}, the run's "
            f"{_short(state.contract)}",
            run.path / CONTRACT_FILE,
            "restore it from the shard set; a network means nothing under another contract",
        )


def require_shards(run: RunFolder) -> None:
    """Raise a `UserError` that says how to go on where the shards are not where the run's recipe says."""
    for source in run.recipe.data.sources:
        if not remote.url_of(source.path) and not Path(source.path).is_dir():
            there = "that is a file" if Path(source.path).is_file() else "there is no such folder"
            raise UserError(
                f"trains on {source.path}, and {there}",
                run.path,
                "where the shards were moved, give their new place, which the run keeps, also when it is finished: "
                f"xwam-ft train --resume {quote(str(run.path))} --set data.shards=FOLDER",
            )


def require_backbone_there(run: RunFolder) -> None:
    """Raise a `UserError` that says how to go on where the backbone's folder is not where the run's recipe says."""
    place = Path(run.recipe.backbone.path)
    if place.is_absolute() and not place.is_dir():
        raise UserError(
            f"is trained on the backbone {place}, and there is no such folder",
            run.path,
            "where it was moved, give its new place, which the run keeps, also when it is finished: "
            f"xwam-ft train --resume {quote(str(run.path))} --set backbone.path=FOLDER",
        )


def require_free(path: Path) -> None:
    """Raise a `UserError` if `path` cannot be made, or is there already: no run is ever overwritten."""
    require_local(path, "a run folder")
    if path.is_file():
        raise UserError("is a file, and a run is a folder", path, "name another by --run")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            "the run folder exists already",
            path,
            f"go on with it by `{typed('xwam-ft', 'train', '--resume', path)}`, or name another by --run",
        )
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "is not a folder" if not above.is_dir() else "cannot be written to"
        raise UserError(f"cannot be made: {above} {why}", path, "name another by --run")


def require_own_shards(run: RunFolder, shard_set: ShardSet) -> None:
    """Raise a `UserError` unless the run's contract is the shards'; an edited one is to be restored."""
    edited = run.checkpoint is not None and run.contract.sha256 != run.checkpoint.state.contract
    place = shard_set.folder / CONTRACT_FILE
    fix = "restore it as it was when the run was trained; a network means nothing under another" if edited else None
    require_same(run.contract, run.path / CONTRACT_FILE, shard_set.contract, place, fix)


def require_same_data(run: RunFolder, shard_set: ShardSet, identity: CacheIdentity) -> None:
    """Check that a resumed run has the recipe, contract, encoders and shards of its checkpoint; loads no weight.

    Raises:
        UserError: another one; names what it is in both.
    """
    require_own_shards(run, shard_set)
    if run.checkpoint is None:
        return
    require_sealed(run)
    state, (encoders, shards) = run.checkpoint.state, (run.recipe.backbone.path, run.recipe.data.where)
    new = "restore the backbone, or start a new run"
    _require_equal(run.checkpoint, f"encoders of {encoders}", identity.backbone, state.encoders, new)
    fix = "restore the shard set, or start a new run"
    _require_equal(run.checkpoint, f"index of {shards}", identity.shards, state.shards, fix)


def require_continuable(
    run: RunFolder, shard_set: ShardSet, identity: CacheIdentity, backbone: str, samples_per_step: int
) -> None:
    """Check that what a resumed run would train, and on what, is what its checkpoint was.

    Raises:
        UserError: as `require_same_data`; another backbone or step size.
    """
    require_same_data(run, shard_set, identity)
    if run.checkpoint is None:
        return
    state, what = run.checkpoint.state, f"backbone {run.recipe.backbone.path}"
    new = "restore the backbone, or start a new run"
    _require_equal(run.checkpoint, what, backbone, state.backbone, new)
    fix = "set trainer.batch_size, accumulate and devices so that their product is as before"
    _require_equal(run.checkpoint, "clips an optimizer step", samples_per_step, state.samples_per_step, fix)


def _require_equal(checkpoint: Checkpoint, what: str, now: object, then: object, fix: str) -> None:
    if now != then:
        said = f"was trained with {what} {_short(then)}, and now it is {_short(now)}"
        raise UserError(said, checkpoint.folder, fix)


def _changed(before: Recipe, after: Recipe, free: tuple[str, ...], path: Path) -> Recipe:
    """`after`, where it differs in free keys (patterns) alone."""
    old, new = _placeless(before), _placeless(after)
    fixed = [
        f"{key}={new.get(key)} (was {old.get(key)})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(fnmatchcase(key, pattern) for pattern in free)
    ]
    if fixed:
        raise UserError(
            f"would end with other weights under {listed(fixed)}",
            path,
            f"only {listed(free, 20)} may change when a run goes on; leave the others out, or start a new run",
        )
    return after


def _leaves(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"trainer.workers": 2, ...}"""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def by_key(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key."""
    return _leaves(recipe.model_dump(mode="json"))


def record(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe the weights depend on, by dotted key; places and the keys of `FREE` and `CUT` are none of it."""
    leaves = _placeless(recipe)
    leaves.pop("init_from")  # what was started from lies in the run
    return {key: value for key, value in leaves.items() if not any(fnmatchcase(key, free) for free in FREE + CUT)}


def _placeless(recipe: Recipe) -> dict[str, Any]:
    """A recipe by dotted key, without the places of shards and backbone: what lies there is known by its content."""
    leaves = by_key(recipe)
    leaves.pop("data.shards")
    leaves["data.shards.weight"] = [source.weight for source in recipe.data.sources]
    leaves.pop("backbone.path")
    return leaves


def _short(value: object) -> str:
    return str(value)[:12]


def _absolute(recipe: Recipe) -> Recipe:
    """Paths that do not depend on where the command was typed."""
    backbone, origin = _absolute_backbone(recipe.backbone), recipe.init_from
    if origin is not None and hub.repo_of(origin, "model") is None:
        path, step = run_at(origin)
        origin = f"{path.resolve()}{'' if step is None else f'@{step}'}"
    data = _absolute_data(recipe.data)
    return recipe.model_copy(update={"backbone": backbone, "data": data, "init_from": origin})


def _absolute_backbone(spec: BackboneSpec) -> BackboneSpec:
    if not Path(spec.path).is_dir() or spec.path == "tiny":
        return spec
    return spec.model_copy(update={"path": str(Path(spec.path).resolve())})


def _full(place: str) -> str:
    return spelled(remote.absolute(place))


def _absolute_data(data: DataSpec) -> DataSpec:
    sources = [source.model_copy(update={"path": _full(source.path)}) for source in data.sources]
    cache = None if data.cache_dir is None else _full(data.cache_dir)
    shards = sources[0].path if isinstance(data.shards, str) else sources
    return data.model_copy(update={"shards": shards, "cache_dir": cache})
