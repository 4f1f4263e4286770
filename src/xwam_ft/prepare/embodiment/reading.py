"""From recorded columns to the numbers of a slot in SI units: which columns, their units, the form of a pose."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare.embodiment.joint_units import SERVO, SI, UNITS, Line, Motor, line_of, motor_of, read_calibration
from xwam_ft.prepare.embodiment.pose_forms import WIDTHS, column_scales, column_units, read_pose
from xwam_ft.prepare.embodiment.schema import Columns, SlotSpec

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.prepare.episode import Table
    from xwam_ft.prepare.sources import SourceInfo


@dataclass(frozen=True)
class Reading:
    """Recorded columns -> the numbers of a slot in SI units, as the robot would report them."""

    columns: tuple[str, ...]  # full names
    scale: tuple[float, ...]
    rotation: str | None = None  # form of a recorded pose, see pose_forms.py
    offset: tuple[float, ...] = ()  # none: 0
    units: tuple[str, ...] = ()  # of the columns, as the embodiment file states them

    def read(self, table: Table) -> Float[ndarray, "f n"]:
        """[F, n]; for a recorded pose n is 7.

        Raises:
            EpisodeError: what is recorded is no rotation in the form stated.
        """
        values = np.stack([table.columns[name] for name in self.columns], axis=1) * np.array(self.scale)
        if self.offset:
            values = values + np.array(self.offset)
        if self.rotation is None:
            return values
        return read_pose(values, self.rotation, f"columns {self.columns[0]} to {self.columns[-1]}")


def state_reading(spec: SlotSpec, names: tuple[str, ...], place: str, where: Path) -> Reading:
    """How the state of a slot is read. `where`: the embodiment file, beside which a calibration lies.

    Raises:
        UserError: a number of columns, units, signs, zeros or motors that do not fit, or a calibration that does not.
    """
    if spec.kind == "pose" and spec.from_ == "recorded":
        return _pose_reading(names, spec.rotation, spec.units, spec.rotation_units, place)
    lines = _lines(spec, names, spec.units, place, where)
    return _reading(names, lines, _each(spec.units, len(names)))


def command_reading(spec: SlotSpec, names: tuple[str, ...], place: str, where: Path) -> Reading:
    """How recorded commands are read; a change has neither zero nor offset."""
    units = spec.command_units if spec.command_units is not None else spec.units
    if spec.kind == "pose" and spec.from_ == "recorded":
        form = spec.command_rotation or spec.rotation
        turn = spec.command_rotation_units or spec.rotation_units
        found = _pose_reading(names, form, units, turn, place)
        if spec.command_scale is not None and not _numbers_only(form):
            what = f"`command_scale` would scale the rotation {form!r}, which is no angle"
            raise UserError(what, place, "leave it out, or record changes as rotvec or Euler angles")
        return _scaled(found, spec, place)
    lines = _lines(spec, names, units, place, where)
    if spec.command == "delta":
        lines = [Line(line.scale) for line in lines]
    return _scaled(_reading(names, lines, _each(units, len(names))), spec, place)


def si_units(units: str | list[str], count: int) -> tuple[str, ...]:
    return tuple(SI[unit] for unit in ([units] * count if isinstance(units, str) else units[:count]))


def _numbers_only(form: str) -> bool:
    """Whether a pose in this form is six numbers that may be multiplied."""
    return WIDTHS[form] == 6


def _each(units: str | list[str] | None, count: int) -> tuple[str, ...]:
    return (units or "1",) * count if units is None or isinstance(units, str) else tuple(units)


def _reading(names: tuple[str, ...], lines: list[Line], units: tuple[str, ...]) -> Reading:
    offsets = tuple(line.offset for line in lines)
    return Reading(names, tuple(line.scale for line in lines), None, offsets if any(offsets) else (), units)


def _scaled(found: Reading, spec: SlotSpec, place: str) -> Reading:
    if spec.command_scale is None:
        return found
    given = spec.command_scale
    factors = given if isinstance(given, list) else [given] * len(found.columns)
    if len(factors) != len(found.columns):
        raise UserError(
            f"has {len(found.columns)} command columns and {len(factors)} values of command_scale",
            place,
            "give one value, or one a column",
        )
    scale = tuple(factor * scale for factor, scale in zip(factors, found.scale, strict=True))
    return replace(found, scale=scale, units=())  # a controller's own, of which nothing is known


def _pose_reading(names: tuple[str, ...], form: str, units: str | list[str] | None, turn: str, place: str) -> Reading:
    expected = WIDTHS[form]
    if len(names) != expected:
        layout = f"x y z, {form}" if expected < 16 else form
        raise UserError(
            f"a recorded pose is {expected} columns ({layout}), not {len(names)}",
            place,
            "name them in that order, or state `rotation`",
        )
    if units not in ("m", "mm"):
        raise UserError(f"units of a recorded pose are {units!r}", place, "write m or mm; the rotation has its own")
    scales = column_scales(form, UNITS[str(units)], UNITS[turn])
    return Reading(names, scales, form, units=column_units(form, str(units), turn))


def _lines(
    spec: SlotSpec, names: tuple[str, ...], units: str | list[str] | None, place: str, where: Path
) -> list[Line]:
    """From recorded numbers to SI, one a column."""
    count = len(names)
    each = list(_each(units, count))
    for what, given in (("units", each), ("signs", spec.signs), ("zeros", spec.zeros), ("motors", spec.motors)):
        if given is not None and len(given) != count:
            raise UserError(f"has {count} columns and {len(given)} {what}", place, f"give one of `{what}` a column")
    motors: list[Motor | None] = [None] * count
    if spec.calibration is not None:
        path = where.parent / spec.calibration
        table = read_calibration(path)
        called = spec.motors or [plain(name) for name in names]
        motors = [
            motor_of(name, table, path) if unit in SERVO else None for name, unit in zip(called, each, strict=True)
        ]
    return [
        line_of(
            each[i],
            motors[i],
            sign=1.0 if spec.signs is None else float(spec.signs[i]),
            zero=None if spec.zeros is None else spec.zeros[i],
        )
        for i in range(count)
    ]


# --- columns by name --------------------------------------------------------------------------------------------


def find_columns(wanted: Columns, pool: list[str], where: str) -> tuple[str, ...]:
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


def plain(full: str) -> str:
    """The column's own name without its feature; the full name where the rest is only a number."""
    rest = full.split("/", 1)[-1]
    return full if rest.isdigit() else rest


