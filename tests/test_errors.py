"""One sentence to the user: where, what, fix."""

from __future__ import annotations

from xwam_ft.errors import UserError, did_you_mean, listed, require


def test_sentence_names_place_mistake_and_remedy() -> None:
    error = UserError("unknown key 'lr'", "recipe.yaml", "name it lr_lora")
    assert str(error) == "recipe.yaml: unknown key 'lr'. Fix: name it lr_lora"
    assert (error.what, error.where, error.fix) == ("unknown key 'lr'", "recipe.yaml", "name it lr_lora")


def test_nearest_name_or_nothing() -> None:
    assert did_you_mean("grippr", ["tool", "gripper"]) == " (did you mean 'gripper'?)"
    assert did_you_mean("xyz", ["tool", "gripper"]) == ""


def test_long_lists_are_cut_with_a_count() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcde", limit=2) == "a, b and 3 more"


def test_absent_package_names_the_pip_line() -> None:
    assert "pip install 'xwam-ft[sim]'" in str(require("mujoco", "sim", "--env"))
