"""Kinematic chains out of a URDF: joints -> tip pose, and back by damped least squares.

A `Chain` is plain data (it is stored inside contract.json), so no URDF is needed after `prepare`. Metres and radians;
a pose is the 4x4 matrix that takes points of the tip frame to the base frame; joint values `q` stand in the order of
`Chain.movable`. URDF rotations are fixed-axis roll, pitch, yaw: R = Rz(yaw) Ry(pitch) Rx(roll).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from xml.etree import ElementTree

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.files import sha256

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

SEARCH_VARIABLE = "XWAM_FT_URDF_PATH"
FARTHEST = 10.0  # metres from a joint to the next; no arm is so long

# Where the makers publish them: a URDF is the user's, never ours to ship. Matched by a part of the file name.
PUBLISHED = {
    "so10": "https://github.com/TheRobotStudio/SO-ARM100 (Simulation/)",
    "panda": "the pip package example-robot-data",
    "ur5": "the pip package example-robot-data",
    "xarm7": "the pip package example-robot-data",
    "g1_": "the pip package example-robot-data",
    "piper": "https://github.com/agilexrobotics/Piper_ros",
    "vx300": "https://github.com/Interbotix/interbotix_ros_manipulators",
    "viperx": "https://github.com/Interbotix/interbotix_ros_manipulators",
}

Row = Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
Matrix = Annotated[tuple[Row, ...], Field(min_length=4, max_length=4)]


class ChainJoint(BaseModel):
    """One joint between base and tip. `origin` is its frame in its parent's, `axis` a unit vector in its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    type: Literal["fixed", "revolute", "continuous", "prismatic"]
    origin: Matrix
    axis: tuple[float, float, float]
    lower: float | None = None  # rad or m; None: unbounded
    upper: float | None = None


