"""Options, warnings, the example observation, and what the robot takes as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft import observation
from xwam_ft.contract import Contract, Limits
from xwam_ft.errors import UserError
from xwam_ft.kinematics import load_chain
from xwam_ft.limits import Recorded, Turns
from xwam_ft.policy import request
from xwam_ft.policy.policy import Policy


@pytest.fixture
def example(contract: Contract) -> dict[str, Any]:
    return request.example_observation(contract, "pick up the cube")


def test_the_example_fits_the_contract_and_looks_plausible(contract: Contract, example: dict[str, Any]) -> None:
    inputs = observation.encode(contract, example)
    assert request.implausible(contract, inputs) == ()
    assert request.read_options(example, contract) == request.Options()


def test_every_shipped_kind_of_slot_has_an_example(contract: Contract) -> None:
    finger = contract.slot("gripper")
    changes = {"columns": ("l", "r"), "transform": "norm", "expand": "equal"}
    two = finger.model_copy(update=changes)
    other = contract.model_copy(update={"slots": (contract.slot("tool"), two)})
    inputs = observation.encode(other, request.example_observation(other, "x"))
    assert inputs.state[-1] == pytest.approx(0.04)  # the middle of 0 and 0.08, whatever the columns
    assert request.command_columns(other)[-2:] == ["gripper.l", "gripper.r"]
    assert request.command_units(other) == ["m", "m", "m", "1", "1", "1", "1", "m", "m"]


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_units_and_dead_cameras_get_a_warning(contract: Contract, example: dict[str, Any], colour: int) -> None:
    example["state"]["tool"] = example["state"]["tool"] + np.array([0, 350.0, 0, 0, 0, 0, 0])
    example["images"]["wrist"] = np.full((4, 4, 3), colour, np.uint8)
    camera, unit = request.implausible(contract, observation.encode(contract, example))
    assert "'wrist' shows one colour" in camera
    assert unit == "tool.y is 350; recordings held -0.5 to 0.5 m: is it in that unit?"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_state_is_unlike_the_recordings_from_three_times_their_range_on(
    contract: Contract, example: dict[str, Any], sign: int
) -> None:
    """1 % and 99 % of tool.y lie at -0.5 and 0.5 m, so that 1.45 m is 2.9 times as far out and 1.55 m 3.1 times."""
    for metres, warnings in ((1.45, 0), (1.55, 1)):
        example["state"]["tool"] = np.array([0, sign * metres, 0, 1, 0, 0, 0])
        found = request.implausible(contract, observation.encode(contract, example))
        assert len(found) == warnings, (metres, found)


def test_a_camera_of_another_shape_gets_a_warning_and_a_turned_one_is_turned_first(
    contract: Contract, example: dict[str, Any]
) -> None:
    """Recordings were 64 x 32, twice as wide as high: half a per cent off is rounding, a tenth is another mode."""
    picture = np.random.default_rng(0).integers(0, 255, (400, 804, 3), dtype=np.uint8)
    inputs = observation.encode(contract, example)
    assert request.implausible(contract, inputs, {**example["images"], "front": picture}) == ()
    for wide in (720, 880):
        (said,) = request.implausible(contract, inputs, {**example["images"], "front": picture[:, :1].repeat(wide, 1)})
        assert f"camera 'front' gives {wide}x400; recordings were 64x32" in said
    quarter, half = (
        contract.model_copy(
            update={"cameras": (contract.cameras[0].model_copy(update={"rotate": turn}), contract.cameras[1])}
        )
        for turn in (90, 180)
    )
    upright = {**example["images"], "front": picture.transpose(1, 0, 2)}
    assert request.implausible(quarter, inputs, upright) == ()
    assert request.implausible(half, inputs, {**example["images"], "front": picture}) == ()
    assert len(request.implausible(half, inputs, upright)) == 1


def test_numbers_without_a_unit_get_a_warning_of_their_own(contract: Contract, example: dict[str, Any]) -> None:
    gripper = contract.slot("gripper").model_copy(update={"units": ("1",)})
    example["state"]["gripper"] = np.array([80.0])
    other = contract.model_copy(update={"slots": (contract.slot("tool"), gripper)})
    assert request.implausible(other, observation.encode(other, example)) == (
        "gripper.width is 80; recordings held 0 to 0.08: is it on that scale?",
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"sed": 1}, "unknown option 'sed' (did you mean 'seed'?)"),
        ({"seed": -1}, "options.seed: is -1"),
        ({"seed": 2**64 - 1}, "options.seed"),
        ({"seed": True}, "options.seed: is True"),
        ({"action_steps": 0}, "from 1 to 1000"),
        ({"action_steps": 2.5}, "is 2.5"),
        ({"chunk": 9}, "from 1 to 8"),
        ({"guidance": float("nan")}, "options.guidance: is nan"),
        ({"guidance": "much"}, "from 0 to 100"),
        ({"prefix": np.zeros((2, 7))}, "options.prefix: has shape [2, 7]"),
        ({"prefix": np.zeros((9, 8))}, "up to 8 rows of 8"),
        ({"prefix": [[float("inf")] * 8]}, "not finite"),
        ({"prefix": "all"}, "is not numbers"),
        ([1], "is a list"),
    ],
)
def test_an_option_out_of_range(contract: Contract, options: object, part: str) -> None:
    with pytest.raises(UserError) as error:
        request.read_options({"options": options}, contract)
    assert part in str(error.value)


def test_an_unknown_key_of_an_observation(contract: Contract) -> None:
    with pytest.raises(UserError, match=r"unknown key 'image' \(did you mean 'images'"):
        request.read_options({"image": {}}, contract)


def test_options_are_those_of_the_settings(bundle: Path) -> None:
    policy = Policy.load(bundle, "cpu", selfcheck=False)
    policy.warm_up()
    assert policy.calls == 0
    example = request.example_observation(policy.contract, "pick up the cube")

    def asked(**options: Any) -> np.ndarray:
        return policy.infer({**example, "options": options}).action

    plain = asked(seed=3)
    np.testing.assert_array_equal(asked(seed=3, chunk=3), plain[:3])
    np.testing.assert_array_equal(policy.infer(example, seed=3).action, plain)
    other, steps = policy.settings, policy.settings.action_steps + 1
    assert np.abs(asked(seed=3, action_steps=steps, guidance=2.0) - plain).max() > 1e-5
    policy.settings = type(other)(other.seed, steps, other.video_steps, 2.0, other.shift)
    np.testing.assert_array_equal(asked(seed=3), policy.infer(example, seed=3).action)
    np.testing.assert_array_equal(asked(seed=3, action_steps=other.action_steps, guidance=other.guidance), plain)


def test_a_chunk_goes_on_from_the_commands_still_to_be_executed(bundle: Path) -> None:
    """Real-time chunking: the answer begins with the prefix, and what follows depends on it."""
    policy = Policy.load(bundle, "cpu", selfcheck=False)
    contract = policy.contract
    example = request.example_observation(contract, "pick up the cube")
    plain = policy.infer(example, seed=0)
    ahead = request.command_table(contract, plain.commands.slots)[2:5]
    policy.action_prefix = 0
    with pytest.raises(UserError, match="trained without action prefixes"):
        policy.infer({**example, "options": {"prefix": ahead}})
    policy.action_prefix = 3
    out = policy.infer({**example, "options": {"prefix": ahead}}, seed=0)
    np.testing.assert_allclose(request.command_table(contract, out.commands.slots)[:3], ahead, atol=1e-6)
    assert np.abs(out.action[3:] - plain.action[3:]).max() > 1e-4
    same = policy.infer({**example, "options": {"prefix": ahead[:0]}}, seed=0)
    np.testing.assert_array_equal(same.action, plain.action)
    with pytest.raises(UserError, match="has 4 commands, and this bundle was trained with up to 3"):
        policy.infer({**example, "options": {"prefix": ahead[[0, 0, 1, 2]]}})
    with pytest.raises(UserError, match="is 2, and the prefix has 3 commands already"):
        policy.infer({**example, "options": {"prefix": ahead, "chunk": 2}})
    slow = Recorded(limits={"gripper": Limits(speed=(1e-6,))})  # what is executed already is not slowed down
    limited = Policy(policy.network, policy.codec, policy.prompts, contract.model_copy(update={"recorded": slow}),
                     policy.settings, action_prefix=3)  # fmt: skip
    held = limited.infer({**example, "options": {"prefix": ahead}}, seed=0).commands.table[:, -1]
    np.testing.assert_allclose(held[:3], ahead[:, -1], atol=1e-6)
    np.testing.assert_allclose(held[3:], held[2], atol=1e-6)
    far = ahead.copy()
    far[:, 0] += 50.0  # metres
    with pytest.raises(UserError, match="times the largest recorded change from the state observed now"):
        policy.infer({**example, "options": {"prefix": far}})


def test_rows_are_what_the_table_was_made_of(contract: Contract) -> None:
    finger = contract.slot("gripper").model_copy(update={"columns": ("l", "r"), "transform": "mean", "expand": "equal"})
    other = contract.model_copy(update={"slots": (contract.slot("tool"), finger)})
    pose = np.array([[0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0]])
    table = request.command_table(other, {"tool": pose, "gripper": np.array([[0.04, 0.04]])})
    np.testing.assert_allclose(request.command_rows(other, table), np.concatenate([pose, [[0.04]]], axis=1))


def test_rows_of_a_robot_without_an_arm_have_that_arm_s_zeros(contract: Contract) -> None:
    """The contract's layout keeps the place of a slot this robot lacks; what the robot takes does not."""
    absent = contract.slot("tool").model_copy(update={"present": False})
    other = contract.model_copy(update={"slots": (absent, contract.slot("gripper"))})
    table = request.command_table(other, {"gripper": np.array([[0.04], [0.05]])})
    assert table.shape == (2, 1)
    rows = request.command_rows(other, table)
    np.testing.assert_array_equal(rows, [[0.0] * 7 + [0.04], [0.0] * 7 + [0.05]])
    options = request.read_options({"options": {"prefix": [[0.04], [0.05]]}}, other)
    np.testing.assert_array_equal(options.prefix, table)


