"""Commands in every form they are recorded in, reductions, servo units and a leader arm; each mistake its sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xwam_ft import poses
from xwam_ft.errors import UserError
from xwam_ft.observation import slot_state
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.embodiment.slots import SlotPlan, motion, plan_slots
from xwam_ft.prepare.episode import EpisodeError, Table
from xwam_ft.prepare.sources import SourceInfo

FRAMES = 5
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
ARM = {"kind": "joints", "columns": ["j1", "j2"], "units": "rad"}
RECORDED_POSE = {"kind": "pose", "columns": list(POSE), "units": "m"}
DELTA = {**RECORDED_POSE, "command": "delta", "command_rotation": "rotvec"}
DELTA |= {"command_columns": [f"action/d{i}" for i in range(6)], "delta": {"to": "state"}}


def plan(tmp_path: Path, slot: dict[str, Any], rows: Table) -> SlotPlan:
    tree = {"name": "toy", "cameras": {"front": {"source": "front"}}, "slots": {"s": slot}}
    tree["timing"] = {"frame_skip": 2, "action_skip": 1, "clip_frames": 5}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    info = SourceInfo(Path("set"), "", 10.0, "toy", {}, tuple(rows.columns))
    (found,) = plan_slots(load_embodiment(path), info, path, [tmp_path])
    return found


def table(seed: int = 0) -> Table:
    """Joints, a pose, changes of both, two jaws and a leader's joints, all recorded."""
    random = np.random.default_rng(seed)
    columns = {f"observation.state/{n}": random.normal(0, 0.4, FRAMES) for n in ("j1", "j2", "left", "right")}
    columns |= {f"observation.leader/{n}": random.normal(0, 0.4, FRAMES) for n in ("l1", "l2")}
    turn = Rotation.random(FRAMES, rng=random).as_quat(scalar_first=True)
    pose = np.concatenate([random.normal(0, 0.4, (FRAMES, 3)), turn], axis=1)
    columns |= {f"observation.state/{n}": pose[:, i] for i, n in enumerate(POSE)}
    columns |= {f"action/d{i}": random.normal(0, 0.2, FRAMES) for i in range(6)}
    columns |= {f"action/{n}": random.normal(0, 0.2, FRAMES) for n in ("j1", "j2", "left", "right", "jaw")}
    return Table(columns, None, None)


def stacked(rows: Table, feature: str, names: tuple[str, ...] | list[str]) -> np.ndarray:
    return np.stack([rows.columns[f"{feature}/{name}"] for name in names], axis=1)


@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize("to", ["state", "command"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**20))
def test_changes_of_a_pose_are_undone_by_scipy(
    tmp_path_factory: pytest.TempPathFactory, to: str, frame: str, seed: int
) -> None:
    """From the absolute commands the recorded changes come back, by rotation matrices alone."""
    rows = table(seed)
    delta = {"to": to, "frame": frame}
    state, _, command, mask = motion([plan(tmp_path_factory.mktemp("d"), {**DELTA, "delta": delta}, rows)], rows, 1)
    assert mask.all()
    before = state if to == "state" else np.concatenate([state[:1], command[:-1]])
    old = Rotation.from_quat(before[:, 3:], scalar_first=True)
    new = Rotation.from_quat(command[:, 3:], scalar_first=True)
    moved, turned = command[:, :3] - before[:, :3], new * old.inv()
    if frame == "tool":
        moved, turned = old.inv().apply(moved), old.inv() * new
    recorded = stacked(rows, "action", [f"d{i}" for i in range(6)])
    np.testing.assert_allclose(moved, recorded[:, :3], atol=1e-12)
    np.testing.assert_allclose(turned.as_rotvec(), recorded[:, 3:], atol=1e-12)


