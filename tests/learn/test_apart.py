"""Held-out episodes that are not new: of several sets, of a run that starts from another; and the fixes, followed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import tiny_training
from xwam_ft import Run, plan, sets
from xwam_ft.export.checkpoint import policy_source
from xwam_ft.export.export import export_run
from xwam_ft.learn.apart import said_of_data
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.policy.seen import digests
from xwam_ft.recipe import Recipe, overridden
from xwam_ft.runs.origin import seen_by
from xwam_ft.shards import ShardSet


@pytest.fixture
def other_split(shard_set: ShardSet, tmp_path: Path) -> Path:
    """The same three episodes, the first held out where it was the last."""
    return sets.resplit(shard_set.folder, tmp_path / "other", episodes="0").path


def leaks(warnings: tuple[str, ...]) -> list[str]:
    return [sentence for sentence in warnings if "trained on" in sentence]


def test_what_one_set_trains_on_and_another_holds_out_is_told(
    recipe: Recipe, shard_set: ShardSet, other_split: Path, tmp_path: Path
) -> None:
    assert leaks(plan(recipe).warnings) == []
    both = overridden(recipe, {"data.shards": [{"path": str(shard_set.folder)}, {"path": str(other_split)}]})
    (told,) = leaks(plan(both).warnings)
    assert told.startswith("2 held-out episodes are trained on in another set (")
    with pytest.warns(UserWarning, match="2 held-out episodes are trained on in another set"):
        ClipDataModule.from_recipe(overridden(both, {"data.cache_dir": str(tmp_path / "cache")}))
    command = re.search(r"xwam-ft shards merge (\S+) (\S+) OUT --duplicates skip", told)
    assert command is not None
    merged = sets.merge([command[1], command[2]], tmp_path / "merged", duplicates="skip")
    assert leaks(plan(overridden(recipe, {"data.shards": str(merged.path)})).warnings) == []


def test_what_a_run_starts_from_was_trained_on_is_told_and_kept(
    recipe: Recipe, recipe_file: Path, finished: Path, shard_set: ShardSet, other_split: Path, tmp_path: Path,
    console: Console,
) -> None:  # fmt: skip
    assert leaks(plan(overridden(recipe, {"init_from": str(finished)})).warnings) == []
    again: dict[str, object] = {"init_from": str(finished), "data.shards": str(other_split)}
    (told,) = leaks(plan(overridden(recipe, again)).warnings)
    assert told.startswith(f"1 of 1 held-out episodes are among those that {finished} was trained on (episodes 0)")
    command = re.search(r"shards resplit (\S+) OUT --episodes (\S+),", told)
    assert command is not None
    mended = sets.resplit(command[1], tmp_path / "mended", episodes=command[2])
    assert (
        said_of_data(overridden(recipe, {**again, "data.shards": str(mended.path)}), ShardSet.open(mended.path)) == []
    )

    changes = [*(f"{key}={value}" for key, value in again.items()), "trainer.max_steps=1", "optim.warmup_steps=0"]
    run = tiny_training.train(recipe_file, tmp_path / "run", changes, console)
    assert leaks(Run.open(run).warnings)
    before, own = (set(digests(ShardSet.open(f), "train").values()) for f in (shard_set.folder, other_split))
    assert set(json.loads((run / "init/seen.json").read_text())) == before
    assert seen_by(str(run)) == before | own
    assert policy_source(run, console).load().seen == before | own
    bundle = export_run(run, tmp_path / "bundle", console=console)
    assert set(json.loads((bundle / "config.json").read_text())["seen"]) == before | own
    for shard in other_split.glob("*.tar"):  # as large as before
        shard.write_bytes(bytes(shard.stat().st_size))
    assert seen_by(str(run)) == before
    shutil.rmtree(other_split)
    assert seen_by(str(run)) == before
    gone = overridden(recipe, {**again, "init_from": str(tmp_path / "gone"), "data.shards": str(shard_set.folder)})
    assert said_of_data(gone, shard_set) == []
    first = sets.resplit(shard_set.folder, tmp_path / "first", episodes="0")
    assert said_of_data(gone, ShardSet.open(first.path), run)[0].startswith("1 of 1 held-out episodes")
