"""The contract: everything prepare, train, export and policy must agree on, in one small JSON file.

`contract.json` travels byte-identical in the shard set, the run and the bundle. Its SHA-256 is its identity.

Vectors, all float, in the order of `slots`:
    state    [P]   absolute: what the robot reports. Slot widths: pose 7 (x y z in metres, quaternion w x y z with
                   w >= 0), joints n, gripper n, vector n. The model's proprio is the normalised state, so Dp = P; there
                   a quaternion has the sign nearest to `recorded.hemispheres` of its slot, without one w >= 0.
    command  [Q]   absolute: what the robot is told; the same layout as state, commanded slots only. Under
                   `xwam_robocasa_raw` it is what a controller is told: 6 numbers for a pose, in the controller's units.
    action   [Da]  what the model predicts, per convention: pose 6 (dx dy dz in metres, rotation vector in radians,
                   both in the base frame), everything else its own width. Commanded slots only.
Clip: T frames `frame_skip` source frames apart; Ta = (T-1) * actions_per_frame actions `action_skip` apart.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from xwam_ft.alias_table import Aliases
from xwam_ft.arguments import checked
from xwam_ft.errors import UserError
from xwam_ft.files import json_bytes, write_bytes_atomic
from xwam_ft.kinematics import Chain
from xwam_ft.limits import Limits, Part, Recorded
from xwam_ft.pictures import turn_intrinsics, turned_axes
from xwam_ft.remote import load_json

SCHEMA_VERSION = 1
POSE_ELEMENTS = ("x", "y", "z", "qw", "qx", "qy", "qz")
POSE_UNITS = ("m", "m", "m", "1", "1", "1", "1")
POSE_ACTION_ELEMENTS = ("dx", "dy", "dz", "rx", "ry", "rz")

Convention = Literal["relative_to_chunk_start", "step_delta", "delta_to_state", "absolute", "xwam_robocasa_raw"]
Matrix4 = Annotated[tuple[tuple[float, ...], ...], Field(min_length=4, max_length=4)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]


class Camera(Part):
    """One view. Calibration is in the OpenCV convention: x right, y down, z forward.

    Pictures of the robot's camera are turned before anything else: `rotate` degrees clockwise, then mirrored left to
    right. Size, intrinsics and pose are those of the turned picture; fx is negative where one is mirrored.
    """

    LATER: ClassVar[tuple[str, ...]] = ("rotate", "mirror")

    name: Name
    kind: Literal["static", "wrist"] = "static"
    source_height: PositiveInt
    source_width: PositiveInt
    intrinsics: tuple[float, float, float, float] | None = None  # fx fy cx cy, pixels at source resolution
    pose: Matrix4 | None = None  # static: camera in the base frame; wrist: camera in the frame of slot `mount`
    mount: str | None = None  # wrist: the pose slot that carries the camera
    depth_range: tuple[PositiveFloat, PositiveFloat] | None = None  # metres; where it differs from `depth`'s
    rotate: Literal[0, 90, 180, 270] = 0
    mirror: bool = False

    def turned(self, rotate: int, *, mirror: bool) -> Camera:
        """This camera of pictures as recorded -> that of its turned pictures."""
        if not rotate and not mirror:
            return self
        size, pose, intrinsics = (self.source_height, self.source_width), self.pose, self.intrinsics
        if pose is not None:
            matrix = np.array(pose, dtype=np.float64)
            matrix[:3, :3] = matrix[:3, :3] @ turned_axes(rotate)
            pose = tuple(tuple(row) for row in matrix.tolist())
        if intrinsics is not None:
            intrinsics = turn_intrinsics(intrinsics, size, rotate, mirror=mirror)
        height, width = size[::-1] if rotate % 180 else size
        parts = {"source_height": height, "source_width": width, "pose": pose, "intrinsics": intrinsics}
        return self.model_copy(update={**parts, "rotate": rotate, "mirror": mirror})


class Image(Part):
    """The resize rule, exactly: bilinear, half-pixel centres, no antialiasing, aspect not kept; then a crop of
    `crop` of each side (centre at deployment), resized back by the same rule."""

    height: PositiveInt = 256
    width: PositiveInt = 320
    crop: Annotated[float, Field(gt=0, le=1)] = 0.95
    resize: Literal["bilinear-no-antialias"] = "bilinear-no-antialias"


class Timing(Part):
    fps: PositiveFloat
    frame_skip: PositiveInt
    action_skip: PositiveInt
    clip_frames: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> Timing:
        if self.frame_skip % self.action_skip:
            raise ValueError(f"frame_skip {self.frame_skip} is not a multiple of action_skip {self.action_skip}")
        if self.clip_frames < 5 or self.clip_frames % 4 != 1:
            raise ValueError(f"clip_frames {self.clip_frames} is not 4n+1 with n >= 1, which the video VAE needs")
        return self

    @property
    def actions_per_frame(self) -> int:
        return self.frame_skip // self.action_skip

    @property
    def action_steps(self) -> int:
        """Ta, the length of an action chunk."""
        return (self.clip_frames - 1) * self.actions_per_frame

    @property
    def span(self) -> int:
        """Source frames a clip covers, first and last included."""
        return (self.clip_frames - 1) * self.frame_skip + 1

    def padded_starts(self, frames: int) -> int:
        """Clip starts with two real pictures whose clip reaches past the end, where the last picture is held."""
        usable = max(0, frames - self.frame_skip)
        return usable - min(usable, max(0, frames - self.span + 1))

    @property
    def latent_frames(self) -> int:
        return 1 + (self.clip_frames - 1) // 4

    @property
    def action_period(self) -> float:
        """Seconds between two actions of a chunk."""
        return self.action_skip / self.fps


class Slot(Part):
    """One named quantity of the robot.

    `columns` are the numbers the robot reports for it and, transformed, give the state: as they are (`identity`),
    through the kinematic chain (`forward_kinematics`: joints in, pose out), or reduced to one number: their `mean`,
    their `max`, or the `norm`, the root of the sum of their squares.
    """

    name: Name
    kind: Literal["pose", "joints", "gripper", "vector"]
    columns: tuple[str, ...]
    elements: tuple[str, ...]  # names of the state's numbers
    units: tuple[str, ...]  # of the state: m, rad, 1 (no unit); the command's where `command_units` is None
    command_units: tuple[str, ...] | None = None
    transform: Literal["identity", "forward_kinematics", "mean", "max", "norm"] = "identity"
    chain: Chain | None = None
    frame: str | None = None  # pose: the base frame it is expressed in
    convention: Convention | None = None  # None: observed, never commanded
    command_from: Literal["recorded", "next_state"] = "recorded"
    expand: Literal["equal"] | None = None  # reduced columns: all are sent the same number
    gripper_open: float | None = None  # the state's value when fully open, and closed: its sense
    gripper_closed: float | None = None
    present: bool = True  # False: an arm the model knows and this robot lacks; zeros, mask 0
    limits: Limits | None = None

    @property
    def reduced(self) -> bool:
        """Several columns make one number."""
        return self.transform in ("mean", "max", "norm")

    @property
    def state_width(self) -> int:
        return len(self.elements)

    @property
    def commanded(self) -> bool:
        return self.convention is not None

    @property
    def for_controller(self) -> bool:
        """Commands are a controller's input in its own units, never metres: only that controller can follow them."""
        return self.convention == "xwam_robocasa_raw"

    @property
    def command_width(self) -> int:
        return self.action_width if self.for_controller else self.state_width if self.commanded else 0

    @property
    def action_width(self) -> int:
        return len(self.action_elements)

    @property
    def action_elements(self) -> tuple[str, ...]:
        """Names of the action's numbers."""
        return () if not self.commanded else POSE_ACTION_ELEMENTS if self.kind == "pose" else self.elements

    @model_validator(mode="after")
    def _consistent(self) -> Slot:
        if self.kind == "pose" and self.elements != POSE_ELEMENTS:
            raise ValueError(f"a pose slot has the elements {POSE_ELEMENTS}")
        if self.kind == "pose" and self.convention == "absolute":
            raise ValueError("a pose is commanded relative to something; `absolute` is for joints, grippers and bases")
        if self.for_controller:
            if self.kind not in ("pose", "gripper") or self.transform != "identity":
                raise ValueError("`xwam_robocasa_raw` is for poses and grippers that are reported as they are")
            if self.command_units is None or len(self.command_units) != self.command_width:
                raise ValueError(f"`xwam_robocasa_raw` needs {self.command_width} `command_units`: a controller's own")
        if len(self.units) != self.state_width:
            raise ValueError(f"{len(self.units)} units for {self.state_width} elements")
        if (self.chain is not None) != (self.transform == "forward_kinematics"):
            raise ValueError("`chain` and transform `forward_kinematics` belong together")
        if self.transform == "identity" and len(self.columns) != self.state_width:
            raise ValueError(f"{len(self.columns)} columns for {self.state_width} elements")
        if self.reduced and self.state_width != 1:
            raise ValueError(f"a {self.transform} of columns is one number")
        if self.reduced and self.commanded and self.expand is None:
            raise ValueError(
                f"a {self.transform} of columns cannot be commanded unless `expand` says how it goes back to them"
            )
        if self.limits is not None:
            self.require_fitting(self.limits)
        return self

    def require_fitting(self, limits: Limits) -> None:
        """Raise a `ValueError` unless the limits have as many numbers as this slot takes."""
        if limits.joints is not None and self.chain is None:
            raise ValueError("limits of joints are for a pose `from: joints`")
        if limits.joints is not None:
            parts = (limits.joints.low, limits.joints.high, limits.joints.speed)
            wrong = [len(part) for part in parts if part is not None and len(part) != len(self.columns)]
            if wrong or limits.joints.joints is not None:
                raise ValueError(f"limits of {wrong[0] if wrong else 'more'} joints, not {len(self.columns)}")
        pose = self.kind == "pose"
        expected = self.command_width if self.for_controller else 3 if pose else self.state_width
        bounds = [bound for bound in (limits.low, limits.high) if bound is not None]
        if any(len(bound) != expected for bound in bounds):
            numbers = " and ".join(str(len(bound)) for bound in bounds)
            raise ValueError(f"limits of {numbers} numbers, not {expected}")
        if limits.speed is None:
            return
        if self.for_controller or (self.command_units is not None and self.command_units != self.units):
            raise ValueError("limits of speed are for commands in the state's units: they start from the state")
        if len(limits.speed) != (expected := 2 if pose else self.state_width):
            numbers = "2: metres and radians a second" if pose else str(expected)
            raise ValueError(f"a speed of {len(limits.speed)} numbers, not {numbers}")


