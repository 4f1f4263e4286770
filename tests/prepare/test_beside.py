"""Causes that lie on the disk beside a dataset: each is named, with advice that works."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from formats import write_aloha, write_folder
from rich.console import Console

from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.inspect.inspect import inspect
from xwam_ft.media import probe
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.prepare.sources import open_source
from xwam_ft.prepare.sources.beside import located, unnamed

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def inspected(raw: Path) -> str:
    console = Console(width=400, file=io.StringIO(), record=True)
    inspect(raw, None, console)
    return console.export_text()


def prepared(raw: Path, out: Path, toy: Path, **options: Any) -> str:
    console = Console(width=1000, file=io.StringIO(), record=True)
    settings: dict[str, Any] = {"embodiment": toy, "depth": "none", "workers": 0, "strict": False, "urdf_dirs": []}
    prepare([raw], out, console=console, **(settings | options))
    return console.export_text()


def test_a_pointer_is_told_wherever_it_lies(v21: Path, v30: Path, lerobot: Any) -> None:
    """Git LFS without `git lfs pull`: in a video, a table, metadata; of both versions."""
    video = v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000001.mp4"
    table = v21 / "data" / "chunk-000" / "episode_000002.parquet"
    shared = v30 / "videos" / lerobot.camera / "chunk-000" / "file-000.mp4"
    for file in (video, table, shared):
        file.write_text(POINTER)
    with pytest.raises(UserError, match=r"Git LFS pointer.*git lfs pull"):
        probe(video)
    text = inspected(v21)
    assert f"episode 2: {table} is not a readable parquet file: it is a Git LFS pointer" in text
    assert "git lfs pull" in text
    assert "record" not in text.split("what to do", 1)[1].splitlines()[0]
    problems = [episode.problems[0] for episode in open_source(v30).episodes()]
    assert all("Git LFS pointer" in problem for problem in problems)
    assert inspected(v30).count("Git LFS pointer") == 1  # one file, three episodes
    info = v21 / "meta" / "info.json"
    info.write_text(POINTER)
    with pytest.raises(UserError, match=r"info.json: is a Git LFS pointer.*git lfs pull"):
        open_source(v21)


@pytest.mark.parametrize(
    ("content", "told"),
    [("", "is an empty file"), ("<!DOCTYPE html>\n<html>", "is a web page"), ("/annex/objects/MD5-s1", "git-annex")],
)
def test_other_things_in_the_place_of_a_file_are_told(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "info.json"
    file.write_text(content)
    with pytest.raises(UserError, match=told):
        read_json(file)
    file.unlink()
    file.symlink_to("../blobs/0a1b")  # a hub's cache that was copied without what its links point to
    with pytest.raises(UserError, match=r"is a link to \.\./blobs/0a1b, which is not there"):
        read_json(file)


def test_a_folder_misnamed_by_a_letter_is_named_once(v21: Path, toy: Path, tmp_path: Path) -> None:
    (v21 / "videos").rename(v21 / "video")
    text = inspected(v21)
    assert text.count(f"{v21 / 'video'} has nearly its name") == 1
    assert "episodes 0-2" in text
    assert "rename video to videos" in text
    with pytest.raises(UserError, match="Fix: rename video to videos"):
        prepared(v21, tmp_path / "out", toy)


def test_a_camera_is_not_another_one_misspelt(v21: Path, v30: Path, lerobot: Any) -> None:
    shutil.rmtree(v30 / "videos" / lerobot.camera)
    told = open_source(v30).episodes()[0].problems
    assert any("is not there, in which meta lists the videos of" in problem for problem in told)
    assert not any("nearly" in problem for problem in told)
    (v21 / "videos" / "chunk-000" / lerobot.camera).rename(
        v21 / "videos" / "chunk-000" / "observation.image.Front View"
    )
    (problem, *_) = open_source(v21).episodes()[0].problems
    assert "observation.image.Front View has nearly its name" in problem


def test_files_that_meta_names_at_another_place_or_nowhere_are_told_by_path(
    v21: Path, toy: Path, tmp_path: Path, lerobot: Any
) -> None:
    data = v21 / "data"
    (data / "chunk-001").mkdir()
    shutil.copy(data / "chunk-000" / "episode_000001.parquet", data / "chunk-001" / "episode_000001.parquet")
    moved = data / "chunk-001" / "episode_000002.parquet"
    shutil.move(data / "chunk-000" / "episode_000002.parquet", moved)
    extra = v21 / "videos" / "chunk-000" / "observation.images.Front View" / "episode_000000 (copy).mp4"
    shutil.copy(extra.with_name("episode_000000.mp4"), extra)
    source = open_source(v21)
    assert f"a file of this name is {moved}" in source.episodes()[2].problems[0]
    told = "\n".join(unnamed(source.info, source.episodes()))
    assert f"{data / 'chunk-001' / 'episode_000001.parquet'} is not read" in told
    assert f"{extra} is not read" in told
    assert str(moved) not in told  # told already
    for text in (inspected(v21), prepared(v21, tmp_path / "out", toy)):
        assert f"{data / 'chunk-001' / 'episode_000001.parquet'} is not read" in text
    findings = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert sum(finding["check"] == "not-read" for finding in findings) == 2


def test_nothing_is_told_of_whole_sets(v21: Path, v30: Path, tmp_path: Path, made: Any, real_data: Path) -> None:
    folder = write_folder(tmp_path / "folder", made)
    for raw in (v21, v30, folder, real_data / "lerobot_v21_g1", real_data / "lerobot_v30_g1"):
        source = open_source(raw)
        assert unnamed(source.info, source.episodes()) == []


def test_rows_of_episodes_that_meta_does_not_list_are_told(v30: Path) -> None:
    file = v30 / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.filter(pc.less(rows.column("episode_index"), 2)), file)
    assert "holds 37 rows, its episodes in meta add up to 25" in open_source(v30).episodes()[0].notes[-1]


def test_a_path_of_another_machine_is_found_by_its_end(tmp_path: Path) -> None:
    file = tmp_path / "images" / "front" / "episode_000000" / "frame_000000.png"
    file.parent.mkdir(parents=True)
    file.touch()
    end = "images/front/episode_000000/frame_000000.png"
    for name in (end, f"/home/someone/.cache/toy/{end}", "C:\\data\\toy\\" + end.replace("/", "\\"), str(file)):
        assert located(tmp_path, name) == file
    # The file's own name alone says nothing: every episode has a frame 0.
    (tmp_path / "frame_000000.png").touch()
    assert not located(tmp_path, "/home/someone/other/frame_000000.png").exists()


def test_tables_without_rows_are_a_sentence(v21: Path, v30: Path, tmp_path: Path, made: Any) -> None:
    for root in (v21, v30):
        for path in (root / "data").rglob("*.parquet"):
            pq.write_table(pq.read_table(path).slice(0, 0), path)
        text = inspected(root)
        assert "holds no row of this episode" in text
        assert "no table could be read" in text
        assert "nan" not in text
    listing = v21 / "meta" / "episodes.jsonl"
    lines = [json.loads(line) | {"length": 0} for line in listing.read_text().splitlines()]
    listing.write_text("\n".join(json.dumps(line) for line in lines))
    assert "holds no row of this episode" in inspected(v21)
    folder = write_folder(tmp_path / "folder", made)
    for path in folder.glob("*/table.csv"):
        path.write_text(path.read_text().splitlines()[0] + "\n")
    assert "holds no row" in inspected(folder)
    aloha = write_aloha(tmp_path / "aloha", made)
    for path in aloha.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            for name in ("observations/qpos", "observations/qvel", "action", "observations/images/front"):
                kept = file[name][:0]
                del file[name]
                file[name] = kept
    assert "holds no row of numbers" in inspected(aloha)


def test_hdf5_pictures_at_another_place_are_found_and_missing_ones_told(tmp_path: Path, made: Any, toy: Path) -> None:
    moved, none = write_aloha(tmp_path / "moved", made), write_aloha(tmp_path / "none", made)
    for path in moved.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            file.move("observations/images/front", "observations/rgb/cam_high")
    source = open_source(moved)
    assert list(source.info.cameras) == ["observation.images.cam_high"]
    assert all(len(column) < 40 for column in source.info.columns)
    np.testing.assert_array_equal(
        source.episodes()[0].views["observation.images.cam_high"].read_rgb([3]), made.pictures[0][[3]]
    )
    for path in none.glob("*.hdf5"):
        with h5py.File(path, "r+") as file:
            del file["observations/images"]
            file["observations/cloud"] = np.zeros((len(file["action"]), 1024, 6), np.float32)
    toy.write_text(toy.read_text() + "fps: 10\n")
    text = inspected(none)
    assert "holds no pictures in the places of HDF5 (ACT/ALOHA); its datasets are observations/qpos" in text.replace(
        "action, ", ""
    )
    assert "observations/cloud (float32" in text
    with pytest.raises(UserError, match=r"the recordings hold no pictures .*observations/qpos"):
        prepared(none, tmp_path / "out", toy)


def test_out_among_the_recordings_is_refused_as_such(v21: Path, toy: Path, tmp_path: Path) -> None:
    for out in (v21, v21 / "shards", v21 / "data" / ".." / "out"):
        with pytest.raises(UserError, match=r"OUT (is RAW itself|lies in RAW).*outside the recordings") as told:
            prepared(v21, out, toy)
        assert "remove" not in str(told.value)
    link = tmp_path / "link"
    link.symlink_to(v21)
    with pytest.raises(UserError, match="OUT is RAW itself"):
        prepared(v21, link, toy)
    assert not list(v21.parent.glob(".*preparing"))


def test_episodes_have_the_recordings_own_numbers(v21: Path, toy: Path, tmp_path: Path, lerobot: Any) -> None:
    """Three episodes, numbered 0, 1 and 65, of which the last has no video."""
    listing = v21 / "meta" / "episodes.jsonl"
    listing.write_text(listing.read_text().replace('"episode_index": 2', '"episode_index": 65'))
    for path in v21.rglob("episode_000002.*"):
        path.rename(path.with_stem("episode_000065"))
    table = v21 / "data" / "chunk-000" / "episode_000065.parquet"
    rows = pq.read_table(table)
    at = rows.column_names.index("episode_index")
    pq.write_table(rows.set_column(at, "episode_index", pa.array([65] * len(rows))), table)
    (v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000065.mp4").unlink()
    text = prepared(v21, tmp_path / "out", toy)
    assert "rejected v21 episode 65" in text
    assert next(line for line in text.splitlines() if line.startswith("error unreadable")).endswith("[episode 65]")
    assert "episode 2" not in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "v21 episode 65" in page
    # Of two datasets, each number says which one it is of.
    other = shutil.copytree(v21, tmp_path / "other")
    console = Console(width=1000, file=io.StringIO(), record=True)
    prepare([v21, other], tmp_path / "both", embodiment=toy, depth="none", workers=0, strict=False, urdf_dirs=[],
            console=console)  # fmt: skip
    assert "[v21: episode 65; other: episode 65]" in console.export_text()


def test_the_like_of_many_episodes_is_told_once(v21: Path, toy: Path, tmp_path: Path, lerobot: Any) -> None:
    for number in (1, 2):
        (v21 / "videos" / "chunk-000" / lerobot.camera / f"episode_{number:06d}.mp4").unlink()
    text = prepared(v21, tmp_path / "out", toy)
    assert text.count("rejected v21 episode") == 1
    assert "rejected for the like: episode 2" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("run_1.bag", r"holds ROS 1 bags \(run_1.bag\).*rosbags-convert"),
        ("demos.zip", r"holds archives \(demos.zip\).*unpack"),
        ("demos.tar.gz", r"holds archives \(demos.tar.gz\).*unpack"),
        ("replay.zarr", "Zarr store"),
        ("run.db3", "without their metadata.yaml.*reindex"),
        ("episode_0.pkl", r"pickles.*\.npz"),
        ("notes.txt", "is not a dataset xwam-ft can read"),
    ],
)
def test_recordings_of_kinds_that_are_not_read_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=said):
        open_source(tmp_path)


def test_a_zarr_store_that_is_given_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "replay.zarr" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a Zarr store"):
        open_source(tmp_path / "replay.zarr")


def test_a_lerobot_set_without_its_meta_is_named(v21: Path) -> None:
    (v21 / "meta" / "info.json").rename(v21 / "meta" / "infos.json")
    with pytest.raises(UserError, match=r"no meta/info.json. Fix: rename infos.json to info.json"):
        open_source(v21)
    (v21 / "meta").rename(v21 / "meta_")
    with pytest.raises(UserError, match=r"no meta/info.json. Fix: rename meta_ to meta"):
        open_source(v21)
    shutil.rmtree(v21 / "meta_")
    with pytest.raises(UserError, match=r"no meta/info.json. Fix: copy or download the whole dataset"):
        open_source(v21)


def test_one_episode_given_for_the_folder_of_them_is_named(tmp_path: Path, made: Any) -> None:
    folder = write_folder(tmp_path / "folder", made)
    with pytest.raises(UserError, match=r"is one episode of a plain folder.*give the folder above it"):
        open_source(next(child for child in folder.iterdir() if child.is_dir()))
