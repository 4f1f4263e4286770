"""The robot's side: every wrong field is named, limits hold and are counted, kinematic slots return as joints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft import conventions, observation, poses
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Contract, Limits, Quantiles, Slot, Timing
from xwam_ft.errors import UserError
from xwam_ft.kinematics import load_chain
from xwam_ft.limits import Recorded
from xwam_ft.pictures import resize_pictures, turn_pictures

Make = Callable[..., Contract]
POSE = (0.1, -0.2, 0.3, 1.0, 0.0, 0.0, 0.0)
ARM = """<robot name="arm"><link name="l0"/>{}</robot>"""
JOINT = """<link name="l{n}"/><joint name="j{m}" type="revolute"><parent link="l{m}"/><child link="l{n}"/>
<origin xyz="{xyz}"/><axis xyz="{axis}"/><limit lower="-2.8" upper="2.8"/></joint>"""
LAYOUT = [("0 0 .3", "0 0 1"), (".05 0 .1", "0 1 0"), ("0 0 .4", "0 1 0"), (".35 0 0", "1 0 0"), ("0 0 0", "0 1 0"),
          (".1 0 0", "1 0 0")]  # fmt: skip


def observed(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    plain = {
        "images": {"front": picture, "wrist": picture[::-1]},
        "state": {"tool": POSE, "gripper": [0.04]},
        "prompt": " lift ",
    }
    return plain | changes


def refused(contract: Contract, value: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        observation.encode(contract, value)
    return str(caught.value)


def test_a_good_observation(contract: Contract) -> None:
    value = observed()
    encoded = observation.encode(contract, value)
    assert encoded.prompt == "lift"
    np.testing.assert_array_equal(encoded.state, [*POSE, 0.04])
    # Positions of -0.5 to 0.5 m and openings of 0 to 0.08 m become -1 to 1; quaternions stay.
    np.testing.assert_allclose(encoded.proprio, [0.2, -0.4, 0.6, 1.0, 0.0, 0.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_array_equal(encoded.pictures[1], resize_pictures(value["images"]["wrist"][None], 32, 64)[0])


@pytest.mark.parametrize(
    ("picture", "fix"),
    [
        (np.zeros((3, 8, 6), np.uint8), "channels last, picture.transpose(1, 2, 0)"),
        (np.full((8, 6, 3), 0.5, np.float32), "(picture * 255).round().astype(np.uint8)"),
        (np.full((3, 8, 6), 0.5), "picture.transpose(1, 2, 0); from 0 to 1 as here"),
        (np.full((8, 6, 3), 200.0), "from 0 to 255 as here: picture.round().astype(np.uint8)"),
        (np.full((8, 6, 3), -2.1), "not scaled or normalised (here -2.1 to -2.1)"),
        (np.full((8, 6, 3), np.nan), "not scaled or normalised"),
        (np.zeros((1, 8, 6, 3), np.uint8), "without the dimension of a batch"),
        (np.zeros((8, 6), np.uint8), "a grey picture"),
        (np.zeros((8, 6, 4), np.uint8), "without the fourth channel"),
        (b"\xff\xd8\xff", "decoded: of a JPEG or PNG"),
    ],
)
def test_a_picture_in_another_form_is_told_how_it_becomes_one(contract: Contract, picture: Any, fix: str) -> None:
    value = observed()
    value["images"]["front"] = picture
    assert fix in refused(contract, value)


def test_cameras_stand_in_the_contracts_order(contract: Contract) -> None:
    value = observed()
    turned = dict(reversed(list(value["images"].items())))
    encoded = [observation.encode(contract, value | {"images": images}) for images in (value["images"], turned)]
    np.testing.assert_array_equal(encoded[0].pictures, encoded[1].pictures)


@pytest.mark.parametrize("key", ["images", "state", "prompt"])
def test_a_missing_part(contract: Contract, key: str) -> None:
    value = observed()
    del value[key]
    assert f"observation: has no '{key}'" in refused(contract, value)


@pytest.mark.parametrize(
    ("camera", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), "observation.images.front: has shape [4, 4] and type uint8"),
        (np.zeros((3, 4, 4), np.uint8), "has shape [3, 4, 4]"),
        (np.zeros((4, 4, 3), np.float32), "has shape [4, 4, 3] and type float32"),
        (np.zeros((0, 4, 3), np.uint8), "has shape [0, 4, 3]"),
    ],
)
def test_a_wrong_picture(contract: Contract, camera: np.ndarray, sentence: str) -> None:
    images = observed()["images"] | {"front": camera}
    message = refused(contract, observed(images=images))
    assert sentence in message
    assert "give RGB pixels as uint8 [height, width, 3]" in message


def test_missing_and_unknown_names(contract: Contract) -> None:
    images = observed()["images"]
    assert "observation.images: camera 'wrist' is missing (given: front)" in refused(
        contract, observed(images={"front": images["front"]})
    )
    assert "unknown camera 'wrst' (did you mean 'wrist'?)" in refused(
        contract, observed(images=images | {"wrst": images["front"]})
    )
    state = observed()["state"]
    assert "observation.state: slot 'gripper' is missing (given: tool)" in refused(
        contract, observed(state={"tool": POSE})
    )
    assert "unknown slot 'gripperr' (did you mean 'gripper'?)" in refused(
        contract, observed(state=state | {"gripperr": [0]})
    )
    assert "observation.images: images is a list" in refused(contract, observed(images=[images["front"]]))


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (POSE[:6], "observation.state.tool: has shape [6]. Fix: give 7 numbers: tool.x, tool.y"),
        ([POSE], "has shape [1, 7]"),
        ("far left", "is not numbers ('far left')"),
        ((0.1, float("nan"), *POSE[2:]), "holds nan. Fix: send finite numbers only"),
        ((0.1, float("-inf"), *POSE[2:]), "holds -inf"),
        ((0.1, 0.2, 0.3, 0, 0, 0, 0), "has a quaternion of length 0"),
        ((0.1, 0.2, 0.3, 2, 0, 0, 0), "has a quaternion of length 2"),
        ((0.1, 0.2, 0.3, 1.06, 0, 0, 0), "has a quaternion of length 1.06"),
        ((0.1, 0.2, 0.3, 0.94, 0, 0, 0), "has a quaternion of length 0.94"),
        ((0.1, -1.1e6, 0.3, 1, 0, 0, 0), "y is -1.1e+06, 1e+06 times beyond what was recorded"),
    ],
)
def test_a_wrong_state(contract: Contract, tool: Any, sentence: str) -> None:
    assert sentence in refused(contract, observed(state={"tool": tool, "gripper": [0.04]}))


@pytest.mark.parametrize("prompt", ["", "  ", None, 3])
def test_a_wrong_prompt(contract: Contract, prompt: Any) -> None:
    assert f"observation.prompt: prompt is {prompt!r}, not an instruction" in refused(contract, observed(prompt=prompt))


def test_a_drivers_rounding_of_a_quaternion_is_mended(contract: Contract) -> None:
    for length in (0.96, 1.04):
        tool = (0.1, 0.2, 0.3, length, 0, 0, 0)
        state = observation.encode(contract, observed(state={"tool": tool, "gripper": [0.04]})).state
        np.testing.assert_array_equal(state[3:7], [1, 0, 0, 0])


def test_a_negative_quaternion_is_the_same_pose(contract: Contract) -> None:
    turned = np.array([0, 0, 0, 0.8, 0.0, 0.6, 0.0])
    states = [
        observation.encode(
            contract, observed(state={"tool": np.concatenate([turned[:3], s * turned[3:]]), "gripper": [0]})
        )
        for s in (1, -1)
    ]
    np.testing.assert_array_equal(states[0].state, states[1].state)


def test_limits_hold_and_every_moved_number_is_counted(contract_with: Make) -> None:
    plain = contract_with()
    tool = plain.slot("tool").model_copy(update={"limits": Limits(low=(-1.0, -1.0, 0.25), high=(1.0, 1.0, 1.0))})
    grip = plain.slot("gripper").model_copy(update={"limits": Limits(low=(0.0,), high=(0.06,))})
    contract = contract_with(slots=(tool, grip))
    state = np.array([*POSE, 0.04])
    raw = np.zeros((3, 7))
    raw[:, 2] = [-0.1, -0.05, 0.1]  # z 0.2, 0.25, 0.4
    raw[:, 6] = [0.07, 0.05, -0.01]
    commands = observation.decode(contract, conventions.normalise_action(contract, raw), state)
    np.testing.assert_allclose(commands.table[:, 2], [0.25, 0.25, 0.4])
    np.testing.assert_allclose(commands.table[:, 7], [0.06, 0.05, 0.0])
    assert commands.clamped["gripper"] == 2
    assert commands.clamped["tool"] in (1, 2)  # 0.3 - 0.05 may round below 0.25
    np.testing.assert_array_equal(commands.slots["gripper"], commands.table[:, 7:])


def swift_contract(make: Make, *, tool: Limits | None = None, grip: Limits | None = None) -> Contract:
    """Limits on the standard contract, whose action period is 0.1 s; joints and vectors go the gripper's way."""
    plain = make()
    slots = (
        plain.slot("tool").model_copy(update={"limits": tool}),
        plain.slot("gripper").model_copy(update={"limits": grip}),
    )
    return make(slots=slots)


