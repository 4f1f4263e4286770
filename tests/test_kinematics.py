"""Chains against closed forms, an independent composition, the files makers publish, and their own inverse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from xwam_ft.errors import UserError
from xwam_ft.kinematics import SEARCH_VARIABLE, Chain, ChainJoint, find_urdf, load_chain, velocity_limits

PLANAR = """<robot name="planar">
  <link name="base"/><link name="upper"/><link name="gripper"/><link name="tool"/><link name="rail"/>
  <link name="aside"/>
  <joint name="one" type="revolute"><parent link="base"/><child link="upper"/><axis xyz="0 0 2"/>
    <limit lower="-2" upper="1.5" effort="1" velocity="1"/></joint>
  <joint name="gripper" type="continuous"><parent link="upper"/><child link="gripper"/>
    <origin xyz="0.5 0 0"/><axis xyz="0 0 1"/></joint>
  <joint name="end" type="fixed"><parent link="gripper"/><child link="tool"/><origin xyz="0.3 0 0"/></joint>
  <joint name="slide" type="prismatic"><parent link="tool"/><child link="rail"/>
    <origin xyz="0 0 0.1" rpy="0.3 -0.4 0.5"/><axis xyz="0 1 0"/><limit lower="0" upper="0.2"/></joint>
  <joint name="copy" type="revolute"><parent link="upper"/><child link="aside"/><mimic joint="one"/></joint>
