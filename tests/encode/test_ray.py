"""Encoding on a Ray cluster: the bytes of one machine, whoever dies or stops, and by nodes that share no disk."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from object_store import Store
from ray_nodes import node_apart, one_node
from shared import QUIET, files_in
from tiny_training import recipe_tree
from xwam_ft import errors, ray_cluster
from xwam_ft.copies import copies_folder
from xwam_ft.encode import ray_segments
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.encode import encode
from xwam_ft.encode.inputs import encode_shards
from xwam_ft.encode.segments import SegmentPlan
from xwam_ft.errors import UserError
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.ray_cluster import Told, connected
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet

CPU = torch.device("cpu")
TOLD = Told("the command", "number", "nothing is lost")


def plain(shard_set: ShardSet, to: Path) -> Path:
    """Those shards without latent caches."""
    return Path(shutil.copytree(shard_set.folder, to, ignore=shutil.ignore_patterns("latents-*")))


def of(shards: str | Path, backbone: str | Path = "tiny", **data: Any) -> Recipe:
    tree = recipe_tree(Path("x"))
    tree["data"] |= {"shards": str(shards), **data}
    tree["backbone"]["path"] = str(backbone)
    return Recipe.model_validate(tree)


def encoded(recipe: Recipe, **more: Any) -> LatentCache:
    shards = str(recipe.data.where)
    return encode(recipe, ShardSet.open(shards), CPU, QUIET, **{"ray": "auto", **more})


def test_without_ray_it_says_the_pip_line(recipe: Recipe, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^--ray: the package 'ray' is not installed. Fix: pip install 'xwam-ft\[ray\]'"
    ):
        encode_shards(shard_set.folder, recipe, QUIET, ray="auto")


@pytest.mark.slow
def test_a_pool_of_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every job once and no more; what a worker began with is kept; deaths are retried, then told."""

    def begin(place: Path) -> None:
        (place / f"began-{os.getpid()}").touch()

    def dies_twice(number: int) -> tuple[int, int]:
        if number == 3 and len(list(tmp_path.glob("died-*"))) < 2:
            (tmp_path / f"died-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid(), number**2

    def dies(number: int) -> int:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def refuses(number: int) -> int:
        raise UserError(f"has {number}", "the place", "mend it")

    with one_node(monkeypatch, cpus=2), connected("auto") as cluster:
        done = list(cluster.side_by_side(dies_twice, range(8), told=TOLD, begin=begin, given=(tmp_path,)))
        assert sorted((job, square) for job, (_, square) in done) == [(job, job**2) for job in range(8)]
        assert len(list(tmp_path.glob("died-*"))) == 2
        workers = {f"began-{pid}" for _, (pid, _) in done}
        assert workers <= {path.name for path in tmp_path.glob("began-*")}
        assert 3 <= len(list(tmp_path.glob("began-*"))) <= 4, "two at a time, and one for each that died"
        with pytest.raises(UserError, match=r"^the command: .* died over one number, 2 retries .*; nothing is lost$"):
            list(cluster.side_by_side(dies, range(8), told=TOLD, most=1))
        with pytest.raises(UserError, match=rf"^the place: has 0 \(on the node {os.uname().nodename}\). Fix: mend it"):
            list(cluster.side_by_side(refuses, [0], told=TOLD))
        with pytest.raises(UserError, match=r"died over one number.*"):  # before its first job
            list(cluster.side_by_side(dies, [1], told=TOLD, begin=lambda: os._exit(1)))


@pytest.mark.slow
def test_the_bytes_are_those_of_one_machine(
    shard_set: ShardSet, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was there before, with a worker that dies, from and to folders and URLs."""
    folder = plain(shard_set, tmp_path / "set")
    url = s3.upload(folder, "set")
    here = encoded(of(folder, cache_dir=str(tmp_path / "here")), ray=None)
    whole = files_in(here.folder)
    name = here.folder.name
    kept = next(here.folder.rglob("segments/*.safetensors"))
    real, spent = ray_segments._send, tmp_path / "spent"

    def dies_once(part: SegmentPlan) -> Any:
        if not spent.exists():
            spent.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(part)

    def dies(part: SegmentPlan) -> Any:
        if part.entry.episode == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(part)

    with one_node(monkeypatch, cpus=2):
        (tmp_path / "back" / name / "segments").mkdir(parents=True)
        shutil.copy(kept, tmp_path / "back" / name / "segments")
        with monkeypatch.context() as patch:
            patch.setattr(ray_segments, "_send", dies_once)
            back = encoded(of(folder, cache_dir=str(tmp_path / "back")), workers=1)  # each loads torch for seconds
        assert spent.exists()
        assert files_in(back.folder) == whole
        # One whose workers die for good: one sentence, and a rerun makes only what is missing.
        with monkeypatch.context() as patch:
            patch.setattr(ray_cluster, "RETRIES", 0)
            patch.setattr(ray_segments, "_send", dies)
            with pytest.raises(UserError, match=r"a worker of the Ray cluster died over one segment.*is kept"):
                encoded(of(url), workers=1)
        finished = {path for path in s3.names(f"set/{name}") if "/segments/" in path}
        assert finished
        assert not any("episode-000001" in path or path.endswith("index.json") for path in finished)
        before = len(s3.gate.seen)
        encoded(of(url))
        put = [line.split(" ")[1].lstrip("/") for line in s3.gate.seen[before:] if line.startswith("PUT")]
        assert not {f"lab/{path}" for path in finished} & set(put)
        assert put[-1] == f"lab/set/{name}/index.json"
        made = s3.files(f"set/{name}")
        made.pop("started.json")
        assert made == whole
        recipe = of(folder, cache_dir=str(tmp_path / "none"))
        gpu = recipe.trainer.model_copy(update={"accelerator": "gpu"})
        with pytest.raises(UserError, match=r"^trainer.accelerator: is 'gpu', and the Ray cluster has no GPU"):
            encoded(recipe.model_copy(update={"trainer": gpu}))
        # A shard that a node finds damaged.
        shard = next(folder.glob("*.tar"))
        shard.write_bytes(shard.read_bytes()[:-2000] + bytes(2000)[:-1] + b"x")
        with pytest.raises(UserError, match=rf"^{shard}: is damaged"):
            encoded(of(folder, cache_dir=str(tmp_path / "damaged")), workers=1)


@pytest.mark.slow
def test_nodes_need_no_shared_disk(
    shard_set: ShardSet, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain(shard_set, tmp_path / "set")
    url = s3.upload(folder, "set")
    here = encoded(of(folder, cache_dir=str(tmp_path / "here")), ray=None)
    whole, name = files_in(here.folder), here.folder.name
    backbone = Path(shutil.copytree(tiny_folder(), tmp_path / "weights" / "tiny"))
    copies_folder().mkdir(parents=True, exist_ok=True)
    with node_apart(monkeypatch, copies_folder(), folder, tmp_path / "weights"):
        with pytest.raises(UserError, match=rf"^{folder}: is no shard set there \(on the node .*or at a URL"):
            encoded(of(folder))
        assert not list(folder.glob("latents-*/index.json"))
        with pytest.raises(UserError, match=rf"^{backbone}: is not there \(on the node .*or give backbone.path an id"):
            encoded(of(url, backbone))
        encoded(of(url))
        made = s3.files(f"set/{name}")
        made.pop("started.json")
        assert made == whole
        back = encoded(of(url, cache_dir=str(tmp_path / "back")))  # a folder of ours alone
        assert files_in(back.folder) == whole
        assert not (copies_folder() / "spool").exists() or not list((copies_folder() / "spool").glob("*/*"))
