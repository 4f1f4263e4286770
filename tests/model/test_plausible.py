"""Bounds on latents and reconstructed pictures: sound ones pass, a broken VAE's are named with frame and value."""

from __future__ import annotations

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.model.backbone import Backbone, load_backbone
from xwam_ft.model.plausible import latent_trouble, reconstruction_trouble, require_plausible


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", dtype="float32", parts=("vae",))


def video(frames: int) -> torch.Tensor:
    """A smooth moving picture, uint8 [1, 1, T, 96, 128, 3]."""
    g = torch.Generator().manual_seed(0)
    coarse = 110 + 50 * torch.randn(1, 3, 2, 4, 5, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(frames, 96, 128), mode="trilinear")
    return smooth.clamp(0, 255).to(torch.uint8).movedim(1, -1)[None]


def test_what_the_built_in_vae_makes_of_clips_it_knows_is_plausible(tiny: Backbone) -> None:
    for frames in tiny.clip_lengths or ():
        pixels = video(frames)
        latents = tiny.encode_video(pixels)
        require_plausible(latents, "clip", "tiny", pixels)
        decibels, trouble = reconstruction_trouble(tiny.decode_video(latents)[0], pixels[0])
        assert trouble is None
        assert decibels > 20


def test_a_length_that_was_not_trained_is_refused_before_the_vae_runs(tiny: Backbone) -> None:
    unknown = 17
    with pytest.raises(UserError, match=r"clips of 17 frames, and its VAE was trained on clips of .*5.*clip_frames"):
        tiny.latent_shape(1, unknown, 96, 128)
    with pytest.raises(UserError, match="clips of 17 frames"):
        tiny.encode_video(video(unknown))


def test_late_frames_that_leave_the_bounds_are_blamed_on_the_clip_s_length() -> None:
    latents = torch.randn(2, 48, 3, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    assert latent_trouble(latents) is None
    latents[:, :, 2] *= 80
    with pytest.raises(UserError) as error:
        require_plausible(latents, "clip e1-000004", "backbone x")
    message = str(error.value)
    assert "clip e1-000004: latent frame 2 of 3 has a spread of 80" in message
    assert "never trained on clips of 9 frames" in message
    assert "clip_frames" in message


@pytest.mark.parametrize("spoil", [lambda z: z * 50, lambda z: z.fill_(float("nan"))])
def test_a_first_frame_that_leaves_them_is_blamed_on_the_weights(spoil: object) -> None:
    latents = spoil(torch.randn(1, 4, 2, 1, 6, 8, generator=torch.Generator().manual_seed(0)))  # pyright: ignore
    with pytest.raises(UserError, match=r"latent frame 0 .*latents_mean and latents_std"):
        require_plausible(latents, "clip", "backbone x")


def test_latents_that_hold_nothing_of_the_pictures_are_noticed() -> None:
    latents = torch.randn(1, 4, 2, 1, 1, 1).expand(-1, -1, -1, -1, 6, 8)
    assert latent_trouble(latents) is None, "of a blank picture they may be that"
    assert "the same everywhere" in (latent_trouble(latents[:, :, :1].expand(-1, -1, 2, -1, -1, -1), video(5)) or "")
    blank = torch.full((1, 1, 5, 96, 128, 3), 7, dtype=torch.uint8)
    assert latent_trouble(latents, blank) is None


def test_scaled_weights_of_a_real_vae_are_noticed_by_what_they_encode(tiny: Backbone) -> None:
    pixels = video(5)
    weight = tiny.vae.quant_conv.weight
    kept = weight.clone()
    try:
        weight.mul_(30)
        with pytest.raises(UserError, match="latent frame 0"):
            require_plausible(tiny.encode_video(pixels), "clip", "tiny", pixels)
        weight.zero_()
        with pytest.raises(UserError, match="the same everywhere"):
            require_plausible(tiny.encode_video(pixels), "clip", "tiny", pixels)
    finally:
        weight.copy_(kept)


def test_reconstructions_are_held_against_a_blank_and_against_their_first_picture() -> None:
    recorded = video(5)[0]
    assert reconstruction_trouble(recorded, recorded)[1] is None
    worse = recorded.clone()
    worse[:, 3] = 255 - worse[:, 3]
    assert "picture 3 is" in (reconstruction_trouble(worse, recorded)[1] or "")
    noisy = recorded.clone()
    noise = torch.randn(noisy[:, 4].shape, generator=torch.Generator().manual_seed(1))
    softly = (noisy[:, 4].float() + 18 * noise).clamp(0, 255).to(torch.uint8)
    blurred = recorded.clone()
    blurred[:, 4] = softly  # 23 dB: a small VAE on a scene it does not know
    assert reconstruction_trouble(blurred, recorded)[1] is None
    noisy[:, 4] = (noisy[:, 4].float() + 30 * noise).clamp(0, 255).to(torch.uint8)
    assert "and the first" in (reconstruction_trouble(noisy, recorded)[1] or "")
