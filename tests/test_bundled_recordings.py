"""The recordings that ship: complete, small, readable, and what their README says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from xwam_ft.bundled import bundled
from xwam_ft.media import count_frames, read_gray16, read_rgb
from xwam_ft.poses import pose_matrix
from xwam_ft.prepare.depth.sensor import lerobot_log12

CAMERAS = ("corner", "corner3", "gripper")


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundled("recordings/metaworld_demo")


@pytest.fixture(scope="module")
def table(folder: Path) -> dict[str, np.ndarray]:
    rows = pq.read_table(folder / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    return {name: np.array(values) for name, values in rows.items()}


@pytest.fixture(scope="module")
def calibration(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "meta" / "calibration.json").read_text())["cameras"]


def video(folder: Path, key: str) -> Path:
    return folder / "videos" / f"observation.images.{key}" / "chunk-000" / "file-000.mp4"


def test_they_are_small() -> None:
    root = bundled("recordings")
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) <= 4_000_000


def test_twelve_episodes_of_two_tasks_all_successful(folder: Path, table: dict[str, np.ndarray]) -> None:
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_tasks"], info["fps"]) == (12, 2, 80)
    assert info["total_frames"] == len(table["index"])
    for episode in range(12):
        rows = table["episode_index"] == episode
        assert len(set(table["task_index"][rows].tolist())) == 1
        assert table["next.success"][rows].squeeze()[-1]
        assert table["frame_index"][rows].tolist() == list(range(rows.sum()))


@pytest.mark.parametrize("key", [*CAMERAS, *(f"{camera}_depth" for camera in CAMERAS)])
def test_every_video_has_a_frame_a_row(folder: Path, table: dict[str, np.ndarray], key: str) -> None:
    assert count_frames(video(folder, key)) == len(table["index"])


def test_the_hand_follows_its_command(table: dict[str, np.ndarray]) -> None:
    """Command and state are poses of the same frame: the hand moves towards its target and lags by at most 15 cm."""
    state, action = table["observation.state"].astype(float), table["action"].astype(float)
    np.testing.assert_allclose(np.linalg.norm(state[:, 3:7], axis=1), 1.0, atol=1e-5)
    assert (state[:, 3] >= 0).all()
    assert np.linalg.norm(action[:, :3] - state[:, :3], axis=1).max() < 0.15
    inside = table["episode_index"][1:] == table["episode_index"][:-1]
    moved = (state[1:, :3] - state[:-1, :3])[inside]
    wanted = (action[:-1, :3] - state[:-1, :3])[inside]
    fast = np.linalg.norm(moved, axis=1) > 2e-3
    cosine = (moved * wanted).sum(1) / np.linalg.norm(moved, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(cosine[fast]) > 0.8


@pytest.mark.parametrize("camera", ["corner", "corner3"])
def test_calibration_and_depth_agree_on_where_the_hand_is(
    folder: Path, table: dict[str, np.ndarray], calibration: dict[str, Any], camera: str
) -> None:
    rows = list(range(0, len(table["index"]), 25))
    metres = lerobot_log12(read_gray16(video(folder, f"{camera}_depth"), rows))
    fx, fy, cx, cy = calibration[camera]["intrinsics"]
    to_camera = np.linalg.inv(np.array(calibration[camera]["pose"]))
    differences = []
    for depth, row in zip(metres, rows, strict=True):
        x, y, z, _ = to_camera @ np.append(table["observation.state"][row][:3], 1.0)
        column, line = round(fx * x / z + cx), round(fy * y / z + cy)
        differences.append(np.abs(depth[line - 2 : line + 3, column - 2 : column + 3] - z).min())
    assert np.median(differences) < 0.03


@pytest.mark.parametrize("row", [0, 10, 20, 60, 300])
def test_the_wrist_camera_and_a_static_one_see_the_same_surface(
    folder: Path, table: dict[str, np.ndarray], calibration: dict[str, Any], row: int
) -> None:
    """Points the wrist camera sees, carried by the recorded hand pose, lie on the surface the static camera sees,
    wherever nothing stands between them and it. The hand tilts by 10 degrees on its way, so a camera that did not
    turn with it would fail."""
    pixels = np.stack(np.meshgrid(np.arange(80, 124, 4), np.arange(8, 92, 6)), -1).reshape(-1, 2)
    depth = lerobot_log12(read_gray16(video(folder, "gripper_depth"), [row]))[0][pixels[:, 1], pixels[:, 0]]
    fx, fy, cx, cy = calibration["gripper"]["intrinsics"]
    rays = np.stack([(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))], 1)
    points = np.concatenate([rays * depth[:, None], np.ones((len(pixels), 1))], 1)
    hand = pose_matrix(table["observation.state"][row][:7].astype(float))
    world = points @ (hand @ np.array(calibration["gripper"]["pose"])).T
    fx, fy, cx, cy = calibration["corner3"]["intrinsics"]
    seen = world @ np.linalg.inv(np.array(calibration["corner3"]["pose"])).T
    columns = np.rint(fx * seen[:, 0] / seen[:, 2] + cx).astype(int)
    lines = np.rint(fy * seen[:, 1] / seen[:, 2] + cy).astype(int)
    inside = (columns >= 0) & (columns < 128) & (lines >= 0) & (lines < 96)
    assert inside.mean() > 0.5
    static = lerobot_log12(read_gray16(video(folder, "corner3_depth"), [row]))[0][lines[inside], columns[inside]]
    difference = static - seen[inside, 2]
    unoccluded = difference > -0.05
    assert unoccluded.mean() > 0.5
    assert np.median(np.abs(difference[unoccluded])) < 0.007


def test_statistics_are_those_of_the_recordings(folder: Path, table: dict[str, np.ndarray]) -> None:
    found = json.loads((folder / "meta" / "stats.json").read_text())
    for name in ("observation.state", "action", "action.raw"):
        np.testing.assert_allclose(found[name]["mean"], table[name].astype(float).mean(0), atol=1e-6)
        np.testing.assert_allclose(found[name]["std"], table[name].astype(float).std(0), atol=1e-6)
    for camera in CAMERAS:
        pictures = read_rgb(video(folder, camera), list(range(0, len(table["index"]), 10))) / 255.0
        statistics = found[f"observation.images.{camera}"]
        assert np.shape(statistics["mean"]) == (3, 1, 1)
        np.testing.assert_allclose(np.ravel(statistics["mean"]), pictures.mean((0, 1, 2)), atol=0.02)
        np.testing.assert_allclose(np.ravel(statistics["std"]), pictures.std((0, 1, 2)), atol=0.02)


def test_depth_is_that_of_a_table_and_a_gripper(folder: Path) -> None:
    """Metres: nothing is nearer than the mounting allows, and each camera sees the workspace where it is."""
    for camera, nearest, workspace in (
        ("corner", 0.7, (0.8, 2.5)),
        ("corner3", 0.9, (1.1, 2.0)),
        ("gripper", 0.01, (0.1, 0.5)),  # its fingers begin at the near plane, 2.3 cm, and lossy video overshoots
    ):
        metres = lerobot_log12(read_gray16(video(folder, f"{camera}_depth"), [0, 300, 900]))
        assert metres.min() > nearest
        assert metres.max() <= 10.0
        assert workspace[0] < np.median(metres[:, 40:90, 30:100]) < workspace[1]


def test_pictures_show_something(folder: Path) -> None:
    for camera in CAMERAS:
        pictures = read_rgb(video(folder, camera), [0, 500]).astype(float)
        assert pictures.shape[1:] == (96, 128, 3)
        assert pictures.std() > 20
        assert np.abs(pictures[0] - pictures[1]).mean() > 1
