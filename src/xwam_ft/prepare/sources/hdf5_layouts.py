"""The HDF5 layouts that are read, and what each calls things: dataset path -> feature name.

    ACT/ALOHA         a file an episode: /observations/{qpos,qvel,effort}, /observations/images/CAM, /action,
                      /base_action; pictures are arrays, or padded JPEG rows (/compress_len)
    robomimic/LIBERO  /data/demo_N/{obs/*,actions} in one file; env_args holds the rate, problem_info the instruction
    RoboTwin          a file an episode: /observation/CAM/{rgb,depth,intrinsic_cv,extrinsic_cv}, /joint_action,
                      /endpose; instructions/episodeN.json beside the folder of the files
    RoboMIND          a file an episode: /observations/{rgb_images,depth_images}/CAM, /puppet (state), /master (command)

Cameras are named `observation.images.CAM`, their depth `observation.images.CAM_depth`. Simulator states, rewards of
the next step, segmentations and point clouds are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CAMERA = "observation.images."
ARM = [*(f"joint_{i}" for i in range(1, 7)), "gripper"]
POSE = ["x", "y", "z", "qw", "qx", "qy", "qz"]


@dataclass(frozen=True)
class FileLayout:
    name: str
    detect: Callable[[Any], bool]  # an open file
    feature: Callable[[str], str | None]  # dataset path in an episode -> feature name; None: left out
    labels: Callable[[str, int], list[str]]  # feature, width -> element names; [] where the layout gives none
    many: bool = False  # episodes are the groups /data/demo_N of a file
    swapped: bool = False  # encoded pictures have red and blue the wrong way round, unless they are marked


def _has(file: Any, *paths: str) -> bool:
    return all(path in file for path in paths)


def _dotted(prefix: str, rest: str) -> str:
    return prefix + rest.replace("/", ".")


def _aloha(path: str) -> str | None:
    if match := re.fullmatch(r"observations/(?:images_depth|depth_images|depth)/([^/]+)", path):
        return f"{CAMERA}{match[1]}_depth"
    if match := re.fullmatch(r"observations/images/([^/]+)", path):
        return CAMERA + match[1]
    if path == "compress_len":
        return None
    if path in ("action", "base_action"):
        return "action" if path == "action" else "action.base"
    return _dotted("observation.", path.removeprefix("observations/"))


def _aloha_labels(feature: str, width: int) -> list[str]:
    """ALOHA's 14 numbers are, for the left then the right arm, six joints and the gripper."""
    known = feature in ("observation.qpos", "action") and width == 14
    return [f"{side}_{name}" for side in ("left", "right") for name in ARM] if known else []


def _robomimic(path: str) -> str | None:
    if path == "actions":
        return "action"
    if match := re.fullmatch(r"action(?:s_|_dict/)(.+)", path):
        return _dotted("action.", match[1])
    if match := re.fullmatch(r"obs/(.+?)_(?:image|rgb)(?:_jpeg)?", path):
        return CAMERA + match[1]
    if match := re.fullmatch(r"obs/(.+_depth)", path):
        return CAMERA + match[1]
    if match := re.fullmatch(r"obs/(.+)", path):
        return _dotted("observation.", match[1])
    return None


def _robomimic_labels(feature: str, width: int) -> list[str]:
    """robosuite gives positions as x y z and quaternions as x y z w."""
    if feature.endswith("eef_pos") and width == 3:
        return POSE[:3]
    return ["qx", "qy", "qz", "qw"] if feature.endswith("eef_quat") and width == 4 else []


def _robotwin(path: str) -> str | None:
    if match := re.fullmatch(r"observation/([^/]+)/(rgb|depth)", path):
        return CAMERA + match[1] + ("_depth" if match[2] == "depth" else "")
    if path == "third_view_rgb":
        return CAMERA + "third_view"
    if match := re.fullmatch(r"joint_action/(left_arm|right_arm|left_gripper|right_gripper)", path):
        return _dotted("observation.joint_", match[1])
    if match := re.fullmatch(r"endpose/(.+)", path):
        return _dotted("observation.endpose_", match[1].replace("_endpose", "_arm"))
    return None


def _robotwin_labels(feature: str, width: int) -> list[str]:
    """SAPIEN's poses are x y z and quaternion w x y z."""
    if feature.startswith("observation.endpose_") and width == 7:
        side = feature.removeprefix("observation.endpose_").removesuffix("_arm")
        return [f"{side}_{name}" for name in POSE]
    return []


def _robomind(path: str) -> str | None:
    if match := re.fullmatch(r"observations/rgb_images/([^/]+)", path):
        return CAMERA + match[1]
    if match := re.fullmatch(r"observations/depth_images/([^/]+)", path):
        return f"{CAMERA}{match[1]}_depth"
    if match := re.fullmatch(r"(puppet|master)/(.+)", path):
        return _dotted("observation." if match[1] == "puppet" else "action.", match[2])
    return None


LAYOUTS = (
    FileLayout(
        "robomimic/LIBERO",
        lambda file: hasattr(file.get("data"), "keys") and any(key.startswith("demo") for key in file["data"]),
        _robomimic,
        _robomimic_labels,
        many=True,
    ),
    FileLayout(
        "RoboTwin", lambda file: _has(file, "observation", "joint_action"), _robotwin, _robotwin_labels, swapped=True
    ),
    FileLayout("RoboMIND", lambda file: _has(file, "puppet", "observations"), _robomind, lambda feature, width: []),
    FileLayout("ACT/ALOHA", lambda file: _has(file, "observations", "action"), _aloha, _aloha_labels),
)
