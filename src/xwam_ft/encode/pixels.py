"""Training from pixels (`data.cache: none`): clips are decoded by the loader and encoded on the device, every time.

The numbers are those of a latent cache of the same recipe. For recordings too large for a cache, or augmentation with
more copies than a disk holds; every step then pays for decoding and for the VAE.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.encode.batch import Batch, PictureBatch
from xwam_ft.encode.cache import EMPTY_PROMPT, libraries
from xwam_ft.encode.clip_tensors import (
    augmentation_of,
    depth_shown,
    encode_pictures,
    latent_frame_mask,
    motion_tensors,
    show,
)
from xwam_ft.encode.encode import embed_instructions, identify
from xwam_ft.encode.segments import plan_segments
from xwam_ft.encode.texts import kept_rows, shared_rows

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.encode.cache import CachedClip, CacheIdentity
    from xwam_ft.encode.clip_tensors import ClipPictures
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import Clip, ClipRef, Pictures, ShardSet

REMEMBERED = 2048
"""Clips whose masks are kept: those of a step are asked for by its loss counts as well."""


def open_pixels(recipe: Recipe, sets: Sequence[ShardSet], device: torch.device, console: Console) -> list[PixelSource]:
    """The clips of each shard set; loads the VAE, and the text encoder for as long as it embeds the instructions.

    Of several processes of a machine one embeds them.
    """
    from xwam_ft.model.backbone import load_backbone

    spec = recipe.backbone
    plans = [plan_segments(one, recipe.data.clip_stride, recipe.data.copies) for one in sets]
    texts = {text for plan in plans for part in plan for text in part.texts}
    prompts = sorted({EMPTY_PROMPT, *texts, *(prompt for one in sets for prompt in one.contract.prompts)})
    embeddings = _embedded(recipe, prompts, device, console)
    vae = load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision).to(device)
    clips = sum(len(part.starts) for plan in plans for part in plan)
    console.print(f"training from pixels: {clips} clips; the VAE stays loaded, the text encoder does not")
    return [
        PixelSource(recipe, one, [clip for part in plan for clip in part.cached()], vae, (prompts, embeddings))
        for one, plan in zip(sets, plans, strict=True)
    ]


def _embedded(recipe: Recipe, prompts: list[str], device: torch.device, console: Console) -> Tensor:
    """Embeddings of instructions [N, S, Dt]."""
    from xwam_ft.model.backbone import part_fingerprints

    def rows() -> Iterator[Tensor]:
        return embed_instructions(recipe, prompts, device, console)

    trainer, spec = recipe.trainer, recipe.backbone
    here = trainer.devices if trainer.devices != "auto" else torch.cuda.device_count() if device.type == "cuda" else 1
    if here * trainer.nodes == 1:
        return kept_rows(rows(), len(prompts))
    text = part_fingerprints(spec.path, ("text",), revision=spec.revision)["text"]
    name = json.dumps(["instructions", text, spec.dtype, device.type, libraries(), prompts])
    return shared_rows(name, rows, len(prompts), recipe.data.local_gb)


class PixelSource:
    """The clips of one shard set (see ClipSource).

    Args:
        clips: as a cache would list them.
        backbone: with the VAE.
        prompts: texts and their embeddings [N, S, Dt].
    """

    weights = None

    def __init__(
        self,
        recipe: Recipe,
        shard_set: ShardSet,
        clips: list[CachedClip],
        backbone: Backbone,
        prompts: tuple[list[str], Tensor],
    ) -> None:
        self.recipe, self.shard_set, self.clips = recipe, shard_set, clips
        self.prompts, self.prompt_embeddings = prompts
        self.prompt_index = {prompt: place for place, prompt in enumerate(self.prompts)}
        self.identity: CacheIdentity = identify(recipe, shard_set)
        contract, image = shard_set.contract, shard_set.contract.image
        frames = contract.timing.clip_frames
        self.latent_shape = backbone.latent_shape(len(contract.cameras), frames, image.height, image.width)
        self._factor = backbone.spatial_factor
        self.codec: Backbone | None = backbone
        self._refs: dict[str, ClipRef] = {ref.key: ref for ref in shard_set.clips(None, recipe.data.clip_stride)}
        self._masks: OrderedDict[tuple[str, int], dict[str, Tensor]] = OrderedDict()

    @property
    def with_depth(self) -> bool:
        return self.identity.with_depth

    def of_split(self, split: Split) -> list[CachedClip]:
        return [clip for clip in self.clips if clip.split == split]

    def read(self, clip: CachedClip, copy: int = 0) -> ClipPictures:
        """Decode a clip and crop and colour its pictures as its copy has them."""
        recorded = self._clip(clip, "all")
        change = augmentation_of(self.recipe, self.shard_set.contract, clip.key, clip.split, copy)
        shown = show(recorded, self.shard_set.contract, change, self._factor, with_depth=self.with_depth)
        self._remember(clip, copy, {n: v for n, v in vars(shown).items() if n.endswith("_mask") and v is not None})
        return shown

    def masks(self, clip: CachedClip, copy: int = 0) -> dict[str, Tensor]:
        """Read from the motion alone, and with a depth branch from the depth, which is decoded for it."""
        if (clip.key, copy) not in self._masks:
            contract = self.shard_set.contract
            recorded = self._clip(clip, "depth" if self.with_depth else "none")
            found = {n: v for n, v in motion_tensors(recorded, contract).items() if n.endswith("_mask")}
            found["video_mask"] = torch.from_numpy(latent_frame_mask(recorded.frame_valid)).float()
            if self.with_depth:
                change = augmentation_of(self.recipe, contract, clip.key, clip.split, copy)
                found["depth_mask"] = depth_shown(recorded, contract, change, self._factor)[1]
            self._remember(clip, copy, found)
        return self._masks[clip.key, copy]

    @torch.no_grad()
    def finish(self, batch: Batch | PictureBatch) -> Batch:
        """Encode a batch's pictures, `data.encode_batch` clips a VAE call, and round as a cache would."""
        if isinstance(batch, Batch):
            return batch
        assert self.codec is not None, "a loader's worker does not encode"
        device, dtype = batch.pictures.device, getattr(torch, self.recipe.backbone.dtype)
        codec = self.codec.to(device)  # the rank's own: it was loaded before there were ranks
        size = self.recipe.data.encode_batch
        rgb: list[Tensor] = []
        depth: list[Tensor] = []
        with torch.autocast(device.type, enabled=False):
            for first in range(0, batch.size, size):
                rows = slice(first, first + size)
                seen = None if batch.depth_pictures is None else batch.depth_pictures[rows]
                latents, of_depth = encode_pictures(batch.pictures[rows], seen, codec)
                rgb.append(latents)
                depth += [] if of_depth is None else [of_depth]

        def rounded(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).to(dtype).float().to(device)

        return batch.with_latents(rounded(rgb), rounded(depth) if depth else None)

    def _clip(self, clip: CachedClip, pictures: Pictures) -> Clip:
        recorded = self.shard_set.read_clip(self._refs[clip.key], pictures)
        return replace(recorded, key=clip.key)

    def _remember(self, clip: CachedClip, copy: int, masks: dict[str, Tensor]) -> None:
        self._masks[clip.key, copy] = masks
        if len(self._masks) > REMEMBERED:
            self._masks.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "codec": None}  # a loader's worker only decodes
