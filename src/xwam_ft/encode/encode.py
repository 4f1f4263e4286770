"""Shards -> the latent cache (see cache.py): every clip on the stride, every instruction, once.

A segment's file is written whole or not at all, and depends on that segment alone, so a stopped encoding goes on
where it was and ends with the same bytes. Pictures take the contract's centre crop, as at deployment; with
`data.augment` training clips are cached as several augmented copies instead.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xwam_ft import remote
from xwam_ft.encode.cache import (
    EMPTY_PROMPT,
    INDEX_FILE,
    PROMPTS_FILE,
    CacheIdentity,
    LatentCache,
    cache_identity,
    cache_place,
    stale_caches,
)
from xwam_ft.encode.cache_files import CacheFiles
from xwam_ft.encode.data_sets import require_sound
from xwam_ft.encode.ray_segments import Nodes
from xwam_ft.encode.segments import Encoding, Plan, plan_segments, write_segments
from xwam_ft.errors import UserError, spelled
from xwam_ft.files import disk_errors, json_bytes, write_json_atomic
from xwam_ft.locks import sole_writer
from xwam_ft.model.tensor_files.stream import write_rows
from xwam_ft.progress import progress_bar
from xwam_ft.ray_cluster import connected

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from jaxtyping import Float
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import ShardSet


STARTED = "started.json"
"""At a URL: the identity of a cache that is being made there."""


def wants_depth(recipe: Recipe, contract: Contract) -> bool:
    """Whether this run trains a depth branch.

    Raises:
        UserError: the recipe asks for one and the shards hold no depth.
    """
    if recipe.model.branch_on(depth=contract.depth.kind != "none") == "none":
        return False
    if contract.depth.kind == "none":
        raise UserError(
            f"model.depth.branch is {recipe.model.depth.branch!r}, but the shards hold no depth",
            recipe.data.where,
            "set model.depth.branch to none, or prepare the recordings with --depth",
        )
    return True


def identify(recipe: Recipe, shard_set: ShardSet, console: Console | None = None) -> CacheIdentity:
    """The identity of the cache this recipe trains from; `console` is shown how far the hashing of weights is."""
    from xwam_ft.model.backbone import part_fingerprints

    spec = recipe.backbone
    prints = part_fingerprints(spec.path, ("vae", "text"), revision=spec.revision, console=console)
    return cache_identity(
        "/".join(prints[part] for part in ("vae", "text")),
        shard_set,
        recipe.data,
        spec.dtype,
        wants_depth(recipe, shard_set.contract),
    )


def encode(
    recipe: Recipe,
    shard_set: ShardSet,
    device: torch.device,
    console: Console,
    workers: int | None = None,
    ray: str | None = None,
) -> LatentCache:
    """Make the latent cache of a shard set where it is missing or incomplete, then open it.

    Args:
        workers: processes that encode; default one a GPU of the run (`gpus_of`), or of the cluster.
        ray: address of a Ray cluster that they are of.

    Raises:
        UserError: a shard or a cached file is damaged, the pictures do not fit the VAE, the split is empty, the disk
            is full, or the recipe requires a cache and only others are there (says what they were made with).
    """
    identity = identify(recipe, shard_set, console)
    place = cache_place(recipe.data, shard_set.folder)
    folder = identity.folder(place)
    plan = plan_segments(shard_set, recipe.data.clip_stride, recipe.data.copies)
    files, there = [PROMPTS_FILE, *(part.file for part in plan)], CacheFiles(folder)
    found = there.there((*files, INDEX_FILE))
    if len(found) < len(files) + 1:
        stale = "; ".join(stale_caches(place, identity)) if not found else ""
        if recipe.data.cache == "require":
            raise UserError(
                f"holds no latent cache of this recipe{': ' if stale else ''}{stale}",
                place,
                "restore what has changed, make one with `xwam-ft encode`, or set data.cache: auto",
            )
        if stale:
            console.print(f"another latent cache is made: {stale}", soft_wrap=True)
        with nullcontext() if ray is None else connected(ray) as cluster:
            on = None if cluster is None else Nodes.of(cluster, recipe, workers)
            if recipe.data.on_corrupt == "stop":  # otherwise each one was looked at when the set was opened
                require_sound(shard_set, console, None if on is None else on.damages)
            with _writing(place, identity, there):
                _make(
                    recipe, shard_set, identity, there, plan, device, on or workers or gpus_of(recipe, device), console
                )
    if there.far:
        shutil.rmtree(there.spool, ignore_errors=True)
        return LatentCache.open(folder, local_gb=recipe.data.local_gb)
    with progress_bar(
        console, "check cache", "bytes", sum((folder / name).stat().st_size for name in files)
    ) as advance:
        return LatentCache.open(folder, advance)


@contextmanager
def _writing(place: Path, identity: CacheIdentity, files: CacheFiles) -> Generator[None]:
    """While a cache is made in a place; says so where it may not be written."""
    folder = files.folder
    with disk_errors(
        folder,
        kept=lambda: f"what is encoded stays in {folder}",
        then="; then run the same command again",
        forbidden="keep the latent cache elsewhere, --set data.cache_dir=FOLDER, or train from pixels without one, "
        "--set data.cache=none",
    ):
        if files.far:
            _begin(folder, identity)
        files.spool.parent.mkdir(parents=True, exist_ok=True)
        if not files.far and not os.access(place, os.W_OK):
            number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), str(place))
        with sole_writer(files.spool, "encoding it"):
            yield


def _begin(folder: Path, identity: CacheIdentity) -> None:
    """Say at a URL what is made there, before hours are spent on it.

    Raises:
        UserError: it may not be written to.
    """
    try:
        remote.put_bytes(json_bytes(asdict(identity)), folder / STARTED)
    except UserError as error:
        elsewhere = "keep the latent cache elsewhere (--set data.cache_dir=FOLDER), or train without (data.cache=none)"
        raise UserError(error.what, error.where, f"{elsewhere}; or: {error.fix}") from None


def gpus_of(recipe: Recipe, device: torch.device) -> int:
    """The GPUs of this machine that a run is on; 1 on a CPU, where torch's threads share the work."""
    if device.type != "cuda":
        return 1
    wanted, here = recipe.trainer.devices, torch.cuda.device_count()
    return here if wanted == "auto" else min(wanted, here)


