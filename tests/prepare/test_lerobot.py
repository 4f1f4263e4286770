"""LeRobot readers: both versions give the same episodes, found by value and by integers; bad sets say what is wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth.sensor import to_metres
from xwam_ft.prepare.embodiment.schema import DepthVideo
from xwam_ft.prepare.episode import EpisodeError, LogCode
from xwam_ft.prepare.sources import open_source
from xwam_ft.prepare.sources.lerobot_meta import flat_names


def edit_info(root: Path, **changes: Any) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_both_versions_give_the_recorded_numbers_and_equal_pixels(
    v21: Path, v30: Path, made: Any, lerobot: Any
) -> None:
    old, new = open_source(v21).episodes(), open_source(v30).episodes()
    assert [episode.length for episode in old] == [episode.length for episode in new] == [14, 11, 12]
    for number, (a, b) in enumerate(zip(old, new, strict=True)):
        for episode in (a, b):
            table = episode.table.read()
            for i, name in enumerate(lerobot.names):
                np.testing.assert_array_equal(table.columns[f"observation.state/{name}"], made.states[number][:, i])
                np.testing.assert_array_equal(table.columns[f"action/{name}"], made.actions[number][:, i])
            assert episode.tasks[int(table.task_index[0])] == made.tasks[number]
            np.testing.assert_array_equal(episode.views[lerobot.depth].read_gray16(range(11)), made.depths[number][:11])
            # H.264 is lossy, and a frame too far is 9 grey values away.
            seen = episode.views[lerobot.camera].read_rgb(range(episode.length)).astype(float)
            steps = np.abs(seen - made.pictures[number]).mean(axis=(1, 2, 3))
            assert steps.max() < 20
            shifted = np.abs(seen[:-1] - made.pictures[number][1:]).mean(axis=(1, 2, 3))
            assert (shifted > steps[:-1]).all()


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (["a", "b"], ["a", "b"]),
        ([["a", "b"]], ["a", "b"]),
        ({"motors": ["a"], "axes": ["b"]}, ["a", "b"]),
        ({"b": 1, "a": 0}, ["a", "b"]),
        (None, []),
    ],
)
def test_names_in_all_their_forms(names: Any, flat: list[str]) -> None:
    assert flat_names(names) == flat


def test_unnamed_and_misnamed_columns_are_numbered(tmp_path: Path, made: Any, lerobot: Any) -> None:
    root = lerobot.v21(tmp_path / "set", made, names=["only", "two"])
    assert open_source(root).info.columns[:3] == ("observation.state/0", "observation.state/1", "observation.state/2")


def test_path_templates_are_followed(tmp_path: Path, made: Any, lerobot: Any) -> None:
    root = lerobot.v21(
        tmp_path / "set",
        made,
        data="data/task-{episode_chunk:04d}/e{episode_index}.parquet",
        video="films/{video_key}/{chunk_index}/{episode_index:03d}.mp4",
    )
    assert not any(episode.problems for episode in open_source(root).episodes())
    edit_info(root, data_path="data/{part}.parquet")
    with pytest.raises(UserError, match=r"data_path is 'data/\{part\}.parquet', which cannot be filled"):
        open_source(root).episodes()


@pytest.mark.parametrize("drop", [("frame_index",), ("episode_index", "frame_index"), ("timestamp", "task_index")])
def test_missing_columns_fall_back(tmp_path: Path, made: Any, lerobot: Any, drop: tuple[str, ...]) -> None:
    for write, name in ((lerobot.v21, "a"), (lerobot.v30, "b")):
        for number, episode in enumerate(open_source(write(tmp_path / name, made, drop=drop)).episodes()):
            table = episode.table.read()
            np.testing.assert_array_equal(table.columns["observation.state/j1"], made.states[number][:, 0])
            assert (table.timestamps is None) == ("timestamp" in drop)


def test_episodes_without_their_list_are_found_by_their_files(v21: Path) -> None:
    (v21 / "meta" / "episodes.jsonl").unlink()
    assert [(e.index, e.length) for e in open_source(v21).episodes()] == [(0, 14), (1, 11), (2, 12)]


def test_a_drifting_timestamp_is_tolerated_and_a_wrong_one_is_not(tmp_path: Path, made: Any, lerobot: Any) -> None:
    drifted = lerobot.v30(tmp_path / "drifted", made, drift=0.08)
    assert not any(episode.problems for episode in open_source(drifted).episodes())
    wrong = open_source(lerobot.v30(tmp_path / "wrong", made, drift=0.5)).episodes()
    assert not wrong[0].problems
    assert "puts the episode at frame 19, the lengths of the episodes before it at frame 14" in wrong[1].problems[0]


def test_a_short_shared_video_rejects_only_the_episodes_it_lacks(v30: Path, made: Any, lerobot: Any) -> None:
    from xwam_ft.media import write_rgb

    path = v30 / "videos" / lerobot.camera / "chunk-000" / "file-000.mp4"
    write_rgb(path, np.concatenate(made.pictures)[:30], lerobot.fps)
    problems = [episode.problems for episode in open_source(v30).episodes()]
    assert problems[:2] == [(), ()]
    assert "holds 30 frames, the episode needs frames 25 to 36" in problems[2][0]


def test_absent_files_are_problems_with_their_path(v21: Path, v30: Path, lerobot: Any) -> None:
    gone = v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000001.mp4"
    gone.unlink()
    (v21 / "images" / lerobot.camera / "episode_000001").mkdir(parents=True)
    (problem,) = open_source(v21).episodes()[1].problems
    assert str(gone) in problem
    assert "interrupted before encoding" in problem
    data = v30 / "data" / "chunk-000" / "file-000.parquet"
    data.unlink()
    episode = open_source(v30).episodes()[0]
    assert episode.problems == (f"{data} is listed in meta and not there",)
    with pytest.raises(EpisodeError, match="is listed in meta and not there"):
        episode.table.read()


def test_a_table_of_another_length_is_told(v21: Path) -> None:
    path = v21 / "meta" / "episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 11', '"length": 13'))
    with pytest.raises(EpisodeError, match="holds 11 rows of this episode, meta says 13"):
        open_source(v21).episodes()[1].table.read()


def test_an_interrupted_recording_is_read_from_its_pictures(v21: Path, made: Any, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000001.mp4").unlink()
    folder = v21 / "images" / lerobot.camera / "episode_000001"
    folder.mkdir(parents=True)
    for at, picture in enumerate(made.pictures[1]):
        Image.fromarray(picture).save(folder / f"frame_{at:06d}.png")
    episode = open_source(v21).episodes()[1]
    assert episode.problems == ()
    assert "was never encoded; its pictures in" in episode.notes[0]
    np.testing.assert_array_equal(episode.views[lerobot.camera].read_rgb([10, 2]), made.pictures[1][[10, 2]])
    (folder / "frame_000010.png").unlink()
    assert "holds 10 of its 11 pictures: the recording was interrupted" in open_source(v21).episodes()[1].problems[0]


def test_what_meta_does_not_list_is_rejected_by_name(v21: Path, v30: Path, lerobot: Any) -> None:
    listing = v21 / "meta" / "episodes.jsonl"
    listing.write_text("\n".join(listing.read_text().splitlines()[:2]))
    for root, folder in ((v21, "episode_000005"), (v30, "episode-000005")):
        (root / "images" / lerobot.camera / folder).mkdir(parents=True)
    old, new = open_source(v21).episodes(), open_source(v30).episodes()
    assert [episode.index for episode in old] == [0, 1, 2, 5]
    assert [episode.index for episode in new] == [0, 1, 2, 5]
    assert "episode_000002.parquet belongs to an episode that meta does not list" in old[2].problems[0]
    assert "episode-000005 belongs to an episode that meta does not list" in new[3].problems[0]


def with_image_columns(root: Path, made: Any, lerobot: Any, *, by_path: bool) -> None:
    """Turn the videos of a set into image columns, as LeRobot records without videos."""
    info = root / "meta" / "info.json"
    tree = json.loads(info.read_text())
    for key in (lerobot.camera, lerobot.depth):
        tree["features"][key]["dtype"] = "image"
    info.write_text(json.dumps(tree | {"video_path": None}))
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        for key, frames, kind in ((lerobot.camera, made.pictures, "PNG"), (lerobot.depth, made.depths, "TIFF")):
            cells = []
            for episode, frame in zip(
                *(table.column(n).to_pylist() for n in ("episode_index", "frame_index")), strict=True
            ):
                buffer = io.BytesIO()
                Image.fromarray(frames[episode][frame]).save(buffer, kind)
                name = f"images/{key}/{episode}_{frame}.{kind.lower()}"
                if by_path:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_bytes(buffer.getvalue())
                cells.append({"bytes": None if by_path else buffer.getvalue(), "path": name})
            table = table.append_column(
                key, pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            )
        pq.write_table(table, path, row_group_size=7)


@pytest.mark.parametrize("by_path", [False, True])
def test_image_columns_are_keyed_by_value(v21: Path, v30: Path, made: Any, lerobot: Any, by_path: bool) -> None:
    for root in (v21, v30):  # the rows of v30 are shuffled
        with_image_columns(root, made, lerobot, by_path=by_path)
        for number, episode in enumerate(open_source(root).episodes()):
            assert not episode.problems
            rows = [10, 3, 3, 0]
            np.testing.assert_array_equal(episode.views[lerobot.camera].read_rgb(rows), made.pictures[number][rows])
            np.testing.assert_array_equal(episode.views[lerobot.depth].read_gray16(rows), made.depths[number][rows])
            assert episode.views[lerobot.camera].size() == (32, 48)


def test_depth_is_decoded_as_its_recording_says(v30: Path, lerobot: Any) -> None:
    info = v30 / "meta" / "info.json"
    tree = json.loads(info.read_text())
    coded = {"video.is_depth_map": True, "video.depth_min": 0.2, "video.depth_max": 32.8, "video.shift": 1.5}
    for more, expected in (
        ({}, LogCode(0.2, 32.8, 1.5, True)),
        ({"video.use_log": False}, LogCode(0.2, 32.8, 1.5, False)),
    ):
        tree["features"][lerobot.depth]["info"] = {**coded, **more}
        info.write_text(json.dumps(tree))
        view = open_source(v30).episodes()[0].views[lerobot.depth]
        assert getattr(view, "code", None) == expected
    counts = np.array([[0, 1, 2000, 4095]], dtype=np.uint16)
    video = DepthVideo(source="x", unit="lerobot_log12")
    logarithmic = to_metres(counts, video, LogCode(0.2, 32.8, 1.5))[0]
    np.testing.assert_allclose(logarithmic[[0, 3]], [0, 32.8], rtol=1e-6)
    np.testing.assert_allclose(np.log((logarithmic[2] + 1.5) / 1.7) / np.log(34.3 / 1.7), 2000 / 4095, rtol=1e-5)
    linear = to_metres(counts, video, LogCode(0.2, 32.8, 1.5, False))[0]
    np.testing.assert_allclose(linear, [0, 0.2 + 32.6 / 4095, 0.2 + 32.6 * 2000 / 4095, 32.8], rtol=1e-6)


def test_versions_2_0_and_2_1_are_read_alike(v21: Path) -> None:
    newer = [episode.table.read().columns for episode in open_source(v21).episodes()]
    edit_info(v21, codebase_version="v2.0")
    source = open_source(v21)
    assert source.info.format == "LeRobot v2.0"
    for one, other in zip(newer, [episode.table.read().columns for episode in source.episodes()], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def edit_rows(root: Path, change: Any) -> None:
    path = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_whole_numbers_that_an_edit_made_floats_of_are_read(v30: Path) -> None:
    edit_rows(v30, lambda row: row.update(length=float(row["length"]), episode_index=float(row["episode_index"])))
    assert [(episode.index, episode.length) for episode in open_source(v30).episodes()] == [(0, 14), (1, 11), (2, 12)]


@pytest.mark.parametrize(
    ("column", "said"),
    [("length", "length is nan"), ("data/chunk_index", "does not say where 'data' of episode 2 is")],
)
def test_numbers_that_an_edit_lost_are_a_sentence(v30: Path, column: str, said: str) -> None:
    edit_rows(v30, lambda row: row.update({column: float("nan") if row["episode_index"] == 2 else float(row[column])}))
    with pytest.raises(UserError, match=said):
        open_source(v30).episodes()


def test_lost_times_leave_the_sum_of_the_lengths(v30: Path, lerobot: Any) -> None:
    edit_rows(v30, lambda row: row.update({f"videos/{lerobot.camera}/from_timestamp": float("nan")}))
    assert not any(episode.problems for episode in open_source(v30).episodes())


def test_a_version_that_the_files_have_not_is_not_believed(v21: Path, v30: Path, made: Any) -> None:
    """Half-converted sets: meta/info.json says one version, and the files are those of the other."""
    for root, said, read in ((v21, "v3.0", "v2.1"), (v30, "v2.1", "v3.0")):
        edit_info(root, codebase_version=said, data_path="data/{nothing}.parquet")
        source = open_source(root)
        assert source.info.format == f"LeRobot {read}"
        first = source.episodes()[0]
        assert f"says version {said[1:]}, its files are those of {read}" in first.notes[-1]
        np.testing.assert_array_equal(first.table.read().columns["observation.state/j1"], made.states[0][:, 0])


def test_a_count_that_is_not_that_of_the_list_is_noted(v21: Path) -> None:
    edit_info(v21, total_episodes=5)
    assert "says 5 episodes, 3 are listed" in open_source(v21).episodes()[0].notes[-1]
    edit_info(v21, total_episodes=3)
    assert not open_source(v21).episodes()[0].notes
