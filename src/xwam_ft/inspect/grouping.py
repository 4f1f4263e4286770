"""Columns -> limbs: which recorded numbers make one arm, one hand or one pose; for the starter file only.

By names first: a position's x y z with the rotation of the same stem (`ee_pos_x` and `ee_quat_w`, `x` and `qw`,
`eef_pos/0` and `eef_ori/0`) is a pose, a hand's word makes a gripper, `left` and `right` make two arms. Numbers
without names are told by what they are: 16 that are a homogeneous matrix, 4 of norm one behind a position, columns at
the end of an arm that stay at two ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

HAND = re.compile(r"grip|hand|finger|jaw|claw", re.IGNORECASE)
POSITION = ("pos", "position", "positions", "trans", "translation", "xyz", "p", "t")
ROTATION = ("q", "quat", "quaternion", "ori", "orient", "orientation", "rot", "rotation")
EULER, VECTOR = ("euler", "rpy", "angles"), ("rotvec", "axisangle", "aa", "rvec")
WHOLE = ("pose", "poses", "matrix", "mat", "transform", "tf", "extrinsic", "extrinsics")
TURNS = ("roll", "pitch", "yaw")
JOINTS = ("joint", "joints", "motor", "motors", "servo", "j", "axis")
NOTHING = re.compile(
    r"(?:^|_)(?:reward|rewards|done|terminated|truncated|success|step|steps|frame|frames|index|idx|id|episode|stamp|"
    r"timestamp|timestamps|time|seq|sec|nsec|nanosec)$"
)
DOUBT = "joints, or a pose: nothing names these numbers, and they may be x y z and rotvec or rpy"
ENDS, AT_ENDS = 0.15, 0.6  # a hand is within this share of its range of one end or the other, for so much of the time
FORMS = {
    3: "rotvec, or rpy",
    4: "wxyz, or xyzw",
    6: "6d_columns, or 6d_rows",
    9: "matrix3_row_major, or matrix3_column_major",
}
Values = Callable[[Sequence[str]], np.ndarray]
"""Full names of columns -> [F, n], the finite rows over the episodes that were read; no row where there is none."""


@dataclass(frozen=True)
class Limb:
    """Columns that make a slot.

    Attributes:
        kind: joints, pose, gripper or vector.
        columns: full names; of a pose x y z first, then the rotation as recorded.
        side: left, right or "".
        stem: what their names have in common, for the slot's name.
        form: of a pose's rotation, where names or numbers say it.
        maybe: what the form may be, where they do not.
        why: what else than names told it.
        doubt: what else it may be, where that is open.
    """

    kind: str
    columns: tuple[str, ...]
    side: str = ""
    stem: str = ""
    form: str | None = None
    maybe: str = ""
    why: str = ""
    doubt: str = ""


@dataclass(frozen=True)
class Name:
    """A column's name taken apart: `role` is x y z qx qy qz qw roll pitch yaw rx ry rz, a number, hand or ""."""

    column: str
    group: str  # the feature, or what stands before the last dot
    side: str
    stem: tuple[str, ...]
    role: str
    kin: str  # what a number is one of: position, rotation, whole or ""


def limbs_of(columns: Sequence[str], values: Values, robot: str = "") -> list[Limb]:
    """The limbs of a robot's observed columns, in recorded order."""
    sides = _short_sides(columns)
    names = [read_name(column, sides) for column in columns]
    left = [name for name in names if not is_nothing(name.column)]
    found: list[Limb] = []
    for pose in _poses(left):
        taken = set(pose.columns)
        left = [name for name in left if name.column not in taken]
        found.append(pose)
    for members in _together(left):
        found += _limbs(members, values, robot)
    place = {column: i for i, column in enumerate(columns)}
    return sorted(found, key=lambda limb: min(place[column] for column in limb.columns))


def is_nothing(column: str) -> bool:
    """Whether a column counts, times or judges, so that it is no number of the robot."""
    return NOTHING.search("_".join(_words(column))) is not None and not HAND.search(column)  # an index finger