def decoded(contract: Contract, raw: np.ndarray, **options: Any) -> observation.Commands:
    """Actions in SI from POSE and a gripper at 0.04."""
    action = conventions.normalise_action(contract, raw)
    return observation.decode(contract, action, np.array([*POSE, 0.04]), **options)


def test_speed_is_bounded_from_command_to_command_and_first_from_the_state(contract_with: Make) -> None:
    contract = swift_contract(contract_with, grip=Limits(speed=(0.1,)))  # 0.01 a period
    raw = np.zeros((5, 7))
    raw[:, 6] = [0.07, 0.07, 0.065, 0.02, 0.045]
    commands = decoded(contract, raw)
    # From 0.04 at most 0.01 a step; 0.06 to 0.065 is slow enough; down again at the same rate, where 0.045 is reached.
    np.testing.assert_allclose(commands.table[:, 7], [0.05, 0.06, 0.065, 0.055, 0.045], atol=1e-12)
    assert commands.clamped == {"gripper": 3}
    np.testing.assert_array_equal(commands.slots["gripper"], commands.table[:, 7:])


def test_a_pose_is_slowed_along_its_path_and_about_its_axis(contract_with: Make) -> None:
    contract = swift_contract(contract_with, tool=Limits(speed=(0.5, 2.0)))  # 0.05 m and 0.2 rad a period
    raw = np.zeros((4, 7))
    raw[:, :3] = np.array([0.06, 0.0, 0.08]) * np.array([[1], [1], [1], [0.9]])  # 0.1 m away, then nearer
    raw[:, 4] = [0.1, 0.5, 0.5, 0.5]
    raw[:, 6] = 0.04
    commands = decoded(contract, raw)
    gone = commands.table[:, :3] - POSE[:3]
    np.testing.assert_allclose(gone, np.array([0.6, 0.0, 0.8]) * np.array([[0.05], [0.1], [0.1], [0.09]]), atol=1e-9)
    turned = poses.pose_difference(commands.table[:, :7], np.tile(POSE, (4, 1)))[:, 3:]
    np.testing.assert_allclose(turned, np.array([0.0, 1.0, 0.0]) * np.array([[0.1], [0.3], [0.5], [0.5]]), atol=1e-9)
    # One position of three numbers, of which y stays, and one quaternion of which w and y turn.
    assert commands.clamped == {"tool": 2 + 2}


