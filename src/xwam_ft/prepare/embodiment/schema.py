"""The embodiment file: what of the recordings the model sees, in a strict YAML schema; see recipes/embodiments/.

Units are stated, never guessed: `rad`, `deg`, `m`, `mm`, these a second (`rad/s`, ...), `1` (no unit, as recorded), or
a servo's with its calibration file (joint_units.py). What the model sees is in radians and metres.
`embodiment_slots.py` turns a slot into the contract's and finds its columns in a recording.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from xwam_ft.bundled import named_file
from xwam_ft.contract import Convention, Image, Matrix4, Name, Timing
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare.embodiment.joint_units import SERVO, UNITS
from xwam_ft.prepare.embodiment.pose_forms import FORMS
from xwam_ft.strict_yaml import Fraction, Overrides, Section, apply_overrides, parse, read_yaml

JOINT_FIELDS = ("urdf", "base", "tip", "joints")
CALIBRATION_FIELDS = ("motors", "signs", "zeros")
Columns = str | list[str]


def _form(value: str) -> str:
    if value not in FORMS:
        near = did_you_mean(value, FORMS) or f" ({listed(FORMS, 60)})"
        raise ValueError(f"{value!r} is not a form of rotation{near}")
    return value


Form = Annotated[str, AfterValidator(_form)]


UNIT_WORDS = (
    "recordings do not say it, so write rad, deg, m, mm, one of these a second (rad/s), 1 (as recorded), or a servo's "
    f"{listed(SERVO)} with its `calibration`"
)
# What may stand where an embodiment file still says TODO, where the type alone does not say it.
STATED = {
    "units": UNIT_WORDS,
    "command_units": UNIT_WORDS,
    "unit": "write mm, m, lerobot_log12 or the metres of one count",
    "fps": "these recordings do not store it, so write their frames per second",
    "rotation": f"write the order in which the columns are recorded: {listed(FORMS, 4)}",
    "command_rotation": f"write the order in which the command columns are recorded: {listed(FORMS, 4)}",
    "command": "write recorded (targets), delta (changes), next_state or none",
}


class Filled(Section):
    """A section in which nothing is a TODO any more; what is one is told by its key, with what may stand there."""

    @field_validator("*", mode="before")
    @classmethod
    def _filled(cls, value: Any, about: ValidationInfo) -> Any:
        if any(isinstance(part, str) and re.match(r"TODO\b", part) for part in _flat(value)):
            key = (about.field_name or "").rstrip("_")
            choices = _choices(cls.model_fields[about.field_name or ""].annotation)
            words = " or ".join(part for part in (", ".join(choices[:-1]), *choices[-1:]) if part)
            fix = STATED.get(key) or f"write {words or 'what is meant'}"
            raise ValueError(f"`{key}` is still TODO; {fix}")
        return value


def _flat(value: Any) -> list[Any]:
    return [inner for part in value for inner in _flat(part)] if isinstance(value, list) else [value]


def _choices(annotation: Any) -> list[str]:
    """The words of a `Literal`, looked through optional types and lists; "a number" where one is wanted."""
    if annotation in (int, float):
        return ["a number"]
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return list(dict.fromkeys(choice for inner in get_args(annotation) for choice in _choices(inner)))


class DepthVideo(Filled):
    """A recorded depth video. `unit`: of one count; a number is metres; `lerobot_log12` is LeRobot's 12-bit code."""

    source: str
    unit: Literal["mm", "m", "lerobot_log12"] | PositiveFloat

    @field_validator("unit", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not number and value not in ("mm", "m", "lerobot_log12", "TODO"):
            raise ValueError(f"{value!r} is not mm, m, lerobot_log12 or the metres of one count")
        return value


class StereoPair(Filled):
    """The other picture of a rectified pair. `baseline` in metres, negative where that camera stands to the left."""

    source: str
    baseline: float

    @field_validator("baseline")
    @classmethod
    def _apart(cls, value: float) -> float:
        if not 1e-3 <= abs(value) <= 10:
            raise ValueError(f"{value} is no distance between two cameras in metres")
        return value


class DepthRange(Filled):
    """Metric depth is coded between these, in metres; what is outside is held at the border."""

    near: PositiveFloat = 0.1
    far: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _ordered(self) -> DepthRange:
        if self.far <= self.near:
            raise ValueError(f"far {self.far} is not beyond near {self.near}")
        return self


class CameraSpec(Filled):
    """`source`: the feature of the recordings. Calibration left out is taken from meta/calibration.json if there.

    `channels: bgr`: the recordings have red and blue the wrong way round (RGB given to cv2.imencode); they are swapped.
    `rotate`: degrees clockwise by which recorded pictures are turned upright, `mirror`: then mirrored left to right.
    Calibration is that of the pictures as recorded, and is turned with them.
    """

    source: str
    channels: Literal["rgb", "bgr"] = "rgb"
    rotate: Literal[0, 90, 180, 270] = 0
    mirror: bool = False
    kind: Literal["static", "wrist"] | None = None
    intrinsics: tuple[float, float, float, float] | None = None  # fx fy cx cy at source resolution
    pose: Matrix4 | None = None
    mount: str | None = None
    depth: DepthVideo | None = None
    depth_range: DepthRange | None = None  # a camera close to what it sees needs another range than one across a room
    stereo: StereoPair | None = None


class ImageSpec(Filled):
    height: PositiveInt = 256
    width: PositiveInt = 320
    crop: Annotated[float, Field(gt=0, le=1)] = 0.95

    @model_validator(mode="after")
    def _even(self) -> ImageSpec:
        if self.height % 2 or self.width % 2:
            raise ValueError(f"{self.height}x{self.width} is odd; H.264 stores even sizes")
        return self


class TimingSpec(Filled):
    frame_skip: PositiveInt
    action_skip: PositiveInt
    clip_frames: PositiveInt = 9

    @model_validator(mode="after")
    def _fits(self) -> TimingSpec:
        self.timing(1.0)
        return self

    def timing(self, fps: float) -> Timing:
        return Timing(fps=fps, frame_skip=self.frame_skip, action_skip=self.action_skip, clip_frames=self.clip_frames)


class LimitsSpec(Filled):
    """A single number holds for all of a slot; `speed` of a pose is always two, [m/s, rad/s].

    `joints`: the same of the joints of a pose `from: joints`.
    """

    low: float | list[float] | None = None
    high: float | list[float] | None = None
    speed: PositiveFloat | list[PositiveFloat] | None = None
    joints: LimitsSpec | None = None


class DeltaSpec(Filled):
    """What a recorded change is a change of. `to`: the state at its own step, or the command before it (the first: the
    state). `frame`, of a pose: `base`, dp + p and dR R; `tool`, p + R dp and R dR."""

    to: Literal["state", "command"]
    frame: Literal["base", "tool"] = "base"


class SlotSpec(Filled):
    """One quantity of the robot; what the fields mean is shown in recipes/embodiments/unitree_g1_inspire_poses.yaml.

    Beyond what stands there: `rotation` is a form of pose_forms.py. `calibration` is LeRobot's file (joint_units.py),
    `motors` its names in the columns' order. A joint stands at 0 where its column shows `zeros`, and counts the other
    way round where `signs` has -1. `command: delta` and `delta`: recorded actions are changes; `command_scale`: units a
    recorded number, of controller units from -1 to 1, say. `gripper_open`, `gripper_closed` and `limits` are in SI.
    """

    kind: Literal["pose", "joints", "gripper", "vector"]
    columns: Columns = Field(default_factory=list)
    units: str | list[str] | None = None
    from_: Literal["recorded", "joints"] = Field(default="recorded", alias="from")
    urdf: str | None = None
    base: str | None = None
    tip: str | None = None
    joints: list[str] | None = None
    calibration: str | None = None
    motors: list[str] | None = None
    signs: list[Literal[-1, 1]] | None = None
    zeros: list[float] | None = None
    rotation: Form = "wxyz"
    rotation_units: Literal["rad", "deg"] = "rad"
    quaternion: Literal["continuous", "w_positive"] | None = None  # as the model is shown it; left out: continuous
    frame: str | None = None
    reduce: Literal["mean", "max", "norm"] | None = None
    command: Literal["recorded", "delta", "next_state", "none"] = "recorded"
    command_columns: Columns | None = None
    command_units: str | list[str] | None = None
    command_rotation: Form | None = None
    command_rotation_units: Literal["rad", "deg"] | None = None
    command_scale: float | list[float] | None = None
    delta: DeltaSpec | None = None
    expand: Literal["equal"] | None = None
    convention: Convention | None = None
    limits: LimitsSpec | None = None
    gripper_open: float | None = None
    gripper_closed: float | None = None
    present: bool = True

    @field_validator("units", "command_units", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        """YAML reads `1` as a number."""
        return [str(v) for v in value] if isinstance(value, list) else None if value is None else str(value)

    @model_validator(mode="after")
    def _consistent(self) -> SlotSpec:
        for name in ("units", "command_units"):
            self._known(name, getattr(self, name))
        if not self.present:
            return self
        if not self.columns:
            raise ValueError("`columns` is missing: name the recorded numbers it is made of")
        if self.units is None and (self.kind in ("pose", "joints")):
            raise ValueError(f"`units` is not stated; {UNIT_WORDS}")
        if self.from_ == "joints":
            self._from_joints()
        elif given := [name for name in JOINT_FIELDS if getattr(self, name) is not None]:
            raise ValueError(f"{listed(given)}: only for `from: joints`")
        if self.quaternion is not None and self.kind != "pose":
            raise ValueError("`quaternion` is for a pose")
        self._reduced()
        self._commanded()
        self._calibrated()
        if (self.gripper_open is None) != (self.gripper_closed is None) or (
            self.gripper_open is not None and self.gripper_open == self.gripper_closed
        ):
            raise ValueError("`gripper_open` and `gripper_closed` are two different values, given together")
        return self

    def _reduced(self) -> None:
        if self.reduce and self.kind not in ("gripper", "vector"):
            raise ValueError(f"`reduce: {self.reduce}` is for a gripper or a vector")
        if self.reduce and self.command != "none" and self.expand is None:
            raise ValueError(
                f"a {self.reduce} of columns cannot be inverted into commands for each; write `command: none`, or "
                "`expand: equal` to send every one of them the same value"
            )
        if self.expand and not self.reduce:
            raise ValueError("`expand` is only for `reduce`")

    def _commanded(self) -> None:
        if self.convention and self.command == "none":
            raise ValueError("`convention` is given and `command: none`: one of them is meant")
        if self.convention == "xwam_robocasa_raw":
            raise ValueError("`xwam_robocasa_raw` is for imported weights; recordings are not prepared with it")
        if self.kind == "pose" and self.convention == "absolute":
            raise ValueError("a pose is commanded relative to something; `absolute` is for joints, grippers and bases")
        if (self.delta is not None) != (self.command == "delta"):
            raise ValueError("`command: delta` and `delta: {to: state or command, frame: base or tool}` go together")
        recorded_pose = self.kind == "pose" and self.from_ == "recorded"
        own = {"command_rotation": self.command_rotation, "command_rotation_units": self.command_rotation_units}
        for name, value in own.items():
            if value is not None and (not recorded_pose or self.command not in ("recorded", "delta")):
                raise ValueError(f"`{name}` is for the recorded commands of a recorded pose")
        if self.command_scale is not None and self.command not in ("recorded", "delta"):
            raise ValueError(f"`command_scale` is given and `command: {self.command}`")

    def _calibrated(self) -> None:
        units = [self.units] if isinstance(self.units, str) else self.units or []
        servo = [unit for unit in units if unit in SERVO]
        if servo and self.calibration is None:
            raise ValueError(f"`units: {servo[0]}` needs `calibration: FILE`, which says what they are in radians")
        given = [name for name in CALIBRATION_FIELDS if getattr(self, name) is not None]
        if self.calibration is not None and not servo:
            raise ValueError(f"`calibration` is for units of {listed(SERVO)}, not {listed(units)}")
        if given and self.kind == "pose" and self.from_ == "recorded":
            raise ValueError(f"{listed(given)}: only for joints, grippers and vectors")
        if self.motors is not None and self.calibration is None:
            raise ValueError("`motors` is given without `calibration`")

    def _known(self, name: str, units: str | list[str] | None) -> None:
        for unit in [units] if isinstance(units, str) else units or []:
            if unit not in (*UNITS, *SERVO):
                raise ValueError(f"`{name}` is {unit!r}, not one of {listed((*UNITS, *SERVO), 20)}")

    def _from_joints(self) -> None:
        if self.kind != "pose":
            raise ValueError("`from: joints` makes a pose; write `kind: pose`")
        if absent := [name for name in ("urdf", "base", "tip") if getattr(self, name) is None]:
            raise ValueError(f"`from: joints` needs {listed(absent)}")
        if "1" in ([self.units] if isinstance(self.units, str) else self.units or []):
            raise ValueError(
                "joints without a unit have no pose; state rad, deg, or a servo's units with its `calibration`, or "
                "use `kind: joints`"
            )

    @property
    def resolved_convention(self) -> Convention | None:
        if self.command == "none":
            return None
        return self.convention or ("relative_to_chunk_start" if self.kind in ("pose", "joints") else "absolute")


class Embodiment(Filled):
    """One robot with its cameras, and the timing of what is learned from it."""

    name: str
    fps: PositiveFloat | None = None  # for recordings that do not store their rate
    cameras: Annotated[dict[Name, CameraSpec], Field(min_length=1)]
    image: ImageSpec = ImageSpec()
    timing: TimingSpec
    slots: Annotated[dict[Name, SlotSpec], Field(min_length=1)]
    depth: DepthRange = DepthRange()
    action_scaling: Literal["chunk", "step"] = "chunk"  # a range a number, or one for it at each step of a chunk
    held_out: Fraction = 0.1  # share of the episodes, at least one where there are two
    instruction: str | None = None  # for episodes recorded without one
    aliases: dict[str, str] = Field(default_factory=dict)  # further names of cameras, slots and vectors at the robot

    @model_validator(mode="after")
    def _consistent(self) -> Embodiment:
        if not any(slot.present for slot in self.slots.values()):
            raise ValueError("no slot is present")
        poses = [name for name, slot in self.slots.items() if slot.kind == "pose"]
        for name, camera in self.cameras.items():
            if camera.mount is not None and camera.mount not in poses:
                raise ValueError(f"cameras.{name}: mount {camera.mount!r} is not a pose slot ({listed(poses)})")
        if not any(slot.resolved_convention for slot in self.slots.values()):
            raise ValueError("no slot is commanded, so there is nothing to learn to do")
        return self

    @property
    def image_rule(self) -> Image:
        return Image(height=self.image.height, width=self.image.width, crop=self.image.crop)


def load_embodiment(path: Path, overrides: Overrides = ()) -> Embodiment:
    """Read and check an embodiment file, or one that ships, by its name.

    Args:
        overrides: applied in order; texts are the command line's --set.

    Raises:
        UserError: every mistake of the file in one message.
    """
    path = named_file(path, "recipes/embodiments")
    tree = read_yaml(path)
    if "slots" not in tree and "trainer" in tree:
        raise UserError("is a training recipe", path, "give an embodiment file (recipes/embodiments/)")
    apply_overrides(tree, overrides)
    return parse(Embodiment, tree, path, overrides)
