"""The `config.yaml` that X-WAM's training leaves beside its checkpoints, as a contract and as names of its numbers.

What is read of it: `dataset` (`sequence_length`, `frame_skip`, `action_skip`, `video_size`, `crop_ratio`,
`normalize_depths_per_view`, `inverse_gripper`, `dataset_path`), `dataset.statistics.{q01,q99}` (`proprio_left_ee_xyz`,
`action_left_ee_xyz`, `action_left_ee_axisangle`, the same of `right` where there are two arms, `gripper_pos`,
`gripper_action`) and `use_depth`. It names no cameras and no frame rate: those of RoboCasa and RoboTwin are known here,
others are given.

One arm is the left one. Actions are `delta_to_state`; where the recorded x y z actions have quantiles of exactly -1 and
1 they are RoboCasa's controller inputs (`xwam_robocasa_raw`): no arm moves a metre in a control step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xwam_ft.contract import POSE_ACTION_ELEMENTS, POSE_ELEMENTS, POSE_UNITS, Camera, Contract
from xwam_ft.errors import UserError
from xwam_ft.model.joint import Layout
from xwam_ft.model.network import NetworkConfig
from xwam_ft.strict_yaml import read_yaml

ARMS = ("left", "right")
PROPRIO = tuple(f"{arm}_{part}" for arm in ARMS for part in (*(f"arm.{e}" for e in POSE_ELEMENTS), "gripper.opening"))
ACTION = tuple(
    f"{arm}_{part}" for arm in ARMS for part in (*(f"arm.{e}" for e in POSE_ACTION_ELEMENTS), "gripper.opening")
)
"""Names of X-WAM's 16 numbers of proprio and 14 of action: left arm and gripper, then the right ones."""


@dataclass(frozen=True)
class Benchmark:
    """What the published code fixes for a data set and its config does not say."""

    cameras: tuple[str, ...]  # in alphabetical order, as the loader sorts them
    wrist: Mapping[str, str]  # camera -> the slot that carries it
    size: tuple[int, int]
    fps: float | None


