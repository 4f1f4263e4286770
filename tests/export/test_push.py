"""A bundle pushed to the Hub, and everything that takes its name: a policy, a server, a run that starts from it."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

import xwam_ft
from hub_server import TOKEN, LocalHub
from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.export.push import push, require_pushable
from xwam_ft.model.tiny import tiny_folder
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.request import example_observation


@pytest.fixture
def logged_in(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return local_hub


def test_a_pushed_bundle_is_served_and_started_from_by_its_name(
    logged_in: LocalHub, bundle: Path, trained_run: Path, tmp_path: Path
) -> None:
    pushed = push(bundle, "org/policy", private=True, console=QUIET)
    name, _, commit = pushed.partition("@")
    repo = logged_in.repos["models/org/policy"]
    assert (name, repo.private, repo.refs["main"]) == ("org/policy", True, commit)
    assert {path for path in repo.commits[commit] if not path.startswith(".git")} == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    }
    here, there = Policy.load(bundle), Policy.load(pushed)
    seen = example_observation(here.contract, here.contract.prompts[0])
    assert np.array_equal(there.infer(seen, seed=3).action, here.infer(seen, seed=3).action)

    recipe = yaml.safe_load((trained_run / "recipe.yaml").read_text())
    recipe["trainer"]["max_steps"] = 1
    recipe["backbone"]["path"], backbone = "org/tiny", logged_in.add("models/org/tiny", tiny_folder())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = xwam_ft.train(tmp_path / "recipe.yaml", tmp_path / "run", init="org/policy")
    kept = yaml.safe_load((run.path / "recipe.yaml").read_text())
    assert kept["init_from"] == pushed, "the commit, not what is newest one day"
    assert kept["backbone"] == {**recipe["backbone"], "path": "org/tiny", "revision": backbone}
    assert json.loads((run.path / "init" / "report.json").read_text())["origin"]["place"] == pushed
    logged_in.stop()
    assert xwam_ft.train(resume=run).step == 1


def test_a_card_has_the_head_that_the_hub_reads(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit"
    assert head["library_name"] == "xwam-ft"
    assert head["pipeline_tag"] == "robotics"
    assert {"robotics", "xwam", "lora", "test-arm"} <= set(head["tags"])
    results = head["model-index"][0]["results"][0]["metrics"]
    table = re.findall(r"^\| (\w+ [\w ]+) \| (\S+) \| (\S+) \|", text, re.M)
    assert {row["name"] for row in results} == {f"{name}, {unit}" for name, unit, _ in table if unit != "unit"}


def test_a_second_push_replaces_a_bundle_and_nothing_else(logged_in: LocalHub, bundle: Path, tmp_path: Path) -> None:
    repo_name = "models/org/policy"
    first = push(bundle, "org/policy", private=False, console=QUIET).partition("@")[2]
    repo = logged_in.repos[repo_name]
    beside = {**repo.commits[first], "LICENSE": b"ours", "text_encoder/old.bin": b"x"}
    repo.commit(beside)
    said = io.StringIO()
    require_pushable("org/policy", private=False, console=Console(file=said, width=300))
    assert "holds a bundle already" in said.getvalue()
    second = push(bundle, "org/policy", private=False, console=QUIET).partition("@")[2]
    assert "LICENSE" in repo.commits[second]
    assert "text_encoder/old.bin" not in repo.commits[second]
    repo.commit({"model.safetensors": b"another's"})
    with pytest.raises(UserError, match=r"holds something else \(model.safetensors\).*push to another name"):
        require_pushable("org/policy", private=False, console=QUIET)
    with pytest.raises(UserError, match=r"is there already, and public"):
        require_pushable("org/policy", private=True, console=QUIET)


def test_what_cannot_be_pushed_is_said_before_anything_is_done(
    local_hub: LocalHub, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**options: object) -> str:
        with pytest.raises(UserError) as error:
            xwam_ft.export(trained_run, tmp_path / "out", **options)  # pyright: ignore[reportArgumentType]
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "--private: changes nothing without --push" in refused(private=True)
    assert "uploads bundles, and the format is peft" in refused(push="org/a", format="peft")
    assert "--push: is 'a'. Fix: write ORG/NAME" in refused(push="a")
    assert "you are not logged in. Fix: log in with `hf auth login`" in refused(push="org/a")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 32)
    assert "does not take your token (401)" in refused(push="org/a")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    local_hub.read_only = True
    assert "your token 't' may only read" in refused(push="org/a")
    local_hub.stop()
    assert "cannot be fetched from" in refused(push="org/a")


def test_an_upload_that_fails_leaves_the_old_commit_and_the_bundle(
    logged_in: LocalHub, bundle: Path, tmp_path: Path
) -> None:
    first = push(bundle, "org/policy", private=False, console=QUIET).partition("@")[2]
    logged_in.refuse["POST /api/models/org/policy/commit"] = 403
    with pytest.raises(UserError, match=r"may not be read or written.*is whole in .*hf upload org/policy"):
        push(bundle, "org/policy", private=False, console=QUIET)
    assert logged_in.repos["models/org/policy"].refs["main"] == first


def test_what_is_no_bundle_or_half_of_one_is_said_before_it_is_fetched(
    local_hub: LocalHub, bundle: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(bundle, tmp_path / "half")
    (half / "model.safetensors").unlink()
    local_hub.add("models/org/half", half)
    with pytest.raises(UserError, match=r"org/half: holds a part of a bundle: there is no model.safetensors"):
        Policy.load("org/half")
    (half / "manifest.json").unlink()
    local_hub.add("models/org/half", half)
    with pytest.raises(UserError, match=r"org/half: holds no bundle \(no manifest.json\)"):
        xwam_ft.serve("org/half")
    assert local_hub.fetched() == ["manifest.json"]
    with pytest.raises(UserError, match=r"org/none: is not there: neither a folder here nor on the Hub"):
        xwam_ft.evaluate("org/none", "shards")
