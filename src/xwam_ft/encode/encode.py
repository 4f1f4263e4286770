"""Shards -> the latent cache (see cache.py): every clip on the stride, every instruction, once.

A segment's file is written whole or not at all, and depends on that segment alone, so a stopped encoding goes on
where it was and ends with the same bytes. Pictures take the contract's centre crop, as at deployment; with
`data.augment` training clips are cached as several augmented copies instead.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xwam_ft.encode.cache import (
    EMPTY_PROMPT,
    INDEX_FILE,
    PROMPTS_FILE,
    CachedClip,
    CachedFile,
    CacheIdentity,
    LatentCache,
    cache_identity,
    cache_place,
    stale_caches,
)
from xwam_ft.encode.clip_tensors import augmentation_of, encode_clips
from xwam_ft.encode.data_sets import require_sound
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, disk_errors, write_json_atomic
from xwam_ft.locks import sole_writer
from xwam_ft.progress import progress_bar
from xwam_ft.shards import cut_clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import SegmentEntry, ShardSet


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


def identify(recipe: Recipe, shard_set: ShardSet) -> CacheIdentity:
    """The identity of the cache this recipe trains from."""
    from xwam_ft.model.backbone import part_fingerprints

    spec = recipe.backbone
    prints = part_fingerprints(spec.path, ("vae", "text"), revision=spec.revision)
    return cache_identity(
        "/".join(prints[part] for part in ("vae", "text")),
        shard_set,
        recipe.data,
        spec.dtype,
        wants_depth(recipe, shard_set.contract),
    )


def encode(recipe: Recipe, shard_set: ShardSet, device: torch.device, console: Console) -> LatentCache:
    """Make the latent cache of a shard set where it is missing or incomplete, then open it.

    Raises:
        UserError: a shard or a cached file is damaged, the pictures do not fit the VAE, the split is empty, the disk
            is full, or the recipe requires a cache and only others are there (says what they were made with).
    """
    identity = identify(recipe, shard_set)
    place = cache_place(recipe.data, shard_set.folder)
    folder = identity.folder(place)
    plan = plan_segments(shard_set, recipe.data.clip_stride, recipe.data.copies)
    files = [PROMPTS_FILE, *(part.file for part in plan)]
    if not all((folder / name).is_file() for name in (*files, INDEX_FILE)):
        stale = "; ".join(stale_caches(place, identity)) if not folder.exists() else ""
        if recipe.data.cache == "require":
            raise UserError(
                f"holds no latent cache of this recipe{': ' if stale else ''}{stale}",
                place,
                "restore what has changed, make one with `xwam-ft encode`, or set data.cache: auto",
            )
        if stale:
            console.print(f"another latent cache is made: {stale}", soft_wrap=True)
        if recipe.data.on_corrupt == "stop":  # otherwise each one was looked at when the set was opened
            require_sound(shard_set, console)
        with disk_errors(
            folder,
            kept=lambda: f"what is encoded stays in {folder}",
            then="; then run the same command again",
            forbidden="keep the latent cache elsewhere, --set data.cache_dir=FOLDER, or train from pixels without one, "
            "--set data.cache=none",
        ):
            place.mkdir(parents=True, exist_ok=True)
            if not os.access(place, os.W_OK):
                number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
                raise OSError(number, os.strerror(number), str(place))
            with sole_writer(folder, "encoding it"):
                _make(recipe, shard_set, identity, folder, plan, device, console)
    with progress_bar(
        console, "check cache", "bytes", sum((folder / name).stat().st_size for name in files)
    ) as advance:
        return LatentCache.open(folder, advance)


def _make(
    recipe: Recipe,
    shard_set: ShardSet,
    identity: CacheIdentity,
    folder: Path,
    plan: Plan,
    device: torch.device,
    console: Console,
) -> None:
    from xwam_ft.model.backbone import load_backbone

    contract, spec = shard_set.contract, recipe.backbone
    backbone = load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision)
    image, timing = contract.image, contract.timing
    shape = backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
    total = sum(len(part.rows) for part in plan)
    missing = sum(len(part.rows) for part in plan if not (folder / part.file).is_file())
    clip = _latent_bytes(shape, spec.dtype, identity.with_depth)
    console.print(
        f"latent cache: {total} clips{_copies(recipe)}, about {total * clip / 1e6:.1f} MB in {folder}", soft_wrap=True
    )
    _require_space(folder, missing * clip)
    prompts = sorted({EMPTY_PROMPT, *contract.prompts, *(text for part in plan for text in part.texts)})
    if not (folder / PROMPTS_FILE).is_file():
        embeddings = embed_instructions(recipe, prompts, device, console, folder)
        folder.mkdir(exist_ok=True)
        _save({"embeddings": embeddings}, folder / PROMPTS_FILE, spec.dtype)
        del embeddings
    backbone = backbone.to(device)  # now: the text encoder, four times its size, is gone from there
    with progress_bar(console, "encode clips", "clips", total) as advance:
        for part in plan:
            path = folder / part.file
            if not path.is_file():
                segment = shard_set.read(part.entry)
                rows: list[dict[str, Tensor]] = []
                for first in range(0, len(part.rows), recipe.data.encode_batch):
                    chosen = part.rows[first : first + recipe.data.encode_batch]
                    clips = [cut_clip(segment, start, timing) for start, _ in chosen]
                    changes = [
                        augmentation_of(recipe, contract, clip.key, part.entry.split, copy)
                        for clip, (_, copy) in zip(clips, chosen, strict=True)
                    ]
                    rows.append(
                        encode_clips(clips, contract, backbone, with_depth=identity.with_depth, augmentations=changes)
                    )
                    advance(len(clips))
                _save({name: torch.cat([row[name] for row in rows]) for name in rows[0]}, path, spec.dtype)
            else:
                advance(len(part.rows))
    clips = [clip for part in plan for clip in part.cached()]
    files = [CachedFile.of(folder, folder / name) for name in (PROMPTS_FILE, *(part.file for part in plan))]
    index = {
        "identity": asdict(identity),
        "prompts": prompts,
        "clips": [asdict(clip) for clip in clips],
        "files": [asdict(file) for file in files],
    }
    write_json_atomic(folder / INDEX_FILE, index)


@dataclass(frozen=True)
class SegmentPlan:
    """The clips of one segment that are cached."""

    entry: SegmentEntry
    instruction: str
    wordings: tuple[str, ...]  # of it, where there are several
    starts: list[int]
    copies: int  # of every clip

    @property
    def file(self) -> str:
        return f"segments/{self.entry.key}.safetensors"

    @property
    def texts(self) -> tuple[str, ...]:
        return self.wordings or (self.instruction,)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(start, copy) of every row of the file."""
        return [(start, copy) for start in self.starts for copy in range(self.copies)]

    def cached(self) -> list[CachedClip]:
        keys = [f"{self.entry.key}-{start:06d}" for start in self.starts]
        return [
            CachedClip(
                key, self.file, place * self.copies, self.entry.split, self.instruction, self.copies, self.wordings
            )
            for place, key in enumerate(keys)
        ]


