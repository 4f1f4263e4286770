"""An embodiment met with recordings: which columns fill which slot, and the contract's cameras and slots."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from xwam_ft.contract import POSE_ELEMENTS, POSE_UNITS, Camera, Limits, Slot
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.kinematics import find_urdf, load_chain
from xwam_ft.observation import slot_state
from xwam_ft.prepare.embodiment import SI, UNITS, Columns, DepthVideo, Embodiment, SlotSpec, StereoPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.prepare.episode import Table
    from xwam_ft.prepare.sources import SourceInfo

POSE_COLUMNS = {"wxyz": 7, "xyzw": 7, "rotvec": 6, "rpy": 6}


@dataclass(frozen=True)
class Reading:
    """Recorded columns -> the numbers of a slot in SI units, as the robot would report them."""

    columns: tuple[str, ...]  # full names
    scale: tuple[float, ...]
    rotation: str | None = None  # form of a recorded pose's rotation

    def read(self, table: Table) -> Float[ndarray, "f n"]:
        values = np.stack([table.columns[name] for name in self.columns], axis=1) * np.array(self.scale)
        if self.rotation == "xyzw":
            return values[:, [0, 1, 2, 6, 3, 4, 5]]
        if self.rotation in ("rotvec", "rpy"):
            turn = values[:, 3:]
            rotation = Rotation.from_rotvec(turn) if self.rotation == "rotvec" else Rotation.from_euler("xyz", turn)
            return np.concatenate([values[:, :3], rotation.as_quat(scalar_first=True)], axis=1)
        return values


@dataclass(frozen=True)
class SlotPlan:
    slot: Slot
    state: Reading | None  # None: the robot lacks it
    command: Reading | None  # None: not commanded, or the next state


@dataclass(frozen=True)
class CameraPlan:
    # Calibration, filled in by `calibrated`: fx fy cx cy at source resolution, and the pair for stereo matching.
    intrinsics: tuple[float, float, float, float] | None = field(default=None, kw_only=True)
    stereo: StereoPair | None = field(default=None, kw_only=True)
    name: str
    source: str  # feature name
    depth: DepthVideo | None
    depth_range: tuple[float, float] | None = None  # its own near and far, metres


def plan_cameras(embodiment: Embodiment, info: SourceInfo, where: Path) -> list[CameraPlan]:
    """The cameras in the contract's order, which is alphabetical (X-WAM's order of views).

    Raises:
        UserError: a source the recordings do not have.
    """
    plans: list[CameraPlan] = []
    for name, spec in sorted(embodiment.cameras.items()):
        source = _feature(spec.source, info, f"{where}: cameras.{name}.source")
        depth = spec.depth
        if depth is not None:
            found = _feature(depth.source, info, f"{where}: cameras.{name}.depth.source")
            depth = DepthVideo(source=found, unit=depth.unit)
        span = spec.depth_range
        plans.append(CameraPlan(name, source, depth, None if span is None else (span.near, span.far)))
    return plans


def calibrated(plans: list[CameraPlan], embodiment: Embodiment, info: SourceInfo, where: Path) -> list[CameraPlan]:
    """The plans with what depth estimation asks of a camera: intrinsics, and the source of its stereo pair.

    Raises:
        UserError: malformed intrinsics, or a pair the recordings do not have.
    """
    found: list[CameraPlan] = []
    for plan in plans:
        spec = embodiment.cameras[plan.name]
        # The picture's size does not matter to the calibration.
        camera = contract_camera(embodiment, plan, info, (1, 1))
        pair = spec.stereo
        if pair is not None:
            source = _feature(pair.source, info, f"{where}: cameras.{plan.name}.stereo.source")
            pair = StereoPair(source=source, baseline=pair.baseline)
        found.append(replace(plan, intrinsics=camera.intrinsics, stereo=pair))
    return found


def contract_camera(embodiment: Embodiment, plan: CameraPlan, info: SourceInfo, size: tuple[int, int]) -> Camera:
    """The contract's camera; what the embodiment leaves out comes from the recordings' meta/calibration.json."""
    spec = embodiment.cameras[plan.name]
    keys = (plan.source, plan.source.rsplit(".", 1)[-1], plan.name)
    recorded: dict[str, Any] = next((info.calibration[key] for key in keys if key in info.calibration), {})
    pose = spec.pose or recorded.get("pose")
    intrinsics = spec.intrinsics or recorded.get("intrinsics")
    kind = spec.kind or recorded.get("kind") or "static"
    mount = spec.mount
    if kind == "wrist" and mount is None:
        pose = None  # a hand-eye transform means nothing without the slot it hangs on
    try:
        return Camera(
            name=plan.name,
            kind=kind,
            source_height=size[0],
            source_width=size[1],
            intrinsics=None if intrinsics is None else tuple(intrinsics),  # pyright: ignore[reportArgumentType]
            pose=None if pose is None else tuple(tuple(row) for row in pose),
            mount=mount,
            depth_range=plan.depth_range,
        )
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"calibration of camera {plan.name!r} is malformed ({reason})",
            info.path / "meta" / "calibration.json",
            "write intrinsics as [fx, fy, cx, cy] and pose as a 4x4 matrix",
        ) from None


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
    state_names = _columns(spec.columns, info.state_columns, f"{place}.columns")
    plain = tuple(_plain(column) for column in state_names)
    state = _reading(spec, state_names, spec.units, place)
    command = None
    if spec.command == "recorded":
        given = spec.command_columns if spec.command_columns is not None else list(plain)
        pool = info.command_columns
        if not pool:
            raise UserError(
                "wants recorded commands and the recordings have no `action`",
                place,
                "write `command: next_state` or `command: none`",
            )
        command_names = _columns(given, pool, f"{place}.command_columns")
        if len(command_names) != len(state_names) and not (spec.reduce and spec.command_columns is not None):
            raise UserError(
                f"has {len(state_names)} columns and {len(command_names)} command columns",
                place,
                "name as many of both",
            )
        command = _reading(spec, command_names, spec.command_units or spec.units, place)
    chain = None
    if spec.from_ == "joints":
        assert spec.urdf is not None
        assert spec.base is not None
        assert spec.tip is not None
        chain = load_chain(find_urdf(spec.urdf, where, urdf_dirs), spec.base, spec.tip, spec.joints)
        if len(chain.movable) != len(plain):
            raise UserError(
                f"has {len(plain)} columns for the {len(chain.movable)} joints {listed(chain.movable, 40)}",
                place,
                "give one column a joint, and `joints` in the columns' order",
            )
    return SlotPlan(_build(name, spec, plain, state_names, chain, place), state, command)


def _build(name: str, spec: SlotSpec, plain: tuple[str, ...], full: Sequence[str], chain: Any, place: str) -> Slot:
    elements, units = _elements(spec, plain, full)
    columns = plain
    if spec.kind == "pose" and chain is None:
        # What the robot reports is x y z, quaternion w x y z: names in that order where they were recorded so.
        columns = POSE_ELEMENTS
        if spec.present and spec.rotation in ("wxyz", "xyzw"):
            order = [0, 1, 2, 3, 4, 5, 6] if spec.rotation == "wxyz" else [0, 1, 2, 6, 3, 4, 5]
            columns = tuple(plain[i] for i in order)
    elif not spec.present:
        columns = elements
    command_units = None
    if spec.command_units is not None and spec.command == "recorded":
        command_units = _si(spec.command_units, len(elements))
    try:
        return Slot(
            name=name,
            kind=spec.kind,
            columns=columns,
            elements=elements,
            units=units,
            command_units=command_units,
            transform="forward_kinematics" if chain else "mean" if spec.reduce and spec.present else "identity",
            chain=chain,
            frame=spec.base or spec.frame,
            convention=spec.resolved_convention,
            command_from="next_state" if spec.command == "next_state" else "recorded",
            expand=spec.expand,
            gripper_open=spec.gripper_open,
            gripper_closed=spec.gripper_closed,
            present=spec.present,
            limits=_limits(spec, 3 if spec.kind == "pose" else len(elements)),
        )
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, "), place, "mend the slot") from None


def _elements(spec: SlotSpec, plain: tuple[str, ...], full: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if spec.kind == "pose":
        return POSE_ELEMENTS, POSE_UNITS
    if not spec.present:
        # An absent arm keeps the numbers the model knows it by; `columns` may name them.
        names = tuple(spec.columns) if isinstance(spec.columns, list) and spec.columns else (spec.kind,)
        return names, _si(spec.units or "1", len(names))
    names = ("mean",) if spec.reduce else plain if len(set(plain)) == len(plain) else tuple(full)
    return names, _si(spec.units or "1", len(names))


def _si(units: str | list[str], count: int) -> tuple[str, ...]:
    return tuple(SI[unit] for unit in ([units] * count if isinstance(units, str) else units[:count]))


def _limits(spec: SlotSpec, width: int) -> Limits | None:
    if spec.limits is None:
        return None

    def row(value: float | list[float]) -> tuple[float, ...]:
        return tuple(value) if isinstance(value, list) else (value,) * width

    return Limits(low=row(spec.limits.low), high=row(spec.limits.high))


def _reading(spec: SlotSpec, names: tuple[str, ...], units: str | list[str] | None, place: str) -> Reading:
    recorded_pose = spec.kind == "pose" and spec.from_ == "recorded"
    expected = POSE_COLUMNS[spec.rotation] if recorded_pose else len(names)
    if len(names) != expected:
        form = "quaternion " + " ".join(spec.rotation) if expected == 7 else spec.rotation
        raise UserError(
            f"a recorded pose is {expected} columns (x y z, {form}), not {len(names)}",
            place,
            "name them in that order, or state `rotation`",
        )
    units = units or "1"
    if recorded_pose:
        if units not in ("m", "mm"):
            raise UserError(f"units of a recorded pose are {units!r}", place, "write m or mm; the rotation has its own")
        turn = UNITS[spec.rotation_units] if spec.rotation in ("rotvec", "rpy") else 1.0
        return Reading(names, (UNITS[str(units)],) * 3 + (turn,) * (expected - 3), spec.rotation)
    if isinstance(units, list) and len(units) != len(names):
        raise UserError(f"has {len(names)} columns and {len(units)} units", place, "give one unit, or one a column")
    scale = [UNITS[unit] for unit in ([units] * len(names) if isinstance(units, str) else units)]
    return Reading(names, tuple(scale))


def _columns(wanted: Columns, pool: list[str], where: str) -> tuple[str, ...]:
    """Full column names. A string is a feature, all of it or a range: `observation.state`, `observation.state[0:7]`."""
    if isinstance(wanted, str):
        match = re.fullmatch(r"(.+?)(?:\[(\d+):(\d+)\])?", wanted)
        assert match is not None
        of_feature = [name for name in pool if name.split("/", 1)[0] == match[1]]
        if not of_feature:
            features = sorted({name.split("/", 1)[0] for name in pool})
            raise UserError(f"there is no feature {match[1]!r}", where, f"name one of: {listed(features)}")
        return tuple(of_feature[int(match[2] or 0) : int(match[3] or len(of_feature))])
    return tuple(_column(name, pool, where) for name in wanted)


def _column(name: str, pool: list[str], where: str) -> str:
    if name in pool:
        return name
    short = [full for full in pool if _plain(full) == name or full.split("/", 1)[-1] == name]
    if len(short) == 1:
        return short[0]
    if short:
        raise UserError(f"column {name!r} is in {listed(short)}", where, "write the full name of one")
    known = sorted({_plain(full) for full in pool})
    raise UserError(
        f"there is no column {name!r}{did_you_mean(name, known)} in the recordings",
        where,
        f"name one of: {listed(known, 60)}",
    )


def _plain(full: str) -> str:
    """The column's own name without its feature; the full name where the rest is only a number."""
    rest = full.split("/", 1)[-1]
    return full if rest.isdigit() else rest


def _feature(name: str, info: SourceInfo, where: str) -> str:
    if name in info.cameras:
        return name
    short = [full for full in info.cameras if full.rsplit(".", 1)[-1] == name]
    if len(short) == 1:
        return short[0]
    hint = did_you_mean(name, info.cameras)
    raise UserError(
        f"there is no camera {name!r}{hint} in the recordings", where, f"name one of: {listed(info.cameras)}"
    )


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
        elif plan.command is not None:
            values = plan.command.read(table)
            already_one = slot.transform == "mean" and values.shape[1] == 1
            command = values if already_one else slot_state(slot, values)
        else:
            command = state[np.minimum(ahead, frames - 1)]
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