</robot>"""

SIX = [  # origin xyz, rpy, axis of an elbow arm with a spherical wrist
    ((0, 0, 0.3), (0, 0, 0), "0 0 1"),
    ((0.05, 0, 0.1), (0, 0, 0), "0 1 0"),
    ((0, 0, 0.4), (0, 0, 0.2), "0 1 0"),
    ((0.35, 0, 0.02), (0.1, 0, 0), "1 0 0"),
    ((0, 0, 0), (0, 0, 0), "0 1 0"),
    ((0.1, 0, 0), (0, -0.3, 0), "1 0 0"),
]

REAL = [  # file, base, tip
    ("so101_new_calib.urdf", "base_link", "gripper_link"),
    ("so100.urdf", "base", "gripper"),
    ("panda.urdf", "panda_link0", "panda_hand"),
    ("ur5_robot.urdf", "base_link", "tool0"),
    ("xarm7.urdf", "link_base", "link_eef"),
    ("piper_description.urdf", "base_link", "link6"),
    ("g1_29dof_rev_1_0.urdf", "torso_link", "left_wrist_yaw_link"),
]


@pytest.fixture
def planar(tmp_path: Path) -> Path:
    path = tmp_path / "planar.urdf"
    path.write_text(PLANAR)
    return path


@pytest.fixture
def six(tmp_path: Path) -> Chain:
    text = "".join(
        f'<link name="l{i + 1}"/><joint name="j{i}" type="revolute"><parent link="l{i}"/><child link="l{i + 1}"/>'
        f'<origin xyz="{" ".join(map(str, xyz))}" rpy="{" ".join(map(str, rpy))}"/><axis xyz="{axis}"/>'
        f'<limit lower="-2.5" upper="2.5"/></joint>'
        for i, (xyz, rpy, axis) in enumerate(SIX)
    )
    path = tmp_path / "six.urdf"
    path.write_text(f'<robot name="six"><link name="l0"/>{text}</robot>')
    return load_chain(path, "l0", "l6")


def refused(path: Path, base: str, tip: str, order: list[str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_chain(path, base, tip, order)
    return str(caught.value)


def pose_distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left - right).max())


def test_planar_arm_in_closed_form(planar: Path) -> None:
    chain = load_chain(planar, "base", "tool")
    q = np.random.default_rng(0).uniform(-2, 2, (5, 7, 2))
    pose = chain.forward(q)
    assert pose.shape == (5, 7, 4, 4)
    total = q.sum(axis=-1)
    np.testing.assert_allclose(pose[..., 0, 3], 0.5 * np.cos(q[..., 0]) + 0.3 * np.cos(total), atol=1e-14)
    np.testing.assert_allclose(pose[..., 1, 3], 0.5 * np.sin(q[..., 0]) + 0.3 * np.sin(total), atol=1e-14)
    np.testing.assert_allclose(pose[..., 0, 0], np.cos(total), atol=1e-14)


def test_prismatic_joint_and_fixed_axis_angles(planar: Path) -> None:
    """The slide's frame is Rz(yaw) Ry(pitch) Rx(roll), and it moves along that frame's y."""
    chain = load_chain(planar, "tool", "rail")

    def turn(axis: str, angle: float) -> np.ndarray:
        return Rotation.from_euler(axis, angle).as_matrix()

    frame = turn("z", 0.5) @ turn("y", -0.4) @ turn("x", 0.3)
    pose = chain.forward(np.array([0.15]))
    np.testing.assert_allclose(pose[:3, :3], frame, atol=1e-15)
    np.testing.assert_allclose(pose[:3, 3], np.array([0, 0, 0.1]) + 0.15 * frame[:, 1], atol=1e-15)


def test_forward_agrees_with_a_composition_by_scipy(six: Chain) -> None:
    q = np.random.default_rng(1).uniform(-2.5, 2.5, (20, 6))
    for row, pose in zip(q, six.forward(q), strict=True):
        turn, place = Rotation.identity(), np.zeros(3)
        for (xyz, rpy, axis), angle in zip(SIX, row, strict=True):
            place = place + turn.apply(xyz)
            turn = turn * Rotation.from_euler("xyz", rpy) * Rotation.from_rotvec(angle * np.array(axis.split(), float))
        np.testing.assert_allclose(pose[:3, 3], place, atol=1e-14)
        np.testing.assert_allclose(pose[:3, :3], turn.as_matrix(), atol=1e-14)


def test_inverse_returns_to_the_joints_it_came_from(six: Chain) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        q = rng.uniform(-1.2, 1.2, 6)
        q[4] = np.copysign(0.4 + abs(q[4]), q[4])  # away from the straight wrist, where joints 4 and 6 are one
        found, metres, radians = six.inverse(six.forward(q), q + rng.normal(0, 0.03, 6))
        assert metres < 1e-8
        assert radians < 1e-8
        np.testing.assert_allclose(found, q, atol=1e-5)


def test_a_limit_holds_and_the_residual_says_so(planar: Path) -> None:
    chain = load_chain(planar, "base", "upper")
    q, metres, radians = chain.inverse(chain.forward(np.array([1.9])), np.zeros(1))
    np.testing.assert_allclose(q, [1.5], atol=1e-12)
    assert metres == pytest.approx(0.0, abs=1e-12)
    assert radians == pytest.approx(0.4)


@pytest.mark.parametrize("seed", range(4))
def test_where_a_joint_is_at_its_limit_the_others_come_as_near_as_they_can(six: Chain, seed: int) -> None:
    """The target wants joint 1 past its limit; scipy's bounded least squares says how near all together can come."""
    high = np.array([2.5, 0.6, 2.5, 2.5, 2.5, 2.5])
    joints = [
        joint.model_copy(update={"lower": -top, "upper": top}) for joint, top in zip(six.joints, high, strict=True)
    ]
    chain = six.model_copy(update={"joints": tuple(joints)})
    rng = np.random.default_rng(seed)
    q = np.array([0.3, 0.6, 0.5, 0.2, 0.8, 0.1]) + np.array([1, 0, 1, 1, 1, 1]) * rng.normal(0, 0.05, 6)
    goal = six.forward(q + np.array([0.1, 0.3, -0.1, 0.0, 0.1, 0.0]))

    def errors(values: np.ndarray) -> np.ndarray:
        tip = chain.forward(values)
        return np.concatenate(
            [goal[:3, 3] - tip[:3, 3], Rotation.from_matrix(goal[:3, :3] @ tip[:3, :3].T).as_rotvec()]
        )

    nearest = least_squares(errors, q - 1e-6, bounds=(-high, high), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    found, metres, radians = chain.inverse(goal, q)
    assert found[1] == 0.6
    assert np.hypot(metres, radians) == pytest.approx(np.linalg.norm(nearest.fun), rel=1e-5)
    np.testing.assert_allclose(found, nearest.x, atol=1e-3)


def test_out_of_reach_stretches_towards_the_target(planar: Path) -> None:
    chain = load_chain(planar, "base", "tool")
    target = np.eye(4)
    target[0, 3] = 1.0  # the arm is 0.8 long
    q, metres, radians = chain.inverse(target, np.array([0.4, -0.3]))
    np.testing.assert_allclose(q, 0.0, atol=1e-3)
    assert metres == pytest.approx(0.2, abs=1e-5)
    assert radians < 1e-3


def test_a_path_is_followed_without_jumps(six: Chain) -> None:
    time = np.linspace(0, 1, 40)[:, None]
    q = np.array([0.1, 0.4, 0.5, -0.3, 0.7, 0.2]) + time * np.array([0.5, -0.3, 0.4, 0.6, 0.3, -0.8])
    found, residual = six.inverse_path(six.forward(q), q[0])
    assert residual.shape == (40, 2)
    assert residual.max() < 1e-8
    np.testing.assert_allclose(found, q, atol=1e-5)


def turntable(folder: Path) -> Chain:
    """`SIX` on a turntable about the same axis as its first joint: seven joints, two of which do one thing."""
    joints = [((0, 0, 0), (0, 0, 0), "0 0 1", "continuous"), *((*joint, "revolute") for joint in SIX)]
    text = "".join(
        f'<link name="l{i + 1}"/><joint name="j{i}" type="{kind}"><parent link="l{i}"/><child link="l{i + 1}"/>'
        f'<origin xyz="{" ".join(map(str, xyz))}" rpy="{" ".join(map(str, rpy))}"/><axis xyz="{axis}"/>'
        f'<limit lower="{0 if kind == "continuous" else -2.5}" upper="{0 if kind == "continuous" else 2.5}"/></joint>'
        for i, (xyz, rpy, axis, kind) in enumerate(joints)
    )
    (folder / "turntable.urdf").write_text(f'<robot name="turntable"><link name="l0"/>{text}</robot>')
    return load_chain(folder / "turntable.urdf", "l0", "l7")


@pytest.mark.parametrize("elbow", [0.9, -0.9])
def test_a_redundant_arm_keeps_the_branch_it_reports_over_a_long_path(tmp_path: Path, elbow: float) -> None:
    """More than a turn of the base, with the elbow up and with it down: no joint jumps, none changes sides."""
    chain = turntable(tmp_path)
    share = np.linspace(0, 1, 120)[:, None]
    q = np.array([0.2, 0.1, 0.4, elbow, -0.3, 0.7, 0.2]) + share * np.array([8.0, 0.0, -0.2, 0.0, 0.3, 0.2, -0.3])
    found, residual = chain.inverse_path(chain.forward(q), q[0])
    assert residual.max() < 1e-8
    assert np.abs(np.diff(found, axis=0)).max() < 0.1
    np.testing.assert_allclose(found[:, :2].sum(axis=1), q[:, :2].sum(axis=1), atol=1e-5)  # however the two share it
    np.testing.assert_allclose(found[:, 2:], q[:, 2:], atol=1e-5)


def test_a_continuous_joint_stays_unbounded_whatever_its_limit_tag_says(tmp_path: Path) -> None:
    """URDFs carry <limit effort= velocity=> on continuous joints too, where lower and upper are left at 0."""
    for tag in ('<limit effort="1" velocity="2"/>', '<limit lower="-1" upper="1" effort="1" velocity="2"/>'):
        text = PLANAR.replace('<axis xyz="0 0 1"/></joint>', f'<axis xyz="0 0 1"/>{tag}</joint>')
        assert text != PLANAR
        (tmp_path / "arm.urdf").write_text(text)
        chain = load_chain(tmp_path / "arm.urdf", "upper", "gripper")
        assert (chain.joints[0].lower, chain.joints[0].upper) == (None, None)
        q, _, radians = chain.inverse(chain.forward(np.array([2.8])), np.array([2.0]))
        assert q[0] == pytest.approx(2.8, abs=1e-6)
        assert radians < 1e-8


def test_the_recording_may_order_the_joints_its_own_way(planar: Path) -> None:
    plain, turned = load_chain(planar, "base", "rail"), load_chain(planar, "base", "rail", ["slide", "gripper", "one"])
    assert plain.movable == ["one", "gripper", "slide"]
    q = np.array([0.3, -0.2, 0.1])
    assert pose_distance(plain.forward(q), turned.forward(q[::-1])) == 0.0
    back, _, _ = turned.inverse(turned.forward(q[::-1]), np.array([0.05, 0.0, 0.2]))
    np.testing.assert_allclose(back, q[::-1], atol=1e-6)


def test_a_chain_survives_json(six: Chain) -> None:
    back = Chain.model_validate_json(six.model_dump_json())
    assert back == six
    q = np.linspace(-1, 1, 6)
    assert pose_distance(back.forward(q), six.forward(q)) == 0.0


def test_the_wrong_number_of_joints_is_refused(six: Chain) -> None:
    with pytest.raises(ValueError, match="5 joint values for the 6 joints j0, j1"):
        six.forward(np.zeros(5))


def test_mistakes_in_names(planar: Path) -> None:
    assert "there is no link 'tol' (did you mean 'tool'?)" in refused(planar, "base", "tol")
    message = refused(planar, "tool", "aside")
    assert "link 'aside' is not below link 'tool'" in message
    assert "choose as base one of: upper, base" in message
    assert "no moving joint 'won' between 'base' and 'tool'" in refused(planar, "base", "tool", ["won", "gripper"])
    assert "no value is given for gripper" in refused(planar, "base", "tool", ["one"])
    assert "a joint is named twice" in refused(planar, "base", "tool", ["one", "gripper", "one"])


def test_joints_that_one_number_cannot_drive(planar: Path) -> None:
    assert "joint 'copy' mimics another joint" in refused(planar, "base", "aside")
    planar.write_text(PLANAR.replace('type="continuous"', 'type="floating"'))
    assert "joint 'gripper' has the type 'floating'" in refused(planar, "base", "tool")
    planar.write_text(PLANAR.replace('xyz="0 0 2"', 'xyz="0 0 0"'))
    assert "joint 'one' has the axis 0 0 0" in refused(planar, "base", "tool")


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('lower="-2" upper="1.5"', 'lower="1.5" upper="-2"', "joint 'one' goes from 1.5 up to -2"),
        ('lower="-2"', 'lower="-${pi}"', r"joint 'one' has lower='-${pi}', which is no number"),
        ('lower="-2"', 'lower=""', "joint 'one' has lower='', which is no number"),
        ('upper="1.5"', 'upper="nan"', "joint 'one' has upper='nan', which is no number"),
        ('xyz="0.5 0 0"', 'xyz="nan 0 0"', "xyz='nan 0 0' is not three numbers"),
        ('xyz="0.5 0 0"', 'xyz="500 0 0"', "joint 'gripper' stands 500 m from the one before it"),
        ('joint name="gripper"', 'joint name="one"', "two joints between 'base' and 'tool' are called 'one'"),
        ('<child link="aside"/>', '<child link="tool"/>', "link 'tool' hangs on two joints, 'end', 'copy'"),
    ],
)
def test_numbers_and_names_that_mean_nothing(planar: Path, right: str, wrong: str, said: str) -> None:
    planar.write_text(PLANAR.replace(right, wrong, 1))
    assert said in refused(planar, "base", "tool")