Plan = list[SegmentPlan]


def plan_segments(shard_set: ShardSet, stride: int, copies: int) -> Plan:
    """Every segment that owns a clip start on the stride, in the order of the index."""
    plan: dict[str, SegmentPlan] = {}
    for reference in shard_set.clips(None, stride):
        entry = reference.entry
        number = copies if entry.split == "train" else 1
        if entry.key not in plan:
            episode = shard_set.episode(entry.episode)
            plan[entry.key] = SegmentPlan(entry, episode.instruction, episode.instructions, [], number)
        plan[entry.key].starts.append(reference.start)
    if not any(part.entry.split == "train" for part in plan.values()):
        raise UserError("holds no clips to train on", shard_set.folder, "prepare more or longer recordings")
    return list(plan.values())


def _save(tensors: dict[str, Tensor], path: Path, dtype: str) -> None:
    """Latents and embeddings in the backbone's dtype, motion and masks as they are."""
    from safetensors.torch import save_file

    stored = {
        name: tensor.to(getattr(torch, dtype)) if name in ("rgb", "depth", "embeddings") else tensor
        for name, tensor in tensors.items()
    }
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}, temporary)


def _copies(recipe: Recipe) -> str:
    return f" ({recipe.data.copies} augmented copies of those that train)" if recipe.data.augment.active else ""


def _latent_bytes(shape: tuple[int, ...], dtype: str, with_depth: bool) -> int:
    """Bytes of one cached clip, its small motion tables left out."""
    return int(np.prod(shape)) * (2 if dtype == "bfloat16" else 4) * (2 if with_depth else 1)


def embed_instructions(
    recipe: Recipe, prompts: Sequence[str], device: torch.device, console: Console, folder: Path | None = None
) -> Float[Tensor, "n s dt"]:
    """Embeddings of instructions in the backbone's dtype, on the CPU; the text encoder is loaded meanwhile.

    Args:
        folder: where they will be written, which must have room.

    Raises:
        UserError: as `load_backbone` and `embed_prompts`; too little room.
    """
    from xwam_ft.model.backbone import load_backbone
    from xwam_ft.model.embed import embed_prompts

    spec = recipe.backbone
    text = load_backbone(spec.path, dtype=spec.dtype, parts=("text",), revision=spec.revision).to(device)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if folder is not None:
        _require_space(folder, len(prompts) * text.text_len * int(text.text_encoder.config.d_model) * dtype.itemsize)
    with progress_bar(console, "embed instructions", "texts", len(prompts)) as advance:
        embeddings = embed_prompts(text, prompts, dtype, advance)
    del text
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return embeddings


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        raise UserError(
            f"needs about {size / 1e6:,.1f} MB more, and {free / 1e6:,.1f} MB are free",
            folder,
            "free some space, raise data.clip_stride, or lower data.augment.copies where it is set",
        )
