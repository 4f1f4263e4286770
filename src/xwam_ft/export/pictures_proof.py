"""What export proves of pictures: a recorded clip comes back through the VAE, and the imagined one can be one.

Actions alone would not show it: a VAE that was never trained on clips of this length, or whose statistics belong to
other weights, leaves a policy that loads, answers and repeats its answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xwam_ft.errors import UserError
from xwam_ft.model.plausible import latent_trouble, reconstruction_trouble, require_plausible
from xwam_ft.pictures import centre_crop

if TYPE_CHECKING:
    from pathlib import Path

    from xwam_ft.policy.policy import Imagined, Policy
    from xwam_ft.shards import Clip

WHAT = ("a recorded clip, through the VAE and back", "the same clip, imagined")


@torch.no_grad()
def reconstructed(policy: Policy, clip: Clip, where: Path) -> tuple[str, str]:
    """A row of the proof: how well a recorded clip comes back through the bundle's VAE.

    Raises:
        UserError: latents or pictures that no sound VAE makes.
    """
    shown = np.stack([centre_crop(view, policy.contract.image.crop) for view in clip.rgb])
    pixels = torch.from_numpy(np.ascontiguousarray(shown))[None]
    latents = policy.codec.encode_video(pixels)
    require_plausible(latents, f"clip {clip.key}", where, pixels)
    decibels, trouble = reconstruction_trouble(policy.codec.decode_video(latents)[0].cpu(), pixels[0])
    if trouble is not None:
        raise UserError(
            f"clip {clip.key} does not come back through the VAE: {trouble}",
            where,
            "train on a backbone whose VAE knows such pictures and clips of this length",
        )
    return WHAT[0], f"{decibels:.1f} dB"


def imagined(future: Imagined, clip: Clip, where: Path) -> tuple[str, str]:
    """A row of the proof: the spread of an imagined clip's latents, near 1 as that of recorded ones is.

    Raises:
        UserError: latents that stand for no pictures.
    """
    assert future.latents is not None, "imagined by a policy"
    trouble = latent_trouble(future.latents[None])
    if trouble is not None:
        raise UserError(
            f"the future imagined of clip {clip.key} stands for no pictures: {trouble}",
            where,
            "look at the run's losses and imagined pictures in its report.html, and train on or anew",
        )
    return WHAT[1], f"latents spread by {float(future.latents.std()):.2f}"