@pytest.mark.parametrize("seed", range(4))
def test_no_step_is_faster_than_its_limit_and_slow_chunks_stay_to_the_bit(contract_with: Make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fast, slow = Limits(speed=(0.3, 0.8)), Limits(speed=(0.05,))
    contract = swift_contract(contract_with, tool=fast, grip=slow)
    raw = rng.normal(0, 0.2, (8, 7))
    commands = decoded(contract, raw)
    path = np.concatenate([[[*POSE, 0.04]], commands.table])
    change = poses.pose_difference(path[1:, :7], path[:-1, :7])
    assert np.linalg.norm(change[:, :3], axis=1).max() <= 0.03 + 1e-12
    assert np.linalg.norm(change[:, 3:], axis=1).max() <= 0.08 + 1e-7
    assert np.abs(np.diff(path[:, 7])).max() <= 0.005 + 1e-12
    free = decoded(swift_contract(contract_with), raw).table
    assert sum(commands.clamped.values()) == np.count_nonzero(commands.table != free)
    unlimited = swift_contract(contract_with, tool=Limits(speed=(1e3, 1e3)), grip=Limits(speed=(1e3,)))
    calm = decoded(unlimited, raw)
    np.testing.assert_array_equal(calm.table, free)
    assert calm.clamped == {}


def test_from_outside_the_workspace_the_way_back_is_slow_too(contract_with: Make) -> None:
    contract = swift_contract(contract_with, grip=Limits(low=(0.0,), high=(0.02,), speed=(0.05,)))
    raw = np.zeros((5, 7))
    raw[:, 6] = 0.03
    commands = decoded(contract, raw)
    np.testing.assert_allclose(commands.table[:, 7], [0.035, 0.03, 0.025, 0.02, 0.02], atol=1e-12)
    assert commands.clamped["gripper"] in (4, 5)  # the second is where it should be, but for rounding


def test_commands_under_way_are_left_and_gone_on_from(contract_with: Make) -> None:
    contract = swift_contract(contract_with, grip=Limits(speed=(0.1,)))
    raw = np.zeros((4, 7))
    raw[:, 6] = [0.06, 0.07, 0.09, 0.09]
    commands = decoded(contract, raw, underway=2)
    np.testing.assert_allclose(commands.table[:, 7], [0.06, 0.07, 0.08, 0.09], atol=1e-12)
    assert commands.clamped == {"gripper": 1}
    assert decoded(contract, raw[:2], underway=2).clamped == {}


def test_a_period_is_that_of_the_actions_not_of_the_frames(contract_with: Make) -> None:
    """Every second of 10 frames a second is an action: 0.2 s, in which 0.1 a second is 0.02."""
    slow = swift_contract(contract_with, grip=Limits(speed=(0.1,)))
    contract = slow.model_copy(update={"timing": Timing(fps=10.0, frame_skip=4, action_skip=2, clip_frames=5)})
    raw = np.zeros((4, 7))
    raw[:, 6] = 0.08
    np.testing.assert_allclose(decoded(contract, raw).table[:, 7], [0.06, 0.08, 0.08, 0.08], atol=1e-12)


def test_nothing_to_clamp_is_nothing_counted(contract: Contract) -> None:
    commands = observation.decode(contract, np.zeros((2, 7)), np.array([*POSE, 0.04]))
    assert commands.clamped == {}
    assert commands.residual == {}


def test_decoding_returns_the_recorded_commands(contract: Contract, segment: Any) -> None:
    state, wanted = segment.proprio[3], segment.action[3:11]
    action = conventions.normalise_action(contract, conventions.encode_actions(contract, wanted, state))
    np.testing.assert_allclose(observation.decode(contract, action, state).table, wanted, atol=1e-12)


def test_an_action_that_is_not_finite_goes_nowhere(contract: Contract) -> None:
    action = np.zeros((2, 7))
    action[1, 3] = np.nan
    with pytest.raises(UserError, match="action: holds numbers that are not finite"):
        observation.decode(contract, action, np.array([*POSE, 0.04]))


def kinematic_contract(make: Make, folder: Path) -> Contract:
    """Six joints in, a pose inside; a gripper whose two fingers are averaged and driven alike."""
    joints = "".join(JOINT.format(m=i, n=i + 1, xyz=xyz, axis=axis) for i, (xyz, axis) in enumerate(LAYOUT))
    (folder / "arm.urdf").write_text(ARM.format(joints))
    chain = load_chain(folder / "arm.urdf", "l0", "l6")
    tool = Slot(
        name="tool", kind="pose", columns=tuple(chain.movable), elements=POSE_ELEMENTS, units=POSE_UNITS,
        transform="forward_kinematics", chain=chain, convention="relative_to_chunk_start",
    )  # fmt: skip
    grip = Slot(
        name="gripper", kind="gripper", columns=("left", "right"), elements=("opening",), units=("m",),
        transform="mean", expand="equal", convention="absolute",
    )  # fmt: skip
    return make(
        slots=(tool, grip),
        quantiles=Quantiles(
            proprio_low=(-1.0,) * 8, proprio_high=(1.0,) * 8, action_low=(-1.0,) * 7, action_high=(1.0,) * 7
        ),
    )


def test_a_kinematic_slot_takes_joints_and_gives_joints(contract_with: Make, tmp_path: Path) -> None:
    contract = kinematic_contract(contract_with, tmp_path)
    start = np.array([0.1, 0.5, 0.6, -0.2, 0.8, 0.3])
    path = start + np.linspace(0, 1, 5)[:, None] * np.array([0.2, -0.1, 0.15, 0.3, 0.2, -0.4])
    value = observed(state={"tool": start, "gripper": [0.02, 0.04]})
    encoded = observation.encode(contract, value)
    assert encoded.state[7] == pytest.approx(0.03)
    commands = np.concatenate([observation.slot_state(contract.slot("tool"), path), np.full((5, 1), 0.05)], axis=1)
    np.testing.assert_allclose(encoded.state[:7], commands[0, :7], atol=1e-12)
    action = conventions.normalise_action(contract, conventions.encode_actions(contract, commands, encoded.state))
    decoded = observation.decode(contract, action, encoded.state, value)
    np.testing.assert_allclose(decoded.slots["tool"], path, atol=1e-6)
    assert decoded.residual["tool"].shape == (5, 2)
    assert decoded.residual["tool"].max() < 1e-8
    np.testing.assert_allclose(decoded.slots["gripper"], np.full((5, 2), 0.05), atol=1e-12)


@pytest.mark.parametrize("transform", ["mean", "max", "norm"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fingers_sent_what_a_command_says_report_that_command(contract_with: Make, transform: str, count: int) -> None:
    columns = tuple(f"finger{number}" for number in range(count))
    plain = contract_with()
    changes = {"columns": columns, "transform": transform, "expand": "equal"}
    grip = Slot.model_validate(plain.slot("gripper").model_dump() | changes)
    contract = contract_with(slots=(plain.slot("tool"), grip))
    raw = np.zeros((3, 7))
    raw[:, 6] = [0.02, 0.05, 0.08]
    sent = decoded(contract, raw).slots["gripper"]
    assert sent.shape == (3, count)
    assert (sent == sent[:, :1]).all(), "all fingers alike"
    np.testing.assert_allclose(observation.slot_state(grip, sent)[:, 0], raw[:, 6], atol=1e-12)


@pytest.mark.parametrize(("transform", "state"), [("mean", 0.05), ("max", 0.08), ("norm", np.hypot(0.02, 0.08))])
def test_unlike_fingers_are_reduced_as_they_are_said_to_be(contract_with: Make, transform: str, state: float) -> None:
    plain = contract_with()
    changes = {"columns": ("left", "right"), "transform": transform, "expand": "equal"}
    grip = Slot.model_validate(plain.slot("gripper").model_dump() | changes)
    contract = contract_with(slots=(plain.slot("tool"), grip))
    encoded = observation.encode(contract, observed(state={"tool": POSE, "gripper": [0.02, 0.08]}))
    assert encoded.state[7] == pytest.approx(state)


def test_an_unreachable_pose_shows_in_the_residual(contract_with: Make, tmp_path: Path) -> None:
    contract = kinematic_contract(contract_with, tmp_path)
    value = observed(state={"tool": [0.1, 0.5, 0.6, -0.2, 0.8, 0.3], "gripper": [0.02, 0.04]})
    state = observation.encode(contract, value).state
    action = np.zeros((1, 7))
    action[0, 0] = 3.0  # three metres away
    assert observation.decode(contract, action, state, value).residual["tool"][0, 0] > 1.0


def test_an_absent_arm_is_not_asked_for(contract_with: Make) -> None:
    plain = contract_with()
    absent = plain.slot("tool").model_copy(update={"present": False})
    contract = contract_with(slots=(absent, plain.slot("gripper")))
    encoded = observation.encode(contract, observed(state={"gripper": [0.04]}))
    np.testing.assert_array_equal(encoded.state, [0] * 7 + [0.04])
    assert list(observation.decode(contract, np.zeros((2, 7)), encoded.state).slots) == ["gripper"]


@pytest.mark.parametrize(("rotate", "mirror"), [(180, False), (90, True), (0, True)])
def test_live_pictures_are_turned_as_recorded_ones_were(contract_with: Make, rotate: int, mirror: bool) -> None:
    plain = contract_with()
    turned = [plain.cameras[0].model_copy(update={"rotate": rotate, "mirror": mirror}), plain.cameras[1]]
    value = observed()
    encoded = observation.encode(contract_with(cameras=tuple(turned)), value).pictures
    upright = turn_pictures(value["images"]["front"], rotate, mirror=mirror)
    np.testing.assert_array_equal(encoded[0], resize_pictures(upright[None], 32, 64)[0])
    np.testing.assert_array_equal(encoded[1], observation.encode(plain, value).pictures[1])


def test_a_tool_that_points_down_is_shown_without_jumps_and_live_as_in_training(contract_with: Make) -> None:
    angle = np.deg2rad(180 + np.linspace(-40, 40, 81))  # about x, through w = 0
    turns = np.stack([np.cos(angle / 2), np.sin(angle / 2), 0 * angle, 0 * angle], axis=1)
    state = np.zeros((81, 8))
    state[:, 3:7] = poses.canonical_quaternion(turns)
    assert (np.abs(np.diff(state[:, 3:7], axis=0)).max(axis=1) > 1).sum() == 1  # as w >= 0 has it
    around = {"tool": (0.0, 1.0, 0.0, 0.0)}
    contract = contract_with(recorded=Recorded(hemispheres=around))
    shown = conventions.normalise_proprio(contract, state)
    assert np.abs(np.diff(shown[:, 3:7], axis=0)).max() < 0.02
    assert (shown[:, 4] > 0.9).all(), "nearer to what the recordings are around than to its negative"
    for row in (0, 40, 41, 80):
        for sign in (1.0, -1.0):  # a driver may report either
            reported = {"tool": [*state[row, :3], *(sign * state[row, 3:7])], "gripper": [state[row, 7]]}
            live = observation.encode(contract, observed(state=reported))
            np.testing.assert_allclose(live.proprio, shown[row], atol=1e-12)
    # What the model says of it is the same orientation, and a state again has w >= 0.
    np.testing.assert_allclose(conventions.denormalise_proprio(contract, shown), state, atol=1e-9)
    plain = conventions.normalise_proprio(contract_with(), state)
    np.testing.assert_allclose(plain[:, 3:7], state[:, 3:7], atol=1e-15)  # contracts without one mean what they meant


def test_recorded_limits_hold_where_nothing_is_stated(contract_with: Make) -> None:
    known = {"gripper": Limits(low=(0.0,), high=(0.06,), speed=(1.0,)), "tool": Limits(low=(0, -1, 0), high=(1, 1, 1))}
    plain = contract_with()
    contract = contract_with(recorded=Recorded(limits=known))
    raw = np.zeros((3, 7))
    raw[:, 2], raw[:, 6] = [0.0, -0.5, -2.3], [0.05, 0.04, 2.3]
    commands = decoded(contract, raw)
    assert commands.clamped == {"tool": 2, "gripper": 1}
    np.testing.assert_allclose(commands.table[:, 2], [0.3, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(commands.table[:, 7], [0.05, 0.04, 0.06], atol=1e-12)
    within = np.zeros((3, 7))
    within[:, 6] = 0.05
    assert decoded(contract, within).clamped == {}
    np.testing.assert_array_equal(decoded(contract, within).table, decoded(plain, within).table)
    grip = plain.slot("gripper").model_copy(update={"limits": Limits(speed=(0.1,))})  # stated in part
    slots = (plain.slot("tool"), grip)
    assert contract_with(slots=slots, recorded=Recorded(limits=known)).limits("gripper") == Limits(
        low=(0.0,), high=(0.06,), speed=(0.1,)
    )


def test_joints_are_held_after_inverse_kinematics(tmp_path: Path, contract_with: Make) -> None:
    contract = kinematic_contract(contract_with, tmp_path)
    chain = contract.slot("tool").chain
    assert chain is not None
    seed = np.array([0.1, 0.4, 0.6, 0.2, 0.5, 0.0])
    state = np.concatenate([poses.matrix_pose(chain.forward(seed[None]))[0], [0.04]])
    goal = seed + np.linspace(0, 1, 5)[1:, None] * np.array([0.8, 0.0, 0.0, 0.0, 0.0, 0.0])
    targets = poses.matrix_pose(chain.forward(goal))
    commands = np.concatenate([targets, np.full((4, 1), 0.04)], axis=1)
    action = conventions.normalise_action(contract, conventions.encode_actions(contract, commands, state))
    request = observed(state={"tool": seed, "gripper": [0.02, 0.06]})
    free = observation.decode(contract, action, state, request)
    np.testing.assert_allclose(free.slots["tool"], goal, atol=1e-6)
    assert free.clamped == {}
    held = Limits(joints=Limits(low=(-0.5,) * 6, high=(0.5, 0.5, 0.7, 0.5, 0.6, 0.5), speed=(1.5,) * 6))
    limited = contract.model_copy(update={"recorded": Recorded(limits={"tool": held})})
    bounded = observation.decode(limited, action, state, request)
    np.testing.assert_allclose(bounded.slots["tool"][:, 0], [0.25, 0.4, 0.5, 0.5], atol=1e-6)  # 0.15 rad a period
    assert bounded.clamped["tool"] >= 4
    missed = np.abs(goal[:, 0] - bounded.slots["tool"][:, 0])  # about the first joint's axis
    np.testing.assert_allclose(bounded.residual["tool"][:, 1], missed, atol=1e-6)
    wide = Limits(joints=Limits(low=(-3.0,) * 6, high=(3.0,) * 6, speed=(100.0,) * 6))
    unlimited = contract.model_copy(update={"recorded": Recorded(limits={"tool": wide})})
    calm = observation.decode(unlimited, action, state, request)
    np.testing.assert_array_equal(calm.slots["tool"], free.slots["tool"])
    assert calm.clamped == {}


def test_stated_limits_win_over_recorded_ones_and_take_from_them_what_they_do_not_say() -> None:
    joints = Limits(low=(-1.0,), high=(1.0,))
    recorded = Limits(low=(0.0,), high=(0.06,), speed=(1.0,), joints=joints)
    stated = Limits(low=(0.01,), high=(0.05,))
    assert stated.completed(recorded) == Limits(low=(0.01,), high=(0.05,), speed=(1.0,), joints=joints)
    assert Limits(speed=(0.1,)).completed(recorded) == Limits(low=(0.0,), high=(0.06,), speed=(0.1,), joints=joints)
    assert stated.completed(None) == stated


def test_joint_commands_under_way_are_left_and_gone_on_from(tmp_path: Path, contract_with: Make) -> None:
    contract = kinematic_contract(contract_with, tmp_path)
    chain = contract.slot("tool").chain
    assert chain is not None
    seed = np.array([0.1, 0.4, 0.6, 0.2, 0.5, 0.0])
    state = np.concatenate([poses.matrix_pose(chain.forward(seed[None]))[0], [0.04]])
    goal = seed + np.arange(1, 5)[:, None] * np.array([0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    commands = np.concatenate([poses.matrix_pose(chain.forward(goal)), np.full((4, 1), 0.04)], axis=1)
    action = conventions.normalise_action(contract, conventions.encode_actions(contract, commands, state))
    limited = contract.model_copy(
        update={"recorded": Recorded(limits={"tool": Limits(joints=Limits(speed=(1.5,) * 6))})}
    )
    request = observed(state={"tool": seed, "gripper": [0.02, 0.06]})
    out = observation.decode(limited, action, state, request, underway=2)
    # The first two are 0.2 apart, as they are executed; from the second on at most 0.15 a period.
    np.testing.assert_allclose(out.slots["tool"][:, 0], [0.3, 0.5, 0.65, 0.8], atol=1e-6)
