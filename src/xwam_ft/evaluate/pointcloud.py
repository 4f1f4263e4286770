"""Depth pictures -> coloured points in the base frame -> a .ply file.

Cameras follow OpenCV: x right, y down, z forward; depth is z, in metres, not the distance along the ray. Pixel centres
have integer coordinates: pixel (row v, column u) looks along ((u - cx) / fx, (v - cy) / fy, 1). A pose is the 4 x 4
matrix that takes points of the camera's frame to the base frame. Depth that is not finite and positive is a hole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from numpy import ndarray

    from xwam_ft.pictures import Intrinsics

_VERTEX = np.dtype([("xyz", "<f4", (3,)), ("rgb", "u1", (3,))])
_PROPERTIES = "".join(f"property float {axis}\n" for axis in "xyz") + "".join(
    f"property uchar {colour}\n" for colour in ("red", "green", "blue")
)
_FORMAT = "ply\nformat binary_little_endian 1.0\nelement vertex {}\n" + _PROPERTIES
_HEADER = re.compile(_FORMAT.format("(\\d+)").encode("ascii"))


@dataclass(frozen=True)
class Cloud:
    """Points in the base frame, metres, with their colours."""

    points: Float[ndarray, "n 3"]
    colours: UInt8[ndarray, "n 3"]

    def __len__(self) -> int:
        return len(self.points)


def unproject(depth: Float[ndarray, "h w"], intrinsics: Intrinsics) -> Float[ndarray, "h w 3"]:
    """Every pixel's point in the camera's frame; holes come out as they are (not finite, or at z <= 0)."""
    fx, fy, cx, cy = intrinsics
    rows, columns = np.indices(depth.shape, dtype=np.float64)
    return np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth], axis=-1)


def project(points: Float[ndarray, "n 3"], intrinsics: Intrinsics) -> Float[ndarray, "n 2"]:
    """Points of the camera's frame -> (column, row); the inverse of `unproject` given the depth."""
    fx, fy, cx, cy = intrinsics
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([fx * x / z + cx, fy * y / z + cy], axis=-1)


def transform(points: Float[ndarray, "*n 3"], pose: Float[ndarray, "4 4"]) -> Float[ndarray, "*n 3"]:
    """Points through a homogeneous matrix."""
    return points @ pose[:3, :3].T + pose[:3, 3]


def view_cloud(
    depth: Float[ndarray, "h w"],
    colours: UInt8[ndarray, "h w 3"],
    intrinsics: Intrinsics,
    pose: Float[ndarray, "4 4"],
    mask: Bool[ndarray, "h w"] | None = None,
) -> Cloud:
    """One view's points in the base frame, holes and masked-out pixels left away."""
    valid = np.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid &= mask
    points = unproject(depth, intrinsics)[valid]
    return Cloud(transform(points, pose), colours[valid])


def fuse(clouds: Sequence[Cloud]) -> Cloud:
    """All points of all views together; nothing is merged or thinned."""
    if not clouds:
        return Cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    return Cloud(np.concatenate([c.points for c in clouds]), np.concatenate([c.colours for c in clouds]))


def chamfer(first: Cloud, second: Cloud, most: int = 20_000) -> float | None:
    """Chamfer distance in metres: the mean distance from a point to the other cloud's nearest one, of both directions.

    Args:
        most: points of a cloud that are asked, on an even stride; all of the other cloud may answer.

    Returns:
        None where a cloud is empty.
    """
    found = _distances(first, second, most)
    return None if found is None else float(np.mean(found[0]) + np.mean(found[1])) / 2


def cloud_scores(first: Cloud, second: Cloud, within: float, most: int = 20_000) -> tuple[float, float] | None:
    """`chamfer`, and the F-score: the harmonic mean of both clouds' shares of points `within` metres of the other.

    None where a cloud is empty.
    """
    found = _distances(first, second, most)
    if found is None:
        return None
    near, far = (float(np.mean(distance <= within)) for distance in found)
    score = 2 * near * far / (near + far) if near + far else 0.0
    return float(np.mean(found[0]) + np.mean(found[1])) / 2, score


def _distances(first: Cloud, second: Cloud, most: int) -> tuple[ndarray, ndarray] | None:
    """From points of each cloud to the other's nearest."""
    from scipy.spatial import KDTree

    if not len(first) or not len(second):
        return None

    def one_way(asked: Cloud, answering: Cloud) -> ndarray:
        points = asked.points[:: -(-len(asked) // most)]
        return np.asarray(KDTree(answering.points).query(points)[0])

    return one_way(first, second), one_way(second, first)


def write_ply(path: Path, cloud: Cloud) -> None:
    """Binary little-endian PLY: float x y z, uchar red green blue; written atomically."""
    vertices = np.empty(len(cloud), _VERTEX)
    vertices["xyz"] = cloud.points
    vertices["rgb"] = cloud.colours
    header = _FORMAT.format(len(cloud)) + "end_header\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(header.encode("ascii") + vertices.tobytes())


def read_ply(path: Path) -> Cloud:
    """Read what `write_ply` writes.

    Raises:
        UserError: not such a file, or cut short.
    """
    header, found, body = path.read_bytes().partition(b"end_header\n")
    match = _HEADER.fullmatch(header) if found else None
    if match is None:
        raise UserError("is not a coloured binary point cloud", path, "give a .ply that xwam-ft wrote")
    count = int(match[1])
    if len(body) != count * _VERTEX.itemsize:
        raise UserError(f"holds {len(body)} bytes for {count} points", path, "make the file again")
    vertices = np.frombuffer(body, _VERTEX)
    return Cloud(vertices["xyz"].copy(), vertices["rgb"].copy())
