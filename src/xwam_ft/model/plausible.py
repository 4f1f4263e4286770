"""Whether latents and decoded pictures can be right: bounds that every sound VAE stays far within.

Normalised latents have a spread near 1. A VAE with other weights than its statistics, or that was never shown clips of
this length, leaves these bounds by a factor of ten and more, and nothing after it would notice.

Legend: N clips, C channels, Tl latent frames, V views, h x w latent grid, T pictures of H x W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from torch import Tensor

SPREAD, LARGEST = 8.0, 100.0
"""Bounds on a latent frame's standard deviation and on its largest number; real Wan latents keep to about 1 and 10."""
FAINTEST, MOVING = 0.01, 4.0
"""A spread of latents from place to place below the first, of pictures that spread by more than the second (of 255),
holds none of them."""
LOSES, FINE = 8.0, 20.0
"""dB that a picture of a reconstructed clip may be worse than its first, unless it is better than the second.

A small VAE gives a strange scene's first picture back at 32 dB and fast ones after it at 23; one that does not know
clips of this length falls below 17.
"""


def latent_trouble(
    latents: Float[Tensor, "n c tl v h w"], pictures: UInt8[Tensor, "n v t height width 3"] | None = None
) -> str | None:
    """What is absurd about normalised latents, with the latent frame and the value; None where nothing is.

    Args:
        pictures: what they were made of; without them latents that hold nothing are not noticed.
    """
    by_frame = latents.float().movedim(2, 0).flatten(1)
    for index, values in enumerate(by_frame):
        if not bool(torch.isfinite(values).all()):
            return f"latent frame {index} holds numbers that are not finite"
        spread, largest = float(values.std()), float(values.abs().max())
        if spread > SPREAD or largest > LARGEST:
            return (
                f"latent frame {index} of {len(by_frame)} has a spread of {spread:.3g} and numbers up to {largest:.3g} "
                "(about 1 and 10 are normal)"
            )
    if pictures is not None and float(pictures.float().std()) > MOVING:
        places = latents.float().std(dim=(0, 2, 3, 4, 5), unbiased=False)
        if float(places.mean()) < FAINTEST:
            return f"latents are the same everywhere (spread {float(places.mean()):.2g}), and the pictures are not"
    return None


def require_plausible(
    latents: Float[Tensor, "n c tl v h w"],
    what: str,
    where: object,
    pictures: UInt8[Tensor, "n v t height width 3"] | None = None,
) -> None:
    """Raise a `UserError` that names latent frame, value and the likely cause where latents cannot be right.

    Args:
        what: they are of, such as "clip e1-000004".
    """
    trouble = latent_trouble(latents, pictures)
    if trouble is None:
        return
    if latents.shape[2] > 1 and latent_trouble(latents[:, :, :1]) is None and "same everywhere" not in trouble:
        frames = 1 + 4 * (latents.shape[2] - 1)
        cause, fix = (
            f"its VAE was probably never trained on clips of {frames} frames",
            "prepare shorter clips (timing.clip_frames: 5), or take a backbone whose VAE knows such clips",
        )
    else:
        cause, fix = (
            "its VAE's weights are damaged, or latents_mean and latents_std of vae/config.json belong to others",
            "restore the folder vae of that backbone",
        )
    raise UserError(f"{what}: {trouble}; {cause}", where, fix)


def reconstruction_trouble(
    decoded: UInt8[Tensor, "v t height width 3"], recorded: UInt8[Tensor, "v t height width 3"]
) -> tuple[float, str | None]:
    """Mean PSNR of a reconstructed clip in dB, and what is wrong with it: None where nothing is.

    A picture must be nearer to the recorded one than a blank of its mean colour is, and no late one much worse than
    the first.
    """
    ours, truth = decoded.float(), recorded.float()
    error = (ours - truth).square().mean(dim=(0, 2, 3, 4))
    blank = (truth - truth.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(0, 2, 3, 4))
    found, floor = _decibels(error), _decibels(blank)
    for index, (value, least) in enumerate(zip(found.tolist(), floor.tolist(), strict=True)):
        if value < least and value < FINE:
            return float(found.mean()), f"picture {index} is {value:.1f} dB, and a blank of its mean colour {least:.1f}"
        if value < min(found[0].item() - LOSES, FINE):
            return float(found.mean()), f"picture {index} is {value:.1f} dB, and the first {found[0].item():.1f}"
    return float(found.mean()), None


def _decibels(error: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    return 10 * torch.log10(255.0**2 / error.clamp(min=1e-3))
