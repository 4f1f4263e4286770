"""Imagined depth as geometry: closed forms of clouds and of two cameras, and imaginers that are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from xwam_ft.contract import Camera, Contract, DepthCode
from xwam_ft.depth_code import metres_to_code
from xwam_ft.evaluate.fidelity import flicker
from xwam_ft.evaluate.geometry import TOLERANCE, WITHIN, agreement
from xwam_ft.evaluate.pointcloud import Cloud, chamfer, cloud_scores
from xwam_ft.evaluate.world import world
from xwam_ft.evaluate.world_report import sections
from xwam_ft.policy.policy import Imagined
from xwam_ft.shards import Clip, ShardSet

from .fake_policy import FakePolicy

NEAR, FAR = 0.2, 5.0
SIDE = 32
FOCAL = 40.0


def cloud(points: np.ndarray) -> Cloud:
    return Cloud(points, np.zeros((len(points), 3), np.uint8))


def test_the_f_score_is_the_harmonic_mean_of_both_shares() -> None:
    line = np.stack([np.arange(10.0), np.zeros(10), np.zeros(10)], axis=1)
    assert cloud_scores(cloud(line), cloud(line), 0.02) == (0.0, 1.0)
    moved = line + np.array([0.0, 0.01, 0.0])
    assert cloud_scores(cloud(moved), cloud(line), 0.02) == pytest.approx((0.01, 1.0))
    assert cloud_scores(cloud(moved), cloud(line), 0.005) == pytest.approx((0.01, 0.0))
    half = line[:5]  # all of its points lie on the line, and half of the line's on it
    found = cloud_scores(cloud(half), cloud(line), 0.02)
    assert found is not None
    assert found[1] == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert found[0] == chamfer(cloud(half), cloud(line))
    assert cloud_scores(cloud(line[:0]), cloud(line), 0.02) is None


def two_cameras(contract: Contract, apart: float = 0.1) -> Contract:
    """Side by side, looking along z, `apart` metres from each other."""

    def camera(name: str, x: float) -> Camera:
        pose = ((1.0, 0.0, 0.0, x), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
        middle = (SIDE - 1) / 2
        return Camera(
            name=name, source_height=SIDE, source_width=SIDE, intrinsics=(FOCAL, FOCAL, middle, middle), pose=pose
        )

    image = contract.image.model_copy(update={"height": SIDE, "width": SIDE, "crop": 1.0})
    depth = DepthCode(kind="metric", near=NEAR, far=FAR, source="sensor")
    cameras = (camera("left", 0.0), camera("right", apart))
    return contract.model_copy(update={"cameras": cameras, "image": image, "depth": depth})


def codes(*metres: float) -> np.ndarray:
    return np.stack([metres_to_code(np.full((SIDE, SIDE), depth), NEAR, FAR) for depth in metres])


def test_two_cameras_agree_about_a_wall_and_not_about_two(contract: Contract) -> None:
    pair = two_cameras(contract)
    state = np.zeros(contract.state_dim)
    assert agreement(pair, codes(1.0, 1.0), state) == (1.0, 0.0)
    # The right one sees the wall farther away: the left one's points stand before it, its own behind the left one's.
    share = agreement(pair, codes(1.0, 2.0), state)
    assert share[0] == 0.0
    # A wall at z metres is seen shifted by FOCAL * 0.1 / z pixels: 4 columns of 32 do not land at 1 m, 2 at 2 m.
    before, behind = (SIDE - 4) * SIDE, (SIDE - 2) * SIDE
    assert share[1] == pytest.approx(before / (before + behind))
    assert agreement(pair, codes(1.0, 1.0 + TOLERANCE / 2), state)[0] == 1.0
    assert np.isnan(agreement(two_cameras(contract, apart=50.0), codes(1.0, 1.0), state)).all()  # no view in common


def test_cameras_without_calibration_say_nothing(contract: Contract) -> None:
    pair = two_cameras(contract)
    left, right = pair.cameras
    bare = pair.model_copy(update={"cameras": (left, right.model_copy(update={"pose": None}))})
    assert np.isnan(agreement(bare, codes(1.0, 1.0), np.zeros(contract.state_dim))).all()


def judged(policy: FakePolicy, shards: ShardSet) -> dict[str, Any]:
    return world(policy, shards, clips=3).metrics  # pyright: ignore[reportArgumentType]


def test_the_recorded_future_is_the_recorded_scene(shard_set: ShardSet) -> None:
    found = judged(FakePolicy(shard_set), shard_set)
    table = found["geometry"]
    assert table["made"]
    assert table["by_horizon"]["chamfer"]["imagined"] == pytest.approx([0.0] * 4)
    assert table["by_horizon"]["f_score"]["imagined"] == pytest.approx([1.0] * 4)
    assert all(value > 0 for value in table["by_horizon"]["chamfer"]["repeat_first_frame"])
    for score in ("agree", "in_front"):
        assert table["by_horizon"][score]["imagined"] == table["by_horizon"][score]["recorded"]
    assert (table["within"], table["tolerance"]) == (WITHIN, TOLERANCE)
    titles = [section.title for section in sections({"world": found})]
    assert "is what it imagines one scene?" in titles
    assert "does it flicker?" in titles


def test_repeating_the_first_picture_is_the_baseline_of_clouds(shard_set: ShardSet) -> None:
    def still(clip: Clip) -> Imagined:
        seen = policy.recorded_future(clip)
        assert seen.depth is not None
        return dataclasses.replace(
            seen,
            depth=np.repeat(seen.depth[:, :1], seen.depth.shape[1], axis=1),
            states=np.repeat(seen.states[:1], len(seen.states), axis=0),
        )

    policy = FakePolicy(shard_set, dream=still)
    table = judged(policy, shard_set)["geometry"]["by_horizon"]
    for score in ("chamfer", "f_score"):
        assert table[score]["imagined"] == pytest.approx(table[score]["repeat_first_frame"])


def test_without_depth_there_is_no_geometry(shard_set: ShardSet) -> None:
    policy = FakePolicy(shard_set, dream=lambda clip: policy.recorded_future(clip, depth=None))
    found = judged(policy, shard_set)
    assert found["geometry"] == {"made": False, "reason": "no point cloud: this policy has no depth branch"}
    assert "is what it imagines one scene?" not in [section.title for section in sections({"world": found})]


def test_flicker_is_what_alternates_and_not_what_changes_slowly() -> None:
    everywhere = np.ones((4, 4), dtype=bool)
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 60, np.uint8)
    assert flicker(np.stack([black, grey, black, grey]), everywhere) == 60
    ramp = np.stack([np.full((4, 4, 3), 50 * step, np.uint8) for step in range(5)])
    assert flicker(ramp, everywhere) == 0
    corner = np.zeros((4, 4), dtype=bool)
    corner[0, 0] = True
    blinks = np.stack([black, black, black])
    blinks[1, 0, 0] = 100
    assert flicker(blinks, corner) == 100
    assert flicker(blinks, ~corner) == 0
    assert np.isnan(flicker(blinks[:2], corner))
    assert np.isnan(flicker(blinks, np.zeros((4, 4), dtype=bool)))


def test_an_imaginer_that_alternates_is_seen_to(shard_set: ShardSet) -> None:
    def alternating(clip: Clip) -> Imagined:
        seen = policy.recorded_future(clip)
        rgb = seen.rgb.copy()
        rgb[:, 1::2] = np.clip(rgb[:, 1::2].astype(int) + 20, 0, 255)
        return dataclasses.replace(seen, rgb=rgb)

    policy = FakePolicy(shard_set, dream=alternating)
    found = judged(policy, shard_set)["flicker"]
    assert found["imagined"] > found["recorded"] + 10
    assert len(found["per_clip"]) == 3
