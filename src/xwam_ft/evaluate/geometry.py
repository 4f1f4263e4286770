"""Imagined depth as geometry: is it the recorded scene, and do the cameras agree with each other about it.

    chamfer    metres between the fused cloud of all cameras and the recorded one (pointcloud.py)
    f_score    of points within `WITHIN` of the other cloud: harmonic mean of the shares of both clouds (Tatarchenko et
               al. 2019); 1 is best
    agree      share of one camera's points that land on what another camera sees, within `TOLERANCE` of its depth
    in_front   share that stand before it by more: the other camera would see them, and does not. What lies behind may
               be hidden, and contradicts nothing

All by frame after the first. Beside the first two stands the cloud of the first recorded frame, beside the last two
the recorded depth itself, whose sensors and calibration do not agree fully either.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.evaluate.fidelity import mean_of
from xwam_ft.evaluate.pointcloud import cloud_scores, project, transform, unproject
from xwam_ft.evaluate.scene import camera_pose, left_out, metres_of, model_intrinsics, scene_cloud, why_no_cloud

if TYPE_CHECKING:
    from jaxtyping import Float, UInt16
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.evaluate.imagine import Pair

WITHIN = 0.02  # metres
TOLERANCE = 0.05  # of the depth
ASKED = 4000  # points of a cloud, which move a mean of centimetres by tenths of a millimetre
PREDICTORS = {
    **dict.fromkeys(("chamfer", "f_score"), ("imagined", "repeat_first_frame")),
    **dict.fromkeys(("agree", "in_front"), ("imagined", "recorded")),
}


def agreement(contract: Contract, codes: UInt16[ndarray, "v h w"], state: Float[ndarray, " p"]) -> tuple[float, float]:
    """agree and in_front of one frame, over all ordered pairs of calibrated cameras; NaN where no point lands.

    Args:
        codes: as the model sees them, centre-cropped.
        state: absolute, at the frame's time; it carries wrist cameras.
    """
    lacking = left_out(contract)
    seen: list[tuple[ndarray, ndarray, Any, ndarray]] = []
    for view, camera in enumerate(contract.cameras):
        if camera.name not in lacking:
            metres, intrinsics = metres_of(contract, camera, codes[view]), model_intrinsics(contract, camera)
            valid = np.isfinite(metres) & (metres > 0)
            pose = camera_pose(contract, camera, state)
            seen.append((transform(unproject(metres, intrinsics)[valid], pose), metres, intrinsics, pose))
    landed = agree = before = 0
    for (points, *_), (_, metres, intrinsics, pose) in permutations(seen, 2):
        inside = transform(points, np.linalg.inv(pose))
        inside = inside[inside[:, 2] > 0]
        columns, rows = np.rint(project(inside, intrinsics)).T
        height, width = metres.shape
        shown = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        found = metres[rows[shown].astype(int), columns[shown].astype(int)]
        off = inside[shown, 2] / np.where(found > 0, found, np.nan) - 1
        landed += int(np.isfinite(off).sum())
        agree += int((np.abs(off) <= TOLERANCE).sum())
        before += int((off < -TOLERANCE).sum())
    return (agree / landed, before / landed) if landed else (float("nan"), float("nan"))


@dataclass
class Geometry:
    """Collects clips; `rows` has, by score and predictor, the frames of every clip in turn."""

    contract: Contract
    rows: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict[tuple[str, str], "list[list[float]]"])
    reason: str | None = None  # why nothing was measured

    def add(self, pair: Pair) -> None:
        contract = self.contract
        self.reason = why_no_cloud(contract, depth_branch=pair.imagined_depth is not None)
        if self.reason is not None or pair.depth is None or pair.imagined_depth is None:
            self.reason = self.reason or "no point cloud: these shards hold no depth"
            return
        still = scene_cloud(contract, pair.rgb[:, 0], pair.depth[:, 0], pair.states[0])
        found: dict[tuple[str, str], list[float]] = {}
        for frame in range(1, len(pair.states)):
            recorded = pair.depth[:, frame], pair.states[frame]
            imagined = pair.imagined_depth[:, frame], pair.imagined_states[frame]
            truth = scene_cloud(contract, pair.rgb[:, frame], *recorded)
            clouds = {"imagined": scene_cloud(contract, pair.imagined_rgb[:, frame], *imagined)}
            for predictor, cloud in (clouds | {"repeat_first_frame": still}).items():
                distance, score = cloud_scores(cloud, truth, WITHIN, ASKED) or (np.nan, np.nan)
                found.setdefault(("chamfer", predictor), []).append(distance)
                found.setdefault(("f_score", predictor), []).append(score)
            for predictor, depth in (("imagined", imagined), ("recorded", recorded)):
                agree, before = agreement(contract, *depth)
                found.setdefault(("agree", predictor), []).append(agree)
                found.setdefault(("in_front", predictor), []).append(before)
        for key, frames in found.items():
            self.rows.setdefault(key, []).append(frames)

    def metrics(self) -> dict[str, Any]:
        """{"made": False, "reason"}, or {"made": True, "within", "tolerance", "by_horizon": {score: {predictor: the
        mean of each frame}}, "scores": {score: {predictor: mean}}, "per_clip": {score: of what was imagined}}.

        Scores that no frame has (one calibrated camera alone) are left out.
        """
        if not self.rows:
            return {"made": False, "reason": self.reason}
        tables = {key: np.array(rows) for key, rows in self.rows.items() if np.isfinite(rows).any()}
        scores = [name for name in PREDICTORS if (name, "imagined") in tables]
        return {
            "made": True,
            "within": WITHIN,
            "tolerance": TOLERANCE,
            "by_horizon": {
                name: {one: [mean_of(column) for column in tables[name, one].T] for one in PREDICTORS[name]}
                for name in scores
            },
            "scores": {name: {one: mean_of(tables[name, one]) for one in PREDICTORS[name]} for name in scores},
            "per_clip": {name: [mean_of(row) for row in tables[name, "imagined"]] for name in scores},
        }
