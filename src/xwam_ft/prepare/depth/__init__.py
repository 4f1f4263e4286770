"""Where depth comes from: `sensor`, `tiny`, `transformers:ID`, `files:PATTERN` or `none`; one small protocol for all.

A stage gives, for rows of one camera of one episode, float32 depth along the optical axis in metres (`metric`), or an
estimator's inverse depth, larger = nearer (`relative`); NaN, or 0 in metres, where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xwam_ft.contract import DepthCode
from xwam_ft.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.prepare.embodiment import DepthRange
    from xwam_ft.prepare.embodiment_slots import CameraPlan
    from xwam_ft.prepare.episode import Episode

CHOICES = "sensor, tiny, transformers:ID, files:PATTERN or none"


class DepthStage(Protocol):
    """Opened once a process; never looks at two episodes at a time."""

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        """Depth of `rows`, whose pictures at source resolution are given; None: this camera has none.

        Raises:
            EpisodeError: what should be there is not, or does not fit.
        """
        ...


@dataclass(frozen=True)
class DepthPlan:
    """What `--depth` says, checked; sent to worker processes, which `open` it."""

    spec: str
    code: DepthCode
    note: str = ""  # for the report

    def open(self) -> DepthStage | None:
        kind, _, rest = self.spec.partition(":")
        if kind == "sensor":
            from xwam_ft.prepare.depth.sensor import Sensor

            return Sensor()
        if kind == "tiny":
            from xwam_ft.prepare.depth.tiny import TinyEstimator

            return TinyEstimator()
        if kind == "transformers":
            from xwam_ft.prepare.depth.transformers_estimator import TransformersEstimator

            return TransformersEstimator(rest)
        if kind == "files":
            from xwam_ft.prepare.depth.files import DepthFiles

            return DepthFiles(rest)
        return None


def parse_depth(
    spec: str | None, cameras: Sequence[CameraPlan], recorded: Sequence[str], span: DepthRange
) -> DepthPlan:
    """Check `--depth`; left out, it is `sensor` where the embodiment names recorded depth.

    Args:
        recorded: depth features of the recordings, for the error message.
        span: near and far of metric codes.

    Raises:
        UserError: an unknown kind, a sensor that was not recorded, or an estimator that cannot be loaded.
    """
    with_depth = [camera.name for camera in cameras if camera.depth is not None]
    if spec is None:
        if not with_depth:
            hint = f"; depth was recorded as {recorded[0]!r}: name it under `cameras`" if recorded else ""
            raise UserError(f"no depth is named in the embodiment{hint}", "--depth", f"choose {CHOICES}")
        spec = "sensor"
    kind, _, rest = spec.partition(":")
    if kind == "none" and not rest:
        return DepthPlan(spec, DepthCode(kind="none"), "no depth")
    if kind == "sensor" and not rest:
        if not with_depth:
            raise UserError(
                "is `sensor` and no camera of the embodiment names a recorded depth video",
                "--depth",
                "add `depth: {source: ..., unit: ...}` to a camera, or: tiny, transformers:ID, files:PATTERN, none",
            )
        lacking = [camera.name for camera in cameras if camera.depth is None]
        note = f"{', '.join(lacking)}: no recorded depth, stored as invalid" if lacking else ""
        return DepthPlan(spec, DepthCode(kind="metric", near=span.near, far=span.far, source=spec), note)
    if kind == "tiny" and not rest:
        from xwam_ft.prepare.depth.tiny import NOTE, require_weights

        require_weights()
        metric, note = True, NOTE
    elif kind == "transformers" and rest:
        from xwam_ft.prepare.depth.transformers_estimator import is_metric

        metric, note = is_metric(rest)
    elif kind == "files" and rest:
        from xwam_ft.prepare.depth.files import parse_pattern

        unit = parse_pattern(rest)[1]
        metric, note = unit != "relative", f"unit {unit}"
    else:
        known = ("sensor", "tiny", "transformers", "files", "none")
        raise UserError(f"is {spec!r}{did_you_mean(kind, known)}", "--depth", f"choose {CHOICES}")
    if metric:
        return DepthPlan(spec, DepthCode(kind="metric", near=span.near, far=span.far, source=spec), note)
    return DepthPlan(spec, DepthCode(kind="relative", source=spec, clip_normalised=True), note)