def test_a_speed_that_is_no_number_and_limits_without_end(planar: Path) -> None:
    planar.write_text(PLANAR.replace('velocity="1"', 'velocity="fast"').replace('lower="-2"', 'lower="-inf"'))
    assert load_chain(planar, "base", "tool").joints[0].lower is None
    with pytest.raises(UserError, match="joint 'one' has velocity='fast', which is no number"):
        velocity_limits(planar, ["one"])


def test_files_that_are_no_urdf(tmp_path: Path) -> None:
    path = tmp_path / "arm.urdf"
    assert "the file does not exist" in refused(path, "a", "b")
    path.write_text("<robot><link")
    assert "is not a URDF" in refused(path, "a", "b")
    path.write_text("<mujoco/>")
    assert "is not a URDF: its root is <mujoco>" in refused(path, "a", "b")
    path.write_text(PLANAR.replace('xyz="0.5 0 0"', 'xyz="${length} 0 0"'))
    assert "xyz='${length} 0 0' is not three numbers" in refused(path, "base", "tool")


def test_where_a_urdf_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, extra, listed = (tmp_path / name for name in ("beside", "extra", "listed"))
    for folder in (beside, extra, listed):
        folder.mkdir()
    monkeypatch.setenv(SEARCH_VARIABLE, f"{tmp_path / 'nowhere'}:{listed}")
    embodiment = beside / "arm.yaml"
    embodiment.touch()
    for folder in (listed, extra, beside):  # each found before those that came earlier in this loop
        (folder / "so101.urdf").touch()
        assert find_urdf("so101.urdf", embodiment, [extra]) == folder / "so101.urdf"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("so101_new_calib.urdf", "TheRobotStudio/SO-ARM100"),
        ("panda.urdf", "example-robot-data"),
        ("g1_29dof_rev_1_0.urdf", "example-robot-data"),
        ("piper_description.urdf", "agilexrobotics/Piper_ros"),
        ("vx300s.urdf", "Interbotix"),
        ("mine.urdf", "the robot's maker"),
    ],
)
def test_an_absent_urdf_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    monkeypatch.delenv(SEARCH_VARIABLE, raising=False)
    with pytest.raises(UserError) as caught:
        find_urdf(name, tmp_path / "arm.yaml", [])
    assert name in str(caught.value)
    assert source in caught.value.fix
    assert "--urdf-dir" in caught.value.fix


