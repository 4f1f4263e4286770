"""`xwam-ft train`, `train --resume` and `encode`: from a recipe to a finished run folder.

Several devices: Lightning starts one process each, and every one of them comes through here. The first rank makes
the cache and the run folder and prints; the others wait until these are there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from xwam_ft.errors import UserError
from xwam_ft.files import write_json_atomic
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.train.cache import INDEX_FILE, LatentCache
from xwam_ft.train.data_sets import DataSets, episode_weights, open_sets, require_sound
from xwam_ft.train.folder import (
    ADAPTER,
    DEPTH_ADAPTER,
    PLAN_FILE,
    RunFolder,
    make_run,
    open_run,
    require_free,
    require_same_data,
)

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from xwam_ft.contract import Contract
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.shards import ShardSet
    from xwam_ft.train.cache import CacheIdentity
    from xwam_ft.train.clip_source import ClipPool

RELEASED = "sharinka0715/X-WAM"
WAIT_SECONDS = 24 * 3600


def train(recipe_path: Path, run: Path | None, overrides: list[str], console: Console) -> Path:
    """Train by a recipe into a new run folder.

    Args:
        recipe_path: YAML file.
        run: folder to make; default `runs/<recipe's name>`.
        overrides: `a.b=c` strings.

    Returns:
        The run folder.

    Raises:
        UserError: anything wrong with recipe, shards, backbone or folder; a loss that is not finite.
    """
    recipe = load_recipe(recipe_path, overrides)
    run = run or Path("runs") / recipe_path.stem
    refuse_released_weights(recipe)
    require_extras(recipe)
    if not _first_rank():
        _wait_for(run / "recipe.yaml")
        return _train(open_run(run), None, console)
    require_free(run)
    device = pick_device(recipe)
    set_threads(recipe)
    sets = open_sets(recipe.data, console)
    require_learnable(recipe, sets)
    plan = _plan(recipe, sets.joined, run, console)
    source = clip_source(recipe, sets, device, console)
    folder = make_run(run, recipe, sets.contract)
    write_json_atomic(run / PLAN_FILE, plan)
    return _train(folder, (sets, source), console)


def smoke_test(recipe_path: Path, overrides: list[str], console: Console) -> None:
    """Prove in about a minute that a recipe trains (smoke.py), in one process, from pixels; neither a run folder nor a
    latent cache is made.

    Raises:
        UserError: as `train`, and a proof that fails.
    """
    from xwam_ft.train.smoke import smoke

    one = ["trainer.devices=1", "trainer.nodes=1", "trainer.strategy=auto", "data.cache=none"]
    recipe = load_recipe(recipe_path, [*overrides, *one])
    refuse_released_weights(recipe)
    require_extras(recipe)
    device = pick_device(recipe)
    set_threads(recipe)
    sets = open_sets(recipe.data, console)
    require_learnable(recipe, sets)
    smoke(recipe, sets.joined, clip_source(recipe, sets, device, console, check=False), console)


def resume(run: Path, console: Console, overrides: list[str] | None = None) -> Path:
    """Go on with a run from its newest checkpoint, to the same weights as if it had not been stopped.

    Args:
        overrides: `a.b=c` strings of keys that the result does not depend on (folder.FREE, CUT); this call's alone.

    Raises:
        UserError: not a run folder, a damaged checkpoint, another contract, backbone, shard set or recipe, or an
            override that would change the result.
    """
    folder = open_run(run, overrides)
    refuse_released_weights(folder.recipe)
    require_extras(folder.recipe)
    set_threads(folder.recipe)
    if _first_rank():
        at = folder.checkpoint.state.step if folder.checkpoint else 0
        console.print(f"resuming {run} at step {at} of {folder.recipe.trainer.max_steps}")
    return _train(folder, None, console)


def encode_shards(shards: Path, recipe_path: Path, overrides: list[str], console: Console) -> LatentCache:
    """Make the latent cache of a shard set by a recipe.

    Where `shards` is one of several sets that the recipe names, the cache is that of training on all of them, under
    the contract they share; otherwise that of training on this one alone.

    Raises:
        UserError: as `train`, for what concerns shards and backbone.
    """
    recipe = load_recipe(recipe_path, overrides)
    several = len(recipe.data.sources) > 1
    among = several and shards.resolve() in [Path(source.path).resolve() for source in recipe.data.sources]
    data = recipe.data.model_copy(update={"cache": "auto", **({} if among else {"shards": str(shards)})})
    recipe = recipe.model_copy(update={"data": data})
    refuse_released_weights(recipe)
    device = pick_device(recipe)
    set_threads(recipe)
    [shard_set] = [one for one in open_sets(data, console).sets if one.folder.resolve() == shards.resolve()]
    cache = _cache(recipe, shard_set, device, console)
    console.print(f"latent cache: {len(cache.clips)} clips in {cache.folder}", soft_wrap=True)
    place = "" if among else f" --set data.shards={shards}"
    console.print(f"next: xwam-ft train {recipe_path}{place}", soft_wrap=True)
    return cache


def refuse_released_weights(recipe: Recipe) -> None:
    """Raise a `UserError` where the backbone is a checkpoint that was not imported yet, by its hub id or its files."""
    from xwam_ft.model.backbone import refuse_unimported

    path = recipe.backbone.path
    if path.startswith(RELEASED) and not Path(path).exists():
        raise UserError(
            f"{path} holds X-WAM's own checkpoints, which are imported once before they are trained",
            "backbone.path",
            "download one, run python data_tools/import_xwam.py CKPT OUT --vae-text FOLDER, and write OUT here",
        )
    refuse_unimported(Path(path))


def require_extras(recipe: Recipe) -> None:
    """Raise a `UserError` where the recipe wants an optional package that is not installed, before any work."""
    from xwam_ft.model.quantize import require_bitsandbytes

    for key, wanted in (
        ("backbone.quantize", recipe.backbone.quantize is not None),
        ("optim.adamw_8bit", recipe.optim.adamw_8bit),
    ):
        if wanted:
            require_bitsandbytes(key)
    if "wandb" in recipe.logging.to:
        from xwam_ft.train.sinks import require_wandb

        require_wandb("logging.to")


def require_learnable(recipe: Recipe, sets: DataSets) -> None:
    """Raise a `UserError` where the recipe asks of these recordings what they do not have, before any work."""
    require_prefix_fits(recipe, sets.contract)
    episode_weights(recipe.data, sets)


def require_prefix_fits(recipe: Recipe, contract: Contract) -> None:
    """Raise a `UserError` where a clean action prefix could be a whole chunk, which leaves nothing to learn."""
    longest, steps = recipe.noise.action_prefix.max, contract.timing.action_steps
    if longest >= steps:
        raise UserError(
            f"is {longest}, and a chunk of {recipe.data.where} has {steps} actions",
            "noise.action_prefix.max",
            f"set it below {steps}; about the actions executed while the next chunk is computed is enough",
        )


def pick_device(recipe: Recipe) -> torch.device:
    """The device of this process' encoding; a `UserError` where the recipe wants a GPU and there is none."""
    import torch

    wanted = recipe.trainer.accelerator
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("is 'gpu', and no CUDA device is available", "trainer.accelerator", "set it to cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _train(folder: RunFolder, given: tuple[DataSets, ClipPool] | None, console: Console) -> Path:
    from rich.console import Console

    from xwam_ft.model.precision import chosen_precision
    from xwam_ft.train.session import Session

    if not _first_rank():
        console = Console(quiet=True)
    recipe = folder.recipe
    sets = open_sets(recipe.data, console) if given is None else given[0]
    if given is None and folder.checkpoint is not None:
        require_same_data(folder, sets.joined, identity_of(recipe, sets))  # before anything is encoded
    source = clip_source(recipe, sets, pick_device(recipe), console) if given is None else given[1]
    _print_data(recipe, sets, source, console)
    if (said := chosen_precision(recipe.trainer)[1]) is not None:
        console.print(said, soft_wrap=True)
    session = Session(folder, sets.joined, source, console)
    _print_summary(session.network, recipe, console)
    try:
        session.fit()
    except (RuntimeError, MemoryError) as error:
        from xwam_ft.train.memory import is_out_of_memory, out_of_memory

        if not is_out_of_memory(error):
            raise
        raise out_of_memory(recipe) from error
    _write_adapters(session.network, folder)
    if _first_rank():
        session.print_time()
        console.print(f"run: {folder.path}", soft_wrap=True)
        console.print(f"next: xwam-ft export {folder.path} {folder.path}-bundle", soft_wrap=True)
    return folder.path


def _plan(recipe: Recipe, shard_set: ShardSet, run: Path, console: Console) -> dict[str, Any]:
    """Refuse shapes that do not go together before any weight is loaded; say what is likely to disappoint."""
    from xwam_ft.train.plan import make_plan

    plan = make_plan(recipe, shard_set, run)
    for sentence in plan.warnings:
        console.print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)
    return plan.to_json()