def _make(
    recipe: Recipe,
    shard_set: ShardSet,
    identity: CacheIdentity,
    files: CacheFiles,
    plan: Plan,
    device: torch.device,
    on: Nodes | int,
    console: Console,
) -> None:
    from xwam_ft.model.backbone import load_backbone

    contract, spec, folder = shard_set.contract, recipe.backbone, files.folder
    backbone = load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision)
    image, timing = contract.image, contract.timing
    shape = backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
    total = sum(len(part.rows) for part in plan)
    there = files.there([PROMPTS_FILE, *(part.file for part in plan)])
    missing = sum(len(part.rows) for part in plan if part.file not in there)
    clip = _latent_bytes(shape, spec.dtype, identity.with_depth)
    console.print(
        f"latent cache: {total} clips{_copies(recipe)}, about {total * clip / 1e6:.1f} MB in {spelled(folder)}",
        soft_wrap=True,
    )
    if not files.far:
        _require_space(folder, missing * clip)
    prompts = sorted({EMPTY_PROMPT, *contract.prompts, *(text for part in plan for text in part.texts)})
    if PROMPTS_FILE not in there:
        rows = embed_instructions(recipe, prompts, device, console, None if files.far else folder)
        files.write(PROMPTS_FILE, lambda path: write_rows(path, "embeddings", rows, len(prompts)))
    # Only now, when the text encoder, four times the VAE's size, is gone from there.
    threads = max(1, torch.get_num_threads() // on) if isinstance(on, int) and device.type == "cpu" else 0
    encoding = Encoding(recipe, shard_set, files, device.type, identity.with_depth, threads)
    with progress_bar(console, "encode clips", "clips", total) as advance:
        if isinstance(on, int):
            write_segments(encoding, plan, backbone, on, advance)
        else:
            on.write(encoding, plan, advance, console)
    clips = [clip for part in plan for clip in part.cached()]
    written = files.known([PROMPTS_FILE, *(part.file for part in plan)])
    index = {
        "identity": asdict(identity),
        "prompts": prompts,
        "clips": [asdict(clip) for clip in clips],
        "files": [asdict(file) for file in written],
    }
    if files.far:
        remote.put_bytes(json_bytes(index), folder / INDEX_FILE)
    else:
        write_json_atomic(folder / INDEX_FILE, index)


def _copies(recipe: Recipe) -> str:
    return f" ({recipe.data.copies} augmented copies of those that train)" if recipe.data.augment.active else ""


def _latent_bytes(shape: tuple[int, ...], dtype: str, with_depth: bool) -> int:
    """Bytes of one cached clip, its small motion tables left out."""
    return int(np.prod(shape)) * (2 if dtype == "bfloat16" else 4) * (2 if with_depth else 1)


def embed_instructions(
    recipe: Recipe, prompts: Sequence[str], device: torch.device, console: Console, folder: Path | None = None
) -> Iterator[Float[Tensor, "s dt"]]:
    """Embeddings of instructions in the backbone's dtype, on the CPU, each as it is asked for.

    The text encoder is loaded from the first to the last.

    Args:
        folder: where they will be written, which must have room.

    Raises:
        UserError: as `load_backbone` and `each_embedded`; too little room.
    """
    from xwam_ft.model.backbone import load_backbone
    from xwam_ft.model.embed import each_embedded

    spec = recipe.backbone
    text = load_backbone(spec.path, dtype=spec.dtype, parts=("text",), revision=spec.revision).to(device)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if folder is not None:
        _require_space(folder, len(prompts) * text.text_len * int(text.text_encoder.config.d_model) * dtype.itemsize)
    with progress_bar(console, "embed instructions", "texts", len(prompts)) as advance:
        yield from each_embedded(text, prompts, dtype, advance)
    del text
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        raise UserError(
            f"needs about {size / 1e6:,.1f} MB more, and {free / 1e6:,.1f} MB are free",
            folder,
            "free some space, raise data.clip_stride, or lower data.augment.copies where it is set",
        )
