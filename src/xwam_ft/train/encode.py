"""Shards -> the latent cache (see cache.py): every clip on the stride, every instruction, once.

A segment's file is written whole or not at all, and depends on that segment alone, so a stopped encoding goes on
where it was and ends with the same bytes. Pictures take the contract's centre crop, as at deployment; with
`data.augment` training clips are cached as several augmented copies instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xwam_ft.conventions import (
    command_to_action_mask,
    encode_actions,
    normalise_action,
    normalise_proprio,
    state_mask,
)
from xwam_ft.depth_code import code_to_picture, latent_mask
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, write_json_atomic
from xwam_ft.progress import progress_bar
from xwam_ft.shards import cut_clip
from xwam_ft.train.augment import Augmentation, augmentation, centred
from xwam_ft.train.cache import (
    EMPTY_PROMPT,
    INDEX_FILE,
    PROMPTS_FILE,
    CachedClip,
    CachedFile,
    CacheIdentity,
    LatentCache,
    cache_identity,
)

if TYPE_CHECKING:
    from jaxtyping import Float, UInt16
    from numpy import ndarray
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.recipe import Recipe
    from xwam_ft.shards import Clip, SegmentEntry, ShardSet, Split

WORTH_A_BAR = 200_000_000
"""Bytes that take a noticeable time to check."""


def wants_depth(recipe: Recipe, contract: Contract) -> bool:
    """Whether this run trains a depth branch.

    Raises:
        UserError: the recipe asks for one and the shards hold no depth.
    """
    if recipe.model.depth.branch == "none":
        return False
    if contract.depth.kind == "none":
        raise UserError(
            f"model.depth.branch is {recipe.model.depth.branch!r}, but the shards hold no depth",
            recipe.data.shards,
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
        shard_set.contract,
        shard_set.folder,
        recipe.data,
        spec.dtype,
        wants_depth(recipe, shard_set.contract),
    )


def encode(recipe: Recipe, shard_set: ShardSet, device: torch.device, console: Console) -> LatentCache:
    """Make the latent cache of a shard set where it is missing or incomplete, then open it.

    Raises:
        UserError: a cached file is damaged, the pictures do not fit the VAE, the split is empty, or the disk is full.
    """
    identity = identify(recipe, shard_set)
    folder = identity.folder(shard_set.folder)
    plan = _plan(shard_set, recipe.data.clip_stride, recipe.data.copies)
    files = [PROMPTS_FILE, *(part.file for part in plan)]
    if not all((folder / name).is_file() for name in (*files, INDEX_FILE)):
        _make(recipe, shard_set, identity, plan, device, console)
    with progress_bar(
        console, "check cache", "bytes", sum((folder / name).stat().st_size for name in files)
    ) as advance:
        return LatentCache.open(folder, advance)


def encode_clips(
    clips: Sequence[Clip],
    contract: Contract,
    backbone: Backbone,
    *,
    with_depth: bool,
    augmentations: Sequence[Augmentation] | None = None,
) -> dict[str, Tensor]:
    """Clips as they are cached, stacked along N: names and shapes as in cache.py; one VAE call each.

    Args:
        augmentations: what happens to each clip's pictures; None: the centre crop, as at deployment.
    """
    views, image = len(contract.cameras), contract.image
    if augmentations is None:
        augmentations = [centred(views, image.height, image.width, image.crop)] * len(clips)
    seen = list(zip(clips, augmentations, strict=True))
    pictures = np.stack([change.rgb(clip.rgb) for clip, change in seen])  # n v t h w 3
    frames_seen = np.stack([latent_frame_mask(clip.frame_valid) for clip in clips])  # n tl
    motion = [motion_tensors(clip, contract) for clip in clips]
    tensors = {name: torch.stack([table[name] for table in motion]) for name in motion[0]}
    tensors["rgb"] = backbone.encode_video(torch.from_numpy(pictures), batch=len(clips) * views).cpu()
    tensors["video_mask"] = torch.from_numpy(frames_seen).float()
    if with_depth:
        codes = [view for clip, change in seen for view in change.depth(_depth_of(clip))]
        shown = [code_to_picture(code, contract.depth) for code in codes]  # (n v) of picture, valid
        device = next(backbone.vae.parameters()).device
        # The RGB VAE sees inverse depth on three equal channels: (n v) 3 t h w.
        gray = torch.from_numpy(np.stack([picture for picture, _ in shown]))[:, None].expand(-1, 3, -1, -1, -1)
        latents = backbone.encode_pictures(gray.to(device)).cpu().unflatten(0, (len(clips), views))
        tensors["depth"] = latents.movedim(1, 3)  # n c tl v h w
        factor = backbone.spatial_factor
        masks = torch.from_numpy(np.stack([latent_mask(valid, factor, factor) for _, valid in shown]))
        masks = masks.unflatten(0, (len(clips), views)).movedim(1, 2)  # n tl v h w
        # A held last frame measures nothing.
        tensors["depth_mask"] = (masks > 0) & (torch.from_numpy(frames_seen) > 0)[:, :, None, None, None]
    return tensors


def augmentation_of(recipe: Recipe, contract: Contract, key: str, split: Split, copy: int) -> Augmentation:
    """What a copy of a clip looks like: as `data.augment` says in training, the centre crop where it is held out."""
    views, image = len(contract.cameras), contract.image
    if split != "train" or not recipe.data.augment.active:
        return centred(views, image.height, image.width, image.crop)
    return augmentation(recipe.data.augment, key, copy, views, image.height, image.width, image.crop)


def motion_tensors(clip: Clip, contract: Contract) -> dict[str, Tensor]:
    """Normalised actions and states of a clip with their masks; what is masked and not finite becomes 0."""
    actions = encode_actions(contract, clip.action, clip.proprio[0], clip.action_states)
    action_mask = command_to_action_mask(contract, clip.action_mask)
    proprio_mask = clip.proprio_mask * state_mask(contract)
    values = {
        "action": _finite_or_masked(normalise_action(contract, actions), action_mask, clip.key),
        "action_mask": action_mask,
        "proprio": _finite_or_masked(normalise_proprio(contract, clip.proprio), proprio_mask, clip.key),
        "proprio_mask": proprio_mask,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value)).float() for name, value in values.items()}


def _make(
    recipe: Recipe, shard_set: ShardSet, identity: CacheIdentity, plan: Plan, device: torch.device, console: Console
) -> None:
    from xwam_ft.model.backbone import load_backbone

    contract, folder, spec = shard_set.contract, identity.folder(shard_set.folder), recipe.backbone
    backbone = load_backbone(spec.path, dtype=spec.dtype, parts=("vae", "text"), revision=spec.revision).to(device)
    image, timing = contract.image, contract.timing
    shape = backbone.latent_shape(len(contract.cameras), timing.clip_frames, image.height, image.width)
    total = sum(len(part.rows) for part in plan)
    size = total * _latent_bytes(shape, spec.dtype, identity.with_depth)
    console.print(
        f"latent cache: {total} clips{_copies(recipe)}, about {size / 1e6:.1f} MB in {folder}", soft_wrap=True
    )
    _require_space(folder, size)
    folder.mkdir(exist_ok=True)
    prompts = sorted({EMPTY_PROMPT, *contract.prompts, *(part.instruction for part in plan)})
    if not (folder / PROMPTS_FILE).is_file():
        embeddings = [backbone.encode_prompts([prompt])[0] for prompt in prompts]
        _save({"embeddings": torch.stack(embeddings)}, folder / PROMPTS_FILE, spec.dtype)
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
    starts: list[int]
    copies: int  # of every clip

    @property
    def file(self) -> str:
        return f"segments/{self.entry.key}.safetensors"

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(start, copy) of every row of the file."""
        return [(start, copy) for start in self.starts for copy in range(self.copies)]

    def cached(self) -> list[CachedClip]:
        keys = [f"{self.entry.key}-{start:06d}" for start in self.starts]
        return [
            CachedClip(key, self.file, place * self.copies, self.entry.split, self.instruction, self.copies)
            for place, key in enumerate(keys)
        ]