@pytest.mark.parametrize(("name", "base", "tip"), REAL)
def test_published_robots_round_trip(real_data: Path, name: str, base: str, tip: str) -> None:
    chain = load_chain(real_data / "urdf" / name, base, tip)
    rng = np.random.default_rng(3)
    low = np.array([-3.0 if j.lower is None else max(j.lower, -3.0) for j in _moving(chain)])
    high = np.array([3.0 if j.upper is None else min(j.upper, 3.0) for j in _moving(chain)])
    q = low + (high - low) * rng.uniform(0.1, 0.9, (10, len(low)))
    poses = chain.forward(q)
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.eye(3)[None].repeat(10, 0), atol=1e-9
    )
    for pose, row in zip(poses, q, strict=True):
        found, metres, radians = chain.inverse(pose, np.clip(row + rng.normal(0, 0.05, len(row)), low, high))
        assert metres < 1e-7
        assert radians < 1e-7
        assert pose_distance(chain.forward(found), pose) < 1e-6


@pytest.mark.parametrize(("name", "base", "tip"), REAL)
def test_agreement_with_pinocchio(real_data: Path, name: str, base: str, tip: str) -> None:
    pinocchio = pytest.importorskip("pinocchio")
    path = real_data / "urdf" / name
    chain = load_chain(path, base, tip)
    model = pinocchio.buildModelFromUrdf(str(path))
    data = model.createData()
    rng = np.random.default_rng(4)
    for _ in range(5):
        q = rng.uniform(-0.5, 0.5, len(chain.movable))
        full = pinocchio.neutral(model)
        for joint, value in zip(chain.movable, q, strict=True):
            place = model.joints[model.getJointId(joint)]
            full[place.idx_q : place.idx_q + place.nq] = value if place.nq == 1 else (np.cos(value), np.sin(value))
        pinocchio.framesForwardKinematics(model, data, full)
        frames = [data.oMf[model.getFrameId(link, pinocchio.BODY)].homogeneous for link in (base, tip)]
        assert pose_distance(chain.forward(q), np.linalg.inv(frames[0]) @ frames[1]) < 1e-12


def _moving(chain: Chain) -> list[ChainJoint]:
    joints = {joint.name: joint for joint in chain.joints}
    return [joints[name] for name in chain.order]
