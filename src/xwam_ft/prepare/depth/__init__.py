"""Where depth comes from: recorded, computed from stereo pairs, estimated from pictures, made elsewhere, or nowhere.

    sensor            recorded by a depth camera (sensor.py)
    stereo            a rectified pair of cameras of known baseline (stereo.py)
    tiny              the small estimator that ships, for trying things out (tiny.py)
    transformers:ID   any depth-estimation model of Hugging Face transformers (transformers_estimator.py)
    marigold[:ID]     diffusers' MarigoldDepthPipeline (marigold.py)
    files:PATTERN     made elsewhere (files.py)
    NAME[:ARGUMENT]   an estimator of another distribution, entry point group `xwam_ft.depth` (estimator.py)
    none

A stage gives, for rows of one camera of one episode, float32 depth along the optical axis in metres (`metric`), or an
estimator's inverse depth, larger = nearer (`relative`); NaN, or 0 in metres, where there is none. Estimates are cached
by content (estimated.py); relative ones of a video are given one common scale and shift (align.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from xwam_ft.contract import DepthCode
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare import plugins
from xwam_ft.prepare.depth.estimator import DepthStage, Description, Estimator, EstimatorKind

if TYPE_CHECKING:
    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.embodiment.schema import DepthRange

__all__ = ["DepthPlan", "DepthStage", "Description", "Estimator", "EstimatorKind", "find_estimator", "parse_depth"]

CHOICES = "sensor, stereo, tiny, marigold, transformers:ID, files:PATTERN or none"
COSTS = (
    "none (nothing to do; actions and video train, without a depth branch), transformers:ID (a depth model of Hugging "
    "Face such as depth-anything/Depth-Anything-V2-Small-hf; its weights, and a GPU for more than a few minutes of "
    "video), marigold (sharper and slower, wants a GPU), tiny (ships with the package, a CPU is enough; it knows "
    "Meta-World's scenes alone), files:PATTERN (made elsewhere), or stereo (a rectified pair of cameras)"
)
"""The choices where no depth was recorded, each with what it takes."""
SHIPPED = {"tiny": "tiny", "transformers": "transformers_estimator", "marigold": "marigold"}  # estimators: modules


@dataclass(frozen=True)
class DepthPlan:
    """What `--depth` says, checked; sent to worker processes, which `open` it."""

    spec: str
    code: DepthCode
    note: str = ""  # for the report
    estimator: Description | None = None
    aligned: bool = False  # relative depth of single pictures: one scale and shift a frame are undone
    check: bool = False  # compare with recorded depth where there is some
    check_range: tuple[float, float] = (0.1, 10.0)  # metres between which it is compared
    size: tuple[int, int] | None = None  # height, width of what is stored; estimates are cached at it
    cache: Path | None = None

    def open(self) -> DepthStage | None:
        kind, _, rest = self.spec.partition(":")
        if kind == "none":
            return None
        if kind == "sensor":
            from xwam_ft.prepare.depth.sensor import Sensor

            return Sensor()
        if kind == "stereo":
            from xwam_ft.prepare.depth.stereo import Stereo

            assert self.code.near is not None
            return Stereo(self.code.near)
        if kind == "files":
            from xwam_ft.prepare.depth.files import DepthFiles

            return DepthFiles(rest)
        from xwam_ft.prepare.depth.estimated import Estimated

        assert self.estimator is not None
        return Estimated(find_estimator(kind).open_estimator(rest), self.estimator, self.size, self.cache)


def find_estimator(kind: str) -> EstimatorKind:
    """The estimator of that name, shipped or of another distribution.

    Raises:
        UserError: there is none.
    """
    if kind in SHIPPED:
        return cast("EstimatorKind", import_module(f"{__name__}.{SHIPPED[kind]}"))
    added = plugins.plugins(plugins.DEPTH)
    if kind in added:
        return cast("EstimatorKind", plugins.load_plugin(added[kind], ("describe", "open_estimator")))
    known = ("sensor", "stereo", "files", "none", *SHIPPED, *added)
    more = f" (installed besides: {listed(added)})" if added else ""
    raise UserError(f"is {kind!r}{did_you_mean(kind, known)}", "--depth", f"choose {CHOICES}{more}")


def parse_depth(
    spec: str | None, cameras: Sequence[CameraPlan], recorded: Sequence[str], span: DepthRange
) -> DepthPlan:
    """Check `--depth`; left out, it is `sensor` where the embodiment names recorded depth.

    Args:
        recorded: depth features of the recordings, for the error message.
        span: near and far of metric codes.

    Raises:
        UserError: an unknown kind, a sensor or pair that was not recorded, or an estimator that cannot be loaded.
    """
    with_depth = [camera.name for camera in cameras if camera.depth is not None]
    if spec is None:
        if not with_depth:
            if recorded:
                hint = f"depth was recorded as {recorded[0]!r}, and the embodiment does not name it"
                raise UserError(hint, "--depth", f"name it under `cameras`, or choose {CHOICES}")
            raise UserError("is not given, and no depth was recorded", "--depth", f"choose {COSTS}")
        spec = "sensor"
    kind, _, rest = spec.partition(":")
    metric = DepthCode(kind="metric", near=span.near, far=span.far, source=spec)
    relative = DepthCode(kind="relative", source=spec, clip_normalised=True)
    if kind in ("none", "sensor", "stereo") and rest:
        raise UserError(f"is {spec!r}, and {kind} takes nothing after it", "--depth", f"write {kind}")
    if kind == "none":
        return DepthPlan(spec, DepthCode(kind="none"), "no depth")
    if kind == "sensor":
        _require_depth(with_depth, "is `sensor`")
        return DepthPlan(spec, metric, _lacking(cameras, with_depth, "no recorded depth"))
    if kind == "stereo":
        from xwam_ft.prepare.depth.stereo import require_pairs

        return DepthPlan(spec, metric, _lacking(cameras, require_pairs(cameras), "no stereo pair"))
    if kind == "files" and rest:
        from xwam_ft.prepare.depth.files import parse_pattern

        pattern = parse_pattern(rest)
        return DepthPlan(spec, metric if pattern.metric else relative, pattern.meaning, aligned=pattern.align)
    if kind == "files":
        raise UserError("names no files", "--depth files", "write files:PATTERN?unit=..., see prepare/depth/files.py")
    found = find_estimator(kind).describe(rest)
    note = found.note
    if found.prompted:
        _require_depth(with_depth, f"is {spec!r}, which completes recorded depth,")
        note = "; ".join(filter(None, (note, _lacking(cameras, with_depth, "no recorded depth"))))
    return DepthPlan(spec, metric if found.metric else relative, note, found, aligned=not found.metric)


def require_check(plan: DepthPlan, cameras: Sequence[CameraPlan]) -> None:
    """Raise a `UserError` where `--depth-check` has nothing to compare."""
    if plan.spec in ("sensor", "none"):
        raise UserError(
            f"compares an estimate with recorded depth, and --depth is {plan.spec}",
            "--depth-check",
            "choose an estimator with --depth, or leave it out",
        )
    _require_depth([camera.name for camera in cameras if camera.depth is not None], "has nothing to compare with:", "")


def _require_depth(with_depth: list[str], what: str, where: str = "--depth") -> None:
    if not with_depth:
        raise UserError(
            f"{what} {'and ' if where else ''}no camera of the embodiment names a recorded depth video",
            where or "--depth-check",
            "add `depth: {source: ..., unit: ...}` to a camera, or: stereo, tiny, marigold, transformers:ID, "
            "files:PATTERN, none",
        )


def _lacking(cameras: Sequence[CameraPlan], having: Sequence[str], what: str) -> str:
    lacking = [camera.name for camera in cameras if camera.name not in having]
    return f"{', '.join(lacking)}: {what}, stored as invalid" if lacking else ""
