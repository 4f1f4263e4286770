"""An embodiment's cameras met with recordings: what each is read from, and the contract's camera of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from xwam_ft.contract import Camera
from xwam_ft.errors import UserError
from xwam_ft.pictures import turn_pictures
from xwam_ft.prepare.embodiment.reading import find_camera
from xwam_ft.prepare.embodiment.schema import DepthVideo, Embodiment, StereoPair

if TYPE_CHECKING:
    from numpy import ndarray

    from xwam_ft.prepare.sources import SourceInfo


@dataclass(frozen=True)
class CameraPlan:
    name: str
    source: str  # feature name
    depth: DepthVideo | None
    depth_range: tuple[float, float] | None = None  # its own near and far, metres
    swap: bool = False  # red and blue are recorded the wrong way round
    rotate: int = 0  # degrees clockwise, then
    mirror: bool = False  # left to right: how recorded pictures become upright
    # Filled in by `calibrated`: fx fy cx cy of the pictures as recorded, and the pair for stereo matching.
    intrinsics: tuple[float, float, float, float] | None = None
    stereo: StereoPair | None = None

    def turn(self, pictures: ndarray) -> ndarray:
        """Pictures or depth as recorded -> upright."""
        return turn_pictures(pictures, self.rotate, mirror=self.mirror)


def plan_cameras(embodiment: Embodiment, info: SourceInfo, where: Path) -> list[CameraPlan]:
    """The cameras in the contract's order, which is alphabetical (X-WAM's order of views).

    Raises:
        UserError: a source the recordings do not have.
    """
    plans: list[CameraPlan] = []
    for name, spec in sorted(embodiment.cameras.items()):
        source = find_camera(spec.source, info, f"{where}: cameras.{name}.source")
        depth = spec.depth
        if depth is not None:
            found = find_camera(depth.source, info, f"{where}: cameras.{name}.depth.source")
            depth = DepthVideo(source=found, unit=depth.unit)
        span = spec.depth_range
        near_far = None if span is None else (span.near, span.far)
        swap = spec.channels == "bgr"
        plans.append(CameraPlan(name, source, depth, near_far, swap, rotate=spec.rotate, mirror=spec.mirror))
    return plans


def calibrated(plans: list[CameraPlan], embodiment: Embodiment, info: SourceInfo, where: Path) -> list[CameraPlan]:
    """The plans with what depth estimation asks of a camera: intrinsics, and the source of its stereo pair.

    Raises:
        UserError: malformed intrinsics, or a pair the recordings do not have.
    """
    found: list[CameraPlan] = []
    for plan in plans:
        spec = embodiment.cameras[plan.name]
        # The picture's size does not matter to a calibration that is not turned.
        camera = contract_camera(embodiment, replace(plan, rotate=0, mirror=False), info, (1, 1))
        pair = spec.stereo
        if pair is not None:
            source = find_camera(pair.source, info, f"{where}: cameras.{plan.name}.stereo.source")
            pair = StereoPair(source=source, baseline=pair.baseline)
        found.append(replace(plan, intrinsics=camera.intrinsics, stereo=pair))
    return found


def contract_camera(embodiment: Embodiment, plan: CameraPlan, info: SourceInfo, size: tuple[int, int]) -> Camera:
    """The contract's camera; what the embodiment leaves out comes from the recordings' meta/calibration.json.

    Args:
        size: height and width of the pictures as recorded, which the calibration is of; the contract's is upright.
    """
    spec = embodiment.cameras[plan.name]
    keys = (plan.source, plan.source.rsplit(".", 1)[-1], plan.name)
    recorded: dict[str, Any] = next((info.calibration[key] for key in keys if key in info.calibration), {})
    pose = spec.pose or recorded.get("pose")
    intrinsics = spec.intrinsics or recorded.get("intrinsics")
    kind = spec.kind or recorded.get("kind") or "static"
    mount = spec.mount
    if kind == "wrist" and mount is None:
        pose = None  # a hand-eye transform means nothing without the slot it hangs on
    try:
        camera = Camera(
            name=plan.name,
            kind=kind,
            source_height=size[0],
            source_width=size[1],
            intrinsics=None if intrinsics is None else tuple(intrinsics),  # pyright: ignore[reportArgumentType]
            pose=None if pose is None else tuple(tuple(row) for row in pose),
            mount=mount,
            depth_range=plan.depth_range,
        )
        return camera.turned(plan.rotate, mirror=plan.mirror)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"calibration of camera {plan.name!r} is malformed ({reason})",
            info.path / "meta" / "calibration.json",
            "write intrinsics as [fx, fy, cx, cy] and pose as a 4x4 matrix",
        ) from None
