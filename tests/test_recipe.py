"""The strict recipe: every mistake named, at once, with the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from xwam_ft.errors import UserError
from xwam_ft.recipe import load_recipe
from xwam_ft.strict_yaml import read_yaml

GOOD = """
backbone: {path: tiny, dtype: float32}
data: {shards: out/shards}
trainer: {max_steps: 100}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value)


def test_defaults_fill_what_is_not_said(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert loaded.trainer.max_steps == 100
    assert loaded.model.lora.rank == 16
    assert loaded.optim.ema_decay is None


def test_the_written_recipe_reads_back_equal(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["optim.lr_lora=1e-5", "model.lora.targets=[attention]"])
    assert loaded.optim.lr_lora == 1e-5  # YAML 1.1 reads 1e-5 as text; it is meant as a number
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml") == loaded


def test_all_mistakes_are_told_at_once(recipe: Path) -> None:
    recipe.write_text(
        "backbone: {pth: tiny}\n"
        "data: {shards: s, clip_stride: 0}\n"
        "model: {lora: {rnk: 4}, depth: {branch: coppy}}\n"
        "trainer: {}\n"
        "sed: 1\n"
    )
    message = refused(recipe)
    assert "recipe.yaml: 7 mistakes: " in message
    assert "'backbone.path' is missing" in message
    assert "unknown key 'backbone.pth' (did you mean 'path'?)" in message
    assert "unknown key 'model.lora.rnk' (did you mean 'rank'?)" in message
    assert "unknown key 'sed' (did you mean 'seed'?)" in message
    assert "'data.clip_stride': input should be greater than 0, not 0" in message
    assert "'model.depth.branch': input should be 'auto', 'adapter', 'copy' or 'none', not 'coppy'" in message
    assert "'trainer.max_steps' is missing" in message


def test_an_unlike_key_lists_the_known_ones(recipe: Path) -> None:
    message = refused(recipe, "checkpoint.zzz=1")
    assert "unknown key 'checkpoint.zzz' (known: every_steps, keep, keep_best)" in message


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("trainer.max_steps=7", "trainer", "max_steps", 7),
        ("validation.every_steps=0", "validation", "every_steps", 0),
        ("trainer.devices=auto", "trainer", "devices", "auto"),
        ("optim.betas=[0.8, 0.9]", "optim", "betas", (0.8, 0.9)),
        ("optim.ema_decay=null", "optim", "ema_decay", None),
        ("data.shards='a=b'", "data", "shards", "a=b"),
    ],
)
def test_set_overrides_one_value(recipe: Path, override: str, section: str, key: str, value: object) -> None:
    assert getattr(getattr(load_recipe(recipe, [override]), section), key) == value


