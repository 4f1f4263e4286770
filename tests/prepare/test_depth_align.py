"""Alignment of relative depth in closed form: random scales and shifts of known depth are undone."""

from __future__ import annotations

import numpy as np
import pytest

from xwam_ft.prepare.depth.align import align_video, flicker, robust_line

FRAMES, HEIGHT, WIDTH = 12, 40, 56


def scene(seed: int = 0, noise: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Inverse depth [F, H, W] of a tilted table with a box that slides over it, and its slightly noisy pictures."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inverse = np.repeat((0.4 + rows / HEIGHT + 0.2 * np.sin(columns / 5))[None], FRAMES, axis=0)
    texture = rng.integers(40, 120, (HEIGHT, WIDTH, 3))
    pictures = np.repeat(texture[None], FRAMES, axis=0)
    for at in range(FRAMES):
        box = np.s_[at, 10:20, 2 + 3 * at : 14 + 3 * at]
        inverse[box], pictures[box] = 2.5, 220
    pictures = pictures + rng.integers(-noise, noise + 1, pictures.shape)
    return inverse, pictures.astype(np.uint8)


def unsteady(inverse: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scales, shifts = rng.uniform(0.3, 3.0, FRAMES), rng.uniform(-2.0, 2.0, FRAMES)
    return inverse * scales[:, None, None] + shifts[:, None, None], scales, shifts


def test_random_scales_and_shifts_are_undone() -> None:
    truth, pictures = scene()
    video, scales, shifts = unsteady(truth)
    found = align_video(video, pictures)
    np.testing.assert_allclose(video, truth * scales[0] + shifts[0], atol=1e-6)  # the first frame keeps its own
    assert found.raw is not None
    assert found.raw > 0.3
    assert found.aligned is not None
    assert found.aligned < 1e-6


def test_what_changes_without_being_seen_to_does_not_bend_the_fit() -> None:
    """A quarter of the still pixels (a shadow, a reflection) jumps in depth in every frame, the rest has noise."""
    truth, pictures = scene()
    rng = np.random.default_rng(3)
    noisy = truth + rng.normal(0, 0.002, truth.shape)
    noisy[:, 24:34] += rng.uniform(0.5, 1.5, (FRAMES, 1, 1))
    video, scales, shifts = unsteady(noisy)
    align_video(video, pictures)
    undone = (video - shifts[0]) / scales[0]
    steady = np.ones((HEIGHT, WIDTH), dtype=bool)
    steady[24:34] = False
    error = np.abs(undone - truth)[:, steady]
    assert float(error.mean()) < 0.004
    # The scale does not creep: after all frames the fit is as good as after the first.
    assert abs(float(np.polyfit(truth[-1][steady], undone[-1][steady], 1)[0]) - 1.0) < 0.01


def test_holes_stay_holes_and_a_frame_without_depth_is_passed_over() -> None:
    truth, pictures = scene()
    video, scales, shifts = unsteady(truth)
    video[:, :5, :5], video[6] = np.nan, np.nan
    holes = np.isnan(video)
    align_video(video, pictures)
    np.testing.assert_array_equal(np.isnan(video), holes)
    np.testing.assert_allclose(video[~holes], (truth * scales[0] + shifts[0])[~holes], atol=1e-6)


def test_a_camera_that_moves_keeps_the_middle_and_spread() -> None:
    """No pixel keeps its colour: nothing is claimed of flicker, and frames are matched as a whole."""
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth, _ = scene()
    video, scales, shifts = unsteady(np.repeat(truth[:1], FRAMES, axis=0))
    found = align_video(video, pictures)
    assert (found.raw, found.aligned) == (None, None)
    np.testing.assert_allclose(video, np.repeat((truth[:1] * scales[0] + shifts[0]), FRAMES, axis=0), atol=1e-6)


def test_flicker_of_codes_is_the_change_of_what_stands_still() -> None:
    truth, pictures = scene(noise=0)
    codes = np.rint(1000 + truth * 20000).astype(np.uint16)
    assert flicker(codes, pictures) == 0.0
    blink = codes + (np.arange(FRAMES) % 2 * 500)[:, None, None].astype(np.uint16)
    lows, highs = np.quantile(blink.reshape(FRAMES, -1), [0.02, 0.98], axis=1)
    assert flicker(blink, pictures) == pytest.approx(500 / (np.median(highs) - np.median(lows)))


def test_a_line_through_outliers() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 4, 400)
    y = 1.7 * x - 0.6
    y[:120] = rng.uniform(20, 40, 120)
    assert robust_line(x, y) == pytest.approx((1.7, -0.6))
    assert robust_line(np.ones(9), np.arange(9.0)) is None