def read_name(column: str, sides: dict[str, str]) -> Name:
    feature, _, element = column.partition("/")
    group = feature if element else feature.rpartition(".")[0]
    words = _words(column)
    side = next((side for word in words if (side := sides.get(word, ""))), "")
    side = side or next((side for side in ("left", "right") if side in column.lower()), "")
    words = [word for word in words if word not in ("observation", "observations", "state", "action", "actions", "obs")]
    words = [word for word in words if sides.get(word) is None]
    if HAND.search(element or feature):
        return Name(column, group, side, tuple(words), "hand", "")
    last = words[-1] if words else ""
    stem, kin = words[:-1], ""
    before = stem[-1] if stem else ""
    if last in ("x", "y", "z", "w"):
        kin = "rotation" if last == "w" or before in ROTATION else "euler" if before in EULER else ""
        kin = kin or ("vector" if before in VECTOR else "position")
    elif last in ("qx", "qy", "qz", "qw"):
        last, kin = last[1], "rotation"
    elif last in TURNS:
        kin = "euler"
    elif last in ("rx", "ry", "rz"):
        last, kin = last[1], "vector"
    elif last.isdigit():
        kin = next((kin for kin, of in (("position", POSITION), ("rotation", (*ROTATION, *EULER, *VECTOR)),
                                        ("whole", WHOLE)) if before in of), "")  # fmt: skip
    if kin in ("position", "rotation") and last.isdigit() and len(stem) > 1 and stem[-2] in JOINTS:
        kin = ""  # joint_position/0
    if kin in ("position", "rotation", "euler", "vector") and before in (*POSITION, *ROTATION, *EULER, *VECTOR):
        stem = stem[:-1]
    return Name(column, group, side, tuple(stem if kin or last.isdigit() else words), last, kin)


def _words(column: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column)
    apart = re.sub(r"(?<=[A-Za-z])(?=\d+$)", "_", apart)  # joint1
    return [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]


def _short_sides(columns: Sequence[str]) -> dict[str, str]:
    """`l` and `r` are sides where both stand in the names."""
    words = {word for column in columns for word in _words(column)}
    return {"l": "left", "r": "right"} if {"l", "r"} <= words else {}


def _poses(names: Sequence[Name]) -> list[Limb]:
    """Positions with a rotation of the same side and stem."""
    found: list[Limb] = []
    keys = dict.fromkeys((name.side, name.stem) for name in names if name.kin in ("position", "rotation", "whole"))
    for side, stem in keys:
        of_it = [name for name in names if (name.side, name.stem) == (side, stem)]
        position = [name for name in of_it if name.kin == "position"]
        if len(position) != 3:
            continue
        place = sorted(position, key=lambda name: (name.role, name.column)) if position[0].role in "xyz" else position
        for kin in ("rotation", "euler", "vector"):
            turn = [name for name in of_it if name.kin == kin]
            roles = [name.role for name in turn]
            form, maybe = None, ""
            if kin == "rotation" and sorted(roles) == ["w", "x", "y", "z"]:
                form = "".join(roles) if "".join(roles) in ("wxyz", "xyzw") else None
                turn = turn if form else sorted(turn, key=lambda name: "wxyz".index(name.role))
                form = form or "wxyz"
            elif kin == "euler" and sorted(roles) in (["pitch", "roll", "yaw"], ["x", "y", "z"]):
                order = ["roll", "pitch", "yaw"] if "roll" in roles else ["x", "y", "z"]
                turn, form = sorted(turn, key=lambda name: order.index(name.role)), "rpy"
            elif kin == "vector" and sorted(roles) == ["x", "y", "z"]:
                turn, form = sorted(turn, key=lambda name: name.role), "rotvec"
            elif kin == "rotation" and len(turn) in FORMS and (all(r.isdigit() for r in roles) or len(turn) == 3):
                maybe = FORMS[len(turn)]
            else:
                continue
            columns = tuple(name.column for name in (*place, *turn))
            found.append(Limb("pose", columns, side, "_".join(stem), form, maybe))
            break
    return found


def _together(names: Sequence[Name]) -> list[list[Name]]:
    """What is left, by group and side; hands and whole poses apart from the rest."""
    found: dict[tuple[str, str, str, str], list[Name]] = {}
    counted: dict[tuple[str, tuple[str, ...]], int] = {}
    for name in names:
        counted[name.group, name.stem] = counted.get((name.group, name.stem), 0) + 1
    for name in names:
        kind = "hand" if name.role == "hand" else "whole" if name.kin == "whole" else "rest"
        # Numbered columns of a table without features are one limb a stem; names that differ are one limb.
        numbered = name.role.isdigit() and "/" not in name.column and counted[name.group, name.stem] > 1
        stem = "_".join(name.stem) if numbered or kind == "whole" else ""
        found.setdefault((name.group, name.side, kind, stem), []).append(name)
    return list(found.values())


