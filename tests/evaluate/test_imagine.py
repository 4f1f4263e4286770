"""Imagined beside recorded, with futures that are known: the recorded one, or the first frame for ever."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from xwam_ft.contract import Contract, DepthCode
from xwam_ft.errors import UserError
from xwam_ft.evaluate.fidelity import Fidelity, depth_scores, picture_scores, structural_similarity
from xwam_ft.evaluate.imagine import imagine, make_pair, pair_rows, tiles
from xwam_ft.evaluate.pictures import PictureRow, contact_sheet, enlarge, pages
from xwam_ft.evaluate.pointcloud import read_ply
from xwam_ft.media import read_rgb
from xwam_ft.policy.policy import Imagined, Policy
from xwam_ft.shards import Clip, ShardSet

from .fake_policy import FakePolicy

EPISODE = 2  # 17 frames: clips of 9 start at 0 and 8, and both are whole


def console() -> tuple[Console, io.StringIO]:
    said = io.StringIO()
    return Console(file=said, width=200), said


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakePolicy], Path]:
    """Make a folder that loads as the given policy."""

    def install(policy: FakePolicy) -> Path:
        policy.contract.save(tmp_path / "bundle" / "contract.json")
        monkeypatch.setattr(Policy, "load", classmethod(lambda cls, path: policy))
        return tmp_path / "bundle"

    return install


def yellow(picture: np.ndarray) -> np.ndarray:
    """Where the caption's colour is, also after a lossy codec; [.., H, W]."""
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    return (red > 180) & (green > 130) & (blue < 130) & (red - blue > 90)


@pytest.mark.slow
def test_a_perfect_imagination_scores_perfectly_and_its_cloud_is_the_recorded_one(
    shard_set: ShardSet, use: Callable[[FakePolicy], Path], tmp_path: Path
) -> None:
    policy, out = FakePolicy(shard_set), tmp_path / "out"
    screen, said = console()
    metrics = imagine(use(policy), shard_set.folder, EPISODE, out, screen)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    scores = {name: values["imagined"] for name, values in metrics["scores"]["all"].items()}
    assert scores == pytest.approx({"psnr": 100.0, "ssim": 1.0, "abs_rel": 0.0, "delta1": 1.0}, abs=1e-4)
    assert metrics["scores"]["all"]["psnr"]["repeat_first_frame"] < 40
    assert (out / "imagined.ply").read_bytes() == (out / "recorded.ply").read_bytes()
    cloud = read_ply(out / "recorded.ply")
    assert len(cloud) == metrics["point_cloud"]["points"]["recorded"] > 3000
    assert metrics["point_cloud"]["episode_frame"] == 16  # the end of the middle clip
    assert metrics["trained_backbone"] is True
    assert policy.seeds == [100, 101]
    names = {path.name for path in out.iterdir()}
    assert names == {
        "imagined.mp4",
        "contact_sheet.png",
        "imagined.ply",
        "recorded.ply",
        "pointcloud.png",
        "metrics.json",
    }
    assert "untrained" not in said.getvalue()
    # Clips share a frame: 5 + 4 pictures for 17 frames, every second one.
    video = read_rgb(out / "imagined.mp4")
    assert len(video) == 9
    rows, height = 4, 128  # 64 x 32 enlarged four times
    tops = [22 + row * (height + 8) for row in range(rows)]
    right = video[:, :, 132:].astype(int)  # beside the labels
    for above, below in ((0, 1), (2, 3)):
        first, second = (right[:, tops[row] : tops[row] + height] for row in (above, below))
        assert np.abs(first - second).mean() < 4


