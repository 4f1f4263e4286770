"""Depth codes: the round trip, what is invalid, how holes fill, which latent cells count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xwam_ft.contract import DepthCode
from xwam_ft.depth_code import (
    MIDDLE,
    code_to_metres,
    code_to_picture,
    colour,
    fill_holes,
    is_exact,
    latent_mask,
    metres_to_code,
    picture_to_code,
    relative_to_code,
    to_metres,
)
from xwam_ft.errors import UserError

NEAR, FAR = 0.1, 5.0
METRIC = DepthCode(kind="metric", near=NEAR, far=FAR, source="sensor")
RELATIVE = DepthCode(kind="relative", source="transformers:some/model", clip_normalised=True)


@settings(max_examples=100)
@given(st.floats(NEAR, FAR))
def test_metres_come_back_within_half_a_step_of_inverse_depth(depth: float) -> None:
    back = code_to_metres(metres_to_code(np.array([depth]), NEAR, FAR), NEAR, FAR)[0]
    assert abs(1 / back - 1 / depth) <= 0.5 * (1 / NEAR - 1 / FAR) / 65534 + 1e-12


def test_every_code_comes_back() -> None:
    codes = np.arange(65536).astype(np.uint16)
    metres = code_to_metres(codes, NEAR, FAR)
    assert np.isnan(metres[0])
    np.testing.assert_array_equal(metres_to_code(metres, NEAR, FAR), codes)


def test_near_is_large_and_the_range_clamps() -> None:
    depth = np.array([NEAR / 2, NEAR, 1.0, FAR, 2 * FAR])
    codes = metres_to_code(depth, NEAR, FAR)
    assert codes[0] == codes[1] == 65535
    assert codes[3] == codes[4] == 1
    assert codes[2] == round(1 + 65534 * (1 / 1.0 - 1 / FAR) / (1 / NEAR - 1 / FAR))


def test_what_no_sensor_measured_is_invalid() -> None:
    depth = np.array([0.0, -1.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(metres_to_code(depth, NEAR, FAR), 0)


def test_relative_codes_are_linear_in_the_estimate() -> None:
    codes = relative_to_code(np.array([2.0, 3.0, 4.0, 9.0, 0.0, np.nan, np.inf]), 2.0, 4.0)
    np.testing.assert_array_equal(codes, [1, 32768, 65535, 65535, 1, 0, 0])
    with pytest.raises(ValueError, match="empty"):
        relative_to_code(np.zeros(1), 1.0, 1.0)


@pytest.mark.parametrize("depth", [RELATIVE, DepthCode(kind="none")])
def test_relative_depth_gives_no_metres(depth: DepthCode) -> None:
    with pytest.raises(UserError, match=f"depth is '{depth.kind}' .*which has no metres"):
        to_metres(np.ones(3, np.uint16), depth)
    np.testing.assert_array_equal(to_metres(np.full(3, 65535, np.uint16), METRIC), NEAR)


def test_holes_take_the_nearest_pixel_of_their_frame() -> None:
    code = np.zeros((1, 5, 7), np.uint16)
    code[0, 2, 1], code[0, 2, 6] = 100, 900
    filled = fill_holes(code)
    np.testing.assert_array_equal(filled[0, 2], [100, 100, 100, 100, 900, 900, 900])
    rows, columns = np.mgrid[:5, :7]
    left = (rows - 2) ** 2 + (columns - 1) ** 2
    right = (rows - 2) ** 2 + (columns - 6) ** 2
    np.testing.assert_array_equal(filled[0], np.where(left < right, 100, 900))


def test_empty_frames_take_the_nearest_frame_in_time() -> None:
    code = np.zeros((6, 2, 2), np.uint16)
    code[1], code[4] = 10, 40
    np.testing.assert_array_equal(fill_holes(code)[:, 0, 0], [10, 10, 10, 40, 40, 40])


def test_nothing_to_fill_and_nothing_to_fill_from() -> None:
    whole = np.full((2, 3, 3), 7, np.uint16)
    np.testing.assert_array_equal(fill_holes(whole), whole)
    nothing = np.zeros((2, 3, 3), np.uint16)
    np.testing.assert_array_equal(fill_holes(nothing), MIDDLE)
    picture, valid = code_to_picture(nothing, METRIC)
    assert not valid.any()
    np.testing.assert_array_equal(picture, 0)
    np.testing.assert_array_equal(nothing, 0)  # the input is left alone


def test_the_picture_spans_minus_one_to_one_and_knows_its_holes() -> None:
    code = np.array([[[1, 65535], [0, 32768]]], np.uint16)
    picture, valid = code_to_picture(code, METRIC)
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(valid, [[[True, True], [False, True]]])
    np.testing.assert_allclose(picture[0, 0], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(picture[0, 1, 1], 0.0, atol=1e-6)
    assert picture[0, 1, 0] in (picture[0, 0, 0], picture[0, 1, 1])


def test_relative_clips_are_stretched_to_their_own_range() -> None:
    code = np.array([[[1000, 3000]], [[0, 2000]]], np.uint16)
    picture, _ = code_to_picture(code, RELATIVE)
    np.testing.assert_allclose(picture[0, 0], [-1, 1], atol=1e-6)
    np.testing.assert_allclose(picture[1, 0, 1], 0.0, atol=1e-6)
    flat, _ = code_to_picture(np.full((1, 2, 2), 5, np.uint16), RELATIVE)
    np.testing.assert_array_equal(flat, 0)


def test_pictures_come_back_as_codes() -> None:
    code = np.random.default_rng(0).integers(1, 65536, (2, 8, 8), dtype=np.uint16)
    picture, _ = code_to_picture(code, METRIC)
    assert np.abs(picture_to_code(picture).astype(int) - code).max() <= 1  # float32 has 24 bits
    np.testing.assert_array_equal(picture_to_code(np.array([-3.0, -1.0, 0.0, 1.0, 3.0])), [1, 1, 32768, 65535, 65535])


def test_a_latent_cell_counts_from_half_of_its_pixels() -> None:
    valid = np.zeros((5, 4, 8), bool)
    valid[0, :2, :4] = True  # first frame: 8 of the 16 pixels of the left cell
    valid[0, :1, 4:] = True  # and 4 of the right one
    valid[1:3, :, :4] = True  # later frames: 2 of 4 whole frames of the left cell
    valid[1:4, :2, 4:] = True  # 3 x 8 of 64 pixels of the right one
    np.testing.assert_array_equal(latent_mask(valid, 4, 4), [[[1, 0]], [[1, 0]]])
    valid[4, :2, 4:] = True
    np.testing.assert_array_equal(latent_mask(valid, 4, 4)[1], [[1, 1]])


@pytest.mark.parametrize("shape", [(4, 4, 8), (5, 5, 8), (5, 4, 6)])
def test_cells_must_fit(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a whole number of latent cells"):
        latent_mask(np.ones(shape, bool), 4, 4)


def test_colours_show_holes_black_and_agree_between_codes_and_floats() -> None:
    code = np.array([[0, 1, 32768, 65535]], np.uint16)
    rgb = colour(code)
    np.testing.assert_array_equal(rgb[0, 0], 0)
    assert (rgb[0, 1:].sum(axis=-1) > 0).all()
    np.testing.assert_array_equal(colour(np.array([[np.nan, 0.0, 0.5, 1.0]])), rgb)
    assert rgb[0, 3, 0] > rgb[0, 3, 2]  # near is red


def test_codes_at_the_ends_of_the_range_are_not_exact() -> None:
    code = metres_to_code(np.array([0.0, 0.05, 0.1, 0.5, 10.0, 50.0]), 0.1, 10.0)
    assert is_exact(code).tolist() == [False, False, False, True, False, False]
