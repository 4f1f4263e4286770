"""Errors in physical units: closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xwam_ft import conventions
from xwam_ft.contract import Contract, Quantiles, Slot
from xwam_ft.evaluate.baselines import hold_still
from xwam_ft.evaluate.errors import Measure, command_errors

STILL = np.array([0.1, 0.2, 0.3, 1.0, 0.0, 0.0, 0.0, 0.04])


def by_name(contract: Contract, predicted: np.ndarray, recorded: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    table = command_errors(contract, predicted, recorded, mask)
    return {m.name: table.error[:, i] for i, m in enumerate(table.measures)}


def test_a_moved_and_turned_pose_has_the_distance_and_angle_it_was_moved_by(contract: Contract) -> None:
    recorded = np.tile(STILL, (3, 1))
    predicted = recorded.copy()
    predicted[:, :3] += (0.003, -0.004, 0.012)
    turn = Rotation.from_rotvec(np.deg2rad([0.0, 0.0, 25.0]))
    predicted[:, 3:7] = -turn.as_quat(scalar_first=True)  # the sign of a quaternion means nothing
    predicted[:, 7] += 0.01
    errors = by_name(contract, predicted, recorded, np.ones((3, 8)))
    np.testing.assert_allclose(errors["position"], 13.0)
    np.testing.assert_allclose(errors["rotation"], 25.0)
    np.testing.assert_allclose(errors["opening"], 0.01)
    for name, value in {"x": 3.0, "y": 4.0, "z": 12.0, "rx": 0.0, "ry": 0.0, "rz": 25.0, "width": 0.01}.items():
        np.testing.assert_allclose(errors[name], value, atol=1e-9)


def test_an_angle_of_more_than_half_a_turn_is_the_shorter_way(contract: Contract) -> None:
    recorded, predicted = np.tile(STILL, (1, 1)), np.tile(STILL, (1, 1))
    predicted[:, 3:7] = Rotation.from_rotvec(np.deg2rad([200.0, 0.0, 0.0])).as_quat(scalar_first=True)
    np.testing.assert_allclose(by_name(contract, predicted, recorded, np.ones((1, 8)))["rotation"], 160.0)


def test_what_was_not_recorded_does_not_count(contract: Contract) -> None:
    recorded, predicted, mask = np.tile(STILL, (2, 1)), np.zeros((2, 8)), np.ones((2, 8))
    recorded[1, 2], mask[1, 2] = np.nan, 0.0  # one number of the pose
    table = command_errors(contract, predicted, recorded, mask)
    position = table.measures.index(Measure("tool", "position", "mm"))
    assert table.weight[:, position].tolist() == [1.0, 0.0]
    assert table.error[1, position] == 0.0
    assert np.all(np.isfinite(table.error))
    opening = table.measures.index(Measure("gripper", "opening", "m"))
    assert table.weight[:, opening].tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def mixed(contract: Contract) -> Contract:
    """Joints (two turn, one slides), a base in two units, an effort-commanded gripper, an absent arm."""
    joints = ("a", "b", "c")
    base = ("x", "y", "yaw")
    slots = (
        Slot(
            name="joints",
            kind="joints",
            columns=joints,
            elements=joints,
            units=("rad", "rad", "m"),
            convention="absolute",
        ),
        Slot(name="base", kind="vector", columns=base, elements=base, units=("m", "m", "rad"), convention="step_delta"),
        Slot(
            name="hand",
            kind="gripper",
            columns=("h",),
            elements=("opening",),
            units=("1",),
            command_units=("1",),
            convention="absolute",
        ),
        Slot(
            name="left",
            kind="joints",
            columns=("l",),
            elements=("l",),
            units=("rad",),
            convention="absolute",
            present=False,
        ),
        Slot(name="seen", kind="vector", columns=("s",), elements=("s",), units=("N",)),
    )
    wide = Quantiles(proprio_low=(-1.0,) * 9, proprio_high=(1.0,) * 9, action_low=(-1.0,) * 8, action_high=(1.0,) * 8)
    fields = contract.model_dump() | {"slots": slots, "quantiles": wide, "cameras": contract.cameras[:1]}
    return Contract.model_validate(fields)


def test_joints_are_in_degrees_and_everything_else_in_its_own_units(mixed: Contract) -> None:
    predicted = np.array([[0.1, 0.3, 0.02, 1.0, 3.0, 0.5, -1.0, 9.0]])
    table = command_errors(mixed, predicted, np.zeros((1, 8)), np.ones((1, 8)))
    found = {(m.slot, m.name, m.unit): table.error[0, i] for i, m in enumerate(table.measures) if not m.dimension}
    assert found == pytest.approx(
        {
            ("joints", "angle (deg)", "deg"): np.rad2deg(0.2),
            ("joints", "value (m)", "m"): 0.02,
            ("base", "value (m)", "m"): 2.0,
            ("base", "value (rad)", "rad"): 0.5,
            ("hand", "command", "1"): 1.0,
        }
    )
    details = [(m.slot, m.name, m.unit) for m in table.measures if m.dimension]
    assert details[:3] == [("joints", "a", "deg"), ("joints", "b", "deg"), ("joints", "c", "m")]
    assert details[-1] == ("hand", "command", "1")
    masked = command_errors(mixed, predicted, np.zeros((1, 8)), np.array([[1.0, 0, 1, 1, 1, 1, 1, 1]]))
    assert masked.error[0, 0] == pytest.approx(np.rad2deg(0.1))


def test_a_controllers_input_is_compared_in_its_own_units(contract_with: Callable[..., Contract]) -> None:
    plain = contract_with()
    raw = {"convention": "xwam_robocasa_raw"}
    slots = (
        plain.slot("tool").model_copy(update={**raw, "command_units": ("1",) * 6}),
        plain.slot("gripper").model_copy(update={**raw, "command_units": ("1",)}),
    )
    contract = contract_with(slots=slots)
    recorded = np.array([[0.5, -1.0, 0.0, 0.1, 0.0, 0.0, 1.0]])
    predicted = recorded + np.array([0.1, 0.3, 0.0, 0.0, 0.0, 0.2, -0.5])
    table = command_errors(contract, predicted, recorded, np.ones((1, 7)))
    assert {measure.unit for measure in table.measures} == {"1"}
    named = {(m.slot, m.name): table.error[0, i] for i, m in enumerate(table.measures)}
    assert named["tool", "command"] == pytest.approx(0.1)  # the mean of six
    assert named["tool", "dy"] == pytest.approx(0.3)
    assert named["gripper", "command"] == pytest.approx(0.5)
    mean = np.full((contract.timing.action_steps, 7), 0.25)
    held = conventions.denormalise_action(contract, hold_still(contract, np.zeros(8), mean))
    np.testing.assert_allclose(held[:, :6], 0.0, atol=1e-12)  # no motion asked of the controller
    np.testing.assert_allclose(held[:, 6], conventions.denormalise_action(contract, mean)[:, 6])