def clip_source(
    recipe: Recipe, sets: DataSets, device: torch.device, console: Console, *, check: bool = True
) -> ClipPool:
    """What training reads: the latent cache of each shard set, made where it is missing, or their pixels.

    Args:
        check: that shards are sound, before pixels are read from them; a cache was made of sound ones.

    Raises:
        UserError: as `encode`; weights that leave nothing to show.
    """
    from xwam_ft.train.clip_source import ClipPool

    if recipe.data.cache == "none":
        from xwam_ft.train.pixels import open_pixels

        if check and recipe.data.on_corrupt == "stop":  # otherwise each was looked at when the set was opened
            for one in sets.sets:
                require_sound(one, console)
        return ClipPool(open_pixels(recipe, sets.sets, device, console), sets, recipe.data)
    return ClipPool([_cache(recipe, one, device, console) for one in sets.sets], sets, recipe.data)


def identity_of(recipe: Recipe, sets: DataSets) -> CacheIdentity:
    """What the numbers that are trained on depend on."""
    from xwam_ft.train.clip_source import joint_identity
    from xwam_ft.train.encode import identify

    return joint_identity([identify(recipe, one) for one in sets.sets])


def _cache(recipe: Recipe, shard_set: ShardSet, device: torch.device, console: Console) -> LatentCache:
    from xwam_ft.train.encode import encode, identify

    if _first_rank():
        return encode(recipe, shard_set, device, console)
    folder = identify(recipe, shard_set).folder(shard_set.folder)
    _wait_for(folder / INDEX_FILE)
    return LatentCache.open(folder, verify=False)  # the first rank does


