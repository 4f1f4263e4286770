"""`inspect --write`, then `prepare` with what it wrote: without edits where nothing is unsure; the usual shapes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from scipy.spatial.transform import Rotation

from shared import QUIET
from xwam_ft.inspect.inspect import inspect
from xwam_ft.inspect.timing import propose_timing
from xwam_ft.media import write_rgb
from xwam_ft.prepare.action_semantics import guess_actions
from xwam_ft.prepare.camera_kind import guess_kind
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.shards import ShardSet

SO101 = [
    f"{motor}.pos" for motor in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
FRAMES = 90


def film(count: int, seed: int, *, moving: bool = False) -> np.ndarray:
    """A room with a bar that walks; `moving`: the whole room passes by, as before a wrist."""
    room = np.random.default_rng(seed).integers(0, 255, (8, 40, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    pictures = np.stack([room[:, 2 * t : 2 * t + 96] if moving else room[:, :96] for t in range(count)]).copy()
    for t in range(count):
        pictures[t, 20:40, t % 80 : t % 80 + 8] = 255
    return pictures


def paths(count: int, scales: Sequence[float], episode: int = 0) -> np.ndarray:
    """Smooth numbers of one joint a column, [count, n]."""
    t = np.arange(count)[:, None] / 18.0 + episode
    return np.sin(t + np.arange(len(scales))) * np.asarray(scales)


def grip(count: int, low: float, high: float) -> np.ndarray:
    """Open, then closed, with a short way between."""
    return low + (high - low) * np.clip((np.arange(count) % 60 - 28) / 5, 0, 1)


def commands(state: np.ndarray, lead: int = 3) -> np.ndarray:
    return np.concatenate([state[lead:], np.repeat(state[-1:], lead, axis=0)])


def lerobot(
    root: Path, states: list[np.ndarray], names: list[str] | None, cameras: dict[str, bool], **info: Any
) -> Path:
    """A v2.1 set; `cameras`: name -> whether it moves."""
    width = states[0].shape[1]
    numbers = {"dtype": "float32", "shape": [width], "names": names}
    picture = {"dtype": "video", "shape": [64, 96, 3], "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {"observation.state": numbers, "action": numbers}
    features |= {f"observation.images.{camera}": picture for camera in cameras}
    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    for episode, state in enumerate(states):
        columns = {
            "observation.state": pa.array(state.astype(np.float32).tolist()),
            "action": pa.array(commands(state).astype(np.float32).tolist()),
            "timestamp": pa.array((np.arange(len(state)) / 30).astype(np.float32)),
            "frame_index": pa.array(np.arange(len(state))),
            "episode_index": pa.array([episode] * len(state)),
            "task_index": pa.array([0] * len(state)),
        }
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{episode:06d}.parquet")
        for camera, moving in cameras.items():
            file = root / f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"
            write_rgb(file, film(len(state), episode, moving=moving), 30)
    lines = [{"episode_index": i, "tasks": ["pick"], "length": len(state)} for i, state in enumerate(states)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "pick"}')
    meta = {"codebase_version": "v2.1", "fps": 30, "features": features, "data_path": None, "video_path": None}
    (root / "meta" / "info.json").write_text(json.dumps(meta | info))
    return root


def so101(root: Path) -> Path:
    scales = (70, 104, 95, 90, 120)
    states = [np.c_[paths(FRAMES, scales, i), grip(FRAMES, 2, 98)] for i in range(2)]
    return lerobot(root, states, SO101, {"front": False, "wrist": True}, robot_type="so101_follower")


def aloha(root: Path) -> Path:
    root.mkdir()
    for episode in range(2):
        arm = paths(FRAMES, (1.9, 1.2, 1.4, 0.9, 1.1, 1.7), episode)
        state = np.c_[arm, grip(FRAMES, 0, 1), -arm, grip(FRAMES, 0, 1)]
        with h5py.File(root / f"episode_{episode}.hdf5", "w") as file:
            file["observations/qpos"], file["action"] = state, commands(state)
            for camera in ("cam_high", "cam_left_wrist", "cam_right_wrist"):
                file[f"observations/images/{camera}"] = film(FRAMES, episode, moving="wrist" in camera)
            file.attrs["fps"] = 50
    return root


def table(
    root: Path, names: list[str], values: np.ndarray, times: np.ndarray | None = None, time: str = "timestamp"
) -> Path:
    for episode in range(2):
        folder = root / f"ep{episode}"
        folder.mkdir(parents=True)
        rows = values if times is None else np.c_[times, values]
        header = ",".join(names if times is None else [time, *names])
        np.savetxt(folder / "data.csv", rows, delimiter=",", header=header, comments="", fmt="%.15g")
        write_rgb(folder / "front.mp4", film(len(values), episode), 20)
    return root


def started(raw: Path, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    target = tmp_path / "starter.yaml"
    target.unlink(missing_ok=True)
    inspect(raw, target, QUIET)
    return target.read_text(), yaml.safe_load(target.read_text())


def trip(raw: Path, tmp_path: Path) -> tuple[str, ShardSet]:
    """The starter file, and the shards made with it as it stands but for the size of the pictures."""
    text, _ = started(raw, tmp_path)
    assert not re.search(r"^[^#]*TODO", text, flags=re.M), text
    file = tmp_path / "starter.yaml"
    file.write_text(re.sub(r"image: .*", "image: {height: 64, width: 96}", text))
    console = Console(file=io.StringIO())
    out = tmp_path / "out"
    prepare([raw], out, embodiment=file, depth="none", workers=0, strict=True, urdf_dirs=[], console=console)
    shards = ShardSet.open(out)
    shards.verify()
    return text, shards


def test_an_so101_in_degrees(tmp_path: Path) -> None:
    text, shards = trip(so101(tmp_path / "raw"), tmp_path)
    arm, hand = shards.contract.slots
    assert (arm.kind, arm.elements, set(arm.units)) == ("joints", tuple(SO101[:5]), {"rad"})
    assert (hand.gripper_open, hand.gripper_closed) == (98.0, 2.0) or (hand.gripper_open, hand.gripper_closed) == (
        100.0,
        0.0,
    )
    kinds = {camera.name: camera.kind for camera in shards.contract.cameras}
    assert kinds == {"front": "static", "wrist": "wrist"}
    assert "so101_poses" in text  # the shipped file of this robot
    assert shards.contract.timing.span * 2 <= FRAMES


def test_an_aloha_in_hdf5_has_two_arms_and_two_hands(tmp_path: Path) -> None:
    text, shards = trip(aloha(tmp_path / "raw"), tmp_path)
    assert [(slot.name, slot.kind, len(slot.elements)) for slot in shards.contract.slots] == [
        ("left_arm", "joints", 6),
        ("left_hand", "gripper", 1),
        ("right_arm", "joints", 6),
        ("right_hand", "gripper", 1),
    ]
    assert text.count("kind: wrist") == 2
    assert "aloha_viperx_joints" in text


def test_a_table_of_one_arm_with_commands_and_times(tmp_path: Path) -> None:
    state = np.c_[paths(FRAMES, (1.9, 1.2, 1.4, 0.9, 1.1, 1.7, 0.8)), grip(FRAMES, 0, 0.08)]
    names = [*(f"joint_{i}" for i in range(7)), "gripper"]
    both = np.c_[state, commands(state)]
    raw = table(tmp_path / "raw", [*names, *(f"action_{name}" for name in names)], both, np.arange(FRAMES) / 20)
    text, shards = trip(raw, tmp_path)
    assert [(slot.name, slot.kind, len(slot.elements)) for slot in shards.contract.slots] == [
        ("arm", "joints", 7),
        ("gripper", "gripper", 1),
    ]
    assert "fps: 20  # by the recorded timestamps" in text
    assert "command: recorded  # sure: targets, 3 frames ahead" in text
    assert (shards.contract.slots[1].gripper_open, shards.contract.slots[1].gripper_closed) == (0.08, 0.0)


def test_the_g1_of_the_real_recordings(tmp_path: Path, real_data: Path) -> None:
    text, tree = started(real_data / "lerobot_v30_g1", tmp_path)
    kinds = {name: slot["kind"] for name, slot in tree["slots"].items()}
    assert kinds == {"left_arm": "joints", "right_arm": "joints", "left_hand": "gripper", "right_hand": "gripper"}
    assert [len(slot["columns"]) for slot in tree["slots"].values()] == [7, 7, 6, 6]
    assert "unitree_g1_inspire_joints" in text
    assert tree["cameras"]["cam_high"]["kind"] == "static"


POSE = ["x", "y", "z"]
QUATERNION = ["qx", "qy", "qz", "qw"]


def turning(count: int) -> tuple[np.ndarray, Rotation]:
    turn = Rotation.from_euler(
        "xyz", np.c_[np.sin(np.arange(count) / 20), np.cos(np.arange(count) / 30), np.arange(count) / 50]
    )
    return paths(count, (0.4, 0.3, 0.2)), turn


@pytest.mark.parametrize(
    ("names", "form", "width"),
    [
        ([*POSE, *QUATERNION], "xyzw", 7),
        ([f"ee_pos_{axis}" for axis in "xyz"] + [f"ee_quat_{axis}" for axis in "xyzw"], "xyzw", 7),
        ([f"tcp.position.{axis}" for axis in "xyz"] + [f"tcp.orientation.{axis}" for axis in "xyzw"], "xyzw", 7),
        ([f"ee_pos_{i}" for i in range(3)] + [f"ee_ori_{i}" for i in range(4)], "TODO", 7),
        ([f"pose_{i}" for i in range(16)], "matrix4_row_major", 16),
        ([f"T_ee_{i}" for i in range(16)], "matrix4_column_major", 16),
        ([*POSE, "roll", "pitch", "yaw"], "rpy", 6),
        ([*POSE, "rx", "ry", "rz"], "rotvec", 6),
        ([f"state_{i}" for i in range(7)], "TODO", 7),
    ],
)
def test_a_pose_in_columns_is_one_slot_with_its_commands(
    names: list[str], form: str, width: int, tmp_path: Path
) -> None:
    place, turn = turning(FRAMES)
    matrices = np.tile(np.eye(4), (FRAMES, 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = turn.as_matrix(), place
    matrices = matrices.transpose(0, 2, 1) if "column" in form else matrices
    rotation = {7: turn.as_quat(), 6: turn.as_rotvec() if form == "rotvec" else turn.as_euler("xyz")}
    state = matrices.reshape(FRAMES, 16) if width == 16 else np.c_[place, rotation[width]]
    told = [f"action_{name}" for name in names]
    raw = table(tmp_path / "raw", [*names, *told], np.c_[state, commands(state)], np.arange(FRAMES) / 20)
    _, tree = started(raw, tmp_path)
    ((_, slot),) = tree["slots"].items()
    assert (slot["kind"], slot["columns"], slot["units"]) == ("pose", names, "m")
    assert slot["rotation"] == form
    assert slot["command"] == "recorded"
    if form != "TODO":
        _, shards = trip(raw, tmp_path)
        segment = shards.read(next(iter(shards.segments())))
        np.testing.assert_allclose(segment.proprio[:, :3], place, atol=1e-6)
        seen = Rotation.from_quat(segment.proprio[:, 3:7], scalar_first=True)
        assert (seen * turn.inv()).magnitude().max() < 1e-6


@pytest.mark.parametrize(("scale", "time"), [(1.0, "t"), (1e3, "time_ms"), (1e9, "timestamp_ns")])
def test_the_rate_comes_from_times_in_any_unit(scale: float, time: str, tmp_path: Path) -> None:
    times = (1.7e9 if scale == 1.0 else 0.0) + np.arange(FRAMES) / 20
    raw = table(tmp_path / "raw", ["joint_0", "joint_1"], paths(FRAMES, (1.9, 1.2)), times * scale, time)
    _, tree = started(raw, tmp_path)
    assert tree["fps"] == 20
    assert [slot["columns"] for slot in tree["slots"].values()] == [["joint_0", "joint_1"]]


@pytest.mark.parametrize(("width", "hands"), [(14, True), (14, False), (16, True), (12, False), (7, True), (6, False)])
def test_two_arms_in_a_vector_without_names_are_split(width: int, hands: bool, tmp_path: Path) -> None:
    arms = 2 if width >= 12 else 1
    joints = width // arms - hands
    hand = [grip(FRAMES, 0, 1)[:, None]] if hands else []
    parts = [part for arm in range(arms) for part in (paths(FRAMES, np.linspace(0.8, 1.9, joints), arm), *hand)]
    raw = lerobot(tmp_path / "raw", [np.concatenate(parts, axis=1)] * 2, None, {"front": False})
    _, tree = started(raw, tmp_path)
    sizes = [(slot["kind"], len(slot["columns"])) for slot in tree["slots"].values()]
    assert sizes == ([("joints", joints)] + [("gripper", 1)] * hands) * arms
    if arms == 2:
        assert {name.split("_")[0] for name in tree["slots"]} == {"left", "right"}


def test_what_counts_and_judges_is_in_no_slot(tmp_path: Path) -> None:
    names = ["joint_0", "joint_1", "step", "reward", "done", "joint_0_vel"]
    state = np.c_[paths(FRAMES, (1.9, 1.2)), np.arange(FRAMES), np.zeros(FRAMES), np.zeros(FRAMES), paths(FRAMES, (3,))]
    text, tree = started(table(tmp_path / "raw", names, state, np.arange(FRAMES) / 20), tmp_path)
    assert [slot["columns"] for slot in tree["slots"].values()] == [["joint_0", "joint_1"]]
    assert "in no slot" in text


def test_a_grippers_commands_in_other_numbers_are_said(tmp_path: Path) -> None:
    names = ["joint_0", "joint_1", "gripper", "action_joint_0", "action_joint_1", "action_gripper"]
    arm = paths(FRAMES, (1.9, 1.2))
    values = np.c_[arm, grip(FRAMES, 0, 0.08), commands(arm), grip(FRAMES, -1, 1)]
    text, tree = started(table(tmp_path / "raw", names, values, np.arange(FRAMES) / 20), tmp_path)
    assert tree["slots"]["gripper"]["command_units"] == "1"
    assert "commands run from -1 to 1, the state from 0 to 0.08" in text


@pytest.mark.parametrize("lengths", [[70] * 5, [400, 400, 400, 60, 60], [300] * 3 + [0]])
def test_most_episodes_give_many_clips(lengths: list[int]) -> None:
    found = propose_timing(30, np.array(lengths))
    span = (found.clip_frames - 1) * found.frame_skip + 1
    assert sum(length >= 2 * span for length in lengths) >= 0.6 * len(lengths)


def test_numbers_without_names_that_may_be_a_pose_are_left_open(tmp_path: Path) -> None:
    """A tool that points down, as LIBERO's sets for openpi have it: x y z, a rotation vector, two fingers."""
    turn = np.array([3.1, 0.05, -0.1]) + paths(FRAMES, (0.03, 0.1, 0.1))
    fingers = grip(FRAMES, 0, 0.04)[:, None] * [1, -1]
    state = np.c_[paths(FRAMES, (0.3, 0.2, 0.1)), turn, fingers]
    text, tree = started(lerobot(tmp_path / "raw", [state] * 2, ["state"], {"front": False}), tmp_path)
    arm, hand = tree["slots"].values()
    assert (arm["kind"], arm["units"], len(arm["columns"])) == ("TODO", "TODO", 6)
    assert "kind: TODO  # joints, or a pose" in text
    assert (hand["kind"], len(hand["columns"])) == ("gripper", 2)


