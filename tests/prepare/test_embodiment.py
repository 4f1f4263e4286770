"""The strict embodiment schema, and slots met with recordings: each mistake has its sentence, each unit its factor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from xwam_ft.contract import Limits
from xwam_ft.errors import UserError
from xwam_ft.prepare.embodiment.cameras import contract_camera, plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.embodiment.slots import motion, plan_slots
from xwam_ft.prepare.episode import Table
from xwam_ft.prepare.sources import CameraInfo, SourceInfo

SHIPPED = Path(__file__).parents[2] / "recipes" / "embodiments"
COLUMNS = ("j1", "j2", "grip", "x", "y", "z", "a", "b", "c", "d")


def info(columns: tuple[str, ...] = COLUMNS, calibration: dict[str, Any] | None = None) -> SourceInfo:
    names = [f"observation.state/{name}" for name in columns] + [f"action/{name}" for name in columns]
    cameras = {"observation.images.front": CameraInfo("observation.images.front")}
    return SourceInfo(Path("set"), "LeRobot", 10.0, "toy", cameras, tuple(names), calibration or {})


def table(frames: int = 6, seed: int = 3) -> Table:
    random = np.random.default_rng(seed)
    return Table({name: random.normal(0, 0.3, frames) for name in info().columns}, None, None)


def load(tmp_path: Path, slots: dict[str, Any], **more: Any) -> Any:
    tree = {
        "name": "toy",
        "cameras": {"front": {"source": "front"}},
        "timing": {"frame_skip": 2, "action_skip": 1, "clip_frames": 5},
        "slots": slots,
        **more,
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_embodiment(path), path


def plans(tmp_path: Path, slots: dict[str, Any], **more: Any) -> Any:
    spec, path = load(tmp_path, slots, **more)
    return plan_slots(spec, info(), path, [tmp_path])


ARM = {"kind": "joints", "columns": ["j1", "j2"], "units": "rad"}
HAND = {"kind": "gripper", "columns": ["j1", "grip"], "reduce": "mean"}
POSE = {"kind": "pose", "columns": ["x", "y", "z", "a", "b", "c", "d"], "units": "m"}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_load_and_are_named_as_they_are_called(path: Path) -> None:
    assert load_embodiment(path).name == path.stem


def quaternion(tmp_path: Path, columns: tuple[str, ...], **more: Any) -> Any:
    slot = {"kind": "pose", "columns": [f"observation.state/{name}" for name in columns], "units": "m", **more}
    slot.setdefault("command", "next_state")
    spec, path = load(tmp_path, {"hand": slot})
    return plan_slots(spec, info(columns), path, [])


@pytest.mark.parametrize(
    "names",
    [
        ("qx", "qy", "qz", "qw"),
        ("left_quat_x", "left_quat_y", "left_quat_z", "left_quat_w"),
        ("pose.orientation.x", "pose.orientation.y", "pose.orientation.z", "pose.orientation.w"),
        ("rx", "ry", "rz", "rw"),
        ("ee_quat/x", "ee_quat/y", "ee_quat/z", "ee_quat/w"),
    ],
)
def test_columns_named_in_another_order_than_the_rotation_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    place = ("px", "py", "pz")
    with pytest.raises(
        UserError,
        match=r"slots.hand.columns: has the quaternion as .*would be read as wxyz. Fix: write `rotation: xyzw`",
    ):
        quaternion(tmp_path, (*place, *names))
    assert quaternion(tmp_path, (*place, *names), rotation="xyzw")[0].state.rotation == "xyzw"
    turned = (*place, names[3], *names[:3])
    assert quaternion(tmp_path, turned)[0].state.rotation == "wxyz"
    with pytest.raises(UserError, match="Fix: write `rotation: wxyz`"):
        quaternion(tmp_path, turned, rotation="xyzw")


def test_the_order_of_a_quaternion_matters_only_where_names_say_it(tmp_path: Path) -> None:
    assert quaternion(tmp_path, tuple(POSE["columns"]), rotation="xyzw")  # x y z a b c d
    assert quaternion(tmp_path, ("x", "y", "z", "0", "1", "2", "3"))
    with pytest.raises(UserError, match="Fix: name the columns x y z first, then the quaternion as w x y z"):
        quaternion(tmp_path, ("qx", "qy", "qz", "qw", "x", "y", "z"))
    columns = ("x", "y", "z", "qw", "qx", "qy", "qz", "t_qx", "t_qy", "t_qz", "t_qw")
    commands = [f"action/{name}" for name in ("x", "y", "z", "t_qx", "t_qy", "t_qz", "t_qw")]
    slot = {"kind": "pose", "columns": ["x", "y", "z", "qw", "qx", "qy", "qz"], "units": "m"}
    spec, path = load(tmp_path, {"hand": {**slot, "command_columns": commands}})
    with pytest.raises(UserError, match=r"hand.command_columns: .*Fix: write `command_rotation: xyzw`"):
        plan_slots(spec, info(columns), path, [])
    spec, path = load(tmp_path, {"hand": {**slot, "command_columns": commands, "command_rotation": "xyzw"}})
    assert plan_slots(spec, info(columns), path, [])[0].command is not None


@pytest.mark.parametrize(
    ("slot", "sentence"),
    [
        ({**ARM, "colums": []}, r"unknown key 'slots.s.colums' \(did you mean 'columns'\?\)"),
        ({"kind": "joints", "columns": ["j1"]}, "`units` is not stated; recordings do not say it"),
        ({**ARM, "units": "TODO"}, "`units` is still TODO"),
        ({**ARM, "units": "degrees"}, "`units` is 'degrees', not one of rad, deg, m, mm, 1, rad/s"),
        (
            HAND,
            "a mean of columns cannot be inverted into commands for each; write `command: none`, or `expand: equal`",
        ),
        ({**ARM, "reduce": "mean"}, "`reduce: mean` is for a gripper or a vector"),
        ({**ARM, "urdf": "x.urdf"}, "urdf: only for `from: joints`"),
        ({**ARM, "kind": "pose", "from": "joints"}, "`from: joints` needs urdf, base, tip"),
        (
            {**ARM, "kind": "pose", "from": "joints", "urdf": "u", "base": "b", "tip": "t", "units": 1},
            "joints without a unit have no pose",
        ),
        ({**POSE, "convention": "absolute"}, "a pose is commanded relative to something"),
        ({**POSE, "convention": "xwam_robocasa_raw"}, "recordings are not prepared with it"),
        ({"kind": "gripper"}, "`columns` is missing"),
        ({**ARM, "limits": {"speed": -1}}, "speed"),
        ({**ARM, "limits": {"speeds": 1}}, r"did you mean 'speed'\?"),
    ],
)
def test_a_wrong_slot_is_told(tmp_path: Path, slot: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, {"s": slot})


def test_wrong_timing_cameras_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clip_frames 8 is not 4n"):
        load(tmp_path, {"s": ARM}, timing={"frame_skip": 2, "action_skip": 1, "clip_frames": 8})
    with pytest.raises(UserError, match="mount 'wrist' is not a pose slot"):
        load(tmp_path, {"s": ARM}, cameras={"front": {"source": "front", "mount": "wrist"}})
    with pytest.raises(UserError, match="no slot is commanded"):
        load(tmp_path, {"s": {**ARM, "command": "none"}})
    with pytest.raises(UserError, match="33x32 is odd"):
        load(tmp_path, {"s": ARM}, image={"height": 33, "width": 32})
    with pytest.raises(UserError, match=r"far 0\.1 is not beyond near 0\.5"):
        load(tmp_path, {"s": ARM}, depth={"near": 0.5, "far": 0.1})


def test_every_todo_is_told_once_by_its_key_with_what_may_stand_there(tmp_path: Path) -> None:
    camera = {"source": "front", "kind": "TODO", "depth": {"source": "d", "unit": "TODO"}}
    hand = {**POSE, "rotation": "TODO", "command": "TODO", "units": "TODO"}
    arm = {**ARM, "units": ["rad", "TODO"], "limits": {"low": "TODO"}, "from": "TODO"}
    with pytest.raises(UserError) as caught:
        load(tmp_path, {"hand": hand, "arm": arm, "s": {"kind": "TODO"}}, cameras={"front": camera}, fps="TODO")
    wanted = [
        "'fps': `fps` is still TODO; these recordings do not store it, so write their frames per second",
        "'cameras.front.kind': `kind` is still TODO; write static or wrist",
        "'cameras.front.depth.unit': `unit` is still TODO; write mm, m, lerobot_log12 or the metres of one count",
        "'slots.hand.units': `units` is still TODO; recordings do not say it, so write rad, deg, m, mm, one of these a "
        "second (rad/s), 1 (as recorded), or a servo's ticks, range_m100_100, range_0_100 with its `calibration`",
        "'slots.hand.rotation': `rotation` is still TODO; write the order in which the columns are recorded: wxyz, "
        "xyzw, rotvec, rpy and 30 more",
        "'slots.hand.command': `command` is still TODO; write recorded (targets), delta (changes), next_state or none",
        "'slots.arm.units': `units` is still TODO; recordings do not say it, so write rad, deg, m, mm, one of these a "
        "second (rad/s), 1 (as recorded), or a servo's ticks, range_m100_100, range_0_100 with its `calibration`",
        "'slots.arm.from': `from` is still TODO; write recorded or joints",
        "'slots.arm.limits.low': `low` is still TODO; write a number",
        "'slots.s.kind': `kind` is still TODO; write pose, joints, gripper or vector",
    ]
    told = str(caught.value).partition(": 10 mistakes: ")[2].removesuffix(". Fix: correct each of them")
    assert told.split("; '") == [line if i == 0 else line[1:] for i, line in enumerate(wanted)]


def test_an_unknown_unit_of_depth_is_told_once(tmp_path: Path) -> None:
    camera = {"source": "front", "depth": {"source": "d", "unit": "cm"}}
    with pytest.raises(UserError) as caught:
        load(tmp_path, {"s": ARM}, cameras={"front": camera})
    assert ": 'cameras.front.depth.unit': 'cm' is not mm, m, lerobot_log12 or the metres of one count. Fix" in str(
        caught.value
    )


def test_what_the_recordings_lack_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no column 'grp' \(did you mean 'grip'\?\) in the recordings"):
        plans(tmp_path, {"s": {"kind": "gripper", "columns": ["grp"]}})
    with pytest.raises(UserError, match=r"there is no feature 'observation\.joint'"):
        plans(tmp_path, {"s": {**ARM, "columns": "observation.joint"}})
    spec, path = load(tmp_path, {"s": ARM}, cameras={"top": {"source": "frnt"}})
    with pytest.raises(UserError, match=r"there is no camera 'frnt'.*in the recordings.*observation.images.front"):
        plan_cameras(spec, info(), path)
    spec, path = load(tmp_path, {"s": ARM})
    bare = SourceInfo(Path("set"), "LeRobot", 10.0, "toy", {}, ("observation.state/j1", "observation.state/j2"))
    with pytest.raises(UserError, match=r"the recordings have no `action`\. Fix: write `command: next_state`"):
        plan_slots(spec, bare, path, [])


def test_a_name_in_two_features_must_be_written_in_full(tmp_path: Path) -> None:
    spec, path = load(tmp_path, {"s": {"kind": "vector", "columns": ["v"], "command": "recorded"}})
    double = SourceInfo(Path("s"), "", 1.0, "", {}, ("observation.a/v", "observation.b/v", "action/v"))
    with pytest.raises(UserError, match=r"column 'v' is in observation.a/v, observation.b/v"):
        plan_slots(spec, double, path, [])


def test_joints_and_links_that_are_not_there_are_told(tmp_path: Path, lerobot: Any) -> None:
    (tmp_path / "two.urdf").write_text(lerobot.urdf)
    arm = {**ARM, "kind": "pose", "from": "joints", "urdf": "two.urdf", "base": "base", "tip": "hand"}
    with pytest.raises(UserError, match=r"there is no link 'hnd' \(did you mean 'hand'\?\)"):
        plans(tmp_path, {"s": {**arm, "tip": "hnd"}})
    with pytest.raises(UserError, match="there is no moving joint 'wrist'"):
        plans(tmp_path, {"s": {**arm, "joints": ["shoulder", "wrist"]}})
    with pytest.raises(UserError, match="has 1 columns for the 2 joints shoulder, elbow"):
        plans(tmp_path, {"s": {**arm, "columns": ["j1"]}})
    with pytest.raises(UserError, match=r"the URDF 'three.urdf' is in none of"):
        plans(tmp_path, {"s": {**arm, "urdf": "three.urdf"}})


def test_columns_named_as_other_joints_than_they_are_read_as_are_refused(tmp_path: Path, lerobot: Any) -> None:
    """ROS lists joints by the alphabet: poses of joints in another order are wrong, and none of them looks it."""
    (tmp_path / "two.urdf").write_text(lerobot.urdf)
    arm = {**ARM, "kind": "pose", "from": "joints", "urdf": "two.urdf", "base": "base", "tip": "hand"}
    arm["command"] = "next_state"

    def planned(columns: tuple[str, ...], **more: Any) -> Any:
        spec, path = load(tmp_path, {"s": {**arm, "columns": list(columns), **more}})
        return plan_slots(spec, info(columns), path, [])

    for names in (("elbow", "shoulder"), ("Elbow.pos", "Shoulder.pos"), ("left_elbow_joint", "left_shoulder_joint")):
        fix = rf"column '{names[0]}' would be read as 'shoulder'. Fix: write `joints: \[elbow, shoulder\]`"
        with pytest.raises(UserError, match=fix):
            planned(names)
        assert planned(names, joints=["elbow", "shoulder"])
        with pytest.raises(UserError, match=r"would be read as 'elbow'. Fix: write `joints: \[shoulder, elbow\]`"):
            planned(names[::-1], joints=["elbow", "shoulder"])
        assert planned(names[::-1])
    assert planned(("j2", "j1"), joints=["shoulder", "elbow"])  # other names say nothing
    with pytest.raises(UserError, match=r"column 'shoulder' would be read as 'elbow'. Fix: give `joints` in the col"):
        planned(("base_turn", "shoulder"))


@pytest.mark.parametrize(("units", "said"), [("m", "turns"), ("rad/s", "turns"), (["rad", "mm"], "turns")])
def test_a_unit_that_a_joint_has_not_is_refused(tmp_path: Path, lerobot: Any, units: Any, said: str) -> None:
    (tmp_path / "two.urdf").write_text(lerobot.urdf)
    (tmp_path / "lift.urdf").write_text(lerobot.urdf.replace('type="revolute"', 'type="prismatic"', 1))
    arm = {**ARM, "kind": "pose", "from": "joints", "urdf": "two.urdf", "base": "base", "tip": "hand"}
    with pytest.raises(UserError, match=f"is stated in m.*{said}|is stated in rad/s.*{said}"):
        plans(tmp_path, {"s": {**arm, "units": units}})
    with pytest.raises(UserError, match=r"'j1' is stated in deg, and joint 'shoulder' slides. Fix: write m or mm"):
        plans(tmp_path, {"s": {**arm, "urdf": "lift.urdf", "units": "deg"}})
    assert plans(tmp_path, {"s": {**arm, "urdf": "lift.urdf", "units": ["mm", "deg"]}})


@pytest.mark.parametrize(
    ("columns", "rotation", "right"),
    [
        (("y", "x", "z", "qw", "qx", "qy", "qz"), "wxyz", "x y z"),
        (("px", "py", "pz", "yaw", "pitch", "roll"), "rpy", "roll pitch yaw"),
        (("px", "py", "pz", "roll", "pitch", "yaw"), "intrinsic_zyx", "yaw pitch roll"),
        (("px", "py", "pz", "rz", "ry", "rx"), "rotvec", "rx ry rz"),
    ],
)
def test_axes_named_in_another_order_than_they_are_read(
    tmp_path: Path, columns: tuple[str, ...], rotation: str, right: str
) -> None:
    with pytest.raises(UserError, match=rf"slots.hand.columns: names .*Fix: name them as {right}$"):
        quaternion(tmp_path, columns, rotation=rotation)
    wanted = right.split()
    put = iter(wanted)
    mended = tuple(next(put) if name in wanted else name for name in columns)
    assert quaternion(tmp_path, mended, rotation=rotation)


def test_commands_named_as_other_columns_and_columns_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'j1' would be commanded by 'j2'. Fix: write `command_columns: \[j1, j2\]`"):
        plans(tmp_path, {"s": {**ARM, "command_columns": ["action/j2", "action/j1"]}})
    assert plans(tmp_path, {"s": {**ARM, "command_columns": ["j1", "j2"]}})
    with pytest.raises(UserError, match="names column 'j1' twice"):
        plans(tmp_path, {"s": {**ARM, "columns": ["j1", "j1"]}})


def test_units_become_si_and_columns_keep_their_recorded_names(tmp_path: Path) -> None:
    rows = table()
    found = plans(tmp_path, {"arm": {**ARM, "units": ["deg", "mm"]}, "hand": {"kind": "gripper", "columns": ["grip"]}})
    assert found[0].slot.columns == ("j1", "j2")
    assert found[0].slot.units == ("rad", "m")
    state, _, command, _ = motion(found, rows, 1)
    np.testing.assert_allclose(state[:, 0], rows.columns["observation.state/j1"] * math.pi / 180)
    np.testing.assert_allclose(state[:, 1], rows.columns["observation.state/j2"] / 1000)
    np.testing.assert_array_equal(command[:, 2], rows.columns["action/grip"])


def test_forward_kinematics_of_states_and_commands_in_closed_form(tmp_path: Path, lerobot: Any) -> None:
    (tmp_path / "two.urdf").write_text(lerobot.urdf)
    arm = {**ARM, "kind": "pose", "from": "joints", "urdf": "two.urdf", "base": "base", "tip": "hand"}
    rows = table()
    # Columns are given elbow first, and `joints` says so.
    found = plans(tmp_path, {"s": {**arm, "columns": ["j2", "j1"], "joints": ["elbow", "shoulder"]}})
    state, _, command, _ = motion(found, rows, 1)
    for prefix, poses in (("observation.state", state), ("action", command)):
        shoulder, elbow = rows.columns[f"{prefix}/j1"], rows.columns[f"{prefix}/j2"]
        expected = [0.2 * np.cos(shoulder), 0 * shoulder, 0.3 - 0.2 * np.sin(shoulder)]
        np.testing.assert_allclose(poses[:, :3], np.stack(expected, axis=1), atol=1e-12)
        np.testing.assert_allclose(2 * np.arcsin(poses[:, 5]), shoulder + elbow, atol=1e-12)


@pytest.mark.parametrize("rotation", ["wxyz", "xyzw", "rotvec", "rpy"])
def test_a_recorded_pose_in_any_rotation_form_is_the_same_state(tmp_path: Path, rotation: str) -> None:
    turn = Rotation.random(6, rng=np.random.default_rng(5))
    numbers = {
        "wxyz": turn.as_quat(scalar_first=True),
        "xyzw": turn.as_quat(),
        "rotvec": turn.as_rotvec(degrees=True),
        "rpy": turn.as_euler("xyz", degrees=True),
    }[rotation]
    rows = table()
    names = ["x", "y", "z", "a", "b", "c", "d"][: 3 + numbers.shape[1]]
    for i, name in enumerate(names[3:]):
        rows.columns[f"observation.state/{name}"] = rows.columns[f"action/{name}"] = numbers[:, i]
    spec = {**POSE, "columns": names, "units": "mm", "rotation": rotation, "rotation_units": "deg"}
    (plan,) = plans(tmp_path, {"s": spec})
    state = motion([plan], rows, 1)[0]
    np.testing.assert_allclose(state[:, 0], rows.columns["observation.state/x"] / 1000)
    quaternion = turn.as_quat(scalar_first=True)
    np.testing.assert_allclose(state[:, 3:], quaternion * np.sign(quaternion[:, :1]), atol=1e-12)
    # What the robot will report is the quaternion w first, under the recorded names where it was recorded so.
    expected = {"wxyz": names, "xyzw": ["x", "y", "z", "d", "a", "b", "c"]}
    assert list(plan.slot.columns) == expected.get(rotation, list(plan.slot.elements))
    with pytest.raises(UserError, match=r"a recorded pose is \d columns"):
        plans(tmp_path, {"s": {**spec, "columns": names[:-1]}})


def test_next_state_commands_look_ahead_and_are_masked_at_the_end(tmp_path: Path) -> None:
    rows = table()
    found = plans(tmp_path, {"arm": {**ARM, "command": "next_state"}})
    state, _, command, mask = motion(found, rows, 2)
    np.testing.assert_array_equal(command[:4], state[2:])
    np.testing.assert_array_equal(mask[:, 0], [1, 1, 1, 1, 0, 0])


def test_limits_reach_the_contract_and_wrong_ones_are_told(tmp_path: Path) -> None:
    absent = {"kind": "pose", "present": False, "limits": {"speed": [0.5, 1.5]}}
    arm, pose = plans(tmp_path, {"arm": {**ARM, "limits": {"low": -1, "high": [1, 2], "speed": 2}}, "other": absent})
    assert arm.slot.limits == Limits(low=(-1, -1), high=(1, 2), speed=(2, 2))
    assert pose.slot.limits == Limits(speed=(0.5, 1.5))
    for slot, sentence in [
        ({**ARM, "limits": {"low": 0}}, "`low` and `high` go together"),
        ({**ARM, "limits": {"speed": [1, 1, 1]}}, "a speed of 3 numbers, not 2"),
        ({**absent, "limits": {"speed": 1}}, "a speed of 1 numbers, not 2: metres and radians a second"),
        ({**ARM, "command_units": "1", "limits": {"speed": 1}}, "are for commands in the state's units"),
        ({**ARM, "limits": {"low": [0, 3], "high": [1, -3]}}, "limits whose `low` 3 is above `high` -3"),
        ({**ARM, "limits": {"low": -180, "high": 180}}, "`limits.low` is -180 rad, which looks like degrees"),
        ({**ARM, "limits": {"speed": 90}}, "`limits.speed` is 90 rad/s, which looks like degrees/s"),
        ({**absent, "limits": {"low": -1, "high": [1, 400, 1]}}, "`limits.high` is 400 m, which looks like mill"),
    ]:
        with pytest.raises(UserError, match=sentence) as error:
            plans(tmp_path, {"s": slot, **({"arm": ARM} if slot["kind"] == "pose" else {})})
        assert error.value.where.endswith("toy.yaml: slots.s")


def test_a_mean_an_absent_arm_and_command_units(tmp_path: Path) -> None:
    rows = table()
    found = plans(
        tmp_path,
        {
            "hand": {**HAND, "expand": "equal"},
            "right": {"kind": "pose", "present": False},
            "grip": {"kind": "gripper", "columns": ["grip"], "units": "mm", "command_units": "1"},
        },
    )
    state, state_mask, command, mask = motion(found, rows, 1)
    mean = (rows.columns["action/j1"] + rows.columns["action/grip"]) / 2
    np.testing.assert_allclose(command[:, 0], mean)
    np.testing.assert_array_equal(state_mask[0], [1, *[0] * 7, 1])
    np.testing.assert_array_equal(mask[0], [1, *[0] * 7, 1])
    np.testing.assert_allclose(state[:, -1], rows.columns["observation.state/grip"] / 1000)
    np.testing.assert_allclose(command[:, -1], rows.columns["action/grip"])
    assert (found[2].slot.units, found[2].slot.command_units) == (("m",), ("1",))


def test_calibration_comes_from_the_recordings_unless_the_embodiment_gives_it(tmp_path: Path) -> None:
    recorded = {"front": {"intrinsics": [50, 51, 24, 16], "pose": np.eye(4).tolist()}}
    spec, path = load(tmp_path, {"s": ARM})
    (plan,) = plan_cameras(spec, info(), path)
    camera = contract_camera(spec, plan, info(calibration=recorded), (32, 48))
    assert camera.intrinsics == (50, 51, 24, 16)
    assert camera.pose is not None
    spec, _ = load(tmp_path, {"s": ARM}, cameras={"front": {"source": "front", "intrinsics": [1, 2, 3, 4]}})
    assert contract_camera(spec, plan, info(calibration=recorded), (32, 48)).intrinsics == (1, 2, 3, 4)
    spec, _ = load(tmp_path, {"s": ARM})
    with pytest.raises(UserError, match="calibration of camera 'front' is malformed"):
        contract_camera(spec, plan, info(calibration={"front": {"intrinsics": [1, 2]}}), (32, 48))
