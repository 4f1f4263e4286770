"""Shards and backbone of a run lie elsewhere: known by their content, the new place is kept; where it is asked for."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import tiny_training
from tiny_training import cut_back
from xwam_ft.errors import UserError
from xwam_ft.export.export import export_run
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.recipe import load_recipe
from xwam_ft.runs.folder import open_run
from xwam_ft.runs.runs import list_runs


@pytest.mark.slow
def test_shards_may_be_moved_and_are_known_by_their_content(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    moved = Path(shutil.copytree(tree["data"]["shards"], tmp_path / "moved"))
    tiny_training.resume(run, console, [f"data.shards={moved}", "validation.clips=1"])
    kept = yaml.safe_load((run / "recipe.yaml").read_text())
    assert kept == {**tree, "data": {**tree["data"], "shards": str(moved)}}  # the place alone is for good
    ends = [place / "checkpoints" / "step-000006" / "trainable.safetensors" for place in (run, finished)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    tree["data"]["shards"] = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (run / "moved.json").unlink()  # no other place is known
    with pytest.raises(UserError, match=r"gone, and there is no such folder\. Fix: where the shards were moved") as no:
        tiny_training.resume(run, console)
    assert f"xwam-ft train --resume {run} --set data.shards=FOLDER" in no.value.fix


@pytest.mark.slow
def test_the_new_place_of_shards_is_kept_of_a_finished_run_too(
    finished: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    old = Path(load_recipe(run / "recipe.yaml").data.where)
    away = tmp_path / "away"  # the old place is there no more
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["data"]["shards"] = str(away)
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="away, and there is no such folder"):
        export_run(run, tmp_path / "bundle", console=console)
    before = (run / "recipe.yaml").read_bytes()
    other = Path(shutil.copytree(old, tmp_path / "other"))
    (other / "index.json").write_text((other / "index.json").read_text().replace("recording-0", "recording-x"))
    with pytest.raises(UserError, match=r"was trained with index of .* and now it is"):
        tiny_training.resume(run, console, [f"data.shards={other}"])
    assert (run / "recipe.yaml").read_bytes() == before  # others' shards are not written down
    shutil.copytree(old, tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    tiny_training.resume(run, console, ["data.shards=new"])
    monkeypatch.undo()
    assert load_recipe(run / "recipe.yaml").data.where == str(tmp_path / "new")
    tiny_training.resume(run, console)
    (tmp_path / "new").rename(away)  # back to where they were: found without a word
    assert open_run(run).recipe.data.where == str(away)
    tiny_training.resume(run, console)
    assert load_recipe(run / "recipe.yaml").data.where == str(away)
    with pytest.raises(UserError, match="nowhere"):  # what is typed is meant
        tiny_training.resume(run, console, [f"data.shards={tmp_path / 'nowhere'}"])
    [row] = list_runs(tmp_path)
    assert (row.step, row.state) == (6, "finished")
    assert export_run(run, tmp_path / "bundle", console=console).is_dir()


@pytest.mark.slow
def test_the_new_place_of_a_backbone_is_kept_once_it_is_known_to_be_the_runs_own(
    finished: Path, tmp_path: Path, console: Console
) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["backbone"]["path"] = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    for verb in (
        lambda: tiny_training.resume(run, console),
        lambda: export_run(run, tmp_path / "bundle", console=console),
    ):
        with pytest.raises(UserError, match=r"trained on the backbone .*gone, and there is no such folder") as no:
            verb()
        assert f"xwam-ft train --resume {run} --set backbone.path=FOLDER" in no.value.fix
    other = Path(shutil.copytree(tiny_folder(), tmp_path / "other"))
    config = json.loads((other / "transformer/config.json").read_text())
    (other / "transformer/config.json").write_text(json.dumps({**config, "eps": 1e-3}))
    before = (run / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"was trained with backbone .* and now it is"):
        tiny_training.resume(run, console, [f"backbone.path={other}"])
    assert (run / "recipe.yaml").read_bytes() == before  # another's is not written down
    shutil.copytree(tiny_folder(), tmp_path / "new")
    shown = io.StringIO()
    tiny_training.resume(run, Console(file=shown, width=300), [f"backbone.path={tmp_path / 'new'}"])
    assert f"backbone.path of the run: {tmp_path / 'new'}" in shown.getvalue()
    assert load_recipe(run / "recipe.yaml").backbone.path == str(tmp_path / "new")
    ends = [place / "checkpoints" / "step-000006" / "trainable.safetensors" for place in (run, finished)]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert export_run(run, tmp_path / "bundle", console=console).is_dir()


def test_a_run_is_finished_with_its_last_look(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert [row.state for row in list_runs(tmp_path)] == ["finished"]
    shutil.rmtree(run / "validation")
    assert [row.state for row in list_runs(tmp_path)] == ["stopped"]


def test_shards_that_are_a_file_are_called_one(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    (tmp_path / "shard.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"trains on .*shard\.tar, and that is a file"):
        tiny_training.resume(run, console, [f"data.shards={tmp_path / 'shard.tar'}"])


def test_an_edited_contract_is_restored_not_prepared_again(finished: Path, tmp_path: Path, console: Console) -> None:
    run = cut_back(finished, tmp_path / "cut", 3)
    (run / "contract.json").write_text((run / "contract.json").read_text().replace("test-arm", "other-arm"))
    for verb in (
        lambda: tiny_training.resume(run, console),
        lambda: export_run(run, tmp_path / "bundle", console=console),
    ):
        with pytest.raises(UserError, match="embodiment is 'other-arm' there and 'test-arm' in") as no:
            verb()
        assert no.value.fix.startswith("restore it as it was when the run was trained")
