"""Recorded end-effector poses in any usual form -> x y z, quaternion w x y z with w >= 0.

A form says how the columns of a pose are read. All but `matrix4_*` are x y z followed by the rotation:
    wxyz, xyzw                    a unit quaternion, 4 numbers
    rotvec                        a rotation vector: axis times angle, 3
    rpy                           roll, pitch, yaw about fixed axes, R = Rz Ry Rx, 3; the same as extrinsic_xyz
    extrinsic_abc, intrinsic_abc  Euler angles about fixed or turning axes a, b, c in that order (zyx, zyz, ...), 3
    6d_columns, 6d_rows           the first two columns, or rows, of the rotation matrix one after the other, 6
    matrix3_row_major, matrix3_column_major    the rotation matrix, 9
    matrix4_row_major, matrix4_column_major    the homogeneous matrix, 16, position included
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.poses import canonical_quaternion
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from scipy.spatial.transform import Rotation

SLACK = 0.05  # how far a recorded quaternion or matrix may be from a rotation: rounding, not a wrong form

_ORDERS = ["".join(o) for o in itertools.product("xyz", repeat=3) if o[0] != o[1] and o[1] != o[2]]
EULER = ("rpy", *(f"{about}_{order}" for about in ("extrinsic", "intrinsic") for order in _ORDERS))
ANGLES = ("rotvec", *EULER)  # forms whose rotation has a unit
WIDTHS = {  # columns of a whole pose
    "wxyz": 7,
    "xyzw": 7,
    **dict.fromkeys(ANGLES, 6),
    "6d_columns": 9,
    "6d_rows": 9,
    "matrix3_row_major": 12,
    "matrix3_column_major": 12,
    "matrix4_row_major": 16,
    "matrix4_column_major": 16,
}
FORMS = tuple(WIDTHS)


def column_scales(form: str, metres: float, radians: float) -> tuple[float, ...]:
    """The factor of each column of a pose: `metres` for its position, `radians` for its angles, 1 elsewhere."""
    if form.startswith("matrix4"):
        places = (3, 7, 11) if form.endswith("row_major") else (12, 13, 14)
        return tuple(metres if i in places else 1.0 for i in range(16))
    return (metres,) * 3 + (radians if form in ANGLES else 1.0,) * (WIDTHS[form] - 3)


def column_units(form: str, length: str, angle: str) -> tuple[str, ...]:
    """The unit of each column of a pose: `length` of its position, `angle` of its angles, 1 elsewhere."""
    lengths, angles = column_scales(form, 2.0, 1.0), column_scales(form, 1.0, 2.0)  # 2 marks the columns
    return tuple(length if at == 2 else angle if turn == 2 else "1" for at, turn in zip(lengths, angles, strict=True))


def read_pose(values: Float[ndarray, "f n"], form: str, what: str) -> Float[ndarray, "f 7"]:
    """Poses in `form`, metres and radians, -> x y z, quaternion w x y z.

    Args:
        what: the columns in words, for the message.

    Raises:
        EpisodeError: what is recorded is no rotation in that form, with its frame.
    """
    if form.startswith("matrix4"):
        matrix = values.reshape(-1, 4, 4)
        matrix = matrix if form.endswith("row_major") else matrix.transpose(0, 2, 1)
        wrong = np.abs(matrix[:, 3] - np.array([0.0, 0.0, 0.0, 1.0])).max(axis=1) > 1e-3
        other = "matrix4_column_major" if form.endswith("row_major") else "matrix4_row_major"
        _refuse(wrong, what, f"has no last row 0 0 0 1 as {form} (is it {other}?)")
        return _joined(matrix[:, :3, 3], _from_matrix(matrix[:, :3, :3], what, form))
    return _joined(values[:, :3], _turn(values[:, 3:], form, what))


def _turn(numbers: np.ndarray, form: str, what: str) -> Rotation:
    from scipy.spatial.transform import Rotation

    if form in ("wxyz", "xyzw"):
        length = np.linalg.norm(numbers, axis=1)
        _refuse(np.asarray(np.abs(length - 1.0) > SLACK), what, "has a quaternion that is not of length 1")
        return Rotation.from_quat(numbers, scalar_first=form == "wxyz")
    if form == "rotvec":
        return Rotation.from_rotvec(numbers)
    if form in EULER:
        about, _, order = "extrinsic_xyz".partition("_") if form == "rpy" else form.partition("_")
        return Rotation.from_euler(order if about == "extrinsic" else order.upper(), numbers)
    if form.startswith("6d"):
        first, second = numbers[:, :3], numbers[:, 3:]
        second = second - first * (first * second).sum(1, keepdims=True) / np.maximum((first**2).sum(1), 1e-12)[:, None]
        lengths = np.stack([np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)], axis=1)
        _refuse(np.asarray((lengths < SLACK).any(axis=1)), what, f"has vectors that span no plane as {form}")
        first, second = first / lengths[:, :1], second / lengths[:, 1:]
        matrix = np.stack([first, second, np.cross(first, second)], axis=2)
        return Rotation.from_matrix(matrix if form == "6d_columns" else matrix.transpose(0, 2, 1))
    matrix = numbers.reshape(-1, 3, 3)
    return _from_matrix(matrix if form.endswith("row_major") else matrix.transpose(0, 2, 1), what, form)


def _from_matrix(matrix: np.ndarray, what: str, form: str) -> Rotation:
    from scipy.spatial.transform import Rotation

    off = np.abs(matrix @ matrix.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    mirrored = np.asarray(np.linalg.det(matrix) < 0)
    _refuse(np.asarray(off > SLACK) | mirrored, what, f"is no rotation matrix as {form}")
    return Rotation.from_matrix(matrix)


def _refuse(wrong: np.ndarray, what: str, reason: str) -> None:
    if wrong.any():
        raise EpisodeError(f"the pose in {what} {reason}, at frame {int(np.argmax(wrong))}")


def _joined(position: np.ndarray, turn: Rotation) -> np.ndarray:
    return np.concatenate([position, canonical_quaternion(turn.as_quat(scalar_first=True))], axis=1)
