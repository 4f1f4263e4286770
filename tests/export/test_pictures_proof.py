"""A bundle whose VAE cannot show a recorded clip, or whose imagined latents are no pictures, does not pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.export import pictures_proof
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.shards import Clip, ShardSet


@pytest.fixture
def policy(bundle: Path) -> Policy:
    return Policy.load(bundle, "cpu", selfcheck=False)


@pytest.fixture
def clip(shard_set: ShardSet) -> Clip:
    return shard_set.read_clip(shard_set.clips("held_out", 1)[0])


def test_a_sound_bundle_proves_both(policy: Policy, clip: Clip) -> None:
    what, decibels = pictures_proof.reconstructed(policy, clip, Path("run"))
    assert what == pictures_proof.WHAT[0]
    assert float(decibels.removesuffix(" dB")) > 15
    future = policy.imagine(clip_observation(policy.contract, clip), 0)
    assert future.latents is not None
    assert tuple(future.latents.shape[:2]) == (48, 2)
    what, spread = pictures_proof.imagined(future, clip, Path("run"))
    assert what == pictures_proof.WHAT[1]
    assert "latents spread by" in spread


def test_a_vae_with_other_weights_is_refused_by_what_it_encodes(policy: Policy, clip: Clip) -> None:
    policy.codec.vae.quant_conv.weight.mul_(40)
    with pytest.raises(UserError, match=rf"clip {clip.key}: latent frame 0 .*latents_mean"):
        pictures_proof.reconstructed(policy, clip, Path("run"))


def test_a_vae_that_decodes_something_else_is_refused_by_the_picture(policy: Policy, clip: Clip) -> None:
    policy.codec.vae.decoder.conv_out.weight.neg_()
    with pytest.raises(UserError, match=r"does not come back through the VAE: picture \d is .* dB"):
        pictures_proof.reconstructed(policy, clip, Path("run"))


@pytest.mark.parametrize("factor", [80.0, float("nan")])
def test_imagined_latents_that_are_no_pictures_are_refused(policy: Policy, clip: Clip, factor: float) -> None:
    future = policy.imagine(clip_observation(policy.contract, clip), 0)
    assert future.latents is not None
    broken = future.latents.clone()
    broken[:, 1] *= torch.tensor(factor)
    with pytest.raises(UserError, match="stands for no pictures: latent frame 1"):
        pictures_proof.imagined(replace(future, latents=broken), clip, Path("run"))
