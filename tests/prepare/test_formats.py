"""Every synthesised format from `inspect`'s starter file to a clip read back from shards, frame by frame."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import INTRINSICS, WRITERS, poses, write_folder, write_robotwin, write_xwam
from scipy.spatial.transform import Rotation

from shared import QUIET
from xwam_ft.depth_code import code_to_metres
from xwam_ft.errors import UserError
from xwam_ft.inspect.inspect import inspect
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.sources import open_source
from xwam_ft.shards import ShardSet

STATES = {  # format -> the full names of j1, j2 and grip
    "aloha": [f"observation.qpos/{i}" for i in range(3)],
    "robomimic": [
        "observation.robot0_joint_pos/0",
        "observation.robot0_joint_pos/1",
        "observation.robot0_gripper_qpos",
    ],
    "robotwin": ["observation.joint_left_arm/0", "observation.joint_left_arm/1", "observation.joint_left_gripper"],
    "robomind": [f"observation.joint_position/{i}" for i in range(3)],
    "folder_csv": ["j1", "j2", "grip"],
    "folder_pictures": [f"state/{i}" for i in range(3)],
}
STATES["aloha_jpeg"] = STATES["aloha"]
ALIKE = ("aloha", "aloha_jpeg", "robomind", "folder_csv")  # the others take the same ways through the code
LOSSLESS = ("aloha", "robomimic", "robomind", "folder_pictures")


@pytest.fixture
def short(lerobot: Any) -> Any:
    return lerobot.recording([12, 11])


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "histograms", lambda contract, train: "data:image/png;base64,")


def nearest(picture: np.ndarray, recorded: np.ndarray) -> int:
    return int(np.abs(recorded.astype(float) - picture).mean(axis=(1, 2, 3)).argmin())


@pytest.mark.parametrize("name", WRITERS)
def test_the_reader_gives_what_was_written_to_a_synthesised(name: str, tmp_path: Path, short: Any) -> None:
    source = open_source(WRITERS[name](tmp_path / name, short))
    episodes = pickle.loads(pickle.dumps(source.episodes()))  # they are sent to worker processes
    assert [episode.length for episode in episodes] == [12, 11]
    assert source.info.fps == (None if name in ("aloha", "aloha_jpeg", "robotwin", "robomind") else 10)
    for number, episode in enumerate(episodes):
        assert not episode.problems
        table = episode.table.read()
        assert set(table.columns) == set(source.info.columns)
        for i, column in enumerate(STATES.get(name, [])):
            np.testing.assert_array_equal(table.columns[column], short.states[number][:, i].astype(np.float64))
        (camera,) = [feature for feature, info in source.info.cameras.items() if not info.depth]
        assert episode.views[camera].size() == (32, 48)
        order = [7, 0, 0, 10]  # any order, repeats too
        seen = episode.views[camera].read_rgb(order)
        assert seen.dtype == np.uint8
        if name in LOSSLESS:
            np.testing.assert_array_equal(seen, short.pictures[number][order])
        else:
            assert [nearest(picture, short.pictures[number]) for picture in seen] == order
            assert np.abs(seen.astype(float) - short.pictures[number][order]).mean() < 20
        if f"{camera}_depth" in episode.views:
            depth = episode.views[f"{camera}_depth"].read_gray16(order)
            scale = 1000 if name == "robomimic" else 1
            np.testing.assert_allclose(depth * scale, short.depths[number][order], rtol=1e-6)


def fill(starter: Path, metres: bool) -> None:
    """Replace every TODO of a starter file as a person would, and make clips short enough for these recordings."""
    text = starter.read_text()
    for kind, unit in (("pose", "m"), ("joints", "rad"), ("gripper", '"1"'), ("vector", '"1"')):
        text = re.sub(rf"(kind: {kind}\n.*\n    units:) TODO", rf"\1 {unit}", text)
    text = text.replace("unit: TODO", "unit: m" if metres else "unit: mm").replace("fps: TODO", "fps: 10")
    text = text.replace("command: TODO", "command: next_state")
    text = re.sub(r"image: .*", "image: {height: 32, width: 48}", text)
    text = re.sub(r"timing: .*", "timing: {frame_skip: 2, action_skip: 1, clip_frames: 5}", text)
    assert not re.search(r"^[^#]*TODO", text, flags=re.M)
    starter.write_text(text)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in WRITERS]
)
def test_a_synthesised_set_goes_from_its_starter_file_to_clips(name: str, tmp_path: Path, short: Any) -> None:
    raw = WRITERS[name](tmp_path / name, short)
    starter = tmp_path / "starter.yaml"
    inspect(raw, starter, QUIET)
    with pytest.raises(UserError, match="still TODO"):
        load_embodiment(starter)
    fill(starter, metres=name == "robomimic")
    options = {"workers": 0, "strict": True, "urdf_dirs": [], "console": QUIET}
    depth = "none" if name.startswith("aloha") else "sensor"
    pipeline.prepare([raw], tmp_path / "out", embodiment=starter, depth=depth, **options)
    shards = ShardSet.open(tmp_path / "out")
    shards.verify()
    assert shards.contract.timing.fps == 10
    for entry in shards.segments():
        segment = shards.read(entry)
        state = short.states[segment.episode].astype(np.float64)
        if name == "xwam":
            position, turn, gripper = poses(short, segment.episode)
            assert [slot.name for slot in shards.contract.slots] == ["left_arm", "left_hand"]
            np.testing.assert_allclose(segment.proprio[:, :3], position, atol=1e-12)
            turned = Rotation.from_quat(segment.proprio[:, 3:7], scalar_first=True)
            assert (turned * Rotation.from_rotvec(turn).inv()).magnitude().max() < 1e-9
            np.testing.assert_allclose(segment.action[:, :3], position + 0.01, atol=1e-12)
            np.testing.assert_array_equal(segment.proprio[:, 7], gripper)
        else:
            known = [column for slot in shards.contract.slots for column in slot.columns]
            for i, column in enumerate(STATES[name]):
                np.testing.assert_array_equal(segment.proprio[:, known.index(column)], state[:, i])
        own = [nearest(picture, short.pictures[segment.episode]) for picture in segment.rgb[0]]
        assert own == list(range(len(state)))
        if depth == "sensor":
            assert segment.depth is not None
            metres = short.depths[segment.episode] / 1000
            decoded = code_to_metres(segment.depth[0], 0.1, 10.0)
            np.testing.assert_array_equal(np.isnan(decoded), metres == 0)
            np.testing.assert_allclose(decoded[metres > 0], metres[metres > 0], rtol=2e-4)


def test_formats_mix_where_their_columns_have_the_same_names(tmp_path: Path, short: Any, lerobot: Any) -> None:
    embodiment = tmp_path / "toy.yaml"
    embodiment.write_text(re.sub(r"cameras: .*", "cameras: {front: {source: Front View}}", lerobot.embodiment))
    options = {"embodiment": embodiment, "workers": 0, "strict": True, "urdf_dirs": [], "console": QUIET}
    raws = [write_folder(tmp_path / "plain", short, camera="Front View"), lerobot.v30(tmp_path / "v30", short)]
    pipeline.prepare(raws, tmp_path / "mixed", depth="none", **options)
    shards = ShardSet.open(tmp_path / "mixed")
    assert [episode.source for episode in shards.index.episodes][1:3] == ["plain episode 1", "v30 episode 0"]
    one, two = (shards.read(entry) for entry in shards.segments() if entry.episode in (0, 2))
    np.testing.assert_array_equal(one.proprio, two.proprio)
    np.testing.assert_array_equal(one.action, two.action)
    # The same numbers under other names would give the policy other columns to ask the robot for.
    text = lerobot.embodiment.replace("[j1, j2]", "'observation.state[0:2]', command: next_state")
    embodiment.write_text(text.replace("[grip]", "'observation.state[2:3]', command: next_state"))
    raws = [raws[1], lerobot.v21(tmp_path / "unnamed", short, names=["only", "two"])]
    with pytest.raises(UserError, match=r"unnamed: has other columns for slot 'arm' \(observation.state/0, .*j1, j2"):
        pipeline.prepare(raws, tmp_path / "other", depth="none", **options)


def test_red_and_blue_are_put_right(tmp_path: Path, short: Any, lerobot: Any) -> None:
    for standard in (False, True):  # RoboTwin's older files are swapped, its newer ones say that they are not
        view = open_source(write_robotwin(tmp_path / f"{standard}", short, standard=standard)).episodes()[0]
        seen = view.views["observation.images.front"].read_rgb([3])[0].astype(float)
        assert np.abs(seen - short.pictures[0][3]).mean() < np.abs(seen - short.pictures[0][3][..., ::-1]).mean() / 4
    embodiment = tmp_path / "toy.yaml"
    embodiment.write_text(lerobot.embodiment.replace('source: "observation', 'channels: bgr, source: "observation'))
    options = {"embodiment": embodiment, "workers": 0, "strict": True, "urdf_dirs": [], "console": QUIET}
    pipeline.prepare([lerobot.v21(tmp_path / "v21", short)], tmp_path / "out", depth="none", **options)
    shards = ShardSet.open(tmp_path / "out")
    stored = shards.read(shards.segments()[0]).rgb[0, 3].astype(float)
    wide = short.pictures[0][3][:, ((np.arange(32) + 0.5) * 1.5).astype(int)]
    assert np.abs(stored - wide[..., ::-1]).mean() < np.abs(stored - wide).mean() / 4


def test_the_cameras_of_a_synthesised_robotwin_set_are_calibrated(tmp_path: Path, short: Any) -> None:
    found = open_source(write_robotwin(tmp_path / "set", short)).info.calibration["observation.images.front"]
    assert found["intrinsics"] == [INTRINSICS[0][0], INTRINSICS[1][1], INTRINSICS[0][2], INTRINSICS[1][2]]
    assert found["kind"] == "static"
    world_to_camera = np.vstack([np.eye(4)[:3] + np.eye(4)[3] * 0.5, [0, 0, 0, 1]])
    np.testing.assert_allclose(np.array(found["pose"]) @ world_to_camera, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("rotation", ["rotvec", "flat", "matrix"])
def test_all_forms_of_rotation_of_xwams_layout_are_one(rotation: str, tmp_path: Path, short: Any) -> None:
    raw = write_xwam(tmp_path / "set", short, rotation=rotation)
    (raw / "meta").mkdir()
    (raw / "meta" / "calibration.json").write_text('{"cameras": {"front": {"intrinsics": [40, 41, 24, 16]}}}')
    source = open_source(raw)
    calibrated = source.info.calibration["observation.images.front"]
    assert calibrated == {"kind": "static", "intrinsics": [40, 41, 24, 16]}
    table = source.episodes()[1].table.read()
    turned = np.stack([table.columns[f"observation.state/left_{axis}"] for axis in ("qw", "qx", "qy", "qz")], axis=1)
    expected = Rotation.from_rotvec(poses(short, 1)[1])
    assert (Rotation.from_quat(turned, scalar_first=True) * expected.inv()).magnitude().max() < 1e-9
    assert "action.raw/6" in table.columns


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_tables_of_a_plain_folder(table: str, tmp_path: Path, short: Any) -> None:
    source = open_source(write_folder(tmp_path / "set", short, table=table))
    assert source.info.columns == ("j1", "j2", "grip", "action/j1", "action/j2", "action/grip")
    episode = source.episodes()[0]
    read = episode.table.read()
    np.testing.assert_array_equal(read.columns["action/grip"], short.actions[0][:, 2].astype(np.float64))
    assert read.timestamps is not None
    assert read.timestamps[3] == pytest.approx(0.3)
    assert episode.instructions == (("open the drawer",) if table == "csv" else ())