def test_a_state_that_no_robot_reports_is_the_observation_s_fault(bundle: Path) -> None:
    policy = Policy.load(bundle, "cpu", selfcheck=False)
    example = request.example_observation(policy.contract, "pick up the cube")
    name = next(iter(example["state"]))
    example["state"][name] = np.array([1e30, *example["state"][name][1:]])
    with pytest.raises(UserError, match=rf"observation.state.{name}: .* is 1e\+30, 1e\+06 times beyond"):
        policy.infer(example)


def turned(contract: Contract, around: tuple[float, ...], degrees: float) -> Contract:
    found = Recorded(turns={"tool": Turns(around=around, most=float(np.deg2rad(degrees)))})
    return contract.model_copy(update={"recorded": found})


def test_a_quaternion_in_another_order_is_told_with_the_order_that_would_fit(
    contract: Contract, example: dict[str, Any]
) -> None:
    """A tool that points down, to 20 degrees: w x y z is 0 1 0 0, and x y z w is 1 0 0 0."""
    known = turned(contract, (0.0, 1.0, 0.0, 0.0), 20)

    def said(*quaternion: float) -> tuple[str, ...]:
        example["state"]["tool"] = np.array([0.0, 0.0, 0.0, *quaternion])
        return request.implausible(known, observation.encode(known, example))

    assert said(0, 1, 0, 0) == said(0, -1, 0, 0) == ()  # q and -q are one orientation
    (order,) = said(1, 0, 0, 0)
    assert order == (
        "tool is turned 180 degrees from what the recordings are around, which went to 20: read as x y z w it would "
        "be among them: send w x y z"
    )
    (frame,) = said(0, 0, 1, 0)
    assert "is its quaternion w x y z, and of the recordings' base and tool frame?" in frame
    for degrees, count in ((63, 0), (67, 1)):  # 45 beyond what was recorded
        half = np.deg2rad(degrees) / 2
        assert len(said(0, float(np.cos(half)), float(np.sin(half)), 0)) == count
    assert request.implausible(contract, observation.encode(contract, example)) == ()  # nothing is known of turns
    assert request.implausible(known, observation.encode(known, request.example_observation(known, "x"))) == ()