@pytest.mark.slow
def test_untrained_is_written_on_every_imagined_picture_and_on_no_recorded_one(
    shard_set: ShardSet, use: Callable[[FakePolicy], Path], tmp_path: Path
) -> None:
    def grey(clip: Clip) -> Imagined:
        seen = policy.recorded_future(clip)
        assert seen.depth is not None
        return dataclasses.replace(seen, rgb=np.full_like(seen.rgb, 90), depth=np.full_like(seen.depth, 9000))

    policy = FakePolicy(shard_set, dream=grey, trained=False)
    screen, said = console()
    out = tmp_path / "out"
    metrics = imagine(use(policy), shard_set.folder, EPISODE, out, screen)
    assert metrics["trained_backbone"] is False
    assert "untrained backbone" in said.getvalue()
    video = read_rgb(out / "imagined.mp4")
    for row in (1, 3):
        for view in range(2):
            top, left = 22 + row * 136, 132 + view * 264
            tile = video[:, top : top + 128, left : left + 256]
            assert np.all(yellow(tile[:, -20:]).sum(axis=(1, 2)) > 100), (row, view)
            assert not yellow(tile[:, :-22]).any()


def test_the_caption_is_on_the_contact_sheet(shard_set: ShardSet) -> None:
    frames = np.full((2, 3, 32, 64, 3), 90, np.uint8)
    rows = [PictureRow("recorded", frames), PictureRow("imagined", frames, "untrained backbone")]
    sheet = contact_sheet(rows, shard_set.contract.camera_names, ["a", "b", "c"], 3)
    strip = 22 + 2 * 136
    assert sheet.shape == (2 * strip, 132 + 3 * 264, 3)
    for view in range(2):
        for column in range(3):
            tile = sheet[view * strip + 22 + 136 :][:128, 132 + column * 264 :][:, :256]
            assert yellow(tile).sum() > 100
            assert not yellow(sheet[view * strip + 22 :][:128, 132 + column * 264 :][:, :256]).any()


def test_repeating_the_first_frame_scores_like_the_baseline(shard_set: ShardSet) -> None:
    policy, contract = FakePolicy(shard_set), shard_set.contract
    clip = shard_set.read_clip(shard_set.clips("held_out", 1)[0])
    seen = policy.recorded_future(clip)
    still = dataclasses.replace(seen, rgb=np.repeat(seen.rgb[:, :1], 5, axis=1))
    pair = make_pair(contract, clip, still)
    fidelity = Fidelity(["front"])
    fidelity.add_pictures("front", pair.imagined_rgb[0], pair.rgb[0])
    table = fidelity.table()
    assert table["psnr"]["imagined"] == table["psnr"]["repeat_first_frame"]
    assert table["ssim"]["imagined"] == table["ssim"]["repeat_first_frame"]


def test_ssim_is_torchmetrics_own() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    rng = np.random.default_rng(0)
    first = rng.random((3, 32, 48, 3))
    first[0], second = 0.5, np.clip(first + rng.normal(0, [[[[0.02]]], [[[0.2]]], [[[1.0]]]], first.shape), 0, 1)
    pair = torch.from_numpy(first).movedim(-1, 1), torch.from_numpy(second).movedim(-1, 1)
    expected = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    np.testing.assert_allclose(structural_similarity(first, second), expected, rtol=1e-9)


def test_scores_in_closed_form() -> None:
    dark = np.full((2, 16, 16, 3), 100, np.uint8)
    scores = picture_scores(dark, dark + 10)
    np.testing.assert_allclose(scores["psnr"], 20 * np.log10(255 / 10), rtol=1e-5)
    # Of two flat pictures SSIM keeps its luminance term alone.
    a, b, c = 100 / 255, 110 / 255, 0.01**2
    np.testing.assert_allclose(scores["ssim"], (2 * a * b + c) / (a * a + b * b + c), rtol=1e-4)
    np.testing.assert_array_equal(picture_scores(dark, dark)["psnr"], 100.0)
    metres = np.full((2, 4, 4), 2.0)
    counted = np.ones((2, 4, 4), bool)
    counted[1] = False
    near, far = depth_scores(metres * 1.2, metres, counted), depth_scores(metres / 1.3, metres, counted)
    np.testing.assert_allclose(near["abs_rel"], [0.2, np.nan])
    np.testing.assert_allclose(near["delta1"], [1.0, np.nan])
    np.testing.assert_allclose(far["delta1"], [0.0, np.nan])