def test_later_overrides_win(recipe: Path) -> None:
    assert load_recipe(recipe, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.max_steps", "'trainer.max_steps' is not of the form a.b=c"),
        ("=3", "'=3' is not of the form a.b=c"),
        ("seed.x=3", "'seed' is a value, not a section"),
        ("seed=[1", "--set seed: the value '[1' is not valid YAML"),
        ("seed=-1", "'seed': input should be greater than or equal to 0, not -1"),
        ("loss.video=.nan", "'loss.video': input should be a finite number"),
        ("optim.lr_lora=.inf", "'optim.lr_lora': input should be a finite number"),
        ("trainer.max_step=3", "unknown key 'trainer.max_step' (did you mean 'max_steps'?)"),
    ],
)
def test_wrong_overrides(recipe: Path, override: str, sentence: str) -> None:
    recipe.write_text(GOOD + "seed: 1\n")
    assert sentence in refused(recipe, override)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    assert "the file does not exist" in refused(tmp_path / "none.yaml")
    assert "is a folder, not a YAML file" in refused(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: 1\nb: [1\n")
    assert "is not valid YAML at line 3" in refused(bad)
    bad.write_text("- 1\n")
    assert "holds a list of 1, not keys and their values" in refused(bad)
    bad.write_text("# nothing yet\n")
    assert "is empty. Fix: write `key: value` lines" in refused(bad)
    bad.write_text("a: 2024-13-01\n")
    assert "is not valid YAML" in refused(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    assert "is not valid YAML" in refused(bad)


def test_a_key_that_stands_twice_is_told_with_its_lines(recipe: Path) -> None:
    text = recipe.read_text()
    lines = len(text.splitlines())
    recipe.write_text(text.rstrip("\n") + "\nseed: 1\nlogging: {to: [csv], to: [wandb]}\nseed: 2\n")
    assert (
        f"key 'to' stands twice, at line {lines + 2}; key 'seed' stands twice, at lines {lines + 1} and {lines + 3}. "
        "Fix: leave one of each, or give each its own name"
    ) in refused(recipe)


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, y: 4}\n")
    assert read_yaml(path)["c"] == {"x": 1, "y": 4}


def test_a_relative_path_stays_as_typed(recipe: Path) -> None:
    assert load_recipe(recipe).data.shards == "out/shards"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.lora.targets=[attn1.to_p]"], "'attn1.to_p' is no layer of a block (did you mean 'attn1.to_v'?)"),
        (["model.lora.targets=[atention]"], "(did you mean 'attention'?)"),
        (["model.lora.targets=[]"], "'model.lora.targets': list should have at least 1 item"),
        (["model.lora.dropout=1"], "'model.lora.dropout': input should be less than 1"),
        (["model.train=full", "model.depth.branch=adapter"], "would move with the video"),
        (["model.depth.train=full", "model.depth.branch=adapter"], "holds no blocks that train: full could train"),
        (["backbone.quantize=nf4", "model.train=full"], "holds a frozen base"),
        (["backbone.quantize=nf4", "model.depth.branch=copy"], "cannot be copied for the depth branch"),
        (["backbone.quantize=nf4", "trainer.strategy=fsdp2"], "fsdp2 shards plain tensors"),
        (["optim.adamw_8bit=true", "trainer.strategy=fsdp2"], "fsdp2 shards plain tensors"),
        (["trainer.precision=bf16-true"], "'32-true', 'bf16-mixed' or 'auto'"),
        (["optim.betas=[0.9, 1.0]"], "less than 1"),
        (["trainer.devices=0"], "greater than 0"),
        (["seed=9223372036854775808"], "less than 9223372036854775808"),
        (["loss.video=0", "loss.action=0", "loss.proprio=0", "loss.depth=0"], "nothing would be learned"),
        (["backbone.quantize=int4"], "input should be 'int8' or 'nf4', not 'int4'"),
        (["optim.adamw_8bit=true", "optim.fused=true"], "adamw_8bit has no fused form"),
    ],
)
def test_values_that_do_not_go_together_are_refused(recipe: Path, overrides: list[str], part: str) -> None:
    message = refused(recipe, *overrides)
    assert part in message
    assert "''" not in message


@pytest.mark.parametrize(
    ("overrides", "form"),
    [
        ([], "adapter"),
        (["model.train=heads"], "adapter"),
        (["model.train=full"], "copy"),
        (["model.depth.train=full"], "copy"),
        (["model.depth.branch=copy"], "copy"),
        (["model.depth.branch=none"], "none"),
    ],
)
def test_the_form_of_the_branch_follows_from_what_trains(recipe: Path, overrides: list[str], form: str) -> None:
    assert load_recipe(recipe, overrides).model.branch == form


def test_layers_are_named_once_whatever_names_them(recipe: Path) -> None:
    lora = load_recipe(recipe, ["model.lora.targets=[attn1.*, attention, attn1.to_q]"]).model.lora
    assert lora.layers == [
        *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    ]


def test_a_wrong_value_is_told_where_it_was_typed_with_the_nearest() -> None:
    with pytest.raises(UserError) as told:
        load_recipe(Path("tiny_cpu"), ["optim.schedule=cosin"])
    assert told.value.where == "--set"
    assert "not 'cosin' (did you mean 'cosine'?)" in str(told.value)
    with pytest.raises(UserError, match=r"--set: 'trainer.max_steps': input should be greater than 0, not -4"):
        load_recipe(Path("tiny_cpu"), {"trainer.max_steps": -4})


@pytest.mark.parametrize(("given", "told"), [("3", "3"), ("[1, 2]", "a list of 2"), ("null", "nothing")])
def test_a_value_in_a_sections_place_is_told_the_keys_of_the_section(recipe: Path, given: str, told: str) -> None:
    said = refused(recipe, f"checkpoint={given}")
    assert f"'checkpoint' has keys of its own (every_steps, keep, keep_best), and is given {told}" in said


def test_a_text_is_a_path_as_well(recipe: Path) -> None:
    """A notebook's user types texts: `xwam_ft.load_recipe("tiny_cpu")`."""
    assert load_recipe(str(recipe)) == load_recipe(recipe)
    assert load_recipe("tiny_cpu", ["data.shards=x"]).backbone.path == "tiny"
    with pytest.raises(UserError, match="did you mean"):
        load_recipe("tiny_cpuu")
