"""Names and units of columns against what they are read as: where they contradict it, all poses would be wrong."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.embodiment.joint_units import SI
from xwam_ft.prepare.embodiment.pose_forms import EULER, WIDTHS
from xwam_ft.prepare.embodiment.reading import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xwam_ft.contract import Slot
    from xwam_ft.kinematics import Chain

# A column's last word that names an element of a quaternion: `qx`, `quat_x`, `pose.orientation.x`; and, where a
# quaternion or an axis is expected, also the letter alone.
QUATERNION = re.compile(r"(?:^|[^a-z])(?:q|(?:quat|quaternion|orientation)[^a-z]?)([wxyz])$", re.IGNORECASE)
LETTER = re.compile(r"(?:^|[^a-z])[qrp]?([wxyz])$", re.IGNORECASE)
BOUND, SPEED = {"m": 20.0, "rad": 30.0}, {"m": 20.0, "rad": 50.0}  # no arm's limits are beyond
LOOKS = {"m": "millimetres", "rad": "degrees"}
ANGLE = re.compile(r"(?:^|[^a-z])(?:r?([xyz])|(roll)|(pitch)|(yaw))$", re.IGNORECASE)


def check_pose(form: str, names: Sequence[str], place: str, key: str) -> None:
    """Columns of a recorded pose whose names say another order of its position, quaternion or angles than `form`.

    Args:
        key: of the embodiment file, that states the form.

    Raises:
        UserError: where all elements are named, in another order or at another place.
    """
    if len(names) != WIDTHS[form]:
        return
    if form in ("wxyz", "xyzw"):
        _check_quaternion(form, names, place, key)
    if WIDTHS[form] < 16:
        _check_axes(names[:3], "xyz", "its position", place)
    if form == "rotvec" or (form in EULER and len(set(form[-3:])) == 3):
        _check_axes(names[3:], "xyz" if form in ("rotvec", "rpy") else form[-3:], f"its rotation {form!r}", place)


def _check_quaternion(form: str, names: Sequence[str], place: str, key: str) -> None:
    told = [QUATERNION.search(name) for name in names]
    if sum(match is not None for match in told) < 4:  # x y z of a position may come before a quaternion's x y z w
        told = [None] * 3 + [LETTER.search(name) for name in names[3:]]
    named = [(at, match[1].lower()) for at, match in enumerate(told) if match]
    order = "".join(letter for _, letter in named)
    if sorted(order) != sorted("wxyz") or (order == form and named[0][0] == 3):
        return
    columns = listed([plain(names[at]) for at, _ in named])
    if order in ("wxyz", "xyzw") and named[0][0] == 3:
        fix = f"write `{key}: {order}`"
    else:
        fix = f"name the columns x y z first, then the quaternion as {' '.join(form)}"
    raise UserError(f"has the quaternion as {columns}, and would be read as {form}", place, fix)


def _check_axes(names: Sequence[str], axes: str, what: str, place: str) -> None:
    """Three columns named by axes (roll, pitch and yaw are x, y and z), in another order than they are read."""
    told = [ANGLE.search(name) or LETTER.search(name) for name in names]
    letters = [(match[0][-1].lower() if match.re is LETTER else _axis(match)) if match else "" for match in told]
    if sorted(letters) == sorted(axes) and "".join(letters) != axes:
        columns, right = listed(map(plain, names)), [plain(names[letters.index(axis)]) for axis in axes]
        raise UserError(f"names {columns} for {what}", place, f"name them as {' '.join(right)}")


def _axis(match: re.Match[str]) -> str:
    return (match[1] or "xyz"[next(at for at in range(3) if match[at + 2])]).lower()


def check_joint_units(chain: Chain, names: Sequence[str], units: Sequence[str], place: str) -> None:
    """Units of columns that a pose is computed from, against the joints of its chain.

    Args:
        names: of the columns, as many as joints move.
        units: as the embodiment file states them; none where they are a controller's own.

    Raises:
        UserError: a joint that turns has metres, or one that slides an angle.
    """
    kinds = {joint.name: joint.type for joint in chain.joints}
    for name, joint, unit in zip(names, chain.movable, units, strict=False):
        slides = kinds[joint] == "prismatic"
        if SI[unit] != ("m" if slides else "rad"):
            what = f"column {plain(name)!r} is stated in {unit}, and joint {joint!r} {'slides' if slides else 'turns'}"
            fix = "write m or mm" if slides else "write rad, deg or a servo's units"
            raise UserError(what, place, f"{fix} for it (units may be a list, one a column)")


def check_limits(slot: Slot, place: str) -> None:
    """Stated limits that no robot has in metres and radians: they would never hold a command.

    Raises:
        UserError: they look like degrees or millimetres.
    """
    kinds = {joint.name: joint.type for joint in slot.chain.joints} if slot.chain else {}
    joints = ["m" if kinds[name] == "prismatic" else "rad" for name in (slot.chain.movable if slot.chain else ())]
    own = ["m", "m", "m"] if slot.kind == "pose" else list(slot.command_units or slot.units)
    parts = [(slot.limits, own, ["m", "rad"] if slot.kind == "pose" else own, "limits")]
    parts.append((slot.limits.joints if slot.limits else None, joints, joints, "limits.joints"))
    for limits, units, rates, key in parts:
        if limits is None:
            continue
        for name, of, most in (("low", units, BOUND), ("high", units, BOUND), ("speed", rates, SPEED)):
            for value, unit in zip(getattr(limits, name) or (), of, strict=False):
                if abs(value) > most.get(unit, math.inf):
                    a_second = "/s" if name == "speed" else ""
                    what = f"`{key}.{name}` is {value:g} {unit}{a_second}, which looks like {LOOKS[unit]}{a_second}"
                    raise UserError(what, place, "write it in metres and radians, whatever unit was recorded")


def check_same_order(names: Sequence[str], others: Sequence[str], key: str, word: str, place: str) -> None:
    """Columns that are called as what they are read as, each by another one's name.

    Args:
        key: of the embodiment file, that gives `others` in the columns' order.
        word: how a column meets the one at its place.

    Raises:
        UserError: names the first column, and the order that is meant.
    """
    own, theirs = _short(names), _short(others)
    if set(own) != set(theirs) or len(set(own)) < len(own) or len(own) != len(theirs):
        own, theirs = list(map(_bare, names)), list(map(_bare, others))
    same_names = sorted(own) == sorted(theirs)
    for at, (one, other) in enumerate(zip(own, theirs, strict=False)):
        if one == other or one not in theirs or (one.isdigit() and not same_names):
            continue
        order = [others[theirs.index(each)] for each in own] if same_names else []
        fix = f"write `{key}: [{', '.join(order)}]`" if order else f"give `{key}` in the columns' order"
        raise UserError(f"column {names[at]!r} would be {word} {others[at]!r}", place, fix)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower().removesuffix(".pos"))


def _short(names: Sequence[str]) -> list[str]:
    """Without what all of them begin and end with, which recordings and robots choose in their own ways."""
    bare = list(map(_bare, names))
    start = _alike(bare)
    end = _alike([name[start:][::-1] for name in bare])
    return [name[start : len(name) - end] for name in bare]


def _alike(names: Sequence[str]) -> int:
    """How many letters all of them begin with."""
    differ = (at for at, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1)
    return next(differ, min(map(len, names), default=0))
