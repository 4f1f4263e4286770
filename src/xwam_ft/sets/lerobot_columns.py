"""The numbers of a shard set as a robot names and counts them, and the embodiment file that reads them back.

State and command come out in the robot's own names and units where the contract has them for a slot (aliases.py), else
in the contract's, named `<slot>.<element>`. What is reduced or computed from joints is written as what it became.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.prepare.embodiment.joint_units import RESOLUTION, SI, UNITS

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Camera, Contract, Slot
    from xwam_ft.limits import Limits

STATE, ACTION = "observation.state", "action"
TICK = 2.0 * math.pi / (RESOLUTION - 1)


@dataclass(frozen=True)
class Column:
    """One number: its name, and the line to SI, `value = scale * written + offset`."""

    name: str
    unit: str  # SI
    scale: float = 1.0
    offset: float = 0.0

    @property
    def written_unit(self) -> str | None:
        """The unit in words of the embodiment file; None: a servo's."""
        known = (
            name for name, scale in UNITS.items() if SI[name] == self.unit and math.isclose(abs(self.scale), scale)
        )
        return next(known, None)


def state_columns(contract: Contract) -> dict[str, list[Column]]:
    """By present slot, the numbers of its state."""
    found: dict[str, list[Column]] = {}
    used: set[str] = set()
    for slot in contract.slots:
        if not slot.present:
            continue
        columns = own_columns(contract, slot) or [
            Column(f"{slot.name}.{element}", unit) for element, unit in zip(slot.elements, slot.units, strict=True)
        ]
        if used & {column.name for column in columns}:
            columns = [Column(f"{slot.name}.{c.name}", c.unit, c.scale, c.offset) for c in columns]
        used |= {column.name for column in columns}
        found[slot.name] = columns
    return found


def command_columns(contract: Contract) -> dict[str, list[Column]]:
    """By present slot that is commanded, the numbers of its command.

    Raises:
        UserError: a slot is commanded in a controller's own numbers, which are neither a target nor a change.
    """
    found: dict[str, list[Column]] = {}
    for name, columns in state_columns(contract).items():
        slot = contract.slot(name)
        if slot.for_controller:
            what = f"slot {name!r} is commanded in a controller's own numbers (`xwam_robocasa_raw`)"
            raise UserError(what, "contract.json", "such sets are not exported: no other reader knows these numbers")
        if not slot.commanded:
            continue
        own_units = slot.command_units if slot.command_units not in (None, slot.units) else None
        if own_units is not None:
            columns = [Column(column.name, unit) for column, unit in zip(columns, own_units, strict=True)]
        found[name] = columns
    return found


def written(
    columns: dict[str, list[Column]], values: Float[ndarray, "f n"], places: dict[str, slice]
) -> Float[ndarray, "f m"]:
    """Numbers of the contract's layout -> those of the columns, in the columns' units."""
    parts = [values[:, places[name]] for name in columns]
    every = [column for group in columns.values() for column in group]
    scale, offset = np.array([c.scale for c in every]), np.array([c.offset for c in every])
    return (np.concatenate(parts, axis=1) - offset) / scale


def state_places(contract: Contract) -> dict[str, slice]:
    return conventions.state_slices(contract)


def command_places(contract: Contract) -> dict[str, slice]:
    return conventions.command_slices(contract)