class DepthCode(Part):
    """How depth is stored and shown to the VAE; see depth_code.py. Metres for `metric`, no unit for `relative`.

    `clip_normalised`: inverse depth is stretched to its own minimum and maximum per clip and view (relative depth).
    """

    kind: Literal["metric", "relative", "none"]
    near: float | None = None
    far: float | None = None
    source: str = "none"  # "sensor", "tiny", "transformers:ID", "files:PATTERN"
    clip_normalised: bool = False


class Quantiles(Part):
    """q01 and q99 of every number of the proprio [P] and of the action [Da]; equal pairs are widened beforehand.

    Quaternions are not normalised: their pair is (-1, 1). `action_step_*` [Ta, Da], where the contract's
    `action_scaling` is "step": mean - std and mean + std of every number at every step of a chunk.
    """

    LATER: ClassVar[tuple[str, ...]] = ("action_step_low", "action_step_high")

    proprio_low: tuple[float, ...]
    proprio_high: tuple[float, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    action_step_low: tuple[tuple[float, ...], ...] | None = None
    action_step_high: tuple[tuple[float, ...], ...] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Quantiles:
        for name in ("proprio", "action", "action_step"):
            ends = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if ends == (None, None):
                continue
            low, high = (np.array([] if end is None else end) for end in ends)
            if low.shape != high.shape or not np.all(np.isfinite(low) & np.isfinite(high)) or np.any(high <= low):
                raise ValueError(f"{name} quantiles are not finite pairs with low < high")
        return self


COUNTED = ("quantiles", "prompts", "recorded", "prompt_form", "aliases")
"""Fields that come from the recordings themselves, not from the embodiment."""


class Contract(Part):
    LATER: ClassVar[tuple[str, ...]] = ("recorded", "action_scaling", "prompt_form", "aliases")

    schema_version: Literal[1] = SCHEMA_VERSION
    embodiment: str
    cameras: tuple[Camera, ...] = Field(min_length=1)
    image: Image
    timing: Timing
    slots: tuple[Slot, ...] = Field(min_length=1)
    depth: DepthCode
    quantiles: Quantiles
    prompts: tuple[str, ...]  # every instruction seen, in each of its wordings, sorted
    recorded: Recorded | None = None
    action_scaling: Literal["chunk", "step"] = "chunk"  # one range a number, or one for it at each step of a chunk
    prompt_form: Literal["recorded", "plain"] = "recorded"  # plain: no two of them are the same (see prompts.py)
    aliases: Aliases | None = None  # the robot's own names and units of what it observes

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        steps, of_steps = self.timing.action_steps, self.quantiles.action_step_low
        if self.action_scaling == "step" and np.shape(of_steps or ()) != (steps, self.action_dim):
            raise ValueError(f"action_scaling is step, and the quantiles have no scales of {steps} steps")
        for what, names in (("camera", [c.name for c in self.cameras]), ("slot", [s.name for s in self.slots])):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what}s share a name: {names}")
        if len(self.quantiles.proprio_low) != self.state_dim or len(self.quantiles.action_low) != self.action_dim:
            raise ValueError("the quantiles do not fit the slots")
        poses = [slot.name for slot in self.slots if slot.kind == "pose"]
        for camera in self.cameras:
            if camera.mount is not None and camera.mount not in poses:
                raise ValueError(f"camera {camera.name!r} is mounted on {camera.mount!r}, which is not a pose slot")
        for name, limits in (self.recorded.limits if self.recorded else {}).items():
            self.slot(name).require_fitting(limits)
        if self.aliases is not None:
            self.aliases.require_fitting(self.camera_names, {slot.name: len(slot.columns) for slot in self.slots})
        if wrong := [name for name in (self.recorded.hemispheres if self.recorded else {}) if name not in poses]:
            raise ValueError(f"a quaternion is named for {wrong[0]!r}, which is not a pose slot")
        return self

    @property
    def camera_names(self) -> list[str]:
        return [camera.name for camera in self.cameras]

    @property
    def state_dim(self) -> int:
        """P, also the model's proprio width Dp."""
        return sum(slot.state_width for slot in self.slots)

    @property
    def command_dim(self) -> int:
        return sum(slot.command_width for slot in self.slots)

    @property
    def action_dim(self) -> int:
        """Da, the model's action width."""
        return sum(slot.action_width for slot in self.slots)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def depth_of(self, camera: Camera) -> DepthCode:
        """The depth code of one camera: the contract's, with the camera's own range where it has one."""
        if self.depth.kind != "metric" or camera.depth_range is None:
            return self.depth
        near, far = camera.depth_range
        return self.depth.model_copy(update={"near": near, "far": far})

    def slot(self, name: str) -> Slot:
        return next(slot for slot in self.slots if slot.name == name)

    def limits(self, name: str) -> Limits | None:
        """What commands of a slot are held in: as stated, and where nothing is stated as recorded."""
        stated, recorded = self.slot(name).limits, self.recorded.limits.get(name) if self.recorded else None
        return recorded if stated is None else stated.completed(recorded)

    def to_bytes(self) -> bytes:
        return json_bytes(self.model_dump(mode="json"))

    def save(self, path: Path) -> None:
        write_bytes_atomic(path, self.to_bytes())


