"""An embodiment met with recordings: which columns fill which slot, and the contract's cameras and slots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from xwam_ft import poses
from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Limits, Slot
from xwam_ft.errors import UserError, listed
from xwam_ft.kinematics import find_urdf, load_chain, velocity_limits
from xwam_ft.observation import slot_state
from xwam_ft.prepare.embodiment.order import check_joint_units, check_limits, check_pose, check_same_order
from xwam_ft.prepare.embodiment.reading import Reading, command_reading, find_columns, plain, si_units, state_reading
from xwam_ft.prepare.embodiment.schema import DeltaSpec, Embodiment, LimitsSpec, SlotSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xwam_ft.prepare.episode import Table
    from xwam_ft.prepare.sources import SourceInfo


@dataclass(frozen=True)
class SlotPlan:
    slot: Slot
    state: Reading | None  # None: the robot lacks it
    command: Reading | None  # None: not commanded, or the next state
    delta: DeltaSpec | None = None  # the commands read are changes
    speed: tuple[float | None, ...] = ()  # velocity limits of the columns, where a URDF gives them


def frame_rate(embodiment: Embodiment, info: SourceInfo, where: Path) -> float:
    """Frames per second: the recordings' own, else the embodiment's.

    Raises:
        UserError: neither says it, or they contradict each other.
    """
    if info.fps is None:
        if embodiment.fps is None:
            measured = "NUMBER" if info.measured_fps is None else f"{info.measured_fps:g}"
            told = "" if info.measured_fps is None else f"; its timestamps say {measured}"
            raise UserError(
                f"does not store its frames per second ({info.format}{told})",
                info.path,
                f"write `fps: {measured}` in {where}, or give --set fps={measured}",
            )
        return embodiment.fps
    if embodiment.fps is not None and embodiment.fps != info.fps:
        raise UserError(
            f"is {embodiment.fps:g}, and {info.path} says {info.fps:g}", f"{where}: fps", "leave it out, or mend one"
        )
    return info.fps


def plan_slots(embodiment: Embodiment, info: SourceInfo, where: Path, urdf_dirs: list[Path]) -> list[SlotPlan]:
    """Resolve every slot against the recordings' columns.

    Raises:
        UserError: a column, joint or link that is not there, a wrong number of columns, or no recorded command.
    """
    return [_plan_slot(name, spec, info, where, urdf_dirs) for name, spec in embodiment.slots.items()]


def _plan_slot(name: str, spec: SlotSpec, info: SourceInfo, where: Path, urdf_dirs: list[Path]) -> SlotPlan:
    place = f"{where}: slots.{name}"
    if not spec.present:
        return SlotPlan(_build(name, spec, (), (), None, place), None, None)
    state_names = find_columns(spec.columns, info.state_columns, f"{place}.columns")
    if twice := [name for at, name in enumerate(state_names) if name in state_names[:at]]:
        raise UserError(f"names column {plain(twice[0])!r} twice", f"{place}.columns", "name each column once")
    names = tuple(plain(column) for column in state_names)
    if spec.kind == "pose" and spec.from_ == "recorded":
        check_pose(spec.rotation, state_names, f"{place}.columns", "rotation")
    check_same_order(names, spec.motors or (), "motors", "read by the calibration of", place)
    state = state_reading(spec, state_names, place, where)
    command = _command(spec, state_names, info, place, where)
    chain, speed = None, ()
    if spec.from_ == "joints":
        assert spec.urdf is not None
        assert spec.base is not None
        assert spec.tip is not None
        urdf = find_urdf(spec.urdf, where, urdf_dirs)
        chain = load_chain(urdf, spec.base, spec.tip, spec.joints)
        speed = velocity_limits(urdf, chain.movable)
        if len(chain.movable) != len(names):
            raise UserError(
                f"has {len(names)} columns for the {len(chain.movable)} joints {listed(chain.movable, 40)}",
                place,
                "give one column a joint, and `joints` in the columns' order",
            )
        check_same_order(names, chain.movable, "joints", "read as", place)
        for reading in filter(None, (state, command)):
            check_joint_units(chain, reading.columns, reading.units, place)
    return SlotPlan(_build(name, spec, names, state_names, chain, place), state, command, spec.delta, speed)


def _command(spec: SlotSpec, state_names: tuple[str, ...], info: SourceInfo, place: str, where: Path) -> Reading | None:
    """How the commands of a slot are read; None where none are."""
    if spec.command not in ("recorded", "delta"):
        return None
    pool = info.command_columns
    if spec.command_columns is not None:
        # Named in full, any number may be a command: the joints of a leader arm are recorded as a state.
        pool = [*pool, *(name for name in info.state_columns if name in spec.command_columns)]
    if not pool:
        raise UserError(
            "wants recorded commands and the recordings have no `action`",
            place,
            "write `command: next_state` or `command: none`, or name `command_columns` in full",
        )
    elements = [name.split("/", 1)[-1] for name in state_names]  # numbered ones too: action/0 for observation.state/0
    given = spec.command_columns if spec.command_columns is not None else elements
    names = find_columns(given, pool, f"{place}.command_columns")
    own_form = spec.kind == "pose" and spec.from_ == "recorded"  # its form says how many
    if len(names) != len(state_names) and not own_form and not (spec.reduce and spec.command_columns is not None):
        raise UserError(
            f"has {len(state_names)} columns and {len(names)} command columns", place, "name as many of both"
        )
    if own_form:
        form = spec.command_rotation or spec.rotation
        check_pose(form, names, f"{place}.command_columns", "command_rotation")
    elif len(names) == len(state_names):
        own = [plain(name) for name in state_names]
        check_same_order(own, [plain(name) for name in names], "command_columns", "commanded by", place)
    return command_reading(spec, names, place, where)


def _build(name: str, spec: SlotSpec, names: tuple[str, ...], full: Sequence[str], chain: Any, place: str) -> Slot:
    elements, units = _elements(spec, names, full)
    columns = names
    if spec.kind == "pose" and chain is None:
        # What the robot reports is x y z, quaternion w x y z: names in that order where they were recorded so.
        columns = POSE_ELEMENTS
        if spec.present and spec.rotation in ("wxyz", "xyzw"):
            order = [0, 1, 2, 3, 4, 5, 6] if spec.rotation == "wxyz" else [0, 1, 2, 6, 3, 4, 5]
            columns = tuple(names[i] for i in order)
    elif not spec.present:
        columns = elements
    command_units = None
    if spec.command_units is not None and spec.command == "recorded" and spec.kind != "pose":
        command_units = si_units(spec.command_units, len(elements))
    try:
        limits = _limits(spec.limits, 3 if spec.kind == "pose" else len(elements), len(names), spec.kind)
        slot = Slot(
            name=name,
            kind=spec.kind,
            columns=columns,
            elements=elements,
            units=units,
            command_units=command_units,
            transform="forward_kinematics" if chain else spec.reduce if spec.reduce and spec.present else "identity",
            chain=chain,
            frame=spec.base or spec.frame,
            convention=spec.resolved_convention,
            command_from="next_state" if spec.command == "next_state" else "recorded",
            expand=spec.expand,
            gripper_open=spec.gripper_open,
            gripper_closed=spec.gripper_closed,
            present=spec.present,
            limits=limits,
        )
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, "), place, "mend the slot") from None
    check_limits(slot, place)
    return slot


def _elements(spec: SlotSpec, names: tuple[str, ...], full: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if spec.kind == "pose":
        return POSE_ELEMENTS, POSE_UNITS
    if not spec.present:
        # An absent arm keeps the numbers the model knows it by; `columns` may name them.
        names = tuple(spec.columns) if isinstance(spec.columns, list) and spec.columns else (spec.kind,)
        return names, si_units(spec.units or "1", len(names))
    names = (spec.reduce,) if spec.reduce else names if len(set(names)) == len(names) else tuple(full)
    return names, si_units(spec.units or "1", len(names))


def _limits(given: LimitsSpec | None, width: int, joints: int, kind: str) -> Limits | None:
    """`joints`: how many a kinematic slot has."""
    if given is None:
        return None

    def row(value: float | list[float] | None, width: int) -> tuple[float, ...] | None:
        return None if value is None else tuple(value) if isinstance(value, list) else (value,) * width

    speeds = 1 if kind == "pose" else width  # of a pose one number is not enough, which the contract says
    return Limits(
        low=row(given.low, width),
        high=row(given.high, width),
        speed=row(given.speed, speeds),
        joints=_limits(given.joints, joints, joints, "joints"),
    )


def _commanded(slot: Slot, values: np.ndarray) -> np.ndarray:
    """Recorded commands of a slot's columns -> its command; one number for reduced columns is the command already."""
    return values if slot.reduced and values.shape[1] == 1 else slot_state(slot, values)


