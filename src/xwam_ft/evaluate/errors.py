"""How far two tables of commands lie apart, in units a roboticist reads.

    pose       position: distance in millimetres; rotation: angle of R_a * R_b^T in degrees
    joints     radians become degrees, averaged over the slot's joints; other units stay
    gripper, vector   absolute difference in their own units, averaged over the slot's numbers
A slot whose numbers have several units gives one quantity a unit. Beside these *quantities* each number has its own
*dimension*: position along x, y, z of the base frame, the rotation vector's parts, each joint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, poses

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot

MILLIMETRES = 1000.0
DEGREES = 180.0 / np.pi
POSE_DIMENSIONS = (("x", "mm"), ("y", "mm"), ("z", "mm"), ("rx", "deg"), ("ry", "deg"), ("rz", "deg"))


@dataclass(frozen=True)
class Measure:
    """One column of an error table: a slot's quantity ("position"), or one of its numbers ("x")."""

    slot: str
    name: str
    unit: str
    dimension: bool = False


@dataclass(frozen=True)
class ErrorTable:
    """Errors of the steps of a chunk, all at least 0; weight 0 where nothing was recorded."""

    measures: tuple[Measure, ...]
    error: Float[ndarray, "ta m"]
    weight: Float[ndarray, "ta m"]


def command_errors(
    contract: Contract,
    predicted: Float[ndarray, "ta q"],
    recorded: Float[ndarray, "ta q"],
    mask: Float[ndarray, "ta q"],
) -> ErrorTable:
    """Compare absolute commands. Quantities first, then dimensions, each in the order of the slots.

    Args:
        mask: 1 where a command was recorded; a pose counts when all its seven numbers do.
    """
    places = [(contract.slot(name), place) for name, place in conventions.command_slices(contract).items()]
    return _errors(places, predicted, recorded, mask)


def state_errors(
    contract: Contract,
    predicted: Float[ndarray, "t p"],
    recorded: Float[ndarray, "t p"],
    mask: Float[ndarray, "t p"],
) -> ErrorTable:
    """The same of absolute states."""
    places = [
        (contract.slot(name).model_copy(update={"command_units": None, "convention": None}), place)
        for name, place in conventions.state_slices(contract).items()
    ]
    return _errors(places, predicted, recorded, mask)


def _errors(
    places: list[tuple[Slot, slice]],
    predicted: Float[ndarray, "n k"],
    recorded: Float[ndarray, "n k"],
    mask: Float[ndarray, "n k"],
) -> ErrorTable:
    measures: list[Measure] = []
    errors: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    details: list[tuple[Measure, np.ndarray, np.ndarray]] = []
    for slot, place in places:
        if not slot.present:
            continue
        compare = _pose if slot.kind == "pose" and not slot.for_controller else _numbers
        for measure, error, weight in compare(slot, predicted[:, place], recorded[:, place], mask[:, place]):
            if measure.dimension:
                details.append((measure, error, weight))
                continue
            measures.append(measure)
            errors.append(error)
            weights.append(weight)
    measures += [measure for measure, _, _ in details]
    error = np.stack([*errors, *(error for _, error, _ in details)], axis=1)
    weight = np.stack([*weights, *(weight for _, _, weight in details)], axis=1)
    return ErrorTable(tuple(measures), np.where(weight > 0, error, 0.0), weight)


def mean_errors(tables: Mapping[str, Sequence[ErrorTable]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{slot: {quantity: {"unit", and of each key the mean over tables and rows}}}; None where nothing counts."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for index, measure in enumerate(next(iter(tables.values()))[0].measures):
        if measure.dimension:
            continue
        row: dict[str, Any] = {"unit": measure.unit}
        for name, rows in tables.items():
            error = np.concatenate([table.error[:, index] for table in rows])
            weight = np.concatenate([table.weight[:, index] for table in rows])
            row[name] = float((error * weight).sum() / weight.sum()) if weight.sum() > 0 else None
        found.setdefault(measure.slot, {})[measure.name] = row
    return found


Column = tuple[Measure, np.ndarray, np.ndarray]


def _pose(slot: Slot, predicted: np.ndarray, recorded: np.ndarray, mask: np.ndarray) -> list[Column]:
    weight = mask.min(axis=1)
    known = np.where(weight[:, None] > 0, recorded, predicted)
    difference = poses.pose_difference(predicted, known)
    distance = np.linalg.norm(difference[:, :3], axis=1) * MILLIMETRES
    angle = np.linalg.norm(difference[:, 3:], axis=1) * DEGREES
    columns = [
        (Measure(slot.name, "position", "mm"), distance, weight),
        (Measure(slot.name, "rotation", "deg"), angle, weight),
    ]
    for index, (name, unit) in enumerate(POSE_DIMENSIONS):
        scale = MILLIMETRES if unit == "mm" else DEGREES
        columns.append((Measure(slot.name, name, unit, True), np.abs(difference[:, index]) * scale, weight))
    return columns


def _numbers(slot: Slot, predicted: np.ndarray, recorded: np.ndarray, mask: np.ndarray) -> list[Column]:
    own = slot.command_units or slot.units
    degrees = [slot.kind == "joints" and unit == "rad" for unit in own]
    units = ["deg" if turned else unit for unit, turned in zip(own, degrees, strict=True)]
    error = np.where(mask > 0, np.abs(predicted - recorded), 0.0) * np.where(degrees, DEGREES, 1.0)
    columns: list[Column] = []
    for unit in dict.fromkeys(units):
        chosen = [index for index, other in enumerate(units) if other == unit]
        counted = mask[:, chosen].sum(axis=1)
        mean = (error[:, chosen] * mask[:, chosen]).sum(axis=1) / np.maximum(counted, 1.0)
        name = _quantity(slot, unit) + (f" ({unit})" if len(set(units)) > 1 else "")
        columns.append((Measure(slot.name, name, unit), mean, (counted > 0).astype(np.float64)))
    other = slot.command_units is not None and len(own) == 1
    names = ("command",) if other else slot.action_elements if slot.for_controller else slot.elements
    for index, (name, unit) in enumerate(zip(names, units, strict=True)):
        columns.append((Measure(slot.name, name, unit, True), error[:, index], mask[:, index]))
    return columns


def _quantity(slot: Slot, unit: str) -> str:
    if slot.command_units is not None:
        return "command"
    if slot.kind == "joints" and unit == "deg":
        return "angle"
    return "opening" if slot.kind == "gripper" else "value"
