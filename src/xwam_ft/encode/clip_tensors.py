"""A clip as numbers: its pictures as the VAE sees them, its motion normalised, and what of it counts.

Legend (of one clip): T pictures of H x W in V views; C channels, Tl latent frames, h x w latent grid; Ta actions of Da,
Tp states of Dp. Masks are 0 or 1 (bool for depth cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from xwam_ft.encode.augment import Augmentation, augmentation, centred
from xwam_ft.model.plausible import require_plausible

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from numpy import ndarray
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import Clip


@dataclass(frozen=True)
class ClipPictures:
    """One clip before the VAE: what a latent cache holds, with pictures in place of latents."""

    rgb: UInt8[Tensor, "v t height width 3"]
    video_mask: Float[Tensor, " tl"]
    action: Float[Tensor, "ta da"]
    action_mask: Float[Tensor, "ta da"]
    proprio: Float[Tensor, "tp dp"]
    proprio_mask: Float[Tensor, "tp dp"]
    depth: Float[Tensor, "v t height width"] | None = None  # inverse depth in [-1, 1]
    depth_mask: Bool[Tensor, "tl v h w"] | None = None


def show(clip: Clip, contract: Contract, change: Augmentation, factor: int, *, with_depth: bool) -> ClipPictures:
    """A clip with its pictures cropped and coloured.

    Args:
        factor: pixels of a latent cell's side.
    """
    depth, depth_mask = depth_shown(clip, contract, change, factor) if with_depth else (None, None)
    return ClipPictures(
        rgb=torch.from_numpy(change.rgb(clip.rgb)),
        video_mask=torch.from_numpy(latent_frame_mask(clip.frame_valid)).float(),
        depth=depth,
        depth_mask=depth_mask,
        **motion_tensors(clip, contract),
    )


def encode_pictures(
    rgb: UInt8[Tensor, "n v t height width 3"],
    depth: Float[Tensor, "n v t height width"] | None,
    backbone: Backbone,
) -> tuple[Float[Tensor, "n c tl v h w"], Float[Tensor, "n c tl v h w"] | None]:
    """Latents of RGB and of depth, in one VAE call each, on the VAE's device.

    Raises:
        UserError: latents that cannot be right (model/plausible.py).
    """
    clips, views = rgb.shape[:2]
    latents = backbone.encode_video(rgb, batch=clips * views)
    require_plausible(latents, "latents of RGB", f"backbone {backbone.name}", rgb)
    if depth is None:
        return latents, None
    device = next(backbone.vae.parameters()).device
    # The RGB VAE sees inverse depth on three equal channels: (n v) 3 t h w.
    gray = depth.flatten(0, 1)[:, None].expand(-1, 3, -1, -1, -1)
    of_depth = backbone.encode_pictures(gray.to(device)).unflatten(0, (clips, views)).movedim(1, 3)
    require_plausible(of_depth, "latents of depth", f"backbone {backbone.name}")
    return latents, of_depth


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
    shown = [
        show(clip, contract, change, backbone.spatial_factor, with_depth=with_depth)
        for clip, change in zip(clips, augmentations, strict=True)
    ]
    columns = {name: [getattr(one, name) for one in shown] for name in vars(shown[0])}
    tensors = {name: torch.stack(column) for name, column in columns.items() if column[0] is not None}
    rgb, depth = encode_pictures(tensors["rgb"], tensors.get("depth"), backbone)
    latents = {"rgb": rgb.cpu()} if depth is None else {"rgb": rgb.cpu(), "depth": depth.cpu()}
    return tensors | latents


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


def depth_shown(
    clip: Clip, contract: Contract, change: Augmentation, factor: int
) -> tuple[Float[Tensor, "v t height width"], Bool[Tensor, "tl v h w"]]:
    """Inverse depth as the VAE sees it after the crop, and the latent cells that measured something."""
    assert clip.depth is not None, f"clip {clip.key} holds no depth"
    shown = [code_to_picture(code, contract.depth) for code in change.depth(clip.depth)]  # of each view: picture, valid
    cells = np.stack([latent_mask(valid, factor, factor) for _, valid in shown])  # v tl h w
    seen = latent_frame_mask(clip.frame_valid) > 0
    # A held last frame measures nothing.
    mask = (np.moveaxis(cells, 0, 1) > 0) & seen[:, None, None, None]
    return torch.from_numpy(np.stack([picture for picture, _ in shown])), torch.from_numpy(mask)


def latent_frame_mask(frame_valid: Float[ndarray, " t"]) -> Float[ndarray, " tl"]:
    """A latent frame counts when at least half of the frames it stands for are recorded ones."""
    later = frame_valid[1:].reshape(-1, 4).mean(axis=1)
    return (np.concatenate([frame_valid[:1], later]) >= 0.5).astype(np.float64)


def _finite_or_masked(value: np.ndarray, mask: np.ndarray, key: str) -> np.ndarray:
    finite = np.isfinite(value)
    assert np.all(finite | (mask == 0)), f"clip {key} holds a valid number that is not finite"
    return np.where(finite, value, 0.0)
