"""Clouds: closed forms, round trips, and a wrist camera that moves with the hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xwam_ft.contract import Camera, Contract, DepthCode, Image
from xwam_ft.depth_code import metres_to_code
from xwam_ft.errors import UserError
from xwam_ft.evaluate.pointcloud import Cloud, fuse, project, read_ply, transform, unproject, view_cloud, write_ply
from xwam_ft.evaluate.scene import camera_pose, left_out, model_intrinsics, preview, scene_cloud, why_no_cloud
from xwam_ft.poses import matrix_pose, pose_matrix

K = (50.0, 60.0, 31.5, 15.5)


def test_a_fronto_parallel_plane_is_flat_and_as_wide_as_the_pinhole_says() -> None:
    points = unproject(np.full((32, 64), 2.0), K)
    np.testing.assert_array_equal(points[..., 2], 2.0)
    # 63 steps between the outer pixel centres, 1/50 of the depth each; the optical axis is at 31.5, 15.5.
    np.testing.assert_allclose(points[0, -1, 0] - points[0, 0, 0], 63 * 2.0 / 50.0)
    np.testing.assert_allclose(points[-1, 0, 1] - points[0, 0, 1], 31 * 2.0 / 60.0)
    np.testing.assert_allclose(points[..., :2].mean(axis=(0, 1)), 0.0, atol=1e-12)


def test_a_tilted_plane_is_recovered_in_the_base_frame() -> None:
    normal, distance = np.array([0.3, -0.2, 1.0]), 1.5  # normal . p = distance, in the camera's frame
    rows, columns = np.indices((32, 64))
    rays = np.stack([(columns - K[2]) / K[0], (rows - K[3]) / K[1], np.ones((32, 64))], axis=-1)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec([0.4, -1.0, 0.2]).as_matrix(), (0.1, -0.5, 0.7)
    cloud = view_cloud(distance / (rays @ normal), np.zeros((32, 64, 3), np.uint8), K, pose)
    turned = pose[:3, :3] @ normal
    np.testing.assert_allclose(cloud.points @ turned, distance + turned @ pose[:3, 3], atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_projection_inverts_unprojection(seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0.2, 5.0, (7, 9))
    pixels = project(unproject(depth, K).reshape(-1, 3), K).reshape(7, 9, 2)
    rows, columns = np.indices((7, 9))
    np.testing.assert_allclose(pixels, np.stack([columns, rows], axis=-1), atol=1e-9)


def test_holes_give_no_points_and_colours_stay_with_theirs() -> None:
    depth = np.array([[1.0, np.nan, 0.0], [-1.0, np.inf, 2.0]])
    colours = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    cloud = view_cloud(depth, colours, K, np.eye(4))
    np.testing.assert_array_equal(cloud.colours, [[0, 1, 2], [15, 16, 17]])
    np.testing.assert_array_equal(cloud.points[:, 2], [1.0, 2.0])
    both = fuse([cloud, cloud])
    assert len(both) == 4
    assert len(fuse([])) == 0


def test_intrinsics_follow_resize_and_crop(contract: Contract) -> None:
    """A camera of twice the size sees the same rays; the crop's corner pixel looks where the box's corner did."""
    camera = contract.cameras[0]
    double = camera.model_copy(
        update={"source_height": 64, "source_width": 128, "intrinsics": (80.0, 80.0, 63.5, 31.5)}
    )
    np.testing.assert_allclose(model_intrinsics(contract, double), model_intrinsics(contract, camera))
    whole = contract.model_copy(update={"image": Image(height=32, width=64, crop=1.0)})
    np.testing.assert_allclose(model_intrinsics(whole, camera), camera.intrinsics)
    half = contract.model_copy(update={"image": Image(height=32, width=64, crop=0.5)})
    fx, fy, cx, cy = model_intrinsics(half, camera)
    assert (fx, fy) == (80.0, 80.0)
    # The outer edge of the cropped picture (-0.5) is the edge of column 16 (15.5) of the whole one.
    np.testing.assert_allclose((-0.5 - cx) / fx, (15.5 - 31.5) / 40.0)
    np.testing.assert_allclose((-0.5 - cy) / fy, (7.5 - 15.5) / 40.0)


def test_a_wrist_camera_moves_with_the_hand_and_a_static_one_does_not(contract: Contract) -> None:
    front, wrist = contract.cameras
    hand = np.eye(4)
    hand[:3, :3], hand[:3, 3] = Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix(), (0.2, -0.1, 0.4)
    here = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.04])
    there = np.concatenate([matrix_pose(hand[None])[0], [0.04]])
    rgb = np.zeros((2, 32, 64, 3), np.uint8)
    codes = metres_to_code(np.full((2, 32, 64), 0.8), 0.2, 3.0)
    first, second = (scene_cloud(contract, rgb, codes, state) for state in (here, there))
    half = 32 * 64
    np.testing.assert_array_equal(first.points[:half], second.points[:half])
    np.testing.assert_allclose(transform(first.points[half:], hand), second.points[half:], atol=1e-9)
    np.testing.assert_allclose(camera_pose(contract, wrist, there), hand @ np.asarray(wrist.pose))
    np.testing.assert_array_equal(camera_pose(contract, front, there), np.asarray(front.pose))
    np.testing.assert_allclose(pose_matrix(there[:7]), hand, atol=1e-12)


def test_each_camera_decodes_depth_by_its_own_range(contract: Contract) -> None:
    near_sighted = contract.cameras[1].model_copy(update={"depth_range": (0.05, 0.5)})
    changed = contract.model_copy(update={"cameras": (contract.cameras[0], near_sighted)})
    codes = np.full((2, 32, 64), 65535, np.uint16)  # the nearest there is
    state = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.04])
    cloud = scene_cloud(changed, np.zeros((2, 32, 64, 3), np.uint8), codes, state)
    np.testing.assert_allclose(cloud.points[32 * 64 :, 2], 0.05, rtol=1e-9)
    np.testing.assert_allclose(cloud.points[: 32 * 64, 1], -1.0 + 0.2, rtol=1e-9)  # the front camera looks along y


def test_relative_depth_makes_no_cloud(contract_with: Callable[..., Contract]) -> None:
    contract = contract_with(depth=DepthCode(kind="relative", source="files:x", clip_normalised=True))
    with pytest.raises(UserError, match=r"depth is 'relative' \(source 'files:x'\), which has no metres"):
        scene_cloud(contract, np.zeros((2, 32, 64, 3), np.uint8), np.ones((2, 32, 64), np.uint16), np.zeros(8))
    assert why_no_cloud(contract, depth_branch=True) == (
        "no point cloud: depth is 'relative' (source 'files:x'), which has no metres"
    )


def test_why_there_is_no_cloud(contract: Contract) -> None:
    assert why_no_cloud(contract, depth_branch=True) is None
    assert why_no_cloud(contract, depth_branch=False) == "no point cloud: this policy has no depth branch"
    bare = [
        Camera(name=camera.name, kind=camera.kind, source_height=32, source_width=64) for camera in contract.cameras
    ]
    one = contract.model_copy(update={"cameras": (contract.cameras[0], bare[1])})
    assert why_no_cloud(one, depth_branch=True) is None
    assert left_out(one) == {"wrist": "intrinsics and a pose and the slot it is mounted on"}
    assert why_no_cloud(contract.model_copy(update={"cameras": tuple(bare)}), depth_branch=True) == (
        "no point cloud: no camera is calibrated (front lacks intrinsics and a pose; "
        "wrist lacks intrinsics and a pose and the slot it is mounted on)"
    )


def test_ply_round_trip_and_header(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cloud = Cloud(rng.normal(size=(11, 3)), rng.integers(0, 256, (11, 3), dtype=np.uint8))
    path = tmp_path / "cloud.ply"
    write_ply(path, cloud)
    read = read_ply(path)
    np.testing.assert_array_equal(read.points, cloud.points.astype(np.float32))
    np.testing.assert_array_equal(read.colours, cloud.colours)
    data = path.read_bytes()
    assert data.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 11\nproperty float x\n")
    assert len(data) == data.index(b"end_header\n") + 11 + 11 * 15
    write_ply(path, fuse([]))
    assert len(read_ply(path)) == 0


def test_files_that_are_no_cloud_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cloud.ply"
    path.write_bytes(b"\xff\xfe nothing end_header\n")
    with pytest.raises(UserError, match=r"cloud\.ply: is not a coloured binary point cloud\. Fix: give a \.ply"):
        read_ply(path)
    write_ply(path, Cloud(np.zeros((4, 3)), np.zeros((4, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cloud\.ply: holds 59 bytes for 4 points"):
        read_ply(path)


@pytest.mark.slow
def test_the_preview_carries_its_caption(tmp_path: Path) -> None:
    """With the caption there is yellow on the imagined half, and nowhere without."""
    from PIL import Image as Picture

    rng = np.random.default_rng(0)
    clouds = {name: Cloud(rng.normal(size=(50, 3)), np.zeros((50, 3), np.uint8)) for name in ("imagined", "recorded")}

    def yellow(caption: str | None) -> np.ndarray:
        preview(tmp_path / "p.png", clouds, {"imagined": caption})
        picture = np.asarray(Picture.open(tmp_path / "p.png").convert("RGB")).astype(int)
        hits = np.abs(picture - np.array([255, 196, 61])).sum(axis=-1) < 12
        middle = hits.shape[1] // 2
        return np.array([hits[:, :middle].sum(), hits[:, middle:].sum()])

    assert yellow("untrained backbone")[0] > 500
    assert yellow("untrained backbone")[1] == 0
    assert not yellow(None).any()
