"""The depth stage alone: recordings -> one depth video a camera and episode, which `--depth files:` takes.

`OUT/episode-NNNNNN/CAMERA.mkv`, NNNNNN being the dataset's own number: 16-bit gray at the embodiment's picture size (as
recorded, where the camera is turned),
whole millimetres or, for relative depth, inverse depth over the episode's range; 0 = none. An episode's folder appears
when it is complete, and what is there is not made again.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xwam_ft import depth_code
from xwam_ft.bundled import named_file
from xwam_ft.errors import UserError
from xwam_ft.files import read_json, write_json_atomic
from xwam_ft.media import write_gray16
from xwam_ft.pictures import turn_back
from xwam_ft.prepare.checks.files import check_files
from xwam_ft.prepare.depth.outcome import DepthOutcome, depth_outcomes, say_depth
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.episode_work import attempt, decode_view, on_disk
from xwam_ft.prepare.findings import reject_errors
from xwam_ft.prepare.fingerprint import preparation_fingerprint
from xwam_ft.prepare.pipeline import plan_jobs, run_all
from xwam_ft.prepare.sources import open_source

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.prepare.depth import DepthStage
    from xwam_ft.prepare.jobs import EpisodeJob, EpisodeResult, JobOutcome

RECORD = "depth.json"
MOST = 65534  # millimetres a 16-bit count can say; the largest count means that nothing was seen


class EstimatedDepth(NamedTuple):
    spec: str  # what to give `prepare --depth`
    cameras: dict[str, DepthOutcome]
    rejected: list[EpisodeResult]


def estimate_depth(
    raw: Path,
    out: Path,
    *,
    embodiment: Path,
    depth: str,
    check: bool,
    workers: int,
    ray: str | None,
    console: Console,
    urdf_dirs: list[Path] | None = None,
) -> EstimatedDepth:
    """Depth of every camera and episode of `raw`, as `prepare --depth` would store it, under `out`.

    Raises:
        UserError: as `prepare`; `depth` gives none; `out` holds something else.
    """
    embodiment = named_file(embodiment, "recipes/embodiments")
    spec = load_embodiment(embodiment)
    with console.status("looking through the recordings"):
        sources = [open_source(raw)]
        jobs, plan = plan_jobs(sources, spec, embodiment, depth, urdf_dirs or [], out.absolute(), check=check)
        fingerprint = preparation_fingerprint([raw], jobs, spec, plan)
    if plan.code.kind == "none":
        raise UserError("is none, and depth is what is to be made", "--depth", "choose an estimator")
    if not (out / RECORD).is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists and is not an empty folder", out, "give another OUT")
    if (out / RECORD).is_file() and read_json(out / RECORD).get("fingerprint") != fingerprint:
        raise UserError("holds depth made from other inputs", out, "give another OUT")
    write_json_atomic(out / RECORD, {"fingerprint": fingerprint, "depth": plan.spec, "kind": plan.code.kind})
    # Folders are named by the dataset's own numbers, which is what `files:` fills in.
    jobs = [replace(job, number=job.episode.index) for job in jobs]
    results = run_all(jobs, workers, ray, False, console, estimate)
    rejected = [result for result in results if result.reason is not None]
    kept = [result for result in results if result.reason is None]
    if not kept:
        raise UserError(
            f"all {len(rejected)} episodes are rejected ({rejected[0].reason})" if rejected else "holds no episode",
            raw,
            "mend the recordings or the embodiment file",
        )
    cameras = depth_outcomes(kept)
    record = {name: asdict(found) for name, found in cameras.items()}
    unit = "mm" if plan.code.kind == "metric" else "relative"
    files = f"files:{out.absolute()}/episode-{{episode:06d}}/{{camera}}.mkv?unit={unit}"
    write_json_atomic(
        out / RECORD,
        {"fingerprint": fingerprint, "depth": plan.spec, "kind": plan.code.kind, "use": files, "cameras": record},
    )
    say_depth(cameras, plan, console)
    return EstimatedDepth(files, cameras, rejected)


def estimate(job: EpisodeJob) -> JobOutcome:
    """The depth of one episode, in any process."""
    return attempt(job, _estimate)


def _estimate(job: EpisodeJob, result: EpisodeResult, folder: Path, stage: DepthStage | None) -> None:
    recorded = job.depth.spec == "sensor"
    result.findings += reject_errors(check_files(job.episode, job.cameras, job.timing, depth=recorded))
    result.frames = job.episode.length
    scratch = folder / "scratch"
    scratch.mkdir()
    shape = (result.frames, job.image.height, job.image.width)
    rgb, codes = (on_disk(scratch / "rgb", np.uint8, (*shape, 3)), on_disk(scratch / "codes", np.uint16, shape))
    for camera in job.cameras:
        codes[:] = depth_code.INVALID
        decode_view(job, result, camera, stage, rgb, codes, scratch)
        near_far = None
        if job.depth.code.kind == "metric":
            near_far = camera.depth_range or depth_code.require_metric(job.depth.code)
        # As the pictures were recorded, which is what `files:` takes.
        back = (turn_back(_counts(frame, near_far), camera.rotate, mirror=camera.mirror) for frame in codes)
        write_gray16(folder / f"{camera.name}.mkv", back, job.fps)
    del rgb, codes
    shutil.rmtree(scratch)


def _counts(codes: np.ndarray, near_far: tuple[float, float] | None) -> np.ndarray:
    """Codes of one frame -> millimetres; relative codes (no near and far) are stored as they are."""
    if near_far is None:
        return np.asarray(codes)
    millimetres = np.nan_to_num(depth_code.code_to_metres(codes, *near_far)) * 1000.0
    return np.rint(np.minimum(millimetres, MOST)).astype(np.uint16)