BENCHMARKS = {
    "robocasa": Benchmark(
        ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand"),
        {"robot0_eye_in_hand": "left_arm"}, (256, 256), 20.0,
    ),
    "robotwin": Benchmark(
        ("head_camera", "left_camera", "right_camera"),
        {"left_camera": "left_arm", "right_camera": "right_arm"}, (240, 320), None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Released:
    """A config.yaml, as far as it is understood."""

    path: Path
    values: Mapping[str, Any]

    @property
    def dataset(self) -> Mapping[str, Any]:
        """The section of the one data set; empty where there are several, or none."""
        section = self.values.get("dataset")
        return section if isinstance(section, dict) else {}

    @property
    def benchmark(self) -> Benchmark | None:
        where = str(self.dataset.get("dataset_path", "")).lower()
        return next((known for name, known in BENCHMARKS.items() if name in where), None)

    @property
    def actions_per_frame(self) -> int | None:
        try:
            return int(self.dataset["frame_skip"]) // int(self.dataset["action_skip"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None


def find_config(checkpoint: Path) -> Path | None:
    """The config.yaml beside a checkpoint: in its folder, or where its `checkpoints/last.ckpt/checkpoint` begin."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    folder = folder.resolve()
    while True:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
        if folder.name not in ("checkpoint", "checkpoints") and folder.suffix != ".ckpt":
            return None
        folder = folder.parent


def read_released(path: Path) -> Released:
    """Read a config.yaml; raises `UserError` where it is not YAML."""
    return Released(path, read_yaml(path))


def released_layout(config: NetworkConfig, contract: Contract | None, cameras: Sequence[str]) -> Layout:
    """Names of a checkpoint's numbers: X-WAM's where it has as many, otherwise no more than their places."""
    conventions = {} if contract is None else Layout.of(contract).conventions
    names = tuple(cameras) if len(cameras) == config.num_views else ()
    if (config.proprio_dim, config.action_dim) == (len(PROPRIO), len(ACTION)):
        return Layout(PROPRIO, ACTION, names, conventions)
    proprio, action = (
        tuple(f"{stream}_{place}.value" for place in range(count))
        for stream, count in (("proprio", config.proprio_dim), ("action", config.action_dim))
    )
    return Layout(proprio, action, names)


def released_contract(
    released: Released, *, cameras: Sequence[str] = (), fps: float | None = None
) -> tuple[Contract | None, str]:
    """The contract that a checkpoint was trained under, and a sentence about it; None where it cannot be known.

    Args:
        cameras: names in alphabetical order, where they are not those of a known benchmark.
        fps: frames a second of the recordings, likewise.

    Raises:
        UserError: keys missing or without meaning.
    """
    data, known = released.dataset, released.benchmark
    if not data:
        return None, f"no contract: {released.path.name} describes no single data set"
    cameras = sorted(cameras) or (known.cameras if known else ())
    fps = fps or (known.fps if known else None)
    if lacking := [option for option, value in (("--camera", cameras), ("--fps", fps)) if not value]:
        return None, f"no contract: {released.path.name} does not say it, so give {' and '.join(lacking)}"
    if data.get("inverse_gripper"):
        raise UserError("dataset.inverse_gripper is true, which no contract can say", released.path, _WITHOUT)
    try:
        values = _contract_values(released, tuple(cameras), fps)
        contract = Contract.model_validate(values)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            reason = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        else:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"makes no contract ({reason})", released.path, _WITHOUT) from None
    conventions = sorted({str(slot.convention) for slot in contract.slots})
    sentence = f"contract of {contract.embodiment}: actions {', '.join(conventions)}"
    if any(slot.for_controller for slot in contract.slots):
        sentence += " (in a controller's units, never metres: only RoboCasa's controller can follow them)"
    return contract, sentence


_WITHOUT = "mend it, or leave it out with --config none"


def _contract_values(released: Released, cameras: tuple[str, ...], fps: float | None) -> dict[str, Any]:
    data, known = released.dataset, released.benchmark
    low, high = data["statistics"]["q01"], data["statistics"]["q99"]
    arms = [arm for arm in ARMS if f"proprio_{arm}_ee_xyz" in low]
    if "left" not in arms:
        raise KeyError("statistics of a left arm")
    raw = all(list(side["action_left_ee_xyz"]) == [bound] * 3 for side, bound in ((low, -1), (high, 1)))
    height, width = data["video_size"]
    size = known.size if known else (height, width)
    return {
        "embodiment": Path(str(data.get("dataset_path", "xwam"))).name or "xwam",
        "cameras": [_camera(name, size, known) for name in cameras],
        "image": {"height": height, "width": width, "crop": data["crop_ratio"]},
        "timing": {
            "fps": fps,
            "frame_skip": data["frame_skip"],
            "action_skip": data["action_skip"],
            "clip_frames": data["sequence_length"],
        },
        "slots": [slot for arm in ARMS for slot in _slots(arm, arm in arms, raw=raw)],
        "depth": _depth(released),
        "quantiles": {
            f"{stream}_{end}": [number for arm in ARMS for number in _range(side, arm, arms, stream, bound, raw=raw)]
            for end, side, bound in (("low", low, -1.0), ("high", high, 1.0))
            for stream in ("proprio", "action")
        },
        "prompts": (),
    }


def _camera(name: str, size: tuple[int, int], known: Benchmark | None) -> Camera:
    mount = known.wrist.get(name) if known else None
    kind = "static" if mount is None else "wrist"
    return Camera(name=name, kind=kind, source_height=size[0], source_width=size[1], mount=mount)


def _slots(arm: str, present: bool, *, raw: bool) -> list[dict[str, Any]]:
    convention = "xwam_robocasa_raw" if raw else "delta_to_state"
    return [
        {
            "name": f"{arm}_arm", "kind": "pose", "elements": POSE_ELEMENTS, "units": POSE_UNITS, "frame": "base",
            "columns": tuple(f"{arm}_ee.{element}" for element in POSE_ELEMENTS), "convention": convention,
            "command_units": ("1",) * 6 if raw else None, "present": present,
        },
        {
            "name": f"{arm}_gripper", "kind": "gripper", "elements": ("opening",), "units": ("1",),
            "columns": (f"{arm}_gripper_pos",), "convention": convention, "gripper_open": 1.0, "gripper_closed": 0.0,
            # X-WAM takes the gripper's next state for its command; RoboCasa's controller input was recorded.
            "command_from": "recorded" if raw else "next_state", "command_units": ("1",) if raw else None,
            "present": present,
        },
    ]  # fmt: skip


def _range(
    side: Mapping[str, Any], arm: str, arms: Sequence[str], stream: str, bound: float, *, raw: bool
) -> list[float]:
    """One end of one arm's ranges; -1 and 1 leave a number as it is (quaternions, an absent arm, a raw gripper)."""
    width = 8 if stream == "proprio" else 7
    if arm not in arms:
        return [bound] * width
    if stream == "proprio":
        values = [*side[f"proprio_{arm}_ee_xyz"], *[bound] * 4, *side["gripper_pos"]]
    else:
        gripper = [bound] if raw else side["gripper_action"]
        values = [*side[f"action_{arm}_ee_xyz"], *side[f"action_{arm}_ee_axisangle"], *gripper]
    if len(values) != width:
        raise ValueError(f"statistics of the {arm} arm have {len(values)} numbers of {stream}, not {width}")
    return [float(value) for value in values]


def _depth(released: Released) -> dict[str, Any]:
    """Inverse depth whose scale the config does not give: relative, so that nobody takes it for metres."""
    if released.values.get("use_depth") is False:
        return {"kind": "none"}
    stretched = bool(released.dataset.get("normalize_depths_per_view", False))
    return {"kind": "relative", "source": "xwam", "clip_normalised": stretched}
