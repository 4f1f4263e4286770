"""Masked squared errors of a prediction, as sums and counts.

A mean over each micro-batch would weigh samples by how many others happened to be valid beside them, so nothing
is divided here: training divides the sum by the valid count of the whole optimizer step, which `loss_counts`
knows from masks alone, before any forward. Masks are True (or 1) where a number counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.model.noise import prefix_mask
from xwam_ft.model.streams import Streams

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    from xwam_ft.model.network import Prediction


@dataclass(frozen=True)
class LossTerm:
    """Sum of squared errors over the valid numbers, and how many there are (both float32 scalars)."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean squared error; 0 where nothing is valid."""
        return self.sum / self.count.clamp(min=1)


@dataclass(frozen=True)
class LossMasks:
    """What counts in a batch.

    Args:
        video: valid latent frames (frame 0, the condition, never counts, whatever stands here).
        action: valid numbers of action steps.
        proprio: valid numbers of states (state 0, the condition, never counts).
        action_is_clean: samples whose actions were given clean: no action and no proprio loss.
        depth: valid latent cells of depth; None without depth.
        action_prefix: how many of the first actions were given clean: no loss on those; None: none.
    """

    video: Shaped[Tensor, "b tl"]
    action: Shaped[Tensor, "b ta da"]
    proprio: Shaped[Tensor, "b tp dp"]
    action_is_clean: Bool[Tensor, " b"]
    depth: Shaped[Tensor, "b tl v h w"] | None = None
    action_prefix: Int[Tensor, " b"] | None = None


@dataclass(frozen=True)
class Targets(Streams):
    """What a prediction is compared with: velocities `noise - x`, and clean depth latents."""

    depth: Float[Tensor, "b c tl v h w"] | None = None


def flow_losses(prediction: Prediction, targets: Targets, masks: LossMasks) -> dict[str, LossTerm]:
    """Terms `video`, `action`, `proprio` and, where predicted and given, `depth`."""
    weights = _weights(masks)
    pairs = {
        "video": (prediction.video, targets.video),
        "action": (prediction.action, targets.action),
        "proprio": (prediction.proprio, targets.proprio),
    }
    if prediction.depth is not None and targets.depth is not None and masks.depth is not None:
        pairs["depth"] = (prediction.depth, targets.depth)
    counts = loss_counts(masks, tuple(targets.video.shape))
    return {
        name: LossTerm(_masked_square_sum(ours, wanted, weights[name]), counts[name])
        for name, (ours, wanted) in pairs.items()
    }


def loss_counts(masks: LossMasks, latent_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Valid numbers of each term. `latent_shape` is [B, C, Tl, V, h, w] (its B is not used)."""
    _, channels, _, views, height, width = latent_shape
    numbers = {"video": channels * views * height * width, "depth": channels}
    return {name: weight.sum() * numbers.get(name, 1) for name, weight in _weights(masks).items()}


def _weights(masks: LossMasks) -> dict[str, Tensor]:
    """Masks in float32, broadcastable to their tensors, with conditions and clean actions taken out."""
    video = masks.video.float()[:, None, :, None, None, None].clone()
    video[:, :, 0] = 0
    noised = (~masks.action_is_clean).float()[:, None, None]
    proprio = masks.proprio.float() * noised
    proprio[:, :1] = 0
    action = masks.action.float() * noised
    if masks.action_prefix is not None:
        action = action * ~prefix_mask(masks.action_prefix, action.shape[1])[..., None]
    weights = {"video": video, "action": action, "proprio": proprio}
    if masks.depth is not None:
        weights["depth"] = masks.depth.float()[:, None]
    return weights


def _masked_square_sum(ours: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    # Where, not times: an invalid target may hold a NaN, and 0 * NaN would spoil the sum.
    error = torch.where(weight > 0, ours.float() - wanted.float(), 0.0)
    return (error.square() * weight).sum()
