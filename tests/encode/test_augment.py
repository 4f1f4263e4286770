"""Augmented copies: crops shared by RGB and depth, colours, intrinsics; what the cache holds and the loader shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shared import QUIET
from xwam_ft.encode.augment import Augmentation, augmentation, centred
from xwam_ft.encode.cache import LatentCache, cache_identity
from xwam_ft.encode.clip_tensors import augmentation_of, encode_clips
from xwam_ft.encode.clips import ClipOrder, StepGeometry, copy_at
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.encode.encode import encode
from xwam_ft.errors import UserError
from xwam_ft.learn.counts import StepCounts
from xwam_ft.media import Codec, compressed
from xwam_ft.model.backbone import load_backbone
from xwam_ft.pictures import centre_crop, centre_crop_nearest, crop_size
from xwam_ft.recipe import AugmentSpec, Recipe, load_recipe
from xwam_ft.shards import ShardSet

HEIGHT, WIDTH, CROP = 20, 40, 0.7
SPEC = AugmentSpec(crop=True, brightness=0.3, saturation=0.5, hue=0.1)


def draw(key: str, copy: int, spec: AugmentSpec = SPEC, views: int = 3) -> Augmentation:
    return augmentation(spec, key, copy, views, HEIGHT, WIDTH, CROP)


def test_a_copy_is_a_function_of_clip_and_number() -> None:
    assert draw("a", 1) == draw("a", 1)
    assert len({draw(key, copy) for key in ("a", "b") for copy in range(3)}) == 6
    # Colours move no crop, and one colour's range moves no other colour.
    assert draw("a", 1, AugmentSpec(crop=True)).boxes == draw("a", 1).boxes
    plain, colourful = draw("a", 1).colour, draw("a", 1, AugmentSpec(crop=True, brightness=0.3, contrast=1.0)).colour
    assert plain is not None
    assert colourful is not None
    assert plain[0] == colourful[0]


def test_crops_stay_inside_differ_by_view_and_reach_every_edge() -> None:
    inner = crop_size(HEIGHT, WIDTH, CROP)
    drawn = [draw("clip", copy).boxes for copy in range(300)]
    assert all(box[2:] == inner for boxes in drawn for box in boxes)
    for axis, free in ((0, HEIGHT - inner[0]), (1, WIDTH - inner[1])):
        assert {box[axis] for boxes in drawn for box in boxes} == set(range(free + 1))
    assert sum(len(set(boxes)) == 3 for boxes in drawn) > 200


def test_zoomed_crops_are_smaller_and_larger_than_the_contract_s_and_stay_inside() -> None:
    drawn = [draw("clip", copy, AugmentSpec(crop=True, zoom=0.5)).boxes for copy in range(300)]
    for side, whole in ((2, HEIGHT), (3, WIDTH)):
        sizes = [box[side] for boxes in drawn for box in boxes]
        assert min(sizes) == pytest.approx(whole * CROP * 0.5, abs=1)
        assert max(sizes) == whole  # 1.5 times the crop would be more
        assert all(box[side - 2] + box[side] <= whole for boxes in drawn for box in boxes)
    assert all(len(set(boxes)) == 3 for boxes in drawn)
    assert draw("clip", 0, AugmentSpec(crop=True, zoom=0.0)) == draw("clip", 0, AugmentSpec(crop=True))
    with pytest.raises(ValueError, match=r"zoom 0\.1 is of random crops, and crop is false: set crop: true as well"):
        AugmentSpec(zoom=0.1)


def test_a_share_of_the_copies_is_compressed_by_either_codec_before_the_crop() -> None:
    copies = [draw("clip", copy, AugmentSpec(codec=0.5)) for copy in range(400)]
    kinds = [copy.codec and copy.codec[0] for copy in copies]
    assert kinds.count(None) == pytest.approx(200, abs=40)
    assert kinds.count("h264") == pytest.approx(100, abs=30)
    assert {copy.codec[1] for copy in copies if copy.codec and copy.codec[0] == "h264"} == set(range(18, 39))
    assert {copy.codec[1] for copy in copies if copy.codec and copy.codec[0] == "jpeg"} <= set(range(30, 96))
    rgb = np.random.default_rng(0).integers(0, 256, (2, 3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    codecs: tuple[tuple[Codec, int], ...] = (("h264", 30), ("jpeg", 40))
    for codec in codecs:
        first = np.stack([compressed(view, *codec) for view in rgb])
        change = Augmentation(centred(2, HEIGHT, WIDTH, CROP).boxes, codec=codec)
        np.testing.assert_array_equal(change.rgb(rgb), centred(2, HEIGHT, WIDTH, CROP).rgb(first))
        assert np.any(first != rgb)


def test_a_cache_of_before_these_were_there_still_holds(shard_set: ShardSet, recipe: Recipe) -> None:
    def named(**spec: object) -> str:
        data = recipe.data.model_copy(update={"augment": AugmentSpec.model_validate(spec)})
        return cache_identity("b", shard_set, data, "float32", with_depth=False).augment

    assert "zoom" not in named(crop=True)
    assert "codec" not in named(crop=True)
    assert len({named(crop=True), named(crop=True, zoom=0.1), named(crop=True, codec=0.1), named(codec=0.1)}) == 4


def test_without_anything_set_it_is_what_deployment_does() -> None:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (2, 3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    codes = random.integers(0, 65536, (2, 3, HEIGHT, WIDTH), dtype=np.uint16)
    plain = augmentation(AugmentSpec(), "clip", 0, 2, HEIGHT, WIDTH, CROP)
    assert plain == centred(2, HEIGHT, WIDTH, CROP)
    np.testing.assert_array_equal(plain.rgb(rgb), np.stack([centre_crop(view, CROP) for view in rgb]))
    np.testing.assert_array_equal(plain.depth(codes), np.stack([centre_crop_nearest(view, CROP) for view in codes]))


def test_rgb_and_depth_show_the_same_place_and_intrinsics_follow() -> None:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.broadcast_to((columns * 6)[None, None, :, :, None], (3, 2, HEIGHT, WIDTH, 3)).astype(np.uint8)
    codes = np.broadcast_to((1 + columns + 100 * rows)[None, None], (3, 2, HEIGHT, WIDTH)).astype(np.uint16)
    change = draw("clip", 5, AugmentSpec(crop=True))
    shown, depth = change.rgb(rgb), change.depth(codes)
    assert set(np.unique(depth)) <= set(np.unique(codes))  # no mean of two codes
    column = (depth.astype(int) - 1) % 100
    # Nearest and bilinear sampling are at most half a source pixel apart.
    assert np.abs(shown[..., 0] / 6 - column).max() <= 0.5 + 1 / 6
    for view in range(3):
        # A ray through a source pixel, projected with the new intrinsics, meets the pixel that shows it.
        fx, fy, cx, cy = change.intrinsics(view, (30.0, 31.0, 19.0, 9.0), HEIGHT, WIDTH)
        ray = (column[view, 0] - 19.0) / 30.0, ((depth[view, 0].astype(int) - 1) // 100 - 9.0) / 31.0
        assert np.abs(ray[0] * fx + cx - columns).max() <= 0.5 / CROP + 1e-6
        assert np.abs(ray[1] * fy + cy - rows).max() <= 0.5 / CROP + 1e-6


def test_one_colour_change_holds_for_all_views_and_frames() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rgb = np.broadcast_to(picture, (2, 4, HEIGHT, WIDTH, 3))
    spec = AugmentSpec(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    shown = draw("clip", 0, spec, views=2).rgb(rgb)
    assert (shown == shown[0, 0]).all()
    assert (shown[0, 0] != centre_crop(picture[None], CROP)[0]).any()


def test_a_brightness_factor_is_what_it_says() -> None:
    boxes = ((0, 0, HEIGHT, WIDTH),)
    rgb = np.full((1, 2, HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
    assert (Augmentation(boxes, (1.5, 1.0, 1.0, 0.0)).rgb(rgb) == 150).all()
    assert (Augmentation(boxes, (1.0, 1.0, 1.0, 0.0)).rgb(rgb) == rgb).all()


def test_hues_turn_by_half_the_circle_at_most(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("backbone: {path: tiny}\ndata: {shards: s, augment: {hue: 0.7}}\ntrainer: {max_steps: 1}\n")
    with pytest.raises(UserError, match=r"data\.augment\.hue.*less than or equal to 0\.5"):
        load_recipe(path)


@pytest.fixture(scope="module")
def augmented(recipe: Recipe, shard_set: ShardSet) -> Iterator[SimpleNamespace]:
    augment = AugmentSpec(crop=True, brightness=0.2, copies=2)
    data = recipe.data.model_copy(update={"augment": augment, "clip_stride": 6})
    recipe = recipe.model_copy(update={"data": data})
    cache = encode(recipe, shard_set, torch.device("cpu"), QUIET)
    yield SimpleNamespace(recipe=recipe, cache=cache)
    shutil.rmtree(cache.folder)


def test_what_is_read_from_the_cache_is_what_pixels_give(augmented: SimpleNamespace, shard_set: ShardSet) -> None:
    backbone = load_backbone("tiny", dtype="float32", parts=("vae",))
    recipe, cache, contract = augmented.recipe, augmented.cache, shard_set.contract
    dataset = ClipDataset(cache, cache.of_split("train"), seed=3)
    references = {reference.key: reference for reference in shard_set.clips(None, 6)}
    positions = [0, 1, 2]
    batch = dataset[positions]
    for place, position in enumerate(positions):
        key = batch.keys[place]
        change = augmentation_of(recipe, contract, key, "train", copy_at(3, position, 2))
        clip = shard_set.read_clip(references[key])
        pixels = encode_clips([clip], contract, backbone, with_depth=True, augmentations=[change])
        assert batch.depth is not None
        assert batch.depth_mask is not None
        torch.testing.assert_close(batch.latents[place], pixels["rgb"][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(batch.depth[place], pixels["depth"][0], atol=1e-5, rtol=1e-5)
        assert torch.equal(batch.depth_mask[place], pixels["depth_mask"][0])
        torch.testing.assert_close(batch.action[place], pixels["action"][0], atol=1e-5, rtol=1e-5)


def test_held_out_clips_keep_the_centre_crop(augmented: SimpleNamespace, cache: LatentCache) -> None:
    plain = {clip.key: clip for clip in cache.of_split("held_out")}
    held_out = augmented.cache.of_split("held_out")
    assert held_out
    for clip in held_out:
        assert clip.copies == 1
        torch.testing.assert_close(augmented.cache.read(clip).rgb, cache.read(plain[clip.key]).rgb, atol=1e-5, rtol=0)
    assert {clip.copies for clip in augmented.cache.of_split("train")} == {2}
    assert augmented.cache.folder != cache.folder


def test_the_losses_count_the_copies_that_are_shown(augmented: SimpleNamespace) -> None:
    cache, recipe = augmented.cache, augmented.recipe
    clips = cache.of_split("train")
    geometry = StepGeometry(4, 2)
    counts = StepCounts(cache, recipe.noise, 3, geometry)
    order = ClipOrder(3, len(clips))
    for step in range(3):
        shown = [(clips[order.at(position)], copy_at(3, position, 2)) for position in geometry.positions(step)]
        masks = [cache.read(clip, copy).depth_mask for clip, copy in shown]
        channels = cache.read(clips[0]).rgb.shape[0]
        assert counts.of_step(step)["depth"] == channels * sum(int(mask.sum()) for mask in masks)


def test_every_copy_is_shown_about_equally_often() -> None:
    shown = np.bincount([copy_at(0, position, 4) for position in range(2000)], minlength=4)
    assert shown.min() > 400
    assert {copy_at(0, position, 1) for position in range(5)} == {0}