Plan = list[SegmentPlan]


def _plan(shard_set: ShardSet, stride: int, copies: int) -> Plan:
    """Every segment that owns a clip start on the stride, in the order of the index."""
    plan: dict[str, SegmentPlan] = {}
    for reference in shard_set.clips(None, stride):
        entry = reference.entry
        instruction = shard_set.episode(entry.episode).instruction
        number = copies if entry.split == "train" else 1
        plan.setdefault(entry.key, SegmentPlan(entry, instruction, [], number)).starts.append(reference.start)
    if not any(part.entry.split == "train" for part in plan.values()):
        raise UserError("holds no clips to train on", shard_set.folder, "prepare more or longer recordings")
    return list(plan.values())


def _depth_of(clip: Clip) -> UInt16[ndarray, "v t h w"]:
    assert clip.depth is not None, f"clip {clip.key} holds no depth"
    return clip.depth


def latent_frame_mask(frame_valid: Float[ndarray, " t"]) -> Float[ndarray, " tl"]:
    """A latent frame counts when at least half of the frames it stands for are recorded ones."""
    later = frame_valid[1:].reshape(-1, 4).mean(axis=1)
    return (np.concatenate([frame_valid[:1], later]) >= 0.5).astype(np.float64)


def _finite_or_masked(value: np.ndarray, mask: np.ndarray, key: str) -> np.ndarray:
    finite = np.isfinite(value)
    assert np.all(finite | (mask == 0)), f"clip {key} holds a valid number that is not finite"
    return np.where(finite, value, 0.0)


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


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        raise UserError(
            f"needs about {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            folder,
            "free some space, raise data.clip_stride, or lower data.augment.copies where it is set",
        )
