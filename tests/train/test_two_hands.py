"""Two commands on one place: the second is refused in a sentence that names the first, and nothing is half-written."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import tiny_training
import xwam_ft
from tiny_training import cut_back, same_checkpoint
from xwam_ft.encode.encode import encode, identify
from xwam_ft.errors import UserError
from xwam_ft.locks import sole_writer
from xwam_ft.prepare import pipeline
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.recipe import Recipe, load_recipe, overridden
from xwam_ft.results import Run
from xwam_ft.runs.folder import open_run
from xwam_ft.shards import ShardSet

QUIET = Console(quiet=True)


@contextmanager
def refused(doing: str) -> Iterator[None]:
    said = rf"is in use: process {os.getpid()} on \S+ is {doing} since 20\S+\. Fix: wait until it has ended, or stop it"
    with pytest.raises(UserError, match=said):
        yield


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_has_one_writer_and_readers(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    before = everything(finished)
    with sole_writer(finished, "training it"):
        with refused("training it"):
            tiny_training.resume(finished, QUIET, ["trainer.max_steps=8"])
        assert Run.open(finished).step == 6
        assert open_run(finished, step=3).first_step == 3
    new = tmp_path / "new"
    with sole_writer(new, "training it"), refused("training it"):
        tiny_training.train(recipe_file, new, [], QUIET)
    assert everything(finished) == before
    assert not new.exists()


def test_a_cache_is_encoded_by_one(recipe: Recipe, shard_set: ShardSet, tmp_path: Path) -> None:
    other = overridden(recipe, {"data.clip_stride": 9, "data.cache_dir": str(tmp_path / "caches")})
    place = identify(other, shard_set).folder(tmp_path / "caches")
    with sole_writer(place, "encoding it"), refused("encoding it"):
        encode(other, shard_set, torch.device("cpu"), QUIET)
    assert not place.exists()
    made = encode(other, shard_set, torch.device("cpu"), QUIET)
    assert made.folder == place
    with sole_writer(place, "encoding it"):  # who only reads is held up by nobody
        assert len(encode(other, shard_set, torch.device("cpu"), QUIET).clips) == len(made.clips)
    assert not list(shard_set.folder.glob(f"{place.name}*"))


def test_prepare_beside_prepare(tmp_path: Path) -> None:
    raw = Path(xwam_ft.__file__).parent / "bundled/recordings/metaworld_demo"
    out = tmp_path / "shards"
    with sole_writer(out, "preparing it"), refused("preparing it"):
        prepare(
            [raw], out, embodiment=Path("metaworld_sawyer"), depth="none", workers=0, strict=False, urdf_dirs=[],
            console=QUIET,
        )  # fmt: skip
    assert not out.exists()


@pytest.mark.slow
def test_a_preparation_that_another_ended_since_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Path(xwam_ft.__file__).parent / "bundled/recordings/metaworld_demo"
    honest, said = pipeline.sole_writer, io.StringIO()

    def prepared(out: Path, shown: Console) -> None:
        options: dict[str, Any] = {"depth": "none", "workers": 0, "strict": False, "urdf_dirs": [], "console": shown}
        prepare([raw], out, embodiment=Path("metaworld_sawyer"), **options)

    def late(target: Path, doing: str) -> Any:
        monkeypatch.setattr(pipeline, "sole_writer", honest)
        prepared(tmp_path / "set", QUIET)
        return honest(target, doing)

    monkeypatch.setattr(pipeline, "sole_writer", late)
    prepared(tmp_path / "set", Console(file=said, width=200))
    assert "already prepared from these inputs" in said.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.slow
def test_a_cache_may_lie_elsewhere_and_be_moved_between_resumes(
    finished: Path, recipe_file: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    run = cut_back(finished, tmp_path / "run", 3)
    tiny_training.resume(run, QUIET, [f"data.cache_dir={tmp_path / 'here'}"])
    same_checkpoint(run / "checkpoints/step-000006", finished / "checkpoints/step-000006")
    assert [path.name for path in (tmp_path / "here").iterdir()] == [
        identify(load_recipe(recipe_file), shard_set).folder(Path()).name
    ]