def _print_data(recipe: Recipe, sets: DataSets, source: ClipPool, console: Console) -> None:
    """Where the clips come from, and of several sets how often each is shown."""
    if recipe.data.cache != "none":
        later = "; the VAE is, once held-out clips are validated" if source.of_split("held_out") else ""
        console.print(f"training from the latent cache: VAE and text encoder are not loaded{later}", soft_wrap=True)
    if len(sets.sets) > 1:
        shares = (f"{name} {100 * share:.3g} % ({clips} clips)" for name, clips, share in source.shares())
        console.print(f"clips shown: {', '.join(shares)}", soft_wrap=True)


def _write_adapters(network: JointNetwork, folder: RunFolder) -> None:
    """The last weights of the transformer's LoRA, the main stream's and the depth branch's, in peft folders."""
    from xwam_ft.files import atomic_folder
    from xwam_ft.model.adapters import write_peft_adapter
    from xwam_ft.model.branch import DEPTH, MAIN
    from xwam_ft.train.sharding import gathered

    adapters = {name: value for name, value in network.transformer.named_parameters() if ".lora_" in name}
    state = gathered(adapters, _first_rank())
    if not _first_rank():
        return
    held = getattr(network.transformer, "peft_config", {})
    for name, adapter in ((ADAPTER, MAIN), (DEPTH_ADAPTER, DEPTH)):
        target = folder.path / name
        if adapter in held and not target.exists():
            with atomic_folder(target) as temporary:
                write_peft_adapter(network, temporary, folder.recipe.backbone.path, adapter=adapter, state=state)


def _print_summary(network: JointNetwork, recipe: Recipe, console: Console) -> None:
    """What the network holds and trains, and the memory it takes beside activations."""
    from xwam_ft.model.summary import memory_need, summary_table

    table = Table("part", "parameters", "trained", "dtype", "memory", title="network")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = summary_table(network)
    for row in rows:
        counts = f"{row.parameters:,}", f"{row.trainable:,}"
        table.add_row(row.group, *counts, ", ".join(row.dtypes), _size(row.bytes))
    total, trained = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    optim = recipe.optim
    need = memory_need(rows, adamw_8bit=optim.adamw_8bit, average=optim.ema_decay is not None)
    table.add_row("all", f"{total:,}", f"{trained:,}", "", _size(need.weights), end_section=True)
    for what, size in (("gradients", need.gradients), ("AdamW", need.optimizer), ("averaged weights", need.average)):
        table.add_row(what, "", "", "", _size(size))
    table.add_row("in all, activations apart", "", "", "", _size(need.total))
    console.print(table)


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _first_rank() -> bool:
    """Whether this process prints and writes; read from what Lightning, torchrun and SLURM set for each rank."""
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"))


def _wait_for(path: Path) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not path.is_file():
        if time.monotonic() > until:
            raise UserError("did not appear", path, "look at what the first rank printed")
        time.sleep(1.0)


def set_threads(recipe: Recipe) -> None:
    import torch

    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
