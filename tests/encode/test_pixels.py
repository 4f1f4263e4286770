"""Training from pixels: the same numbers as from a latent cache, clip by clip, count by count and step by step."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from shared import QUIET
from tiny_training import Change, recipe_tree, train
from xwam_ft.encode.clip_source import ClipSource
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.encode.encode import encode
from xwam_ft.encode.pixels import PixelSource, open_pixels
from xwam_ft.errors import UserError
from xwam_ft.learn.counts import StepCounts
from xwam_ft.learn.data import ClipDataModule, ClipDataset
from xwam_ft.model import backbone as backbones
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet

CPU = torch.device("cpu")
AUGMENT = {"crop": True, "brightness": 0.2, "copies": 2}


@pytest.fixture(scope="module")
def both(changed: Change, shard_set: ShardSet) -> Iterator[SimpleNamespace]:
    """A latent cache with augmented copies, and the pixels of the same recipe."""
    recipe = changed(data={"augment": AUGMENT, "clip_stride": 6, "encode_batch": 3})
    cache = encode(recipe, shard_set, CPU, QUIET)
    [pixels] = open_pixels(recipe, [shard_set], CPU, QUIET)
    yield SimpleNamespace(recipe=recipe, cache=cache, pixels=pixels)
    shutil.rmtree(cache.folder)


def test_every_clip_is_what_a_cache_would_hold(both: SimpleNamespace) -> None:
    cache, pixels = both.cache, both.pixels
    assert [clip.key for clip in pixels.clips] == [clip.key for clip in cache.clips]
    assert pixels.latent_shape == cache.latent_shape
    assert pixels.identity == cache.identity
    assert list(pixels.prompts) == list(cache.prompts)
    assert torch.equal(pixels.prompt_embeddings, cache.prompt_embeddings)
    for split, seed in (("train", 3), ("held_out", None)):
        a, b = (ClipDataset(source, source.of_split(split), seed) for source in (cache, pixels))
        positions = range(min(7, len(a)))
        stored, live = a.batch(positions, "cpu"), b.batch(positions, "cpu")
        assert stored.keys == live.keys
        for name, value in vars(stored).items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(live, name), value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("fresh", [True, False])
def test_losses_count_the_same(both: SimpleNamespace, shard_set: ShardSet, fresh: bool) -> None:
    """Asked before a clip is read the masks come from motion and depth alone, afterwards from what was read."""
    geometry = StepGeometry(2, 2)
    pixels = PixelSource(
        both.recipe,
        shard_set,
        both.pixels.clips,
        both.pixels.codec,
        (both.pixels.prompts, both.pixels.prompt_embeddings),
    )
    if not fresh:
        _ = ClipDataset(pixels, pixels.of_split("train"), 5)[list(geometry.positions(1))]
        assert len(pixels._masks) == len(set(pixels._masks)) > 0
    expected, found = (StepCounts(s, both.recipe.noise, 5, geometry) for s in (both.cache, pixels))
    assert found.of_step(1) == expected.of_step(1)


def with_trainer(recipe: Recipe, **values: int) -> Recipe:
    """Two steps of two clips, from the order of seed 0, or other values."""
    trainer = recipe.trainer.model_copy(update={"max_steps": 2, "batch_size": 2, "accumulate": 1, **values})
    return recipe.model_copy(update={"trainer": trainer, "seed": 0})


def test_a_loaders_worker_decodes_and_the_process_that_trains_encodes(both: SimpleNamespace) -> None:
    sent: ClipSource = pickle.loads(pickle.dumps(both.pixels))
    with pytest.raises(AssertionError, match="does not encode"):
        sent.finish(ClipDataset(sent, sent.of_split("train"), 0)[[0]])
    module = ClipDataModule(both.pixels, with_trainer(both.recipe, workers=1), "")
    for step, batch in enumerate(module.train_dataloader()):
        latents = module.on_after_batch_transfer(batch, 0).latents
        expected = ClipDataset(both.cache, both.cache.of_split("train"), 0).batch([2 * step, 2 * step + 1], "cpu")
        torch.testing.assert_close(latents, expected.latents, atol=1e-5, rtol=1e-5)


def test_what_a_worker_cannot_read_is_one_sentence(both: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(*_: object) -> None:
        raise UserError("cannot be read", "shard-000000.tar", "copy it again")

    monkeypatch.setattr(PixelSource, "read", torn)
    data = ClipDataModule(both.pixels, with_trainer(both.recipe, max_steps=1, workers=1), "")
    [batch] = list(data.train_dataloader())
    with pytest.raises(UserError, match=r"^shard-000000\.tar: cannot be read\. Fix: copy it again$"):
        data.on_before_batch_transfer(batch, 0)
    data = ClipDataModule(both.pixels, with_trainer(both.recipe, max_steps=1), "")
    with pytest.raises(UserError, match="cannot be read"):
        list(data.train_dataloader())


def test_of_several_processes_one_embeds_the_instructions(
    both: SimpleNamespace, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XWAM_FT_CACHE", str(tmp_path))
    loaded: list[tuple[str, ...]] = []
    honest: Callable[..., Any] = backbones.load_backbone

    def noted(*args: Any, **named: Any) -> Any:
        loaded.append(named["parts"])
        return honest(*args, **named)

    monkeypatch.setattr(backbones, "load_backbone", noted)
    recipe = with_trainer(both.recipe, devices=2)
    for _ in range(2):  # the first process, and another
        [pixels] = open_pixels(recipe, [shard_set], CPU, QUIET)
        assert torch.equal(pixels.prompt_embeddings, both.pixels.prompt_embeddings)
    assert loaded == [("text",), ("vae",), ("vae",)]
    other = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"dtype": "bfloat16"})})
    [pixels] = open_pixels(other, [shard_set], CPU, QUIET)
    assert pixels.prompt_embeddings.dtype == torch.bfloat16


@pytest.mark.slow
def test_a_run_from_pixels_is_the_run_from_the_cache(
    shard_set: ShardSet, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, ...]] = []
    honest: Callable[..., Any] = backbones.load_backbone

    def noted(*args: Any, **named: Any) -> Any:
        loaded.append(named["parts"])
        return honest(*args, **named)

    monkeypatch.setattr(backbones, "load_backbone", noted)
    tree = recipe_tree(shard_set.folder)
    tree["data"] |= {"cache": "none"}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    run = train(tmp_path / "toy.yaml", tmp_path / "pixels", [], QUIET)
    assert loaded.count(("vae",)) == 1
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (finished, run)]
    losses = [[row for row in table if "train/loss_total" in row] for table in rows]
    assert len(losses[0]) == len(losses[1]) > 0
    for there, here in zip(*losses, strict=True):
        for name in (name for name in there if name.startswith("train/loss_")):
            assert here[name] == pytest.approx(there[name], abs=1e-5, rel=1e-5), name
