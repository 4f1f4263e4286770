"""A frame of all views -> one coloured cloud in the base frame, and a preview of clouds for people.

The pictures are those the model sees: source pictures resized to the contract's size and centre-cropped, so the
calibration is taken through the same resize and crop. A static camera stands where its calibration says; a wrist camera
is carried by the pose slot it is mounted on, at the pose that goes with the frame: the predicted one for an imagined
frame, the measured one for a recorded frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.conventions import state_slices
from xwam_ft.depth_code import INVALID, is_exact, require_metric, to_metres
from xwam_ft.errors import UserError
from xwam_ft.evaluate.pointcloud import Cloud, fuse, view_cloud
from xwam_ft.files import atomic_path
from xwam_ft.pictures import centre_crop_intrinsics, resize_intrinsics
from xwam_ft.poses import pose_matrix

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.contract import Camera, Contract
    from xwam_ft.pictures import Intrinsics

SHOWN = 30_000  # points a panel of the preview


def left_out(contract: Contract) -> dict[str, str]:
    """Cameras that cannot give points -> what their calibration lacks."""
    reasons: dict[str, str] = {}
    for camera in contract.cameras:
        lacks = ["intrinsics"] if camera.intrinsics is None else []
        lacks += ["a pose"] if camera.pose is None else []
        lacks += ["the slot it is mounted on"] if camera.kind == "wrist" and camera.mount is None else []
        if lacks:
            reasons[camera.name] = " and ".join(lacks)
    return reasons


def why_no_cloud(contract: Contract, *, depth_branch: bool) -> str | None:
    """Why point clouds cannot be made, in one sentence, or None."""
    try:
        require_metric(contract.depth)
    except UserError as error:
        return f"no point cloud: {error.what}"
    if not depth_branch:
        return "no point cloud: this policy has no depth branch"
    lacking = left_out(contract)
    if len(lacking) == len(contract.cameras):
        parts = "; ".join(f"{name} lacks {lack}" for name, lack in lacking.items())
        return f"no point cloud: no camera is calibrated ({parts})"
    return None


def model_intrinsics(contract: Contract, camera: Camera) -> Intrinsics:
    """Intrinsics of the resized, centre-cropped picture of a calibrated camera."""
    assert camera.intrinsics is not None
    image = contract.image
    size = (image.height, image.width)
    resized = resize_intrinsics(camera.intrinsics, (camera.source_height, camera.source_width), size)
    return centre_crop_intrinsics(resized, *size, image.crop)


def camera_pose(contract: Contract, camera: Camera, state: Float[ndarray, " p"]) -> Float[ndarray, "4 4"]:
    """Camera frame -> base frame, at a state [P] of the robot."""
    fixed = np.asarray(camera.pose, dtype=np.float64)
    if camera.kind == "static":
        return fixed
    assert camera.mount is not None
    return pose_matrix(state[state_slices(contract)[camera.mount]]) @ fixed


def stored_intrinsics(camera: Camera, size: tuple[int, int]) -> Intrinsics:
    """Intrinsics of the pictures of a calibrated camera as shards hold them: resized to `size` (h, w), not cropped."""
    assert camera.intrinsics is not None
    return resize_intrinsics(camera.intrinsics, (camera.source_height, camera.source_width), size)


def stored_cloud(
    contract: Contract,
    camera: Camera,
    rgb: UInt8[ndarray, "h w 3"],
    codes: UInt16[ndarray, "h w"],
    state: Float[ndarray, " p"],
    stride: int = 1,
) -> Cloud:
    """Points of one calibrated view as shards hold it, in the base frame; every `stride`-th pixel and row.

    Raises:
        UserError: the depth is not metric.
    """
    metres = metres_of(contract, camera, codes)
    mask = np.zeros(codes.shape, dtype=bool)
    mask[::stride, ::stride] = True
    pose = camera_pose(contract, camera, state)
    return view_cloud(metres, rgb, stored_intrinsics(camera, codes.shape), pose, mask)


def scene_cloud(
    contract: Contract,
    rgb: UInt8[ndarray, "v h w 3"],
    codes: UInt16[ndarray, "v h w"],
    state: Float[ndarray, " p"],
) -> Cloud:
    """All calibrated views of one frame in the base frame.

    Args:
        rgb, codes: as the model sees them, centre-cropped.
        state: absolute, at the frame's time.

    Raises:
        UserError: the depth is not metric.
    """
    clouds: list[Cloud] = []
    lacking = left_out(contract)
    for view, camera in enumerate(contract.cameras):
        metres = metres_of(contract, camera, codes[view])
        if camera.name in lacking:
            continue
        pose = camera_pose(contract, camera, state)
        clouds.append(view_cloud(metres, rgb[view], model_intrinsics(contract, camera), pose))
    return fuse(clouds)


def metres_of(contract: Contract, camera: Camera, codes: UInt16[ndarray, "h w"]) -> Float[ndarray, "h w"]:
    """Depth of a view; NaN where nothing was measured, and beyond the coded range: a shell of points at its far end, or
    a patch at its near one.

    Raises:
        UserError: the depth is not metric.
    """
    inside = np.where(is_exact(codes), codes, INVALID).astype(np.uint16)
    return to_metres(inside, contract.depth_of(camera))


def preview(path: Path, clouds: Mapping[str, Cloud], caption: Mapping[str, str | None]) -> None:
    """A PNG of clouds side by side, from one viewpoint, in one box: the middle 90 % of the last one along each axis.

    Args:
        clouds: title -> cloud.
        caption: title -> what must be written on that panel, or None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = list(clouds.values())[-1].points
    low, high = (np.percentile(reference, q, axis=0) for q in (5, 95)) if len(reference) else (-np.ones(3), np.ones(3))
    figure = Figure(figsize=(6.4 * len(clouds), 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, cloud) in enumerate(clouds.items()):
        axes: Any = figure.add_subplot(1, len(clouds), index + 1, projection="3d")
        inside = np.flatnonzero(np.all((cloud.points >= low) & (cloud.points <= high), axis=1))
        some = inside[np.linspace(0, len(inside) - 1, min(SHOWN, len(inside))).astype(int)] if len(inside) else inside
        points = cloud.points[some]
        axes.scatter(*points.T, c=cloud.colours[some] / 255.0, s=2.0, linewidths=0, depthshade=False)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axes.set_box_aspect(np.maximum(high - low, 1e-3))
        axes.set(xlabel="x [m]", ylabel="y [m]", zlabel="z [m]")
        axes.view_init(elev=28, azim=-130)
        axes.set_title(f"{title}: {len(cloud)} points")
        if (words := caption.get(title)) is not None:
            axes.text2D(
                0.5,
                0.94,
                words,
                transform=axes.transAxes,
                ha="center",
                bbox={"facecolor": "#ffc43d", "edgecolor": "none"},
            )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
