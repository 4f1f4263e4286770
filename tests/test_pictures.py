"""The resize rule against torch, and intrinsics that follow it to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xwam_ft.pictures import (
    centre_crop,
    centre_crop_box,
    centre_crop_intrinsics,
    centre_crop_nearest,
    crop_intrinsics,
    resize_intrinsics,
    resize_nearest,
    resize_pictures,
    turn_back,
    turn_intrinsics,
    turn_pictures,
    turned_axes,
)

SIZES = [((48, 64), (24, 32)), ((48, 64), (26, 40)), ((27, 31), (32, 48)), ((40, 40), (40, 20)), ((1, 5), (4, 5))]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_equals_torch_without_antialias(source: tuple[int, int], target: tuple[int, int]) -> None:
    pictures = noise(2, *source, 3)
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.interpolate(planes, target, mode="bilinear", align_corners=False, antialias=False)
    exact = theirs.permute(0, 2, 3, 1).numpy()
    ours = resize_pictures(pictures, *target)
    # Rounded half up; float32 sums in another order may fall to the other side of an exact half.
    differ = ours != np.floor(exact + 0.5)
    assert differ.mean() < 1e-3
    assert np.abs(ours[differ] - exact[differ]).max(initial=0) < 0.501


# In whole numbers: even, odd and broken steps, up and down, and more bits than fit.
WHOLE = [((480, 640), (256, 320)), ((720, 1280), (256, 320)), ((48, 96), (32, 32)), ((64, 60), (32, 48))]
WHOLE += [((1080, 1920), (256, 320)), ((16, 16), (64, 32)), ((33, 34), (256, 64)), ((255, 32), (256, 64))]


@pytest.mark.parametrize(("source", "target"), [*SIZES, *WHOLE, ((9, 7), (3, 2)), ((480, 848), (256, 320))])
def test_bilinear_is_the_plain_form_to_the_bit(source: tuple[int, int], target: tuple[int, int]) -> None:
    pictures = noise(2, *source, 3)[:, ::-1, :, ::-1]  # strides of any kind
    top, bottom, down = neighbours(source[0], target[0])
    left, right, across = neighbours(source[1], target[1])
    across = across[:, None]
    rows = pictures[:, :, left] * (1 - across) + pictures[:, :, right] * across
    down = down[:, None, None]
    plain = (rows[:, top] * (1 - down) + rows[:, bottom] * down + np.float32(0.5)).astype(np.uint8)
    np.testing.assert_array_equal(resize_pictures(pictures, *target), plain)


def neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target pixel the source pixels beside its centre, and the weight of the second."""
    scale = np.float32(source) / np.float32(target)
    centre = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(np.floor(centre).astype(int), source - 1)
    second = np.minimum(first + 1, source - 1)
    return first, second, np.clip(centre - first.astype(np.float32), 0, 1)


def test_halves_are_rounded_up() -> None:
    row = np.array([10, 11, 20, 23], dtype=np.uint8)
    picture = row[None, None, :, None].repeat(3, axis=3)
    np.testing.assert_array_equal(resize_pictures(picture, 1, 2)[0, 0, :, 0], [11, 22])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_nearest_equals_torch_nearest_exact(source: tuple[int, int], target: tuple[int, int]) -> None:
    codes = noise(2, *source).astype(np.uint16) * 257
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(codes.astype(np.float32))[:, None], target, mode="nearest-exact"
    )
    np.testing.assert_array_equal(resize_nearest(codes, *target), theirs[:, 0].numpy())


def test_nearest_makes_no_new_codes() -> None:
    codes = np.where(noise(1, 33, 47) > 128, 0, 40_000).astype(np.uint16)
    assert set(np.unique(resize_nearest(codes, 20, 31))) == {0, 40_000}


def test_a_crop_of_all_changes_nothing() -> None:
    pictures, codes = noise(2, 20, 30, 3), noise(2, 20, 30).astype(np.uint16)
    np.testing.assert_array_equal(centre_crop(pictures, 1.0), pictures)
    np.testing.assert_array_equal(centre_crop_nearest(codes, 1.0), codes)


def test_the_centre_crop_is_the_centre_resized_back() -> None:
    assert centre_crop_box(256, 320, 0.95) == (6, 8, 243, 304)
    pictures, codes = noise(1, 256, 320, 3), noise(1, 256, 320).astype(np.uint16)
    np.testing.assert_array_equal(centre_crop(pictures, 0.95), resize_pictures(pictures[:, 6:249, 8:312], 256, 320))
    np.testing.assert_array_equal(centre_crop_nearest(codes, 0.95), resize_nearest(codes[:, 6:249, 8:312], 256, 320))


