"""Names of the Hub, and what is fetched of it from a server on this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from hub_server import TOKEN, HubRepo, LocalHub
from shared import QUIET
from xwam_ft import hub
from xwam_ft.errors import UserError
from xwam_ft.hub import Repo, repo_of


def test_what_lies_here_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repo_of("shards/x", "dataset") == Repo("dataset", "shards/x")
    assert repo_of("shards/x@v1.0", "dataset") == Repo("dataset", "shards/x", "v1.0")
    Path("shards").mkdir()
    for place in ("shards/x", "shards/x@v1.0", "./org/name", "/org/name", "name", "a/b/c", "org/", "~/name", ""):
        assert repo_of(place, "dataset") is None, place
    assert repo_of(Path("hf://datasets/shards/x@refs/pr/1"), "dataset") == Repo("dataset", "shards/x", "refs/pr/1")
    assert repo_of("hf://org/name", "model") == Repo("model", "org/name")
    assert "hf://datasets/shards/x" in hub.hint("shards/x", "dataset")
    assert hub.hint("/shards/x", "dataset") == ""
    for wrong, kind in (("hf://org/name", "dataset"), ("hf://datasets/org/name", "model"), ("hf://name", "model")):
        with pytest.raises(UserError, match=f"names no {kind} of the Hub"):
            repo_of(wrong, kind)  # pyright: ignore[reportArgumentType]


def test_a_branch_is_its_commit_from_the_first_question_on(local_hub: LocalHub, tmp_path: Path) -> None:
    files = {"a.json": b"1", "films/x.mp4": b"x" * 9000, "films/y.mp4": b"y"}
    repo = local_hub.repos["datasets/org/set"] = HubRepo()
    old = repo.commit(files)
    first = hub.fetch(Repo("dataset", "org/set"), QUIET, allow=["a.json"])
    assert hub.fetched_from(first) == Repo("dataset", "org/set", old)
    assert hub.name_of(first) == "set"
    assert local_hub.fetched() == ["a.json"]
    repo.commit({**files, "a.json": b"2"})  # main moves
    pinned = Repo("dataset", "org/set", old)
    again = hub.fetch(pinned, QUIET)
    assert again == first
    assert (again / "a.json").read_bytes() == b"1"
    assert sorted(local_hub.fetched()) == ["a.json", "films/x.mp4", "films/y.mp4"], "nothing is fetched twice"
    newer = hub.fetch(Repo("dataset", "org/set", "main"), QUIET)
    assert (newer / "a.json").read_bytes() == b"2"
    assert hub.fetched_from(tmp_path) is None


def test_a_download_that_is_cut_goes_on_where_it_was(local_hub: LocalHub) -> None:
    data = bytes(range(256)) * 4000
    local_hub.repos["models/org/big"] = HubRepo()
    local_hub.repos["models/org/big"].commit({"model.bin": data})
    local_hub.cut_after = 300_000
    folder = hub.fetch(Repo("model", "org/big"), QUIET)
    assert (folder / "model.bin").read_bytes() == data
    assert local_hub.cut_after is None
    assert len(local_hub.fetched()) == 2


def test_without_network_what_was_fetched_is_there_and_the_rest_is_a_sentence(local_hub: LocalHub) -> None:
    local_hub.repos["datasets/org/set"] = HubRepo()
    sha = local_hub.repos["datasets/org/set"].commit({"a.json": b"1"})
    repo = Repo("dataset", "org/set")
    folder = hub.fetch(repo, QUIET)
    local_hub.stop()
    said = io.StringIO()
    assert hub.fetch(repo, Console(file=said, width=400)) == folder
    assert f"taken as it was last fetched, commit {sha[:12]}" in said.getvalue()
    assert hub.files(repo) == ["a.json"]
    with pytest.raises(
        UserError, match=r"the dataset org/other of the Hub: cannot be fetched from .*connect this mach"
    ):
        hub.fetch(Repo("dataset", "org/other"), QUIET)


def test_what_the_hub_refuses_is_one_sentence_each(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    local_hub.repos["models/org/secret"] = HubRepo(private=True)
    local_hub.repos["models/org/secret"].commit({"a": b"1"})
    local_hub.repos["models/org/gated"] = HubRepo(gated=True)
    local_hub.repos["models/org/gated"].commit({"a": b"1"})
    with pytest.raises(UserError, match=r"org/secret: is not there: .*it is private.*log in with `hf auth login`"):
        hub.fetch(Repo("model", "org/secret"), QUIET)
    with pytest.raises(UserError, match=r"given to those alone who accepted its terms.*accept them at http"):
        hub.fetch(Repo("model", "org/gated"), QUIET)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (hub.fetch(Repo("model", "org/secret"), QUIET) / "a").is_file()
    with pytest.raises(UserError, match=r"has no revision 'v9', or has it no more.*leave @REVISION out"):
        hub.fetch(Repo("model", "org/secret", "v9"), QUIET)
    with pytest.raises(UserError, match=r"has no revision '0{40}'"):  # a commit that was taken away
        hub.fetch(Repo("model", "org/secret", "0" * 40), QUIET)
    with pytest.raises(UserError, match=r"org/none: is not there"):
        hub.files(Repo("model", "org/none"))
    local_hub.refuse["GET /api/models/org/secret"] = 500
    with pytest.raises(UserError, match=r"cannot be fetched from .*500"):
        hub.files(Repo("model", "org/secret", "other"))


def test_a_renamed_repository_is_followed_and_said(local_hub: LocalHub) -> None:
    local_hub.repos["models/new/name"] = HubRepo()
    local_hub.repos["models/new/name"].commit({"a": b"1"})
    local_hub.renamed["models/old/name"] = "new/name"
    said = io.StringIO()
    folder = hub.fetch(Repo("model", "old/name"), Console(file=said, width=400))
    assert (folder / "a").read_bytes() == b"1"
    assert "old/name is called new/name now" in said.getvalue()
