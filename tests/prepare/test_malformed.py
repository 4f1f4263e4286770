"""Malformed recordings of every reader of files: one sentence each, the other episodes unharmed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats import write_aloha, write_folder, write_robomimic, write_robotwin, write_xwam

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.inspect.inspect import inspect
from xwam_ft.media import write_rgb
from xwam_ft.prepare.depth import parse_depth
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.embodiment.slots import plan_slots
from xwam_ft.prepare.episode_work import run
from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult
from xwam_ft.prepare.sources import open_source

Break = Callable[[Path], Any]


def edit_h5(name: str, change: Callable[[Any], Any]) -> Break:
    def go(root: Path) -> None:
        with h5py.File(root / name, "r+") as file:
            change(file)

    return go


def replaced(path: str, values: Any) -> Callable[[Any], Any]:
    def go(file: Any) -> None:
        del file[path]
        file[path] = values

    return go


def edit_json(name: str, change: Callable[[Any], Any]) -> Break:
    def go(root: Path) -> None:
        tree = json.loads((root / name).read_text())
        change(tree)
        (root / name).write_text(json.dumps(tree))

    return go


def cut(name: str, share: float = 0.5) -> Break:
    def go(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * share)])

    return go


def write(name: str, text: str) -> Break:
    return lambda root: (root / name).write_text(text)


def pictures_of(root: Path, made: Any) -> Path:
    return write_folder(root, made, pictures=True)


EP1 = "data/chunk-000/episode_000001.json"
MALFORMED: list[tuple[str, Any, Break, str]] = [
    ("hdf5_cut", write_aloha, cut("episode_1.hdf5"), r"episode_1.hdf5 is not a readable HDF5 file \(truncated"),
    ("hdf5_text", write_aloha, write("episode_1.hdf5", "no"), "episode_1.hdf5 is not a readable HDF5 file"),
    (
        "hdf5_other_layout",
        write_aloha,
        edit_h5("episode_1.hdf5", lambda file: file.move("action", "actoin")),
        r"episode_1.hdf5 has no known layout, the files before it that of HDF5 \(ACT/ALOHA\)",
    ),
    (
        "hdf5_rows",
        write_aloha,
        edit_h5("episode_1.hdf5", replaced("observations/qpos", np.zeros((9, 3)))),
        "dataset 'observations/qpos' holds 9 rows, the episode has 11 frames",
    ),
    (
        "hdf5_width",
        write_aloha,
        edit_h5("episode_1.hdf5", replaced("observations/qpos", np.zeros((11, 2)))),
        "column 'observation.qpos/2' of slot 'arm' was not recorded",
    ),
    (
        "hdf5_pictures_short",
        write_aloha,
        edit_h5("episode_1.hdf5", replaced("observations/images/front", np.zeros((10, 32, 48, 3), np.uint8))),
        "dataset 'observations/images/front' holds 10 pictures, the episode has 11 frames",
    ),
    (
        "hdf5_pictures_long",
        write_aloha,
        edit_h5("episode_1.hdf5", replaced("observations/images/front", np.zeros((12, 32, 48, 3), np.uint8))),
        "dataset 'observations/images/front' holds 12 pictures, the episode has 11 frames",
    ),
    (
        "hdf5_not_pictures",
        write_aloha,
        edit_h5("episode_1.hdf5", replaced("observations/images/front", np.zeros((11, 32, 48, 3), np.float32))),
        r"holds float32 of shape \[32, 48, 3\], not pictures",
    ),
    (
        "hdf5_no_camera",
        write_aloha,
        edit_h5("episode_1.hdf5", lambda file: file.pop("observations/images/front")),
        "camera 'observation.images.front' was not recorded",
    ),
    (
        "hdf5_bad_jpeg",
        write_robotwin,
        edit_h5("data/episode1.hdf5", replaced("observation/front/rgb", np.array([b"\xff\xd8nothing"] * 11, "S9"))),
        "dataset 'observation/front/rgb' frame 0 is not a readable picture",
    ),
    ("robotwin_instructions", write_robotwin, cut("instructions/episode1.json"), "episode1.json is not valid JSON"),
    (
        "robomimic_empty",
        write_robomimic,
        edit_h5("demo.hdf5", lambda file: file["data"].pop("demo_1") and file["data"].create_group("demo_1")),
        "data/demo_1 holds no numbers",
    ),
    ("xwam_no_file", write_xwam, lambda root: (root / EP1).unlink(), "episode 1 is listed in .* and has no file"),
    ("xwam_cut", write_xwam, cut(EP1), "episode_000001.json is not valid JSON"),
    ("xwam_lacks", write_xwam, edit_json(EP1, lambda tree: tree.pop("proprios")), "lacks 'proprios'"),
    (
        "xwam_frames",
        write_xwam,
        edit_json("metadata.json", lambda tree: tree.update(episode_000001=40)),
        "has 11 frames, .*metadata.json says 40",
    ),
    (
        "xwam_rows",
        write_xwam,
        edit_json(EP1, lambda tree: tree["proprios"]["left_ee_pos"].pop()),
        "proprios 'left_ee_pos' holds 10 rows, the episode has 11 frames",
    ),
    (
        "xwam_rotation",
        write_xwam,
        edit_json(EP1, lambda tree: tree["proprios"].update(left_ee_rotm=[[1.0] * 9] * 11)),
        "'left_ee_rotm' is no rotation in frame 0",
    ),
    (
        "xwam_rotation_width",
        write_xwam,
        edit_json(EP1, lambda tree: tree["actions"].update(left_ee_rotm=[[1.0] * 4] * 11)),
        "holds 4 numbers a frame; a rotation vector has 3, a matrix 9",
    ),
    (
        "xwam_span",
        write_xwam,
        edit_json(EP1, lambda tree: tree["observations"]["front"].update(end=99)),
        "view 'front' is frames 14 to 99 of .*, the episode has 11",
    ),
    (
        "xwam_video_short",
        write_xwam,
        lambda root: write_rgb(root / "videos" / "front.mp4", np.zeros((20, 32, 48, 3), np.uint8), 10),
        "front.mp4 holds 20 frames, the episode needs frames 14 to 24",
    ),
    (
        "xwam_no_video",
        write_xwam,
        edit_json(EP1, lambda tree: tree["observations"]["front"].update(rgb_path="videos/gone.mp4")),
        "gone.mp4 is named and not there",
    ),
    ("folder_no_table", write_folder, lambda root: (root / "run 1" / "table.csv").unlink(), "run 1 holds 0 tables"),
    (
        "folder_two_tables",
        write_folder,
        write("run 1/b.csv", "j1\n1\n"),
        r"holds 2 tables \(b.csv, table.csv\), not one",
    ),
    ("folder_no_rows", write_folder, write("run 1/table.csv", ""), "table.csv is not a readable table"),
    (
        "folder_word",
        write_folder,
        write(
            "run 1/table.csv", "j1,j2,grip,action/j1,action/j2,action/grip\n" + "1,2,3,1,2,3\n" * 10 + "x,2,3,1,2,3\n"
        ),
        "table.csv column 'j1' holds 'x' in row 10, not a number",
    ),
    (
        "folder_npz",
        write_folder,
        lambda root: swap_table(root / "run 1"),
        "table.npz is not a readable .npz of numbers",
    ),
    ("folder_video_cut", write_folder, cut("run 1/front.mp4"), "front.mp4: cannot be read as video"),
    (
        "folder_video_short",
        write_folder,
        lambda root: write_rgb(root / "run 1" / "front.mp4", np.zeros((9, 32, 48, 3), np.uint8), 10),
        "front.mp4 holds 9 frames, the table of the episode has 11",
    ),
    (
        "folder_pictures_short",
        pictures_of,
        lambda root: (root / "run 1" / "front" / "frame_3.png").unlink(),
        "front holds 10 pictures, the episode has 11 frames",
    ),
    ("folder_bad_picture", pictures_of, cut("run 1/front/frame_3.png"), "frame_3.png is not a readable picture"),
    (
        "folder_camera_twice",
        write_folder,
        lambda root: write_rgb(root / "run 1" / "front.mkv", np.zeros((11, 32, 48, 3), np.uint8), 10),
        "holds camera 'front' twice: front.mkv and front.mp4",
    ),
]

V21_TABLE = "data/chunk-000/episode_000001.parquet"
V21_VIDEO = "videos/chunk-000/observation.images.Front View/episode_000001.mp4"
V30_TABLE = "data/chunk-000/file-000.parquet"
V30_EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def edit_rows(name: str, change: Callable[[list[dict[str, Any]]], Any]) -> Break:
    """Rewrite a parquet file from its rows, changed."""

    def go(root: Path) -> None:
        rows = pq.read_table(root / name).to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows), root / name)

    return go


def of_episode_1(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["episode_index"] == 1]


LEROBOT: list[tuple[str, Any, Break, str]] = [
    (
        "v21_no_table",
        "v21",
        lambda root: (root / V21_TABLE).unlink(),
        "episode_000001.parquet is listed in meta and not",
    ),
    ("v21_table_cut", "v21", cut(V21_TABLE), "episode_000001.parquet is not a readable parquet file"),
    ("v21_rows", "v21", edit_rows(V21_TABLE, lambda rows: rows.pop()), "holds 10 rows of this episode, meta says 11"),
    (
        "v21_ragged",
        "v21",
        edit_rows(V21_TABLE, lambda rows: rows[4]["observation.state"].pop()),
        "column 'observation.state' has rows of different lengths or missing values",
    ),
    (
        "v21_width",
        "v21",
        edit_rows(V21_TABLE, lambda rows: [row["observation.state"].pop() for row in rows]),
        "column 'observation.state' holds 2 numbers a row, meta says 3",
    ),
    (
        "v21_no_video",
        "v21",
        lambda root: (root / V21_VIDEO).unlink(),
        "episode_000001.mp4 is listed in meta and not there",
    ),
    ("v21_video_cut", "v21", cut(V21_VIDEO), "episode_000001.mp4: cannot be read as video"),
    (
        "v21_video_short",
        "v21",
        lambda root: write_rgb(root / V21_VIDEO, np.zeros((9, 32, 48, 3), np.uint8), 10),
        "episode_000001.mp4 holds 9 frames",
    ),
    (
        "v21_nan",
        "v21",
        edit_rows(V21_TABLE, lambda rows: rows[3].update({"observation.state": [float("nan"), 0.0, 0.0]})),
        "column 'observation.state/j1' of slot 'arm' holds nan at frame 3",
    ),
    (
        "v30_rows",
        "v30",
        edit_rows(V30_TABLE, lambda rows: rows.remove(of_episode_1(rows)[0])),
        "file-000.parquet holds 10 rows of this episode, meta says 11",
    ),
    (
        "v30_timestamp",
        "v30",
        edit_rows(
            V30_EPISODES,
            lambda rows: of_episode_1(rows)[0].update({"videos/observation.images.Front View/from_timestamp": 0.9}),
        ),
        r"from_timestamp 0.9 puts the episode at frame 9, the lengths of the episodes before it at frame 14",
    ),
]


def swap_table(folder: Path) -> None:
    (folder / "table.csv").unlink()
    np.savez(folder / "table.npz", state=np.array([{}, {}], dtype=object))


SLOTS = {
    write_aloha: "observation.qpos[0:3]",
    write_robotwin: "observation.joint_left_arm[0:2]",
    write_robomimic: "observation.robot0_joint_pos[0:2]",
    write_xwam: ["left_x", "left_y", "left_z"],
    write_folder: ["j1", "j2"],
    pictures_of: ["j1", "j2"],
    "v21": ["j1", "j2"],
    "v30": ["j1", "j2"],
}


@pytest.mark.parametrize(
    ("make", "damage", "sentence"), [c[1:] for c in [*MALFORMED, *LEROBOT]], ids=[c[0] for c in [*MALFORMED, *LEROBOT]]
)
def test_a_malformed_episode_is_rejected_with_one_sentence(
    make: Any, damage: Break, sentence: str, tmp_path: Path, made: Any, lerobot: Any
) -> None:
    raw = (getattr(lerobot, make) if isinstance(make, str) else make)(tmp_path / "raw", made)
    damage(raw)
    where = tmp_path / "toy.yaml"
    arm = {"kind": "joints", "columns": SLOTS[make], "units": "rad", "command": "next_state"}
    timing = {"frame_skip": 2, "action_skip": 1, "clip_frames": 5}
    front = {"front": {"source": lerobot.camera if isinstance(make, str) else "front"}}
    where.write_text(json.dumps({"name": "t", "cameras": front, "timing": timing, "slots": {"arm": arm}}))
    spec, source = load_embodiment(where), open_source(raw)
    cameras = plan_cameras(spec, source.info, where)
    first, second, third = source.episodes()
    job = EpisodeJob(
        number=1,
        episode=second,
        fps=10.0,
        cameras=cameras,
        slots=plan_slots(spec, source.info, where, []),
        depth=parse_depth("none", cameras, [], spec.depth),
        image=spec.image_rule,
        timing=spec.timing.timing(10.0),
        instruction=None,
        staging=tmp_path / "staging",
    )
    result = run(job)
    assert isinstance(result, EpisodeResult)
    assert re.search(sentence, result.reason or "")
    assert "\n" not in (result.reason or "")
    assert not list((tmp_path / "staging").glob("*"))
    assert first.problems == ()
    assert third.problems == () or "front.mp4 holds 20 frames" in third.problems[0]  # a video they share
    inspect(raw, None, QUIET)


WHOLE: list[tuple[str, Any, Break, str]] = [
    (
        "hdf5_unknown",
        None,
        lambda root: h5py.File(root / "x.h5", "w").create_group("stuff").file.close(),
        r"x.h5: has the groups stuff, which is no known layout. Fix: record in one of: robomimic/LIBERO, RoboTwin",
    ),
    ("hdf5_all_bad", None, write("x.h5", "no"), "x.h5 is not a readable HDF5 file"),
    ("xwam_listing", write_xwam, write("metadata.json", "[1, 2]"), "metadata.json: is no table of episodes"),
    (
        "xwam_rates",
        write_xwam,
        edit_json(EP1, lambda tree: tree["observations"]["front"].update(fps=30)),
        "episode_000001.json: was recorded at 30 fps, others at 10",
    ),
    (
        "xwam_twice",
        write_xwam,
        lambda root: shutil.copytree(root / "data" / "chunk-000", root / "data" / "chunk-001"),
        "chunk-000/episode_000000.json: has the number of .*chunk-001/episode_000000.json",
    ),
    ("folder_fps", write_folder, write("recording.json", '{"fps": "fast"}'), "recording.json: fps is 'fast'"),
    ("lerobot_shape", "v21", edit_json("meta/info.json", lambda t: t["features"].update(x=3)), "feature 'x' is 3"),
    ("lerobot_chunks", "v21", edit_json("meta/info.json", lambda t: t.update(chunks_size="many")), "is 'many'"),
    (
        "lerobot_line",
        "v21",
        write("meta/episodes.jsonl", '{"length": 3}'),
        "line 1 lacks a whole number",
    ),
    ("lerobot_json", "v21", write("meta/tasks.jsonl", "{"), "tasks.jsonl: line 1 is not JSON"),
    ("lerobot_tasks", "v30", write("meta/tasks.parquet", "no"), "tasks.parquet: is not a readable parquet file"),
    ("lerobot_fps", "v21", edit_json("meta/info.json", lambda t: t.update(fps=None)), "info.json: fps is None"),
    ("lerobot_features", "v21", write("meta/info.json", "{}"), "info.json: has no `features` table"),
    (
        "lerobot_version",
        "v21",
        edit_json("meta/info.json", lambda t: t.update(codebase_version="v1.6")),
        "codebase_version is '1.6'; v2.0, v2.1 and v3.0 are read",
    ),
]


@pytest.mark.parametrize(("make", "damage", "sentence"), [case[1:] for case in WHOLE], ids=[c[0] for c in WHOLE])
def test_a_malformed_dataset_is_refused_with_one_sentence(
    make: Any, damage: Break, sentence: str, tmp_path: Path, made: Any, lerobot: Any
) -> None:
    raw = tmp_path / "raw"
    if make is None:
        raw.mkdir()
    else:
        (getattr(lerobot, make) if isinstance(make, str) else make)(raw, made)
    damage(raw)
    with pytest.raises(UserError, match=sentence) as caught:
        open_source(raw).episodes()
    assert "\n" not in str(caught.value)