def test_changes_in_controller_units_are_scaled(tmp_path: Path) -> None:
    rows = table()
    scale = [0.05] * 3 + [0.5] * 3
    scaled = plan(tmp_path, {**DELTA, "command_scale": scale}, rows)
    command = motion([scaled], rows, 1)[2]
    state = motion([scaled], rows, 1)[0]
    np.testing.assert_allclose(command[:, :3] - state[:, :3], 0.05 * stacked(rows, "action", ["d0", "d1", "d2"]))
    angles = plan(tmp_path, {**DELTA, "command_rotation": "intrinsic_zyx", "command_rotation_units": "deg"}, rows)
    turned = motion([angles], rows, 1)[2]
    expected = Rotation.from_euler("ZYX", stacked(rows, "action", ["d3", "d4", "d5"]), degrees=True) * (
        Rotation.from_quat(state[:, 3:], scalar_first=True)
    )
    np.testing.assert_allclose(
        turned[:, 3:], poses.canonical_quaternion(expected.as_quat(scalar_first=True)), atol=1e-12
    )


@pytest.mark.parametrize("to", ["state", "command"])
def test_changes_of_joints_add_up(tmp_path: Path, to: str) -> None:
    rows = table()
    slot = {**ARM, "units": "deg", "zeros": [10.0, 20.0], "command": "delta", "delta": {"to": to}}
    state, _, command, _ = motion([plan(tmp_path, slot, rows)], rows, 1)
    radians = math.pi / 180
    np.testing.assert_allclose(state, (stacked(rows, "observation.state", ["j1", "j2"]) - [10, 20]) * radians)
    change = stacked(rows, "action", ["j1", "j2"]) * radians  # a change has no zero
    expected = state + change if to == "state" else state[0] + np.cumsum(change, axis=0)
    np.testing.assert_allclose(command, expected)


def test_changes_of_joints_command_the_pose_of_the_changed_joints(tmp_path: Path, lerobot: Any) -> None:
    (tmp_path / "two.urdf").write_text(lerobot.urdf)
    rows = table()
    slot = {**ARM, "kind": "pose", "from": "joints", "urdf": "two.urdf", "base": "base", "tip": "hand"}
    found = plan(tmp_path, {**slot, "command": "delta", "delta": {"to": "state"}}, rows)
    joints = stacked(rows, "observation.state", ["j1", "j2"]) + stacked(rows, "action", ["j1", "j2"])
    np.testing.assert_allclose(motion([found], rows, 1)[2], slot_state(found.slot, joints), atol=1e-12)


@settings(max_examples=15)
@given(st.sampled_from(["mean", "max", "norm"]), st.floats(0, 5), st.integers(2, 6))
def test_a_reduced_command_sent_to_all_columns_reduces_to_itself(how: str, value: float, count: int) -> None:
    from xwam_ft.contract import Slot

    names = tuple(f"f{i}" for i in range(count))
    slot = Slot(
        name="hand",
        kind="gripper",
        columns=names,
        elements=(how,),
        units=("1",),
        transform=how,  # pyright: ignore[reportArgumentType]
        convention="absolute",
        expand="equal",
    )
    sent = np.repeat(value / (np.sqrt(count) if how == "norm" else 1.0), count)
    assert slot_state(slot, sent[None])[0, 0] == pytest.approx(value)


@pytest.mark.parametrize(("how", "function"), [("mean", np.mean), ("max", np.max), ("norm", np.linalg.norm)])
def test_several_columns_become_one_number(tmp_path: Path, how: str, function: Any) -> None:
    rows = table()
    slot = {"kind": "gripper", "columns": ["left", "right"], "reduce": how, "expand": "equal", "units": "mm"}
    found = plan(tmp_path, slot, rows)
    state, _, command, _ = motion([found], rows, 1)
    assert (found.slot.elements, found.slot.units) == ((how,), ("m",))
    jaws = stacked(rows, "observation.state", ["left", "right"]) / 1000
    np.testing.assert_allclose(state[:, 0], function(jaws, axis=1))
    np.testing.assert_allclose(command[:, 0], function(stacked(rows, "action", ["left", "right"]) / 1000, axis=1))
    one = motion([plan(tmp_path, {**slot, "command_columns": ["jaw"]}, rows)], rows, 1)[2]
    np.testing.assert_allclose(one[:, 0], rows.columns["action/jaw"] / 1000)


def test_a_leader_arm_recorded_as_a_state_commands(tmp_path: Path) -> None:
    rows = table()
    leader = ["observation.leader/l1", "observation.leader/l2"]
    command = motion([plan(tmp_path, {**ARM, "command_columns": leader}, rows)], rows, 1)[2]
    np.testing.assert_array_equal(command, stacked(rows, "observation.leader", ["l1", "l2"]))
    with pytest.raises(UserError, match=r"there is no column 'l1'"):  # never by its short name
        plan(tmp_path, {**ARM, "command_columns": ["l1", "l2"]}, rows)