def test_one_picture_under_two_names_is_told(contract: Contract, example: dict[str, Any]) -> None:
    example["images"]["wrist"] = example["images"]["front"]
    (said,) = request.implausible(contract, observation.encode(contract, example))
    assert said == "cameras 'front' and 'wrist' give the very same picture: is one of them sent twice?"


URDF = """<robot name="arm"><link name="l0"/><link name="l1"/><link name="l2"/>
<joint name="lift" type="revolute"><parent link="l0"/><child link="l1"/><origin xyz="0 0 .3"/><axis xyz="0 1 0"/>
<limit lower="-2.8" upper="2.8"/></joint>
<joint name="turn" type="revolute"><parent link="l1"/><child link="l2"/><origin xyz=".4 0 0"/><axis xyz="0 0 1"/>
<limit lower="-2.8" upper="2.8"/></joint></robot>"""


def test_joints_in_degrees_are_told_where_a_pose_is_computed_from_them(contract: Contract, tmp_path: Path) -> None:
    """Whatever the joints, the pose lies within the arm's reach, which is not far."""
    (tmp_path / "arm.urdf").write_text(URDF)
    chain = load_chain(tmp_path / "arm.urdf", "l0", "l2")
    changes = {"columns": tuple(chain.movable), "transform": "forward_kinematics", "chain": chain}
    arm = contract.slot("tool").model_copy(update=changes)
    joints = Limits(low=(-0.5, -0.5), high=(0.5, 0.5))
    known = Recorded(limits={"tool": Limits(low=(-0.5,) * 3, high=(0.5,) * 3, joints=joints)})
    other = contract.model_copy(update={"slots": (arm, contract.slot("gripper")), "recorded": known})
    example = request.example_observation(other, "x")

    def said(radians: float) -> list[str]:
        example["state"]["tool"] = np.array([0.1, radians])
        found = request.implausible(other, observation.encode(other, example), None, example["state"])
        return [sentence for sentence in found if "joint" in sentence]

    assert request.command_units(other) == ["rad", "rad", "m"]
    assert len(request.command_columns(other)) == 3
    assert said(1.4) == []
    assert said(np.rad2deg(0.4)) == ["tool: joint turn is 22.92; recordings held -0.5 to 0.5 rad: is it in that unit?"]