def _from_changes(
    plan: SlotPlan, delta: DeltaSpec, change: np.ndarray, columns: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Recorded changes [F, n] -> absolute commands [F, Q]. `columns`: the slot's numbers as reported, SI."""
    slot, along = plan.slot, delta.to == "command"
    if slot.kind == "pose" and slot.chain is None:
        return poses.pose_compose(state, change, along=along, tool=delta.frame == "tool")
    # A change of joints is one of joints also where the command is a pose.
    one = slot.reduced and change.shape[1] == 1
    start = state if one else columns
    commands = start[0] + np.cumsum(change, axis=0) if along else start + change
    return commands if one else slot_state(slot, commands)


def joint_motion(plans: list[SlotPlan], table: Table, action_skip: int) -> dict[str, np.ndarray]:
    """Joints of the kinematic slots, [2, F, J]: states and commands, as `motion` takes them before their pose."""
    found: dict[str, np.ndarray] = {}
    for plan in plans:
        if plan.slot.chain is None or plan.state is None:
            continue
        joints = plan.state.read(table)
        told = joints[np.minimum(np.arange(len(joints)) + action_skip, len(joints) - 1)]
        if plan.command is not None:
            told = plan.command.read(table)
        if plan.command is not None and plan.delta is not None:
            told = joints[0] + np.cumsum(told, axis=0) if plan.delta.to == "command" else joints + told
        found[plan.slot.name] = np.stack([joints, told])
    return found


def motion(
    plans: list[SlotPlan], table: Table, action_skip: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """State [F, P], its mask, absolute command [F, Q], its mask; SI units.

    `next_state`: the command at t is the state at t + action_skip, masked where the episode ends before that.
    """
    frames = len(next(iter(table.columns.values())))
    states: list[np.ndarray] = []
    commands: list[np.ndarray] = []
    valid: list[np.ndarray] = []
    for plan in plans:
        slot = plan.slot
        state = np.zeros((frames, slot.state_width)) if plan.state is None else slot_state(slot, plan.state.read(table))
        states.append(state)
        if not slot.commanded:
            continue
        ahead = np.arange(frames) + action_skip
        if plan.state is None:
            command = np.zeros((frames, slot.command_width))
        elif plan.command is None:
            command = state[np.minimum(ahead, frames - 1)]
        elif plan.delta is not None:
            command = _from_changes(plan, plan.delta, plan.command.read(table), plan.state.read(table), state)
        else:
            command = _commanded(slot, plan.command.read(table))
        commands.append(command)
        known = ahead < frames if plan.state is not None and plan.command is None else np.ones(frames, dtype=bool)
        valid.append(np.repeat(known[:, None] & slot.present, slot.command_width, axis=1))
    present = np.concatenate([np.full(p.slot.state_width, p.slot.present) for p in plans])
    return (
        np.concatenate(states, axis=1),
        np.repeat(present[None].astype(np.float64), frames, axis=0),
        np.concatenate(commands, axis=1),
        np.concatenate(valid, axis=1).astype(np.float64),
    )
