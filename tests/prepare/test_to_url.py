"""Preparing from URLs and to URLs: the bytes of a local preparation, whatever was stopped, and by machines apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from object_store import Fault, Store
from ray_nodes import node_apart
from shared import QUIET, files_in
from xwam_ft.copies import copies_folder
from xwam_ft.errors import UserError
from xwam_ft.prepare import pipeline, report
from xwam_ft.shards import ShardSet


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def prepared(raw: str | Path, out: str | Path, embodiment: Path, **more: Any) -> Any:
    options = {"depth": None, "workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET, **more}
    return pipeline.prepare([Path(raw)], Path(out), embodiment=embodiment, **options)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v21", "v30"])
def test_a_set_at_a_url_has_the_bytes_of_the_folder(
    version: str, toy: Path, s3: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    raw: Path = request.getfixturevalue(version)
    prepared(raw, tmp_path / "here", toy)
    url = s3.upload(raw, f"recordings/{version}")
    report = prepared(url, f"{s3.url}/sets/a", toy)
    assert s3.files("sets/a") == files_in(tmp_path / "here")
    puts = [line.split(" ")[1] for line in s3.gate.seen if line.startswith("PUT /lab/sets/a")]
    assert (puts[0], puts[-1]) == ("/lab/sets/a/prepared.json", "/lab/sets/a/index.json")
    assert len(ShardSet.open(report.out)) == len(ShardSet.open(tmp_path / "here"))
    assert not (copies_folder() / "spool").exists() or not list((copies_folder() / "spool").glob("*/preparing"))
    s3.gate.seen.clear()
    assert prepared(url, f"{s3.url}/sets/a", toy).already_prepared
    assert not [line for line in s3.gate.seen if line.startswith("PUT") or ".mp4" in line]
    with pytest.raises(UserError, match=r"^s3://lab/sets/a: was prepared from other inputs"):
        prepared(url, f"{s3.url}/sets/a", toy, overrides={"timing.clip_frames": 9})
    with pytest.raises(UserError, match=rf"OUT lies in RAW \({url}\)"):
        prepared(url, f"{url}/set", toy)


@pytest.mark.slow
def test_an_upload_that_stopped_is_refused_and_completed(v21: Path, toy: Path, s3: Store, tmp_path: Path) -> None:
    prepared(v21, tmp_path / "here", toy)
    s3.gate.faults = [Fault("403", "PUT /lab/set/shard-", times=99)]
    with pytest.raises(UserError, match=r"^s3://lab/set/shard-000000.tar: may not be written to"):
        prepared(v21, f"{s3.url}/set", toy)
    assert "set/prepared.json" in s3.names()
    with pytest.raises(UserError, match=r"s3://lab/set: is a shard set of which only a part was uploaded"):
        ShardSet.open(f"{s3.url}/set")
    with pytest.raises(UserError, match=r"^s3://lab/set: holds a part of another preparation"):
        prepared(v21, f"{s3.url}/set", toy, overrides={"timing.clip_frames": 9})
    s3.gate.faults = []
    s3.gate.seen.clear()
    prepared(v21, f"{s3.url}/set", toy)
    assert s3.files("set") == files_in(tmp_path / "here")
    assert not [line for line in s3.gate.seen if line.startswith("PUT /lab/set/prepared.json")], "it was there"


@pytest.mark.slow
def test_recordings_that_changed_come_again(v21: Path, toy: Path, s3: Store, tmp_path: Path) -> None:
    url = s3.upload(v21, "rec/v21")
    prepared(url, tmp_path / "first", toy)
    s3.gate.seen.clear()
    prepared(url, tmp_path / "again", toy)
    assert s3.gate.gets("rec/v21/videos") == []
    tasks = json.loads((v21 / "meta" / "tasks.jsonl").read_text().splitlines()[0])
    film = next(v21.rglob("*episode_000000.mp4"))
    s3.client().put_object(Bucket="lab", Key=f"rec/v21/{film.relative_to(v21)}", Body=film.read_bytes()[::-1])
    gone = next(v21.rglob("*episode_000002.parquet")).relative_to(v21)
    s3.client().delete_object(Bucket="lab", Key=f"rec/v21/{gone}")
    s3.gate.seen.clear()
    made = prepared(url, tmp_path / "third", toy)
    assert len(made.rejected) == 2
    assert [line.split(" ")[1] for line in s3.gate.gets("rec/v21/videos")] == [f"/lab/rec/v21/{film.relative_to(v21)}"]
    assert tasks


def test_what_cannot_be_is_a_sentence(v21: Path, toy: Path, s3: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^s3://lab/none: holds no recordings; nothing lies there"):
        prepared(f"{s3.url}/none", tmp_path / "out", toy)
    with pytest.raises(UserError, match=r"^s3://none/rec: its bucket does not exist"):
        prepared("s3://none/rec", tmp_path / "out", toy)
    with pytest.raises(UserError, match=r"^http://host/rec: are recordings on a web server"):
        prepared("http://host/rec", tmp_path / "out", toy)
    with pytest.raises(UserError, match=r"^http://host/set: cannot be written to: a web server only gives"):
        prepared(v21, "http://host/set", toy)
    s3.client().put_object(Bucket="lab", Key="full/other", Body=b"x")
    with pytest.raises(UserError, match=r"^s3://lab/full: exists and is not empty"):
        prepared(v21, f"{s3.url}/full", toy)
    s3.gate.seen.clear()
    for name in ("index.json", "contract.json", "shard-000000.tar"):
        s3.client().put_object(Bucket="lab", Key=f"sets/monday/{name}", Body=b"x")
    with pytest.raises(UserError, match=r"^s3://lab/sets/monday: is a shard set, not recordings"):
        prepared(f"{s3.url}/sets/monday", tmp_path / "out", toy)
    assert not s3.gate.gets("shard-"), "nothing of it was fetched"
    s3.upload(v21, "robot/monday")
    with pytest.raises(
        UserError, match=r"^s3://lab/robot: is not a dataset .*there is a dataset in s3://lab/robot/monday"
    ):
        prepared(f"{s3.url}/robot", tmp_path / "out", toy)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ray_s_machines_need_no_shared_disk(
    v21: Path, v30: Path, toy: Path, s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes; the one that works is in a mount namespace of its own, where neither copies nor recordings are."""
    cache = copies_folder()
    cache.mkdir(parents=True, exist_ok=True)
    for raw in (v21, v30):
        prepared(raw, tmp_path / f"here-{raw.name}", toy)
    with node_apart(monkeypatch, cache, v21):
        with pytest.raises(UserError, match=r"all 3 episodes are rejected|is not there"):
            prepared(v21, tmp_path / "shared", toy, ray="auto")  # a folder needs a mount that both see
        for raw in (v21, v30):
            url = s3.upload(raw, f"rec/{raw.name}")
            prepared(url, f"{s3.url}/sets/{raw.name}", toy, ray="auto")
            assert s3.files(f"sets/{raw.name}") == files_in(tmp_path / f"here-{raw.name}")
            assert any(f"/sets/{raw.name}/parts-" in line and line.startswith("PUT") for line in s3.gate.seen)
