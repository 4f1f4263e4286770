"""What a recipe reads, opened and checked before any work: the one preflight of plan, encode, train and resume.

Several devices: every process comes through here. The first rank makes the latent cache; the others wait for it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from xwam_ft import hub, remote
from xwam_ft.contract import load_contract
from xwam_ft.encode.cache import INDEX_FILE, LatentCache, cache_place
from xwam_ft.encode.data_sets import DataSets, episode_weights, open_sets, require_sound
from xwam_ft.encode.inherit import inherit
from xwam_ft.errors import UserError, require_installed, spelled
from xwam_ft.machine import require_supported
from xwam_ft.places import neither, run_at
from xwam_ft.shards import CONTRACT_FILE

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from xwam_ft.contract import Contract
    from xwam_ft.encode.cache import CacheIdentity
    from xwam_ft.encode.clip_source import ClipPool
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet

RELEASED = "sharinka0715/X-WAM"
WAIT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Inputs:
    """A recipe and the shard sets it names. `console` is told what is made; quiet where nobody asked."""

    recipe: Recipe
    sets: DataSets
    console: Console

    @property
    def contract(self) -> Contract:
        return self.sets.contract

    @property
    def shard_set(self) -> ShardSet:
        """All sets as one."""
        return self.sets.joined

    @cached_property
    def device(self) -> torch.device:
        """Where this process encodes.

        Raises:
            UserError: the recipe wants a GPU and there is none.
        """
        import torch

        wanted = self.recipe.trainer.accelerator
        if wanted == "gpu" and not torch.cuda.is_available():
            raise UserError("is 'gpu', and no CUDA device is available", "trainer.accelerator", "set it to cpu or auto")
        return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

    @cached_property
    def identity(self) -> CacheIdentity:
        """What the numbers that are trained on depend on."""
        from xwam_ft.encode.clip_source import joint_identity
        from xwam_ft.encode.encode import identify

        return joint_identity([identify(self.recipe, one, self.console) for one in self.sets.sets])

    def clips(self, *, check: bool = True) -> ClipPool:
        """The latent cache of each shard set, made where it is missing, or with `data.cache: none` their pixels.

        Args:
            check: that shards are sound, before pixels are read from them; a cache was made of sound ones.

        Raises:
            UserError: as `encode`; weights that leave nothing to show.
        """
        from xwam_ft.encode.clip_source import ClipPool

        recipe, sets = self.recipe, self.sets
        if recipe.data.cache != "none":
            return ClipPool([self.cache(one) for one in sets.sets], sets, recipe.data)
        from xwam_ft.encode.pixels import open_pixels

        if check and recipe.data.on_corrupt == "stop":  # otherwise each was looked at when the set was opened
            for one in sets.sets:
                if not remote.url_of(one.folder):  # there sizes were compared, and what comes is checked as it comes
                    require_sound(one, self.console)
        return ClipPool(open_pixels(recipe, sets.sets, self.device, self.console), sets, recipe.data)

    def cache(self, shard_set: ShardSet, workers: int | None = None, ray: str | None = None) -> LatentCache:
        """The latent cache of one of the sets; `workers` and `ray` as in `encode.encode`."""
        import torch

        from xwam_ft.encode.encode import encode, identify

        if first_rank():
            # With Ray this machine needs no GPU: it embeds the instructions and gives the work.
            device = torch.device("cpu") if ray is not None and not torch.cuda.is_available() else self.device
            return encode(self.recipe, shard_set, device, self.console, workers, ray)
        folder = identify(self.recipe, shard_set).folder(cache_place(self.recipe.data, shard_set.folder))
        wait_for(folder / INDEX_FILE)
        return LatentCache.open(folder, verify=False, local_gb=self.recipe.data.local_gb)  # the first rank does


def open_inputs(
    recipe: Recipe, console: Console | None = None, *, computes: bool = True, under: tuple[Contract, Path] | None = None
) -> Inputs:
    """Open what a recipe reads and refuse what cannot work; loads no weight.

    Args:
        computes: False where nothing of the recipe is computed here (a plan): then neither the device nor optional
            packages that it names need be here.
        under: the contract of the run that goes on, where its shards do not say all of it, and where it lies; default
            theirs, with the quantiles of what `init_from` names as far as they fit.

    Raises:
        UserError: weights that were not imported, a package or device that is not here, shard sets that are unfinished,
            damaged or do not go together, and what the recipe asks of recordings that do not have it.
    """
    from rich.console import Console

    require_supported()
    shown = console or Console(quiet=True)
    recipe = _on_its_own_backbone(recipe, shown)
    if computes:
        _require_extras(recipe)
    if computes and under is None:
        recipe = _pinned(recipe, shown)
    if recipe.trainer.threads:
        import torch

        torch.set_num_threads(recipe.trainer.threads)
    sets = open_sets(recipe.data, shown if console else None, under)
    episode_weights(recipe.data, sets)
    _require_prefix_fits(recipe, sets.contract)
    if recipe.init_from is not None and under is None:
        sets = sets.under(_started(recipe, sets.contract))
    inputs = Inputs(recipe, sets, shown)
    if computes:
        _ = inputs.device
    return inputs


def _pinned(recipe: Recipe, console: Console) -> Recipe:
    """The recipe with the commits of what it takes from the Hub, so that its run goes on with the very same.

    Raises:
        UserError: what it names is not on the Hub, or there is no network and it was never fetched.
    """
    backbone, origin = recipe.backbone, recipe.init_from
    if (repo := hub.repo_of(backbone.path, "model")) is not None:
        repo = replace(repo, revision=repo.revision or backbone.revision)
        backbone = backbone.model_copy(update={"path": repo.id, "revision": hub.pinned(repo, console).revision})
    if origin is not None and (repo := hub.repo_of(origin, "model")) is not None:
        origin = str(hub.pinned(repo, console))
    return recipe.model_copy(update={"backbone": backbone, "init_from": origin})


def _on_its_own_backbone(recipe: Recipe, console: Console) -> Recipe:
    """The recipe, where a bundle stands in the backbone's place as one that starts from what it learned.

    Raises:
        UserError: the backbone is a checkpoint that was not imported yet, by its hub id or its files; or a bundle
            beside `init_from`.
    """
    from xwam_ft.model.folder_check import refuse_unimported
    from xwam_ft.model.tensor_files.source import bundle_backbone

    place = path = recipe.backbone.path
    backbone = bundle_backbone(Path(place)) if recipe.init_from is None else None
    if backbone is not None:
        console.print(
            f"{place} is a bundle, not a backbone: training starts from what it learned, on its backbone {backbone}, "
            f"as with --init {quote(place)}",
            soft_wrap=True,
            markup=False,
        )
        path = backbone
        spec = recipe.backbone.model_copy(update={"path": path})
        recipe = recipe.model_copy(update={"backbone": spec, "init_from": place})
    if path.startswith(RELEASED) and not Path(path).exists():
        raise UserError(
            f"{path} holds X-WAM's own checkpoints, which are imported once before they are trained",
            "backbone.path",
            "download one, run python data_tools/import_xwam.py CKPT OUT --vae-text FOLDER, and write OUT here",
        )
    refuse_unimported(Path(path))
    return recipe


def _started(recipe: Recipe, contract: Contract) -> Contract:
    """The contract of recordings for a network that starts from another: the quantiles it knows, where they fit."""
    assert recipe.init_from is not None
    repo = hub.repo_of(recipe.init_from, "model")
    folder = run_at(recipe.init_from)[0] if repo is None else hub.fetch(repo, allow=[CONTRACT_FILE])
    if not (folder / CONTRACT_FILE).is_file():
        raise neither(recipe.init_from if repo is None else folder)
    return inherit(contract, load_contract(folder / CONTRACT_FILE), recipe.init_quantiles)[0]


def encode_shards(
    shards: Path, recipe: Recipe, console: Console, workers: int | None = None, ray: str | None = None
) -> LatentCache:
    """Make the latent cache of a shard set by a recipe; `workers` and `ray` as in `encode.encode`.

    Where `shards` is one of several sets that the recipe names, the cache is that of training on all of them, under
    the contract they share; otherwise that of training on this one alone.

    Raises:
        UserError: as training, for what concerns shards and backbone.
    """
    if ray is not None:
        require_installed("ray", "ray", "--ray")
    shards = remote.absolute(shards)
    named = [remote.absolute(source.path) for source in recipe.data.sources]
    alone = {} if len(named) > 1 and shards in named else {"shards": spelled(shards), "episode_weights": []}
    data = recipe.data.model_copy(update={"cache": "auto", **alone})
    inputs = open_inputs(recipe.model_copy(update={"data": data}), console, computes=False)
    [shard_set] = [one for one in inputs.sets.sets if remote.absolute(one.folder) == shards]
    cache = inputs.cache(shard_set, workers, ray)
    console.print(f"latent cache: {len(cache.clips)} clips in {spelled(cache.folder)}", soft_wrap=True, markup=False)
    return cache


def first_rank() -> bool:
    """Whether this process prints and writes; read from what Lightning, torchrun and SLURM set for each rank."""
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"))


def wait_for(path: Path) -> None:
    """Wait for a file that the first rank makes."""
    until = time.monotonic() + WAIT_SECONDS
    while not remote.is_file(path):
        if time.monotonic() > until:
            raise UserError("did not appear", path, "look at what the first rank printed")
        time.sleep(10.0 if remote.url_of(path) else 1.0)


def _require_extras(recipe: Recipe) -> None:
    """Raise a `UserError` where the recipe wants an optional package that is not installed."""
    from xwam_ft.model.quantize import require_bitsandbytes

    for key, wanted in (
        ("backbone.quantize", recipe.backbone.quantize is not None),
        ("optim.adamw_8bit", recipe.optim.adamw_8bit),
    ):
        if wanted:
            require_bitsandbytes(key)
    if "wandb" in recipe.logging.to:
        require_installed("wandb", "wandb", "logging.to")


def _require_prefix_fits(recipe: Recipe, contract: Contract) -> None:
    """Raise a `UserError` where a clean action prefix could be a whole chunk, which leaves nothing to learn."""
    longest, steps = recipe.noise.action_prefix.max, contract.timing.action_steps
    if longest >= steps:
        raise UserError(
            f"is {longest}, and a chunk of {recipe.data.where} has {steps} actions",
            "noise.action_prefix.max",
            f"set it below {steps}; about the actions executed while the next chunk is computed is enough",
        )