def project(intrinsics: tuple[float, float, float, float], point: tuple[float, float, float]) -> np.ndarray:
    fx, fy, cx, cy = intrinsics
    return np.array([fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy])


def spot(size: tuple[int, int], at: np.ndarray) -> np.ndarray:
    """A soft spot centred at (x, y) in pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    shape = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 9.0**2))
    return (255 * shape).round().astype(np.uint8)[None, ..., None].repeat(3, axis=3)


def centre_of(picture: np.ndarray) -> np.ndarray:
    weight = picture[0, ..., 0].astype(np.float64)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


SOURCE, TARGET = (240, 320), (128, 200)
INTRINSICS = (300.0, 310.0, 158.3, 121.9)
POINT = (0.05, -0.03, 0.8)


def test_intrinsics_follow_a_resize() -> None:
    """A point seen as a spot, resized: projecting it through the resized intrinsics lands on the resized spot."""
    picture = spot(SOURCE, project(INTRINSICS, POINT))
    expected = project(resize_intrinsics(INTRINSICS, SOURCE, TARGET), POINT)
    np.testing.assert_allclose(centre_of(resize_pictures(picture, *TARGET)), expected, atol=0.02)


def test_intrinsics_follow_crop_and_resize_back() -> None:
    picture = spot(SOURCE, project(INTRINSICS, POINT))
    expected = project(centre_crop_intrinsics(INTRINSICS, *SOURCE, 0.8), POINT)
    np.testing.assert_allclose(centre_of(centre_crop(picture, 0.8)), expected, atol=0.02)
    cut = centre_of(picture[:, 20:, 30:])
    np.testing.assert_allclose(cut, project(crop_intrinsics(INTRINSICS, 20, 30), POINT), atol=0.02)


def test_the_picture_edges_stay_the_edges() -> None:
    """The outer edge of the first pixel is -0.5 before and after."""
    fx, fy, cx, cy = resize_intrinsics((1.0, 1.0, -0.5, -0.5), SOURCE, TARGET)
    assert (cx, cy) == (-0.5, -0.5)
    assert (fx, fy) == (200 / 320, 128 / 240)


TURNS = [(rotate, mirror) for rotate in (0, 90, 180, 270) for mirror in (False, True)]


@pytest.mark.parametrize(("rotate", "mirror"), TURNS)
def test_a_turned_camera_projects_where_its_turned_picture_shows_it(rotate: int, mirror: bool) -> None:
    height, width = 48, 64
    intrinsics, pose = (50.0, 60.0, 30.0, 25.0), np.eye(4)
    pose[:3, :3], pose[:3, 3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0], (0.1, 0.2, -0.3)
    pose[:3, :3] *= np.sign(np.linalg.det(pose[:3, :3]))
    seen = (pose @ np.array([0.1, -0.15, 0.8, 1.0]))[:3]  # in front of it

    def pixel(values: tuple[float, ...], camera: np.ndarray) -> tuple[float, float]:
        x, y, z = camera[:3, :3].T @ (seen - camera[:3, 3])
        return values[0] * x / z + values[2], values[1] * y / z + values[3]

    column, row = pixel(intrinsics, pose)
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[round(row), round(column)] = 255
    turned_pose = pose.copy()
    turned_pose[:3, :3] = pose[:3, :3] @ turned_axes(rotate)
    assert np.linalg.det(turned_pose[:3, :3]) == pytest.approx(1)
    there = pixel(turn_intrinsics(intrinsics, (height, width), rotate, mirror=mirror), turned_pose)
    turned = turn_pictures(picture, rotate, mirror=mirror)
    assert turned.shape == ((width, height, 3) if rotate % 180 else (height, width, 3))
    shown = np.argwhere(turned[..., 0] == 255)[0]
    assert np.abs(shown[::-1] - there).max() < 0.51
    # Rotated by itself: exactly; what the pixel's centre loses above is the rounding of the picture alone.
    np.testing.assert_array_equal(turn_back(turned, rotate, mirror=mirror), picture)


def test_turning_is_clockwise_and_depth_turns_alike() -> None:
    picture = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    picture[0, 0, 0] = 1  # the top left
    assert turn_pictures(picture, 90, mirror=False)[0, 0, 1, 0] == 1  # is the top right
    assert turn_pictures(picture, 90, mirror=True)[0, 0, 0, 0] == 1
    depth = picture[..., 0].astype(np.float32)
    np.testing.assert_array_equal(
        turn_pictures(depth, 270, mirror=True), turn_pictures(picture, 270, mirror=True)[..., 0]
    )
