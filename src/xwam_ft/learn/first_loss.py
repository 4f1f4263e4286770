"""The first step's losses against what they can be: normalised numbers and velocities have losses of about 1 or 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST = 50.0
"""Mean squared error of one stream, before its weight, that no sound start comes near."""

_CAUSES = {
    "video": (
        "the latents are far from a spread of 1, so the VAE's weights or its latents_mean and latents_std are wrong, "
        "or it was never trained on clips of this length",
        "look at imagined pictures of that backbone, or prepare clips of a length it knows",
    ),
    "depth": (
        "the latents of depth are far from a spread of 1, so the VAE is wrong or depth lies outside of near and far",
        "look at the depth in the shards' report.html",
    ),
    "action": (
        "some commands lie far beyond the quantiles they are normalised by",
        "look at the action's range in the shards' report.html, and prepare without the episodes that jump",
    ),
    "proprio": (
        "some states lie far beyond the quantiles they are normalised by",
        "look at the state's range in the shards' report.html, and prepare without the episodes that jump",
    ),
}


def require_sound_start(losses: Mapping[str, Tensor], where: object) -> None:
    """Raise a `UserError` that says what is probably wrong where a stream's loss at the first step is absurd.

    Args:
        losses: of each stream, unweighted; other names are not looked at.
    """
    for name, (cause, fix) in _CAUSES.items():
        loss = float(losses[name]) if name in losses else 0.0
        if loss > MOST:
            raise UserError(f"the first step's {name} loss is {loss:.3g}, where about 1 is normal: {cause}", where, fix)