def _limbs(members: Sequence[Name], values: Values, robot: str) -> list[Limb]:
    """The limbs of columns that belong together and are no pose by their names."""
    columns, side, stem = tuple(name.column for name in members), members[0].side, "_".join(members[0].stem)
    if members[0].role == "hand":
        return [Limb("gripper", columns, side, "gripper")]
    if members[0].kin == "whole":
        return [_whole(columns, side, stem, values(columns))]
    if all(name.kin == "position" for name in members):
        return [Limb("vector", columns, side, stem or "position", why="a position without a rotation")]
    if all(name.kin in ("rotation", "euler", "vector") for name in members) and not any(
        name.role in TURNS for name in members
    ):
        return [Limb("vector", columns, side, stem or "rotation", why="a rotation without a position")]
    if not all(name.role.isdigit() for name in members):
        return [Limb("joints", columns, side, stem if len({name.stem for name in members}) == 1 else "")]
    return _unnamed(columns, side, stem, values(columns), robot)


def _whole(columns: tuple[str, ...], side: str, stem: str, numbers: np.ndarray) -> Limb:
    """Numbers that are called a pose: the form by how many they are, and by what they hold."""
    count = len(columns)
    if count == 16:
        form = _matrix(numbers)
        maybe = "" if form else "matrix4_row_major, or matrix4_column_major"
        return Limb("pose", columns, side, stem, form, maybe, "by its numbers" if form else "")
    if count - 3 in FORMS:
        return Limb("pose", columns, side, stem, None, FORMS[count - 3])
    return Limb("vector", columns, side, stem, why=f"{count} numbers are no pose of a known form")


def _matrix(numbers: np.ndarray) -> str | None:
    """Whether rows of 16 numbers are homogeneous matrices, and in which order."""
    if not len(numbers):
        return None
    for form, matrices in (
        ("matrix4_row_major", numbers.reshape(-1, 4, 4)),
        ("matrix4_column_major", numbers.reshape(-1, 4, 4).transpose(0, 2, 1)),
    ):
        turn = matrices[:, :3, :3]
        last = np.abs(matrices[:, 3] - [0, 0, 0, 1]).max() < 1e-3
        if last and np.abs(turn @ turn.transpose(0, 2, 1) - np.eye(3)).max() < 1e-2:
            return form
    return None


def _unnamed(columns: tuple[str, ...], side: str, stem: str, numbers: np.ndarray, robot: str) -> list[Limb]:
    """A vector of numbers without names: a matrix, a pose, an arm with its hand, or two of them."""
    count = len(columns)
    joints = Limb("joints", columns, side, stem)
    if count == 16 and (form := _matrix(numbers)):
        return [replace(joints, kind="pose", form=form, why="by its numbers")]
    if count in (7, 8) and len(numbers) and np.abs(np.linalg.norm(numbers[:, 3:7], axis=1) - 1).max() < 5e-3:
        pose = Limb("pose", columns[:7], side, stem, None, FORMS[4], "its last four numbers have norm 1")
        return [pose, *([Limb("gripper", columns[7:], side, "gripper")] if count == 8 else [])]
    if count in (12, 14, 16) and not side:
        half = count // 2
        hands = _hand_like(numbers[:, half - 1]) and _hand_like(numbers[:, -1])
        hands = hands or (count == 14 and "aloha" in robot.lower())
        why = "two arms by their number, the left one first" + (", each with its hand last" if hands else "")
        found: list[Limb] = []
        for each, part in (("left", columns[:half]), ("right", columns[half:])):
            found.append(Limb("joints", part[:-1] if hands else part, each, stem, why=why))
            found += [Limb("gripper", part[-1:], each, "gripper", why=why)] if hands else []
        return found
    if count in (6, 7, 8) and _pose_like(numbers):
        found = [replace(joints, columns=columns[:6], doubt=DOUBT)]
        return [
            *found,
            *([Limb("gripper", columns[6:], side, "gripper", why="behind six numbers")] if count > 6 else []),
        ]
    if count in (6, 7, 8) and _hand_like(numbers[:, -1]):
        why = "the last number stays at its two ends, as a hand does"
        return [replace(joints, columns=columns[:-1]), Limb("gripper", columns[-1:], side, "gripper", why=why)]
    return [joints]


def _pose_like(numbers: np.ndarray) -> bool:
    """Whether six numbers may be a place within reach and a rotation of a tool that mostly points down."""
    if not len(numbers):
        return False
    place, turn = np.abs(numbers[:, :3]), np.abs(numbers[:, 3:6])
    return bool(place.max() < 1.5 and turn.max() < np.pi + 0.3 and np.median(turn, axis=0).max() > 2.6)


def _hand_like(column: np.ndarray) -> bool:
    """Whether a number is mostly at one of two ends, and at both of them."""
    if not len(column) or np.ptp(column) < 1e-6:
        return False
    share = (column - column.min()) / np.ptp(column)
    low, high = float((share < ENDS).mean()), float((share > 1 - ENDS).mean())
    return low + high > AT_ENDS and min(low, high) > 0.05
