"""Training from shard sets and latent caches at URLs: the batches of a folder, in any process, whatever breaks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from object_store import Fault, Gate, Store
from shared import QUIET, files_in
from tiny_training import recipe_tree, train
from xwam_ft.copies import copies_folder
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.encode import encode
from xwam_ft.errors import UserError
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet


def of(shards: str | Path, **data: Any) -> Recipe:
    tree = recipe_tree(Path("x"))
    tree["data"] |= {"shards": str(shards), **data}
    return Recipe.model_validate(tree)


def batches(recipe: Recipe, workers: int = 0) -> list[dict[str, Any]]:
    """What a loader gives for the first steps."""
    tree = recipe.model_dump(mode="json")
    tree["trainer"]["workers"] = workers
    module = ClipDataModule.from_recipe(Recipe.model_validate(tree))
    return [vars(batch.with_text(module.source.prompt_embeddings)) for batch in module.train_dataloader()]


def same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    assert len(left) == len(right) > 3
    for one, other in zip(left, right, strict=True):
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[name].dtype
                if not torch.equal(value, other[name]):
                    return False
            elif value != other[name]:
                return False
    return True


def plain(folder: Path, to: Path) -> Path:
    """A shard set without latent caches."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("latents-*")))


@pytest.mark.slow
def test_pixels_of_a_url_are_those_of_the_folder(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    url = s3.upload(folder, "robot/set")
    here = batches(of(folder, cache="none"))
    s3.gate.seen.clear()
    there = batches(of(url, cache="none"))
    assert same(here, there)
    shards = s3.gate.gets("shard-")
    assert len(shards) == len(set(shards)), "a segment came twice"
    assert len(s3.gate.gets("index.json")) == 1
    s3.gate.seen.clear()
    assert same(here, batches(of(url, cache="none"), workers=2))
    assert s3.gate.gets("shard-") == [], "its copy is here"
    # With room for about two segments, a store that breaks off and two processes the bytes are the same.
    shutil.rmtree(copies_folder())
    s3.gate.faults = [Fault("cut", "shard-", times=3), Fault("503", "shard-", times=2)]
    largest = max(sum(size for _, size in entry.members.values()) for entry in shard_set.index.segments)
    small = 2.5 * largest / 1e9
    assert same(here, batches(of(url, cache="none", local_gb=small), workers=2))
    assert sum(path.stat().st_size for path in (copies_folder() / "copies").glob("*/*")) <= small * 1e9


@pytest.mark.slow
def test_a_cache_at_a_url_is_that_of_the_folder(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    url = s3.upload(folder, "set")
    here = encode(of(folder), ShardSet.open(folder), torch.device("cpu"), QUIET)
    encode(of(url), ShardSet.open(url), torch.device("cpu"), QUIET)
    made = s3.files(f"set/{here.folder.name}")
    made.pop("started.json")
    assert made == files_in(here.folder)
    assert not (copies_folder() / "spool").exists() or not list((copies_folder() / "spool").glob("*/*"))
    assert same(batches(of(folder)), batches(of(url)))  # whole files
    shutil.rmtree(copies_folder())
    small = of(url, local_gb=1.1 * max(file.size for file in here.files) / 1e9)
    assert sum(file.size for file in here.files) > small.data.local_gb * 1e9
    s3.gate.seen.clear()
    s3.gate.sent = 0
    assert same(batches(of(folder)), batches(small, workers=2))  # rows
    assert s3.gate.gets("segments/")
    # A cache of local shards may lie at a URL, and one of a URL in a folder.
    mixed = encode(of(folder, cache_dir=f"{s3.url}/caches"), ShardSet.open(folder), torch.device("cpu"), QUIET)
    assert mixed.folder.name == here.folder.name
    assert s3.files(f"caches/{here.folder.name}").keys() >= made.keys()
    away = encode(of(url, cache_dir=str(tmp_path / "away")), ShardSet.open(url), torch.device("cpu"), QUIET)
    assert files_in(away.folder) == files_in(here.folder)


@pytest.mark.slow
def test_an_encoding_that_stopped_goes_on_to_the_same_bytes(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    url = s3.upload(folder, "set")
    here = encode(of(folder), ShardSet.open(folder), torch.device("cpu"), QUIET)
    s3.gate.faults = [Fault("403", f"PUT /lab/set/{here.folder.name}/segments/{here.clips[-1].key[:14]}", times=9)]
    with pytest.raises(UserError, match=r"segments/episode-000002.*may not be written to"):
        encode(of(url), ShardSet.open(url), torch.device("cpu"), QUIET)
    with pytest.raises(UserError, match="the latent cache is not complete"):
        LatentCache.open(Path(url) / here.folder.name)
    s3.gate.faults, before = [], len(s3.gate.seen)
    shutil.rmtree(copies_folder())  # it goes on on another machine
    encode(of(url), ShardSet.open(url), torch.device("cpu"), QUIET)
    again = [line for line in s3.gate.seen[before:] if line.startswith("PUT") and "/segments/" in line]
    assert {line.split("/segments/")[1][:14] for line in again} == {"episode-000002"}
    made = s3.files(f"set/{here.folder.name}")
    made.pop("started.json")
    assert made == files_in(here.folder)
    s3.gate.faults = [Fault("403", "PUT", times=9)]
    with pytest.raises(UserError, match=r"keep the latent cache elsewhere \(--set data.cache_dir=FOLDER\)"):
        encode(of(url, clip_stride=5), ShardSet.open(url), torch.device("cpu"), QUIET)
    gate = Gate(folder=folder)
    with pytest.raises(UserError, match=r"cannot be written to: a web server only gives.*data.cache_dir=FOLDER"):
        encode(of(gate.url, clip_stride=5), ShardSet.open(gate.url), torch.device("cpu"), QUIET)
    gate.close()


@pytest.mark.slow
def test_a_run_from_a_url_goes_on_exactly(shard_set: ShardSet, finished: Path, s3: Store, tmp_path: Path) -> None:
    url = s3.upload(plain(shard_set.folder, tmp_path / "set"), "set")
    tree = recipe_tree(Path("x"))
    tree["data"]["shards"] = url
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    run = train(tmp_path / "toy.yaml", tmp_path / "run", [], QUIET)
    last = sorted((run / "checkpoints").iterdir())[-1]
    weights = f"checkpoints/{last.name}/trainable.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert f"shards: {url}" in (run / "recipe.yaml").read_text()
    import xwam_ft

    shutil.rmtree(last)
    xwam_ft.train(resume=run, **{"data.local_gb": 1.0})
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()


def test_a_set_at_a_url_is_read_like_a_folder(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    s3.upload(folder, "set")
    gate = Gate(folder=tmp_path)
    for url in (f"{s3.url}/set", f"{gate.url}/set"):
        there = ShardSet.open(Path(url))
        assert there.fingerprint == shard_set.fingerprint
        for one, other in zip(there, shard_set, strict=True):
            assert one.key == other.key
            assert (one.rgb == other.rgb).all()
            assert (one.proprio == other.proprio).all()
        there.verify()
        motion = there.read_motion(there.index.segments[0])
        assert (motion.action == shard_set[0].action).all()
    gate.close()
    s3.gate.seen.clear()
    shutil.rmtree(copies_folder())
    there = ShardSet.open(f"{s3.url}/set")
    there.read_motion(there.index.segments[0])
    [asked] = s3.gate.gets("shard-")
    first, last = map(int, asked.rpartition("=")[2].split("-"))
    assert last - first < sum(size for _, size in there.index.segments[0].members.values()) / 2, "the films came too"


def test_what_is_wrong_with_a_set_at_a_url_is_a_sentence(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    url, client = s3.upload(folder, "set"), s3.client()
    shard = shard_set.index.shards[1].name
    client.put_object(Bucket="lab", Key=f"set/{shard}", Body=b"short")
    with pytest.raises(UserError, match=rf"^{url}/{shard}: has 5 bytes, not the \d+ that were written"):
        ShardSet.open(url)
    damaged = bytearray((folder / shard).read_bytes())
    damaged[5000:6000] = bytes(1000)
    client.put_object(Bucket="lab", Key=f"set/{shard}", Body=bytes(damaged))
    with pytest.raises(UserError, match=rf"{shard}: is damaged \(SHA-256 differs"):
        ShardSet.open(url).verify()
    client.delete_object(Bucket="lab", Key=f"set/{shard}")
    with pytest.raises(UserError, match=rf"^{url}/{shard}: the shard is missing"):
        ShardSet.open(url)
    client.delete_object(Bucket="lab", Key="set/index.json")
    with pytest.raises(UserError, match=rf"^{url}: is a shard set of which only a part was uploaded.*which goes on"):
        ShardSet.open(url)
    with pytest.raises(UserError, match=r"^s3://lab/other: is not a finished shard set \(no index.json; nothing lies"):
        ShardSet.open("s3://lab/other")
    with pytest.raises(UserError, match=r"^s3://none/set/index.json: its bucket does not exist"):
        ShardSet.open("s3://none/set")
    s3.gate.faults = [Fault("403", "GET", times=99)]
    with pytest.raises(UserError, match=rf"^{url}/index.json: may not be read"):
        ShardSet.open(url)


def test_a_changed_bit_is_never_a_picture(shard_set: ShardSet, s3: Store, tmp_path: Path) -> None:
    folder = plain(shard_set.folder, tmp_path / "set")
    there = ShardSet.open(s3.upload(folder, "set"))
    entry = there.index.segments[0]
    key, right = f"set/{entry.shard}", shard_set.read(entry).rgb
    # On its way: it comes once more.
    s3.gate.faults = [Fault("flip", "shard-", times=1)]
    assert (there.read(entry).rgb == right).all()
    assert len(s3.gate.gets("shard-")) == 2
    # In the copy on this machine, by a bad disk: it comes anew.
    [copy] = (copies_folder() / "copies").glob("*/*")
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    assert (there.read(entry).rgb == right).all()
    assert copy.read_bytes() != bytes(data)
    assert len(s3.gate.gets("shard-")) == 3
    # In the store, where another set of equal sizes took its place while it is read.
    shutil.rmtree(copies_folder())
    offset, size = entry.members["rgb.front.mp4"]
    tar = bytearray((folder / entry.shard).read_bytes())
    tar[offset + size // 2] ^= 1
    s3.client().put_object(Bucket="lab", Key=key, Body=bytes(tar))
    with pytest.raises(
        UserError, match=rf"^s3://lab/{key}: rgb.front.mp4 of segment {entry.key} is not what was written"
    ):
        there.read(entry)
    assert not list((copies_folder() / "copies").glob("*/*")), "and it is not kept"