def test_servo_ticks_turned_joints_and_degrees_are_one_motion(tmp_path: Path) -> None:
    motors = {"j1": {"range_min": 1000, "range_max": 3000}, "j2": {"range_min": 500, "range_max": 2500}}
    (tmp_path / "arm.json").write_text(json.dumps(motors))
    rows = table()
    degrees = stacked(rows, "observation.state", ["j1", "j2"]) * 50
    middle = np.array([2000, 1500])
    ticks = degrees * 4095 / 360 + middle
    hundred = (ticks - middle) / 1000 * 100
    states: list[np.ndarray] = []
    for unit, values in (("deg", degrees), ("ticks", ticks), ("range_m100_100", hundred)):
        for i, name in enumerate(("j1", "j2")):
            rows.columns[f"observation.state/{name}"] = values[:, i]
        slot = {**ARM, "units": unit, "signs": [1, -1], "command": "next_state"}
        slot |= {} if unit == "deg" else {"calibration": "arm.json"}
        states.append(motion([plan(tmp_path, slot, rows)], rows, 1)[0])
    np.testing.assert_allclose(states[0], np.radians(degrees) * [1, -1])
    np.testing.assert_allclose(states[1], states[0], atol=1e-12)
    np.testing.assert_allclose(states[2], states[0], atol=1e-12)


def test_a_pose_that_is_none_rejects_the_episode(tmp_path: Path) -> None:
    rows = table()
    rows.columns["observation.state/qw"][2] = 9.0
    with pytest.raises(EpisodeError, match=r"columns observation.state/x to observation.state/qz has a quaternion.*2"):
        motion([plan(tmp_path, {**RECORDED_POSE, "command": "next_state"}, rows)], rows, 1)


@pytest.mark.parametrize(
    ("slot", "sentence"),
    [
        ({**RECORDED_POSE, "rotation": "intrinsic_zxz2"}, r"not a form of rotation \(did you mean 'intrinsic_zxz'\?\)"),
        ({**RECORDED_POSE, "rotation": "6d_rows"}, r"a recorded pose is 9 columns \(x y z, 6d_rows\), not 7"),
        ({**RECORDED_POSE, "units": "deg"}, "units of a recorded pose are 'deg'"),
        ({**DELTA, "command": "recorded"}, "`command: delta` and `delta: .*` go together"),
        ({**DELTA, "command_scale": [1.0]}, "has 6 command columns and 1 values of command_scale"),
        ({**DELTA, "command_scale": 0.1, "command_rotation": "6d_rows"}, "a recorded pose is 9 columns"),
        ({**ARM, "command_rotation": "rotvec"}, "`command_rotation` is for the recorded commands of a recorded pose"),
        ({**ARM, "command_scale": 2.0, "command": "next_state"}, "`command_scale` is given and `command: next_state`"),
        ({**ARM, "units": "ticks"}, "`units: ticks` needs `calibration: FILE`"),
        (
            {**ARM, "calibration": "arm.json"},
            "`calibration` is for units of ticks, range_m100_100, range_0_100, not rad",
        ),
        (
            {**ARM, "units": "ticks", "calibration": "no.json"},
            "no.json: LeRobot's calibration of this arm is not there",
        ),
        ({**ARM, "motors": ["a", "b"]}, "`motors` is given without `calibration`"),
        ({**ARM, "signs": [1]}, "has 2 columns and 1 signs"),
        ({**RECORDED_POSE, "zeros": [0.0]}, "zeros: only for joints, grippers and vectors"),
        ({"kind": "gripper", "columns": ["left"], "gripper_open": 1.0}, "two different values, given together"),
        (
            {"kind": "gripper", "columns": ["left"], "gripper_open": 1.0, "gripper_closed": 1.0},
            "two different values, given together",
        ),
        (
            {"kind": "gripper", "columns": ["left", "right"], "reduce": "max"},
            "a max of columns cannot be inverted into commands for each",
        ),
    ],
)
def test_a_wrong_slot_is_told(tmp_path: Path, slot: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        plan(tmp_path, slot, table())