def _column(name: str, pool: list[str], where: str) -> str:
    if name in pool:
        return name
    if name.startswith("action_") and f"action/{name[7:]}" in pool:  # a plain folder's name of it
        return f"action/{name[7:]}"
    short = [full for full in pool if plain(full) == name or full.split("/", 1)[-1] == name]
    if len(short) == 1:
        return short[0]
    if short:
        raise UserError(f"column {name!r} is in {listed(short)}", where, "write the full name of one")
    known = sorted({plain(full) for full in pool})
    raise UserError(
        f"there is no column {name!r}{did_you_mean(name, known)} in the recordings",
        where,
        f"name one of: {listed(known, 60)}",
    )


def find_camera(name: str, info: SourceInfo, where: str) -> str:
    """The feature of a camera named in full or by its last part; where there is none, with what is there instead."""
    if name in info.cameras:
        return name
    short = [full for full in info.cameras if full.rsplit(".", 1)[-1] == name]
    if len(short) == 1:
        return short[0]
    if not info.cameras:
        told = "".join(f" ({note})" for note in info.notes)
        raise UserError(
            f"there is no camera {name!r}: the recordings hold no pictures{told}",
            where,
            "give recordings with pictures; `xwam-ft inspect` lists what is there",
        )
    hint = did_you_mean(name, info.cameras)
    raise UserError(
        f"there is no camera {name!r}{hint} in the recordings", where, f"name one of: {listed(info.cameras)}"
    )