@checked()
def load_contract(path: str | Path) -> Contract:
    """Read contract.json.

    Raises:
        UserError: absent, not JSON, or not a contract of this version (every reason named).
    """
    try:
        return Contract.model_validate(load_json(Path(path)))
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'contract'}: {e['msg']}" for e in error.errors())
        raise UserError(f"is not a valid contract ({reasons})", path, "make it again with `xwam-ft prepare`") from None


def require_compatible(ours: Contract, ours_at: Path | str, theirs: Contract, theirs_at: Path) -> None:
    """Like `require_same`, but each preparation of the same robot may have its own quantiles and prompts."""
    require_same(ours, ours_at, theirs.model_copy(update={name: getattr(ours, name) for name in COUNTED}), theirs_at)


def require_same(
    ours: Contract, ours_at: Path | str, theirs: Contract, theirs_at: Path, fix: str | None = None
) -> None:
    """Raise a `UserError` naming both files and the first fields that differ, unless the contracts are equal."""
    if ours.sha256 == theirs.sha256:
        return
    left, right = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    fields = [name for name in left if left[name] != right[name]]
    detail = f"{fields[0]} is {left[fields[0]]!r} there and {right[fields[0]]!r} in {theirs_at}"
    if len(detail) > 300:
        detail = f"they differ in {', '.join(fields)}"
    alike = "use shards, run and bundle that were prepared alike, by one embodiment file"
    raise UserError(f"does not hold the contract of {theirs_at}: {detail}", ours_at, fix or alike)
