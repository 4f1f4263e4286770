"""What commands are held in: bounds and speeds, stated or recorded, and how commands are brought inside them.

Limits      of one slot; of a pose computed from joints, `joints` bound what comes out of inverse kinematics
Recorded    what a contract knows from recordings beside quantiles: limits that nobody stated, signs of quaternions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from xwam_ft.poses import pose_apply, pose_difference

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

SPEED_SLACK = 1.0 + 1e-9  # a command at the limit's speed is not counted as clamped for its rounding


class Part(BaseModel):
    """A part of the contract. Fields in `LATER` came after the first contracts: at their default they are not written,
    so that older contracts keep the bytes, and so the hash, that they had."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].default:
                tree.pop(name, None)
        return tree


class Limits(Part):
    """Bounds of the absolute command: `low` and `high`, or `speed`, or all three.

    `low`, `high`: one number an element; for a pose the first three (workspace).
    `speed`: by how much a command may change in a second; one number an element, in its unit a second; for a pose two,
    of the position along its path (m/s) and of the rotation about its axis (rad/s).
    `joints`: the same of the joints a pose is computed from, one number a joint.
    """

    LATER: ClassVar[tuple[str, ...]] = ("speed", "joints")

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    speed: tuple[PositiveFloat, ...] | None = None
    joints: Limits | None = None

    @model_validator(mode="after")
    def _something(self) -> Limits:
        if (self.low is None) != (self.high is None):
            raise ValueError("`low` and `high` go together")
        for low, high in zip(self.low or (), self.high or (), strict=False):
            if low > high:
                raise ValueError(f"limits whose `low` {low:g} is above `high` {high:g}")
        if self.low is None and self.speed is None and self.joints is None:
            raise ValueError("limits without a number: give `low` and `high`, or `speed`")
        return self

    def completed(self, other: Limits | None) -> Limits:
        """These, with what they do not say from `other`."""
        if other is None:
            return self
        joints = other.joints if self.joints is None else self.joints.completed(other.joints)
        low, high = (other.low, other.high) if self.low is None else (self.low, self.high)
        return Limits(low=low, high=high, speed=self.speed or other.speed, joints=joints)

    def widened(self, other: Limits) -> Limits:
        """The least limits that hold both; what only one of them says is dropped."""

        def both(name: str, choose: Any) -> Any:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else tuple(map(choose, mine, theirs))

        joints = None if self.joints is None or other.joints is None else self.joints.widened(other.joints)
        return Limits(low=both("low", min), high=both("high", max), speed=both("speed", max), joints=joints)


Quaternion = Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]


class Turns(Part):
    """Orientations of a pose: the unit quaternion w x y z they are around, and how far from it they go, in radians."""

    around: Quaternion
    most: Annotated[float, Field(ge=0, le=np.pi)]


class Recorded(Part):
    """By slot, what was found in the recordings.

    `hemispheres`: of poses, a unit quaternion w x y z: the model is shown the one of q and -q that is nearer to it, so
    that a path through w = 0 does not change its sign. `limits`: how far and fast commands went, and a margin.
    `turns`: of poses, how the states were turned; None in contracts made before it was kept.
    """

    LATER: ClassVar[tuple[str, ...]] = ("turns",)

    hemispheres: dict[str, Quaternion] = Field(default_factory=dict[str, Any])
    limits: dict[str, Limits] = Field(default_factory=dict[str, Any])
    turns: dict[str, Turns] | None = None


def clamp(
    commands: Float[ndarray, "ta n"],
    start: Float[ndarray, " p"],
    limits: Limits,
    period: float,
    *,
    pose: bool,
    underway: int = 0,
) -> Float[ndarray, "ta n"]:
    """Commands inside the limits, a copy.

    Args:
        start: what the robot reports now; speed is bounded from it, or from the last command `underway`.
        period: seconds from one command to the next.
        pose: 7 numbers, of which `low` and `high` bound three.
        underway: first commands that the robot executes already.
    """
    bounded = commands.copy()
    if limits.low is not None:
        part = bounded[:, : len(limits.low)]
        part[...] = np.clip(part, limits.low, limits.high)
    if limits.speed is not None:
        first = bounded[underway - 1] if underway else np.asarray(start, dtype=np.float64)
        most = np.asarray(limits.speed) * period
        bounded[underway:] = (_slow_pose if pose else _slow)(bounded[underway:], first, most)
    return bounded


def _slow(commands: Float[ndarray, "ta n"], start: Float[ndarray, " n"], most: Float[ndarray, " n"]) -> np.ndarray:
    """Commands of which each number lies within `most` of the one before it, the first within `most` of `start`."""
    slowed: list[np.ndarray] = []
    for command in commands:
        change = command - start
        start = np.where(np.abs(change) <= most * SPEED_SLACK, command, start + np.clip(change, -most, most))
        slowed.append(start)
    return np.array(slowed).reshape(commands.shape)


def _slow_pose(poses: Float[ndarray, "ta 7"], start: Float[ndarray, " 7"], most: Float[ndarray, " 2"]) -> np.ndarray:
    """The same for poses: `most` metres along the straight line, `most` radians about the axis of the turn."""
    slowed: list[np.ndarray] = []
    for pose in poses:
        change = pose_difference(pose[None], start[None])[0]
        shares = [_share(change[:3], most[0]), _share(change[3:], most[1])]
        bounded = pose_apply((change * np.repeat(shares, 3))[None], start[None])[0]
        # A part that is slow enough stays as it is to the bit, and so is not counted.
        kept = [share == 1.0 for share in shares]
        start = np.where(np.repeat(kept, (3, 4)), pose, bounded)
        slowed.append(start)
    return np.array(slowed).reshape(poses.shape)


def _share(change: np.ndarray, most: float) -> float:
    """The share of a change that brings its length to `most`; 1 where it is no longer."""
    length = float(np.linalg.norm(change))
    return 1.0 if length <= most * SPEED_SLACK else most / length
