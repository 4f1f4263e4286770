"""Each convention inverts itself given exactly the states it needs; accumulating the wrong one errs as predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xwam_ft import conventions, poses
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Contract, Convention, Quantiles, Slot

Make = Callable[..., Contract]
RELATIVE = [name for name in get_args(Convention) if name != "absolute"]
STEPS = 8


def mixed(make: Make, convention: str) -> Contract:
    """A commanded pose, an observed-only vector, joints and a gripper, in that order, under one convention."""
    pose = "relative_to_chunk_start" if convention == "absolute" else convention
    raw = convention == "xwam_robocasa_raw"
    slots = (
        Slot(
            name="tool", kind="pose", columns=POSE_ELEMENTS, elements=POSE_ELEMENTS, units=POSE_UNITS, convention=pose,
            command_units=("1",) * 6 if raw else None,
        ),
        Slot(name="force", kind="vector", columns=("f",), elements=("f",), units=("1",)),
        Slot(
            name="joints", kind="joints", columns=("a", "b"), elements=("a", "b"), units=("rad", "rad"),
            convention="absolute" if raw else convention,
        ),
        Slot(
            name="grip", kind="gripper", columns=("g",), elements=("g",), units=("m",),
            convention=convention if raw else "absolute", command_units=("1",) if raw else None,
        ),
    )  # fmt: skip
    return make(slots=slots, cameras=make().cameras[:1], quantiles=flat_quantiles(11, 9))


def flat_quantiles(proprio: int, action: int) -> Quantiles:
    return Quantiles(
        proprio_low=(-1.0,) * proprio,
        proprio_high=(1.0,) * proprio,
        action_low=(-1.0,) * action,
        action_high=(1.0,) * action,
    )


def trajectory(seed: int, contract: Contract, commanded_only: bool) -> np.ndarray:
    """Random rows [STEPS, P or Q]; quaternions canonical."""
    rng = np.random.default_rng(seed)
    parts = []
    for slot in contract.slots:
        if commanded_only and not slot.commanded:
            continue
        if slot.kind == "pose" and not (commanded_only and slot.for_controller):
            turn = Rotation.random(STEPS, random_state=rng).as_quat(scalar_first=True)
            parts += [rng.normal(size=(STEPS, 3)), poses.canonical_quaternion(turn)]
        else:
            parts.append(rng.normal(size=(STEPS, slot.command_width if commanded_only else slot.state_width)))
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("convention", get_args(Convention))
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoding_inverts_encoding(contract_with: Make, convention: str, seed: int) -> None:
    contract = mixed(contract_with, convention)
    states, commands = trajectory(seed, contract, False), trajectory(seed + 1, contract, True)
    along = states if convention == "delta_to_state" else None
    actions = conventions.encode_actions(contract, commands, states[0], along)
    assert actions.shape == (STEPS, contract.action_dim)
    back = conventions.decode_actions(contract, actions, states[0], along)
    tool = conventions.command_slices(contract)["tool"]
    if convention == "xwam_robocasa_raw":
        np.testing.assert_array_equal(back, commands)
        return
    np.testing.assert_allclose(poses.pose_matrix(back[:, tool]), poses.pose_matrix(commands[:, tool]), atol=1e-9)
    np.testing.assert_allclose(back[:, tool.stop :], commands[:, tool.stop :], atol=1e-9)
    assert (back[:, tool.start + 3] >= 0).all()


@pytest.mark.parametrize("convention", ["relative_to_chunk_start", "step_delta", "absolute", "xwam_robocasa_raw"])
def test_only_the_first_state_is_needed(contract_with: Make, convention: str) -> None:
    contract = mixed(contract_with, convention)
    states, commands = trajectory(1, contract, False), trajectory(2, contract, True)
    given_all = conventions.encode_actions(contract, commands, states[0], states)
    np.testing.assert_array_equal(given_all, conventions.encode_actions(contract, commands, states[0]))


def test_delta_to_state_needs_the_measured_states(contract_with: Make) -> None:
    contract = contract_with("delta_to_state")
    rows, values = trajectory(0, contract, False), np.zeros((STEPS, 7))
    for convert, table in ((conventions.encode_actions, rows), (conventions.decode_actions, values)):
        with pytest.raises(ValueError, match="slot 'tool' uses delta_to_state, which needs the measured state"):
            convert(contract, table, rows[0])


def test_accumulating_delta_to_state_errs_in_closed_form(contract_with: Make) -> None:
    """Joints moving at v a step with commands `lead` ahead: accumulation is off by i (lead - v) at step i.

    Only where every command is the next state (lead = v) does it agree, which is how the mistake goes unseen.
    """
    v = np.array([0.0018, -0.0011])
    contract = contract_with(
        slots=(
            Slot(name="joints", kind="joints", columns=("a", "b"), elements=("a", "b"), units=("rad", "rad"),
                 convention="delta_to_state"),
        ),
        cameras=contract_with().cameras[:1],
        quantiles=flat_quantiles(2, 2),
    )  # fmt: skip
    index = np.arange(32)[:, None]
    states = 0.3 + index * v
    for lead in (v, np.array([0.0146, 0.004])):
        commands = states + lead
        actions = conventions.encode_actions(contract, commands, states[0], states)
        np.testing.assert_allclose(
            conventions.decode_actions(contract, actions, states[0], states), commands, atol=1e-15
        )
        accumulated = states[0] + np.cumsum(actions, axis=0)
        np.testing.assert_allclose(accumulated - commands, index * (lead - v), atol=1e-12)


def test_the_rotation_vector_is_in_the_base_frame() -> None:
    """Turning a tilted tool by 0.2 about the base's z gives (0, 0, 0.2), whatever the tool's own axes."""
    tilted = Rotation.from_euler("xyz", [0.7, -0.4, 1.1])
    turned = Rotation.from_rotvec([0, 0, 0.2]) * tilted
    pair = [np.concatenate([[0.1, 0.2, 0.3], r.as_quat(scalar_first=True)])[None] for r in (turned, tilted)]
    np.testing.assert_allclose(poses.pose_difference(*pair), [[0, 0, 0, 0, 0, 0.2]], atol=1e-12)


def test_step_delta_of_a_pose_accumulates_to_the_chunk_relative_one(contract_with: Make) -> None:
    steps, start = contract_with("step_delta"), contract_with("relative_to_chunk_start")
    states, commands = trajectory(3, steps, False), trajectory(4, steps, True)
    by_step = conventions.encode_actions(steps, commands, states[0])
    by_start = conventions.encode_actions(start, commands, states[0])
    np.testing.assert_allclose(np.cumsum(by_step[:, :3], axis=0), by_start[:, :3], atol=1e-12)
    turn = Rotation.identity()
    for delta, whole in zip(by_step[:, 3:6], by_start[:, 3:6], strict=True):
        turn = Rotation.from_rotvec(delta) * turn
        np.testing.assert_allclose(turn.as_matrix(), Rotation.from_rotvec(whole).as_matrix(), atol=1e-9)


def test_a_controllers_input_passes_through_with_the_gripper_negated(contract_with: Make) -> None:
    contract = mixed(contract_with, "xwam_robocasa_raw")
    states, commands = trajectory(8, contract, False), trajectory(9, contract, True)
    assert (contract.command_dim, contract.action_dim) == (9, 9)
    actions = conventions.encode_actions(contract, commands, states[0])
    np.testing.assert_array_equal(actions, np.concatenate([commands[:, :8], -commands[:, 8:]], axis=1))
    np.testing.assert_array_equal(actions, conventions.encode_actions(contract, commands, states[3]))  # no state in it
    mask = np.ones((2, 9))
    mask[1, 4] = 0  # one number of the pose command: it stands for itself
    np.testing.assert_array_equal(conventions.command_to_action_mask(contract, mask), mask)
    held = contract.slot("tool").model_copy(update={"command_units": None}).model_dump()
    with pytest.raises(ValueError, match="needs 6 `command_units`"):
        Slot.model_validate(held)


def test_an_absent_arm_is_zeros_and_masked(contract_with: Make) -> None:
    plain = contract_with()
    tool = plain.slot("tool").model_copy(update={"present": False})
    contract = contract_with(slots=(tool, plain.slot("gripper")))
    states, commands = trajectory(5, contract, False), trajectory(6, contract, True)
    actions = conventions.encode_actions(contract, commands, states[0])
    assert actions.shape == (STEPS, 7)
    np.testing.assert_array_equal(actions[:, :6], 0)
    np.testing.assert_allclose(actions[:, 6:], commands[:, 7:])
    np.testing.assert_allclose(conventions.decode_actions(contract, actions, states[0])[:, 7:], commands[:, 7:])
    np.testing.assert_array_equal(conventions.state_mask(contract), [0] * 7 + [1])
    np.testing.assert_array_equal(conventions.action_mask(contract), [0] * 6 + [1])
    np.testing.assert_array_equal(conventions.command_to_action_mask(contract, np.ones((2, 8))), [[0] * 6 + [1]] * 2)


def test_a_pose_counts_when_all_its_numbers_do(contract: Contract) -> None:
    mask = np.ones((3, 8))
    mask[1, 5] = 0  # one quaternion number of step 1
    mask[2, 7] = 0  # the gripper of step 2
    wanted = np.ones((3, 7))
    wanted[1, :6] = 0
    wanted[2, 6] = 0
    np.testing.assert_array_equal(conventions.command_to_action_mask(contract, mask), wanted)


def test_normalisation_maps_quantiles_to_one_without_clipping(contract: Contract) -> None:
    low, high = np.array(contract.quantiles.action_low), np.array(contract.quantiles.action_high)
    values = np.stack([low, high, (low + high) / 2, high + (high - low)])
    wanted = np.array([-1.0, 1.0, 0.0, 3.0])[:, None].repeat(7, 1)
    np.testing.assert_allclose(conventions.normalise_action(contract, values), wanted, atol=1e-12)
    np.testing.assert_allclose(conventions.denormalise_action(contract, wanted), values, atol=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 8))
def test_scaling_by_step_is_inverted_exactly_and_each_step_has_its_own(
    contract: Contract, seed: int, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    by_step, low, high = scaled_by_step(contract, rng)
    action = rng.normal(0, 3, (2, steps, 7))
    normalised = conventions.normalise_action(by_step, action)
    np.testing.assert_allclose(conventions.denormalise_action(by_step, normalised), action, atol=1e-9)
    middle, half = (high + low)[:steps] / 2, (high - low)[:steps] / 2
    np.testing.assert_allclose(normalised, (action - middle) / half, atol=1e-9)


def test_scaling_by_step_refuses_what_is_no_chunk(contract: Contract) -> None:
    by_step, low, _ = scaled_by_step(contract, np.random.default_rng(0))
    for shape in ((7,), (9, 7)):
        with pytest.raises(ValueError, match="not steps of a chunk of 8"):
            conventions.normalise_action(by_step, np.zeros(shape))
    assert Contract.model_validate_json(by_step.to_bytes()) == by_step
    assert b"action_scaling" not in contract.to_bytes(), "contracts by chunk keep their bytes"
    assert b"action_step" not in contract.to_bytes()
    with pytest.raises(ValueError, match="no scales of 8 steps"):
        Contract.model_validate(contract.model_dump() | {"action_scaling": "step"})
    short = contract.quantiles.model_copy(update={"action_step_low": low[:7].tolist()})
    with pytest.raises(ValueError, match=r"not finite pairs|no scales"):
        Contract.model_validate(contract.model_dump() | {"action_scaling": "step", "quantiles": short.model_dump()})


def scaled_by_step(plain: Contract, rng: np.random.Generator) -> tuple[Contract, np.ndarray, np.ndarray]:
    """A contract of 8 steps of 7 numbers with random scales."""
    low = rng.normal(0, 1, (8, 7))
    high = low + rng.uniform(1e-3, 2, (8, 7))
    scales = {"action_step_low": low.tolist(), "action_step_high": high.tolist()}
    tree = plain.model_dump() | {"action_scaling": "step", "quantiles": plain.quantiles.model_dump() | scales}
    return Contract.model_validate(tree), low, high


def test_quaternions_pass_through_normalisation_and_come_back_canonical(contract: Contract) -> None:
    state = trajectory(7, contract, False)
    proprio = conventions.normalise_proprio(contract, state)
    np.testing.assert_allclose(proprio[:, 3:7], state[:, 3:7], atol=1e-12)
    np.testing.assert_allclose(conventions.denormalise_proprio(contract, proprio), state, atol=1e-12)
    scaled = proprio.copy()
    scaled[:, 3:7] *= -1.3  # what a network might predict
    np.testing.assert_allclose(conventions.denormalise_proprio(contract, scaled), state, atol=1e-12)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_poses_and_matrices_invert_each_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn = Rotation.random(3, random_state=rng)
    matrix = np.tile(np.eye(4), (3, 1, 1))
    matrix[:, :3, :3], matrix[:, :3, 3] = turn.as_matrix(), rng.normal(size=(3, 3))
    pose = poses.matrix_pose(matrix)
    assert (pose[:, 3] >= 0).all()
    np.testing.assert_allclose(poses.pose_matrix(pose), matrix, atol=1e-12)


def test_a_zero_quaternion_is_the_identity() -> None:
    np.testing.assert_array_equal(poses.canonical_quaternion(np.zeros((1, 4))), [[1, 0, 0, 0]])