@pytest.mark.parametrize(
    ("camera", "moving", "kind"),
    [
        ("wrist", True, "wrist"),
        ("cam_left_wrist", False, "wrist"),
        ("gripper_cam", True, "wrist"),
        ("robot0_eye_in_hand", True, "wrist"),
        ("top", False, "static"),
        ("agentview", True, "static"),
        ("ego_view", False, "static"),
        ("head", True, "wrist"),
        ("cam_1", True, "wrist"),
    ],
)
def test_a_cameras_name_counts_for_its_kind(camera: str, moving: bool, kind: str) -> None:
    """A name that says it decides; a head moves or does not, and what says nothing is what the pictures are."""
    found = guess_kind([0.9 if moving else 0.05] * 8, f"observation.images.{camera}")
    assert found.kind == kind
    agrees = kind == ("wrist" if moving else "static")
    assert found.sure == ("sure" if agrees else "likely")
    assert guess_kind([], f"observation.images.{camera}").sure == ("unsure" if camera == "cam_1" else "likely")


def test_an_action_of_which_one_column_says_otherwise_is_not_sure() -> None:
    state = paths(200, (1.0, 0.8, 0.9))
    told = commands(state)
    assert guess_actions([state], [told]).sure == "sure"
    told[:, 1] = np.random.default_rng(0).normal(size=200)
    found = guess_actions([state], [told])
    assert (found.kind, found.sure) == ("target", "likely")
    assert "1 column says otherwise" in found.why
    assert guess_actions([state[:, :1]], [commands(state[:, :1])]).sure == "likely"  # one column alone