def embodiment(contract: Contract, record: dict[str, Any], depth_cameras: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The embodiment file that reads the export back, and calibration files by name that it refers to.

    Args:
        record: the set's prepared.json, for what only the embodiment file says (signs of quaternions, held-out share).
        depth_cameras: those whose depth was written.
    """
    before: dict[str, Any] = record.get("embodiment", {})
    states, commands = state_columns(contract), command_columns(contract)
    files: dict[str, Any] = {}
    slots = {slot.name: _slot(slot, states, commands, before.get("slots", {}), files) for slot in contract.slots}
    tree: dict[str, Any] = {
        "name": contract.embodiment,
        "cameras": {camera.name: _camera(camera, depth_cameras) for camera in contract.cameras},
        "image": contract.image.model_dump(include={"height", "width", "crop"}),
        "timing": contract.timing.model_dump(include={"frame_skip", "action_skip", "clip_frames"}),
        "slots": slots,
        "action_scaling": contract.action_scaling,
    }
    if contract.depth.kind == "metric":
        tree["depth"] = {"near": contract.depth.near, "far": contract.depth.far}
    if "held_out" in before:
        tree["held_out"] = before["held_out"]
    return tree, files


def own_columns(contract: Contract, slot: Slot) -> list[Column]:
    """The robot's own names and units of a slot, where the contract has all of them."""
    numbers = contract.aliases.numbers if contract.aliases else {}
    own = {number.column: (name, number) for name, number in numbers.items() if number.slot == slot.name}
    if slot.transform != "identity" or len(own) != slot.state_width or any("/" in name for name, _ in own.values()):
        return []
    return [
        Column(own[place][0], unit, own[place][1].scale, own[place][1].offset) for place, unit in enumerate(slot.units)
    ]


def _camera(camera: Camera, depth_cameras: Sequence[str]) -> dict[str, Any]:
    source = f"observation.images.{camera.name}"
    tree: dict[str, Any] = {"source": source, "kind": camera.kind}
    if camera.mount is not None:
        tree["mount"] = camera.mount
    if camera.name in depth_cameras:
        tree["depth"] = {"source": f"{source}_depth", "unit": "lerobot_log12"}
    if camera.depth_range is not None:
        tree["depth_range"] = {"near": camera.depth_range[0], "far": camera.depth_range[1]}
    return tree


def _slot(
    slot: Slot,
    states: dict[str, list[Column]],
    commands: dict[str, list[Column]],
    before: dict[str, Any],
    files: dict[str, Any],
) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": slot.kind, "command": "none"}
    if slot.commanded:
        tree["command"] = "recorded" if slot.command_from == "recorded" else "next_state"
        tree["convention"] = slot.convention
    if not slot.present:
        names = {} if slot.kind == "pose" else {"columns": list(slot.elements), "units": list(slot.units)}
        return {**tree, **names, "present": False}
    columns = states[slot.name]
    tree["columns"] = [column.name for column in columns]
    tree |= _units(slot, columns, files)
    if slot.name in commands and commands[slot.name] != columns and tree["command"] == "recorded":
        tree["command_units"] = [column.unit for column in commands[slot.name]]
    if slot.gripper_open is not None:
        tree |= {"gripper_open": slot.gripper_open, "gripper_closed": slot.gripper_closed}
    if slot.frame is not None:
        tree["frame"] = slot.frame
    if slot.kind == "pose" and (signs := before.get(slot.name, {}).get("quaternion")):
        tree["quaternion"] = signs
    if slot.limits is not None and (limits := _limits(slot.limits)):
        tree["limits"] = limits
    return tree


def _units(slot: Slot, columns: Sequence[Column], files: dict[str, Any]) -> dict[str, Any]:
    if slot.kind == "pose":
        return {"units": columns[0].written_unit, "rotation": "wxyz"}
    units = [column.written_unit or "range_m100_100" for column in columns]
    tree: dict[str, Any] = {"units": units}
    if any(column.scale < 0 for column in columns):
        tree["signs"] = [-1 if column.scale < 0 else 1 for column in columns]
    if any(column.offset for column in columns):
        tree["zeros"] = [-column.offset / column.scale for column in columns]
    if "range_m100_100" in units:  # a line of its own, told as a servo whose half range is 100
        motors = {c.name: c for c, unit in zip(columns, units, strict=True) if unit == "range_m100_100"}
        tree["calibration"] = f"{slot.name}_calibration.json"
        tree["motors"] = [column.name for column in columns]
        files[tree["calibration"]] = {
            name: {"range_min": 0.0, "range_max": 200.0 * abs(column.scale) / TICK, "drive_mode": 0}
            for name, column in motors.items()
        }
    return tree


def _limits(limits: Limits) -> dict[str, Any]:
    found = {name: getattr(limits, name) for name in ("low", "high", "speed")}
    return {name: list(value) for name, value in found.items() if value is not None}
