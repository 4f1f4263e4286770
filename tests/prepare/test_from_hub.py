"""Recordings by their name on the Hub: `inspect` and `prepare` fetch what they need of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import xwam_ft
from hub_server import LocalHub
from so101 import write_so101
from xwam_ft.errors import UserError

SHORT = {
    "timing.frame_skip": 2,
    "timing.action_skip": 1,
    "timing.clip_frames": 5,
    "image.height": 32,
    "image.width": 64,
}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Three short episodes of an SO-101 with two cameras."""
    write_so101(tmp_path / "so101", episodes=3, frames=30, size=(32, 64))
    return tmp_path / "so101"


def films(local: LocalHub) -> list[str]:
    return [name for name in local.fetched() if name.endswith(".mp4")]


def test_inspect_fetches_numbers_and_one_film_a_camera(local_hub: LocalHub, recordings: Path, tmp_path: Path) -> None:
    local_hub.add("datasets/org/so101", recordings)
    here = xwam_ft.inspect(recordings, tmp_path / "here.yaml")
    there = xwam_ft.inspect("org/so101", tmp_path / "there.yaml")
    assert "problem" not in there.text
    assert (tmp_path / "there.yaml").read_text() == (tmp_path / "here.yaml").read_text()
    assert sorted(name.split("/")[1] for name in films(local_hub)) == [
        "observation.images.front",
        "observation.images.wrist",
    ]
    assert here.text.count("\n") == pytest.approx(there.text.count("\n"), abs=3)


def test_prepare_of_a_name_is_that_of_a_copy_and_of_its_commit_alone(
    local_hub: LocalHub, recordings: Path, tmp_path: Path
) -> None:
    sha = local_hub.add("datasets/org/so101", recordings)
    options = {"embodiment": "so101_joints", "depth": "none", "workers": 0, **SHORT}
    here = xwam_ft.prepare(recordings, tmp_path / "here", **options)  # pyright: ignore[reportArgumentType]
    there = xwam_ft.prepare("org/so101", tmp_path / "there", **options)  # pyright: ignore[reportArgumentType]
    for name in ("index.json", "contract.json", "findings.jsonl", "shard-000000.tar"):
        assert (there.path / name).read_bytes() == (here.path / name).read_bytes(), name
    record = json.loads((there.path / "prepared.json").read_text())
    assert record["recordings"][0] == {"name": "so101", "format": "LeRobot v3.0", "hub": f"org/so101@{sha}"}
    (recordings / "meta" / "info.json").write_bytes((recordings / "meta" / "info.json").read_bytes() + b"\n")
    newer = local_hub.add("datasets/org/so101", recordings)
    said = io.StringIO()
    again = xwam_ft.prepare(f"org/so101@{sha}", there.path, progress=Console(file=said, width=300), **options)  # pyright: ignore[reportArgumentType]
    assert again.path == there.path
    assert "nothing to do" in said.getvalue()
    with pytest.raises(UserError, match="was prepared from other inputs"):
        xwam_ft.prepare("org/so101", there.path, **options)  # pyright: ignore[reportArgumentType]
    assert newer != sha


def test_films_of_cameras_that_nobody_named_stay_there(local_hub: LocalHub, recordings: Path, tmp_path: Path) -> None:
    from xwam_ft.bundled import named_file

    local_hub.add("datasets/org/so101", recordings)
    text = named_file(Path("so101_joints"), "recipes/embodiments").read_text()
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.lstrip().startswith("wrist:")]
    assert len(kept) == len(lines) - 1
    (tmp_path / "one.yaml").write_text("".join(kept))
    xwam_ft.prepare("org/so101", tmp_path / "out", embodiment=tmp_path / "one.yaml", depth="none", workers=0, **SHORT)  # pyright: ignore[reportArgumentType]
    assert films(local_hub)
    assert not [name for name in films(local_hub) if "wrist" in name]


def test_a_set_that_is_half_there_says_which_half(local_hub: LocalHub, recordings: Path, tmp_path: Path) -> None:
    half = shutil.copytree(recordings, tmp_path / "half")
    for film in sorted(half.rglob("*.mp4")):
        film.unlink()
    local_hub.add("datasets/org/half", half)
    with pytest.raises(UserError, match=r"all 3 episodes are rejected \(.*videos is not there"):
        xwam_ft.prepare("org/half", tmp_path / "out", embodiment="so101_joints", depth="none", workers=0, **SHORT)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("soon")
    local_hub.add("datasets/org/empty", tmp_path / "card")
    with pytest.raises(UserError, match=r"datasets/org/empty: holds no recordings yet"):
        xwam_ft.inspect("org/empty")


def test_a_mistyped_folder_is_no_question_to_the_hub(
    local_hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recordings").mkdir()
    with pytest.raises(UserError, match=r"recordings/so10: the folder does not exist.*hf://datasets/recordings/so10"):
        xwam_ft.inspect("recordings/so10")
    assert local_hub.seen == []
    said = io.StringIO()
    with pytest.raises(UserError, match=r"recording/so101: is not there: neither a folder here nor on the Hub"):
        xwam_ft.prepare("recording/so101", "out", embodiment="so101_joints", progress=Console(file=said, width=300))
    assert "recording/so101 is no folder here: asking http" in said.getvalue()