def test_both_predictors_are_scored_on_the_same_pixels() -> None:
    recorded = np.full((2, 4, 4), 2.0)
    recorded[0, 0], recorded[1, 1] = np.nan, np.nan  # a hole in the given frame, another in the future one
    imagined = np.full((2, 4, 4), 2.0)
    imagined[1, :2] = 9.0  # wrong exactly where one of them has no reading
    fidelity = Fidelity(["front"])
    fidelity.add_depth("front", imagined, recorded)
    assert fidelity.table()["abs_rel"] == {"imagined": 0.0, "repeat_first_frame": 0.0}
    assert fidelity.table("front")["delta1"] == {"imagined": 1.0, "repeat_first_frame": 1.0}


def test_what_is_past_the_recording_is_not_shown(shard_set: ShardSet) -> None:
    policy = FakePolicy(shard_set)
    clip = shard_set.read_clip(shard_set.clips("held_out", 1)[-1])
    count = int(clip.frame_valid.sum())
    assert count < 5
    pair = make_pair(shard_set.contract, clip, policy.recorded_future(clip))
    for row in pair_rows(shard_set.contract, pair, None):
        assert row.frames.shape[:2] == (2, count)


def test_clips_tile_every_episode(shard_set: ShardSet) -> None:
    for entry in shard_set.index.episodes:
        starts = [ref.start for ref in tiles(shard_set, entry)]
        assert starts == list(range(0, starts[-1] + 1, 8))
        assert starts[-1] + 2 <= entry.frames - 1 < starts[-1] + 8 + 2


def test_small_pictures_are_enlarged_by_whole_pixels_and_pages_are_even() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    large = enlarge(picture)
    assert large.shape == (5 * 37, 7 * 37, 3)
    np.testing.assert_array_equal(large[18::37, 18::37], picture)
    np.testing.assert_array_equal(enlarge(np.zeros((4, 300, 3), np.uint8)).shape, (4, 300, 3))
    made = list(pages([PictureRow("r", np.broadcast_to(picture, (1, 3, 5, 7, 3)))], ["cam"], ["1", "2", "3"], 1))
    assert len(made) == 2
    assert all(side % 2 == 0 for page in made for side in page.shape[:2])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["relative", "no branch"])
def test_why_there_is_no_cloud_is_said_and_written(
    case: str,
    shard_set: ShardSet,
    contract_with: Callable[..., Contract],
    use: Callable[[FakePolicy], Path],
    tmp_path: Path,
) -> None:
    shards, reason = shard_set, "no point cloud: this policy has no depth branch"
    policy = FakePolicy(shards)
    policy.dream = lambda clip: policy.recorded_future(clip, depth=None)
    if case == "relative":
        depth = DepthCode(kind="relative", source="files:x", clip_normalised=True)
        policy.contract = contract_with(depth=depth)
        shards = dataclasses.replace(shard_set, contract=policy.contract)
        policy.dream = policy.recorded_future
        reason = "no point cloud: depth is 'relative' (source 'files:x'), which has no metres"
    bundle = use(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardSet, "open", classmethod(lambda cls, folder: shards))
        screen, said = console()
        metrics = imagine(bundle, shards.folder, EPISODE, tmp_path / "out", screen)
    assert metrics["point_cloud"] == {"made": False, "reason": reason}
    assert reason in said.getvalue()
    assert not list((tmp_path / "out").glob("*.ply"))
    assert list(metrics["scores"]["all"]) == ["psnr", "ssim"]
    rows = (read_rgb(tmp_path / "out" / "imagined.mp4").shape[1] - 22) // 136
    assert rows == (4 if case == "relative" else 2)


def test_mistakes_are_said_before_anything_is_made(
    shard_set: ShardSet, use: Callable[[FakePolicy], Path], tmp_path: Path
) -> None:
    bundle, screen = use(FakePolicy(shard_set)), console()[0]
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"set: there is no episode 7\. Fix: choose one of: 0, 1, 2"):
        imagine(bundle, shard_set.folder, 7, out, screen)
    short = shard_set.index.episodes[EPISODE].model_copy(update={"index": 9, "frames": 2})
    with pytest.raises(UserError, match=r"set: episode 9 has 2 frames, and a clip needs 3\. Fix: choose a longer"):
        tiles(shard_set, short)
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UserError, match=r"out: exists already and is not an empty folder"):
        imagine(bundle, shard_set.folder, EPISODE, out, screen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out"]
