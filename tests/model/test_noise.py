"""Noise schedules against their closed forms."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from xwam_ft.model.noise import Sigmas, add_noise, beta_quantile, prefix_mask, sample_prefixes, sample_sigmas, shift
from xwam_ft.model.solver import SHIFT
from xwam_ft.policy.policy import Settings
from xwam_ft.recipe import ActionPrefixSpec, NoiseSpec

DRAWS = 40_000


def draw(**changes: object) -> Sigmas:
    return sample_sigmas(DRAWS, NoiseSpec(**({"shift": 1.0} | changes)), torch.Generator().manual_seed(0))


def test_asynchronous_video_is_never_cleaner_than_the_actions() -> None:
    sigmas = draw(shift=5.0)
    assert bool((sigmas.video >= sigmas.action).all())
    assert bool((sigmas.action[sigmas.action_is_clean] == 0).all())
    assert bool((sigmas.action[~sigmas.action_is_clean] > 0).all())
    assert float(sigmas.action_is_clean.float().mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_actions_are_given_clean_as_often_as_asked(share: float) -> None:
    assert float(draw(clean_action_probability=share).action_is_clean.float().mean()) == pytest.approx(share, abs=0.01)


def test_asynchronous_marginals_have_their_closed_form() -> None:
    """Noised: sigma_a ~ U(0,1); (sigma_v - sigma_a) / (1 - sigma_a) ~ Beta(1.5, 1), independent of it: E = 0.8."""
    sigmas = draw()
    noised = ~sigmas.action_is_clean
    action, video = sigmas.action[noised].numpy(), sigmas.video[noised].numpy()
    share = (video - action) / (1 - action)
    assert stats.kstest(action, "uniform").pvalue > 0.01
    assert stats.kstest(share, stats.beta(1.5, 1).cdf).pvalue > 0.01
    assert abs(stats.pearsonr(share, action).statistic) < 0.02
    assert video.mean() == pytest.approx(0.8, abs=0.005)
    assert stats.kstest(sigmas.video[~noised].numpy(), "uniform").pvalue > 0.01


def test_decoupled_is_two_uniforms_and_synchronous_one() -> None:
    decoupled, synchronous = draw(schedule="decoupled"), draw(schedule="synchronous")
    for sigma in (decoupled.video, decoupled.action, synchronous.video):
        assert stats.kstest(sigma.numpy(), "uniform").pvalue > 0.01
    assert abs(stats.pearsonr(decoupled.video.numpy(), decoupled.action.numpy()).statistic) < 0.02
    assert torch.equal(synchronous.video, synchronous.action)
    assert not decoupled.action_is_clean.any()
    assert not synchronous.action_is_clean.any()


@pytest.mark.parametrize("schedule", ["asynchronous", "decoupled", "synchronous"])
def test_a_sample_draws_the_same_alone_or_in_a_batch(schedule: str) -> None:
    spec = NoiseSpec(schedule=schedule)
    together = sample_sigmas(3, spec, torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    alone = [sample_sigmas(1, spec, g) for _ in range(3)]
    for name in ("video", "action", "action_is_clean"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(sigmas, name) for sigmas in alone]))


def test_shift_keeps_the_ends_and_moves_the_middle_towards_noise() -> None:
    sigma = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shift(sigma, 5.0), torch.tensor([0.0, 5 / 6, 1.0], dtype=torch.float64))
    unshifted, shifted = draw(schedule="decoupled"), draw(schedule="decoupled", shift=5.0)
    torch.testing.assert_close(shift(unshifted.video, 5.0), shifted.video)
    torch.testing.assert_close(shift(unshifted.action, 5.0), shifted.action)


def test_beta_quantile_of_beta_one_has_a_closed_form() -> None:
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(beta_quantile(u, 1.5, 1.0), u ** (1 / 1.5))


def test_noise_and_velocity_lead_back_to_the_data() -> None:
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    sigma = torch.tensor([0.3, 0.9])
    noised = add_noise(x, noise, sigma)
    torch.testing.assert_close(noised - sigma[:, None, None] * (noise - x), x)
    assert torch.equal(add_noise(x, noise, torch.zeros(2)), x)
    assert torch.equal(add_noise(x, noise, torch.ones(2)), noise)


def test_prefixes_are_uniform_from_one_to_the_longest_at_their_rate() -> None:
    lengths = sample_prefixes(DRAWS, ActionPrefixSpec(max=4, probability=0.6), torch.Generator().manual_seed(0))
    expected = [DRAWS * 0.4, *[DRAWS * 0.15] * 4]
    assert stats.chisquare(torch.bincount(lengths, minlength=5).numpy(), expected).pvalue > 0.01
    always = sample_prefixes(DRAWS, ActionPrefixSpec(max=4, probability=1.0), torch.Generator().manual_seed(0))
    assert int(always.min()) == 1
    never = sample_prefixes(DRAWS, ActionPrefixSpec(max=4, probability=0.0), torch.Generator().manual_seed(0))
    assert not never.any()


def test_a_prefix_is_the_first_steps_of_each_sample() -> None:
    assert prefix_mask(torch.tensor([0, 2, 3]), 3).int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_the_released_models_shift_is_what_training_and_sampling_take() -> None:
    """arXiv 2604.26694 trains and samples with 5; a recipe that says nothing must, too."""
    assert NoiseSpec().shift == 5.0
    assert SHIFT == 5.0
    assert Settings().shift == 5.0
