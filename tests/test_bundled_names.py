"""Recipes and embodiments that ship go by name, from any folder; a recipe's paths may be relative to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xwam_ft.bundled import bundled, named_file, shipped_names
from xwam_ft.errors import UserError
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.recipe import load_recipe


@pytest.mark.parametrize("given", ["tiny_cpu", "tiny_cpu.yaml", "recipes/tiny_cpu.yaml"])
def test_a_recipe_goes_by_name_from_another_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path(given)) == load_recipe(bundled("recipes/tiny_cpu.yaml"))


@pytest.mark.parametrize("given", ["metaworld/lora_prior", "lora_prior", "recipes/metaworld/lora_prior.yaml"])
def test_what_lies_in_a_folder_goes_by_either_name(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_file(Path(given), "recipes") == bundled("recipes/metaworld/lora_prior.yaml")


@pytest.mark.parametrize("given", ["so101_joints", "recipes/embodiments/so101_joints.yaml"])
def test_an_embodiment_goes_by_name(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_embodiment(Path(given)).name == "so101_joints"


def test_every_name_that_is_listed_is_found_and_no_embodiment_is_a_recipe() -> None:
    assert all(named_file(Path(name), "recipes").is_file() for name in shipped_names("recipes"))
    assert not any("so101" in name for name in shipped_names("recipes"))
    assert "so101_joints" in shipped_names("recipes/embodiments")


def test_a_file_of_ones_own_comes_before_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_cpu").mkdir()  # a folder of that name, such as a run, is in nobody's way
    assert load_recipe(Path("tiny_cpu")) == load_recipe(bundled("recipes/tiny_cpu.yaml"))
    (tmp_path / "tiny_cpu.yaml").write_text(bundled("recipes/tiny_cpu.yaml").read_text() + "seed: 7\n")
    assert load_recipe(Path("tiny_cpu.yaml")).seed == 7


def test_a_name_that_is_none_is_told_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'so101_joints'.*give a path, or a name: aloha") as refused:
        load_embodiment(Path("so101_joint"))
    assert str(tmp_path / "so101_joint") in str(refused.value), "the path that was tried"


def test_paths_of_a_recipe_are_looked_for_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "shards").mkdir(parents=True)
    (project / "weights").mkdir()
    elsewhere.mkdir()
    text = "backbone: {path: weights}\ndata: {shards: shards}\ntrainer: {max_steps: 1}\n"
    (project / "mine.yaml").write_text(text)
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(project / "mine.yaml")
    assert Path(recipe.data.where) == project / "shards"
    assert Path(recipe.backbone.path) == project / "weights"
    (elsewhere / "shards").mkdir()  # what lies where one stands comes first
    assert load_recipe(project / "mine.yaml").data.where == "shards"
    assert load_recipe(project / "mine.yaml", ["data.shards=other"]).data.where == "other", "--set is typed here"
