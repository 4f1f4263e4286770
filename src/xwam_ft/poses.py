"""Poses as numbers: x y z in metres and a unit quaternion w x y z with w >= 0; what lies between two of them.

Changes are written in the base frame: the difference of positions, and the rotation vector of R_target * R_reference^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray
    from scipy.spatial.transform import Rotation  # where it is used: half of the start of what has no poses


def canonical_quaternion(quaternion: Float[ndarray, "*n 4"]) -> Float[ndarray, "*n 4"]:
    """Unit length and w >= 0 (w x y z); a zero quaternion becomes the identity."""
    length = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    safe = np.where(length > 1e-9, quaternion / np.maximum(length, 1e-9), np.array([1.0, 0.0, 0.0, 0.0]))
    return np.where(safe[..., :1] < 0, -safe, safe)


def pose_matrix(pose: Float[ndarray, "*n 7"]) -> Float[ndarray, "*n 4 4"]:
    """x y z, quaternion w x y z -> homogeneous matrix."""
    from scipy.spatial.transform import Rotation

    matrix = np.zeros((*pose.shape[:-1], 4, 4))
    matrix[..., 3, 3] = 1.0
    matrix[..., :3, 3] = pose[..., :3]
    flat = canonical_quaternion(pose[..., 3:]).reshape(-1, 4)
    matrix[..., :3, :3] = Rotation.from_quat(flat, scalar_first=True).as_matrix().reshape(*pose.shape[:-1], 3, 3)
    return matrix


def matrix_pose(matrix: Float[ndarray, "*n 4 4"]) -> Float[ndarray, "*n 7"]:
    """Homogeneous matrix -> x y z, quaternion w x y z with w >= 0."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_matrix(matrix[..., :3, :3].reshape(-1, 3, 3))
    quaternion = canonical_quaternion(rotation.as_quat(scalar_first=True)).reshape(*matrix.shape[:-2], 4)
    return np.concatenate([matrix[..., :3, 3], quaternion], axis=-1)


def pose_difference(target: Float[ndarray, "n 7"], reference: Float[ndarray, "n 7"]) -> Float[ndarray, "n 6"]:
    """Position difference and rotation vector of R_target * R_reference^T, both in the base frame."""
    turn = _rotation(target) * _rotation(reference).inv()
    return np.concatenate([target[:, :3] - reference[:, :3], turn.as_rotvec()], axis=1)


def pose_apply(difference: Float[ndarray, "n 6"], reference: Float[ndarray, "n 7"]) -> Float[ndarray, "n 7"]:
    """The pose that differs from `reference` by `difference`; inverse of `pose_difference`."""
    from scipy.spatial.transform import Rotation

    turned = Rotation.from_rotvec(difference[:, 3:]) * _rotation(reference)
    quaternion = canonical_quaternion(turned.as_quat(scalar_first=True))
    return np.concatenate([reference[:, :3] + difference[:, :3], quaternion], axis=1)


def turned_from(quaternions: Float[ndarray, "*n 4"], reference: Sequence[float]) -> Float[ndarray, "*n"]:
    """Radians between orientations and a reference, whatever the quaternions' signs."""
    cosine = np.abs(quaternions @ np.asarray(reference))
    length = np.linalg.norm(quaternions, axis=-1) * np.linalg.norm(reference)
    return 2 * np.arccos(np.clip(cosine / length, 0.0, 1.0))


def pose_compose(
    poses: Float[ndarray, "n 7"], changes: Float[ndarray, "n 7"], *, along: bool, tool: bool
) -> Float[ndarray, "n 7"]:
    """Poses after recorded changes, each written as a pose (dp, dR).

    Args:
        along: a change adds to the pose the last one gave, from `poses[0]` on; else to `poses` at its own row.
        tool: dp and dR are in the frame of the pose they change (p + R dp, R dR); else in the base (p + dp, dR R).
    """
    changed: list[np.ndarray] = []
    before = poses[:1]
    for pose, change in zip(poses, changes, strict=True):
        before = before if along else pose[None]
        turn, more = _rotation(before), _rotation(change[None])
        position = before[:, :3] + (turn.apply(change[None, :3]) if tool else change[:3])
        quaternion = (turn * more if tool else more * turn).as_quat(scalar_first=True)
        before = np.concatenate([position, canonical_quaternion(quaternion)], axis=1)
        changed.append(before[0])
    return np.stack(changed)


def _rotation(pose: np.ndarray) -> Rotation:
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(canonical_quaternion(pose[:, 3:]), scalar_first=True)