class Chain(BaseModel):
    """The joints from `base` down to `tip`, and the order in which the recording gives the movable ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urdf: str  # file name, for the reader's eye
    urdf_sha256: str
    base: str
    tip: str
    joints: tuple[ChainJoint, ...]
    order: tuple[str, ...]  # movable joints in the order of q

    @property
    def movable(self) -> list[str]:
        """Names of the joints that move, in the order of q."""
        return list(self.order)

    def forward(self, q: Float[ndarray, "*n j"]) -> Float[ndarray, "*n 4 4"]:
        """Pose of the tip in the base frame; leading dimensions (time) are vectorised over."""
        return self._frames(np.asarray(q, dtype=np.float64))[-1]

    def inverse(
        self,
        target: Float[ndarray, "4 4"],
        seed: Float[ndarray, " j"],
        *,
        tolerance: float = 1e-9,
        max_iterations: int = 100,
    ) -> tuple[Float[ndarray, " j"], float, float]:
        """Joint values near `seed` whose tip is as near to `target` as the joint limits allow.

        Levenberg-Marquardt on the six errors (metres and radians alike); a joint that would leave its limits is held
        there and the others go on.

        Returns:
            q within the limits, and the residuals: metres and radians. A large residual means: out of reach.
        """
        low, high = self._limits()
        q = np.clip(np.asarray(seed, dtype=np.float64), low, high)
        damping = 1e-4
        error, jacobian = self._error(q, target)
        for _ in range(max_iterations):
            if np.linalg.norm(error) < tolerance:
                break
            step = _bounded_step(jacobian, error, q, low, high, damping)
            trial = np.clip(q + step, low, high)
            trial_error, trial_jacobian = self._error(trial, target)
            if trial_error @ trial_error < error @ error:
                moved = float(np.abs(trial - q).max())
                q, error, jacobian = trial, trial_error, trial_jacobian
                damping = max(damping * 0.1, 1e-12)
                if moved < 1e-12:
                    break
            else:
                damping *= 10.0
                if damping > 1e6:
                    break
        return q, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))

    def inverse_path(
        self, targets: Float[ndarray, "f 4 4"], seed: Float[ndarray, " j"]
    ) -> tuple[Float[ndarray, "f j"], Float[ndarray, "f 2"]]:
        """`inverse` for each pose of a path, each step seeded with the one before it (no jumps between branches)."""
        path, residual = np.zeros((len(targets), len(self.order))), np.zeros((len(targets), 2))
        q = np.asarray(seed, dtype=np.float64)
        for step, target in enumerate(targets):
            q, residual[step, 0], residual[step, 1] = self.inverse(target, q)
            path[step] = q
        return path, residual

    def _frames(self, q: np.ndarray) -> list[np.ndarray]:
        """The frame of every joint after its motion, in base coordinates; the last is the tip's."""
        if q.shape[-1] != len(self.order):
            raise ValueError(f"{q.shape[-1]} joint values for the {len(self.order)} joints {listed(self.order)}")
        frames: list[np.ndarray] = []
        frame = np.broadcast_to(np.eye(4), (*q.shape[:-1], 4, 4))
        for joint in self.joints:
            frame = frame @ np.asarray(joint.origin)
            if joint.type != "fixed":
                frame = frame @ _motion(joint, q[..., self.order.index(joint.name)])
            frames.append(frame)
        return frames or [frame]

    def _error(self, q: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The six errors [m, rad] in the base frame, and the geometric Jacobian [6, j]."""
        from scipy.spatial.transform import Rotation

        frames = self._frames(q)
        tip = frames[-1]
        jacobian = np.zeros((6, len(self.order)))
        for joint, frame in zip(self.joints, frames, strict=False):
            if joint.type == "fixed":
                continue
            axis = frame[:3, :3] @ np.asarray(joint.axis)
            column = self.order.index(joint.name)
            if joint.type == "prismatic":
                jacobian[:3, column] = axis
            else:
                jacobian[:3, column] = np.cross(axis, tip[:3, 3] - frame[:3, 3])
                jacobian[3:, column] = axis
        turn = Rotation.from_matrix(target[:3, :3] @ tip[:3, :3].T).as_rotvec()
        return np.concatenate([target[:3, 3] - tip[:3, 3], turn]), jacobian

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        joints = {joint.name: joint for joint in self.joints}
        low = [joints[name].lower for name in self.order]
        high = [joints[name].upper for name in self.order]
        return (
            np.array([-np.inf if value is None else value for value in low]),
            np.array([np.inf if value is None else value for value in high]),
        )


def load_chain(urdf_path: Path, base: str, tip: str, joint_order: list[str] | None = None) -> Chain:
    """Read the chain from link `base` down to link `tip`.

    Args:
        joint_order: the movable joints in the order the recording gives them; None takes the URDF's, base first.

    Raises:
        UserError: not a URDF; a link is absent, or hangs on two joints; `tip` is not below `base`; a joint on the way
            cannot be driven by one number of its own (mimic, floating, planar), or its numbers mean nothing;
            `joint_order` and the joints on the way are not the same.
    """
    root = _parse(urdf_path)
    # Links and joints are looked up apart: in real files one of each may share a name.
    links = [element.get("name", "") for element in root.findall("link")]
    for link in (base, tip):
        if link not in links:
            hint = did_you_mean(link, links)
            raise UserError(
                f"there is no link {link!r}{hint}", urdf_path, f"name one of its links: {listed(links, 40)}"
            )
    above: dict[str, ElementTree.Element] = {}
    for joint in root.findall("joint"):
        link = _attribute(joint, "child", "link", urdf_path)
        if (other := above.setdefault(link, joint)) is not joint:
            names = listed([repr(other.get("name")), repr(joint.get("name"))])
            raise UserError(f"link {link!r} hangs on two joints, {names}", urdf_path, "mend the URDF: a link has one")
    path: list[ElementTree.Element] = []
    link = tip
    while link != base:
        if link not in above or len(path) > len(above):
            over = [_attribute(joint, "parent", "link", urdf_path) for joint in path]
            raise UserError(
                f"link {tip!r} is not below link {base!r}", urdf_path, f"choose as base one of: {listed(over, 40)}"
            )
        path.append(above[link])
        link = _attribute(above[link], "parent", "link", urdf_path)
    joints = tuple(_joint(element, urdf_path) for element in reversed(path))
    movable = [joint.name for joint in joints if joint.type != "fixed"]
    if twice := [name for place, name in enumerate(movable) if name in movable[:place]]:
        what = f"two joints between {base!r} and {tip!r} are called {twice[0]!r}"
        raise UserError(what, urdf_path, "mend the URDF: a joint has a name of its own")
    order = movable if joint_order is None else joint_order
    for name in order:
        if name not in movable:
            raise UserError(
                f"there is no moving joint {name!r} between {base!r} and {tip!r}{did_you_mean(name, movable)}",
                urdf_path,
                f"give exactly: {listed(movable, 40)}",
            )
    if sorted(order) != sorted(movable):
        absent = [name for name in movable if name not in order]
        what = f"no value is given for {listed(absent)}" if absent else f"a joint is named twice in {listed(order, 40)}"
        raise UserError(f"{what}, between {base!r} and {tip!r}", urdf_path, f"give each once: {listed(movable, 40)}")
    return Chain(
        urdf=urdf_path.name, urdf_sha256=sha256(urdf_path), base=base, tip=tip, joints=joints, order=tuple(order)
    )


def velocity_limits(urdf_path: Path, joints: list[str]) -> tuple[float | None, ...]:
    """The URDF's velocity limit of each joint, rad/s or m/s; None where it gives none, or 0.

    Raises:
        UserError: what stands there is no number.
    """
    elements = {element.get("name", ""): element.find("limit") for element in _parse(urdf_path).findall("joint")}
    found: list[float | None] = []
    for name in joints:
        found.append(_number(elements.get(name), "velocity", name, urdf_path) or None)
    return tuple(found)


def find_urdf(name: str, beside: Path, extra_dirs: list[Path]) -> Path:
    """Find a URDF file: beside the embodiment file, then in `extra_dirs`, then in the folders of XWAM_FT_URDF_PATH.

    Args:
        beside: the embodiment file, or its folder.

    Raises:
        UserError: it is in none of them; says where that robot's URDF is published.
    """
    home = beside if beside.is_dir() else beside.parent
    listed_in_variable = [Path(part) for part in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if part]
    folders = [home, *extra_dirs, *listed_in_variable]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    source = next((place for part, place in PUBLISHED.items() if part in name.lower()), None)
    get = f"get it from {source} and " if source else "get it from the robot's maker and "
    raise UserError(
        f"the URDF {name!r} is in none of {listed(map(str, folders), 6)}",
        beside,
        f"{get}put it beside the embodiment file, or give its folder with --urdf-dir or {SEARCH_VARIABLE}",
    )


def _parse(path: Path) -> ElementTree.Element:
    remedy = "give the robot's URDF (a .xacro must be expanded first, with `xacro file.xacro > file.urdf`)"
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise UserError("the file does not exist", path, "check the path of the URDF") from None
    except (ElementTree.ParseError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"is not a URDF ({error})", path, remedy) from None
    if root.tag != "robot" or root.find("link") is None:
        raise UserError(f"is not a URDF: its root is <{root.tag}>, without links", path, remedy)
    return root


def _joint(element: ElementTree.Element, path: Path) -> ChainJoint:
    name, kind = element.get("name", ""), element.get("type", "")
    if element.find("mimic") is not None:
        raise UserError(
            f"joint {name!r} mimics another joint, so it has no value of its own", path, "choose a tip above that joint"
        )
    if kind not in ("fixed", "revolute", "continuous", "prismatic"):
        raise UserError(
            f"joint {name!r} has the type {kind!r}, which one number cannot drive", path, "choose a base below it"
        )
    from scipy.spatial.transform import Rotation

    limit = element.find("limit") if kind in ("revolute", "prismatic") else None
    lower, upper = (_number(limit, end, name, path, 0.0) for end in ("lower", "upper"))
    if lower is not None and upper is not None and lower > upper:
        what = f"joint {name!r} goes from {lower:g} up to {upper:g}"
        raise UserError(what, path, "mend the URDF: `lower` is the smaller of the two")
    axis = np.array(_numbers(element.find("axis"), "xyz", (1.0, 0.0, 0.0), path))
    if kind != "fixed" and not np.linalg.norm(axis):
        raise UserError(f"joint {name!r} has the axis 0 0 0", path, "mend the URDF")
    axis = axis / (np.linalg.norm(axis) or 1.0)
    origin = np.eye(4)
    place = element.find("origin")
    origin[:3, :3] = Rotation.from_euler("xyz", _numbers(place, "rpy", (0.0, 0.0, 0.0), path)).as_matrix()
    origin[:3, 3] = _numbers(place, "xyz", (0.0, 0.0, 0.0), path)
    if (far := float(np.linalg.norm(origin[:3, 3]))) > FARTHEST:
        what = f"joint {name!r} stands {far:.4g} m from the one before it, which looks like millimetres"
        raise UserError(what, path, "write the URDF's lengths in metres")
    return ChainJoint(
        name=name,
        type=kind,
        origin=tuple(tuple(float(value) for value in row) for row in origin),
        axis=(float(axis[0]), float(axis[1]), float(axis[2])),
        lower=lower,
        upper=upper,
    )


def _number(
    limit: ElementTree.Element | None, attribute: str, joint: str, path: Path, default: float | None = None
) -> float | None:
    """A number of a joint's <limit>; None where there is no such element, and for an infinite one."""
    text = None if limit is None else limit.get(attribute)
    if text is None:
        return None if limit is None else default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        what = f"joint {joint!r} has {attribute}={text!r}, which is no number"
        raise UserError(what, path, "mend the URDF (a .xacro must be expanded)")
    return value if math.isfinite(value) else None


def _numbers(
    element: ElementTree.Element | None, attribute: str, default: tuple[float, ...], path: Path
) -> tuple[float, ...]:
    text = element.get(attribute) if element is not None else None
    if text is None:
        return default
    try:
        values = tuple(float(part) for part in text.split())
    except ValueError:
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise UserError(f"{attribute}={text!r} is not three numbers", path, "mend the URDF (a .xacro must be expanded)")
    return values


def _attribute(joint: ElementTree.Element, tag: str, attribute: str, path: Path) -> str:
    element = joint.find(tag)
    if element is None or element.get(attribute) is None:
        raise UserError(f"joint {joint.get('name')!r} has no <{tag} {attribute}=...>", path, "mend the URDF")
    return element.get(attribute, "")


def _motion(joint: ChainJoint, value: np.ndarray) -> np.ndarray:
    """What the joint adds at `value` [*n]: a turn about its axis (Rodrigues) or a shift along it, [*n, 4, 4]."""
    axis = np.asarray(joint.axis)
    motion = np.zeros((*value.shape, 4, 4))
    motion[..., :, :] = np.eye(4)
    if joint.type == "prismatic":
        motion[..., :3, 3] = axis * value[..., None]
        return motion
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    angle = value[..., None, None]
    motion[..., :3, :3] += np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return motion


def _bounded_step(
    jacobian: np.ndarray, error: np.ndarray, q: np.ndarray, low: np.ndarray, high: np.ndarray, damping: float
) -> np.ndarray:
    """Damped least-squares step; joints at a limit that would be pushed out are held and the rest solved again."""
    free = np.ones(len(q), dtype=bool)
    step = np.zeros(len(q))
    for _ in range(len(q)):
        active = jacobian[:, free]
        step[:] = 0.0
        step[free] = active.T @ np.linalg.solve(active @ active.T + damping * np.eye(6), error)
        outward = free & (((q <= low) & (step < 0)) | ((q >= high) & (step > 0)))
        if not outward.any():
            break
        free &= ~outward
    return step
