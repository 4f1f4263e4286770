"""The work on one episode, the same in any process: check, decode, resize, depth, encode; leaves a folder behind.

Frames pass through in blocks of `BLOCK` or `FEW`, so that the length of an episode costs disk, not memory.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import depth_code
from xwam_ft.decoding import keep_open
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_folder, full_disk, reserve, write_json_atomic
from xwam_ft.hub import name_of
from xwam_ft.pictures import resize_nearest, resize_pictures
from xwam_ft.prepare.checks import depth as depth_checks
from xwam_ft.prepare.checks import pictures as picture_checks
from xwam_ft.prepare.checks.files import check_files
from xwam_ft.prepare.checks.numbers import check_numbers
from xwam_ft.prepare.checks.table import check_table, instructions_of
from xwam_ft.prepare.checks.timing import check_time, seconds_apart
from xwam_ft.prepare.checks.units import check_units
from xwam_ft.prepare.contact_sheet import contact_sheet, jpeg
from xwam_ft.prepare.depth import DepthPlan, DepthStage
from xwam_ft.prepare.depth.align import align_video, flicker
from xwam_ft.prepare.depth.check import check_depth
from xwam_ft.prepare.depth.estimator import DepthPart
from xwam_ft.prepare.embodiment.cameras import CameraPlan
from xwam_ft.prepare.embodiment.slots import joint_motion, motion
from xwam_ft.prepare.episode import EpisodeError, VideoView
from xwam_ft.prepare.findings import Finding, Rejected, reject_errors
from xwam_ft.prepare.jobs import JOINTS, MOTION_FILE, RESULT, EpisodeJob, EpisodeResult, JobOutcome
from xwam_ft.shard_writer import encode_segment, segment_bounds, segment_key
from xwam_ft.shards import Segment

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import View

BLOCK = 64  # a multiple of the estimators' batch, so that batches fall alike in every run
FEW = 8
SEGMENT_FRAMES = 400
SAMPLES = 6  # pictures of a contact sheet

Work = Callable[[EpisodeJob, EpisodeResult, Path, DepthStage | None], None]


_open_stages: dict[DepthPlan, DepthStage | None] = {}  # the last one: a process works for one preparation


def run(job: EpisodeJob) -> JobOutcome:
    """All the work on one episode."""
    return attempt(job, _work)


def attempt(job: EpisodeJob, work: Work) -> JobOutcome:
    """Let `work` fill the episode's folder, which appears complete with its result or not at all.

    A `UserError` (of the depth estimator) comes back as its three parts, since it crosses processes.
    """
    result = EpisodeResult(job.number, job.episode.index, name_of(job.episode.dataset))
    try:
        if job.depth not in _open_stages:
            _open_stages.clear()
            _open_stages[job.depth] = job.depth.open()
    except UserError as error:
        return error.what, error.where, error.fix
    shutil.rmtree(job.folder, ignore_errors=True)
    try:
        with atomic_folder(job.folder) as folder:
            work(job, result, folder, _open_stages[job.depth])
            write_json_atomic(folder / RESULT, asdict(result))
    except Rejected as error:
        result.reason = str(error)
        result.findings += error.findings
    except (EpisodeError, UserError) as error:  # a video that stops decoding half-way, say
        result.reason = f"{error.where}: {error.what}" if isinstance(error, UserError) else str(error)
        result.findings.append(Finding("unreadable-recording", "error", result.reason, fix=error.fix))
    except OSError as error:
        if (told := full_disk(error, job.staging)) is None:
            raise
        return told.what, told.where, told.fix
    return result


def on_disk(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """An array of zeros in a file that is as large as it from the start."""
    reserve(path, int(np.prod(shape)) * np.dtype(kind).itemsize)
    return np.memmap(path, kind, "r+", shape=shape)


def _work(job: EpisodeJob, result: EpisodeResult, folder: Path, stage: DepthStage | None) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    numbers = _numbers(job, result, folder)
    rgb, codes = _pictures(job, result, folder, scratch, stage, numbers.state)
    _segments(job, result, folder, numbers, rgb, codes)
    del rgb, codes
    shutil.rmtree(scratch)


@dataclass(frozen=True)
class _Numbers:
    """State [F, P] and command [F, Q] of an episode, with their masks."""

    state: np.ndarray
    state_mask: np.ndarray
    command: np.ndarray
    command_mask: np.ndarray


def _numbers(job: EpisodeJob, result: EpisodeResult, folder: Path) -> _Numbers:
    """Check the files and the table; its motion is written to `folder`, its findings to `result`."""
    started = time.perf_counter()
    episode = job.episode
    recorded_depth = job.depth.spec == "sensor"
    result.findings += reject_errors(check_files(episode, job.cameras, job.timing, depth=recorded_depth))
    result.findings += [Finding("reader-note", "note", note) for note in episode.notes]
    table = episode.table.read()
    result.findings += reject_errors(check_table(table, job.slots))
    result.findings += reject_errors(check_units(table, job.slots, job.fps))
    state, state_mask, command, command_mask = motion(job.slots, table, job.timing.action_skip)
    result.frames = len(state)
    result.findings += check_time(table.timestamps, job.fps)
    result.seconds_apart = seconds_apart(table.timestamps)
    result.findings += check_numbers(table, job.slots, state, command, job.fps)
    wordings, oddities = instructions_of(episode, table, job.instruction)
    result.instructions = list(wordings)
    result.findings += oddities
    result.success = episode.success if table.success is None else table.success
    result.padded_starts = job.timing.padded_starts(len(state))
    of_joints = {JOINTS + name: both for name, both in joint_motion(job.slots, table, job.timing.action_skip).items()}
    np.savez(folder / MOTION_FILE, state=state, command=command, command_mask=command_mask, **of_joints)  # pyright: ignore[reportArgumentType]
    result.seconds["read"] = time.perf_counter() - started
    return _Numbers(state, state_mask, command, command_mask)


def _pictures(
    job: EpisodeJob,
    result: EpisodeResult,
    folder: Path,
    scratch: Path,
    stage: DepthStage | None,
    state: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures [V, F, H, W, 3] and depth codes [V, F, H, W] in files of `scratch`; checked, and shown on sheets."""
    shape = (len(job.cameras), len(state), job.image.height, job.image.width)
    rgb = on_disk(scratch / "rgb", np.uint8, (*shape, 3))
    codes = None if stage is None else on_disk(scratch / "codes", np.uint16, shape)
    for view, camera in enumerate(job.cameras):
        decode_view(job, result, camera, stage, rgb[view], None if codes is None else codes[view], scratch)
    rows = np.unique(np.linspace(0, len(state) - 1, SAMPLES).round().astype(int))
    _check_views(job, result, rgb, codes, picture_checks.robot_moves(state), rows)
    for view, camera in enumerate(job.cameras):
        pictures = np.asarray(rgb[view, rows])
        sheet = contact_sheet(pictures, None if codes is None else np.asarray(codes[view, rows]))
        (folder / f"sheet-{camera.name}.jpg").write_bytes(sheet)
    return rgb, codes


def _segments(
    job: EpisodeJob,
    result: EpisodeResult,
    folder: Path,
    numbers: _Numbers,
    rgb: np.ndarray,
    codes: np.ndarray | None,
) -> None:
    """Cut the episode into the shard samples that `assemble` puts together."""
    started = time.perf_counter()
    names = [camera.name for camera in job.cameras]
    length = max(SEGMENT_FRAMES, 4 * job.timing.span)
    for first, count, first_start, num_starts in segment_bounds(len(numbers.state), job.timing, length):
        part = slice(first, first + count)
        segment = Segment(
            key=segment_key(job.number, first),
            episode=job.number,
            split="train",  # the split is known when all episodes are; `assemble` writes it
            first_frame=first,
            first_start=first_start,
            num_starts=num_starts,
            instruction=result.instruction,
            rgb=rgb[:, part],
            depth=None if codes is None else codes[:, part],
            proprio=numbers.state[part],
            proprio_mask=numbers.state_mask[part],
            action=numbers.command[part],
            action_mask=numbers.command_mask[part],
        )
        for name, data in encode_segment(segment, names, job.fps).items():
            (folder / f"{segment.key}.{name}").write_bytes(data)
        result.segments.append(segment.key)
    result.seconds["encode"] = time.perf_counter() - started


def decode_view(
    job: EpisodeJob,
    result: EpisodeResult,
    camera: CameraPlan,
    stage: DepthStage | None,
    rgb: np.ndarray,
    codes: np.ndarray | None,
    scratch: Path,
) -> None:
    """Fill the pictures [F, H, W, 3] and depth codes [F, H, W] of one camera."""
    episode = job.episode
    view: View = episode.views[camera.source]
    height, width = job.image.height, job.image.width
    result.codecs[camera.name] = view.codec()
    seconds = {"decode": 0.0, "depth": 0.0}
    # The range of relative depth is known only at the end, so its numbers wait on disk.
    relative: np.ndarray | None = None
    if codes is not None and job.depth.code.kind == "relative":
        relative = on_disk(scratch / "relative", np.float32, codes.shape)
        relative[:] = np.nan
    levels: list[float] = []  # metres before they are held in the range
    # Estimators know upright pictures; what was recorded or made of recorded pictures is turned afterwards.
    turned_later = job.depth.estimator is None

    def fit(depth: np.ndarray) -> np.ndarray:
        return resize_nearest(camera.turn(depth) if turned_later else depth, height, width)

    # What nobody estimates from is worked on while it is in the processor's caches.
    size = FEW if isinstance(view, VideoView) and job.depth.estimator is None else BLOCK
    with keep_open():
        for first in range(0, len(rgb), size):
            rows = range(first, min(first + size, len(rgb)))
            block = slice(rows.start, rows.stop)
            clock = time.perf_counter()
            pictures = view.read_rgb(rows)
            if camera.swap:
                pictures = np.ascontiguousarray(pictures[..., ::-1])
            result.sizes.setdefault(camera.name, [int(side) for side in pictures.shape[1:3]])
            upright = camera.turn(pictures)
            rgb[block] = resize_pictures(upright, height, width)
            seconds["decode"] += time.perf_counter() - clock
            if stage is None or codes is None:
                continue
            clock = time.perf_counter()
            part = DepthPart(episode, camera, rows, pictures if turned_later else upright, fit)
            if relative is not None:
                if (estimated := stage.fitted(part)) is not None:
                    relative[block] = estimated
            else:
                span = camera.depth_range or depth_code.require_metric(job.depth.code)
                if (coded := stage.coded(part, span)) is not None:
                    codes[block], metres = coded
                    levels += depth_checks.level(metres)
            seconds["depth"] += time.perf_counter() - clock
    if codes is not None:
        clock = time.perf_counter()
        if relative is not None:
            if job.depth.aligned:
                result.depth_flicker[camera.name] = asdict(align_video(relative, rgb))
            _code_relative(relative, codes)
            del relative
        elif job.depth.estimator is not None and codes.any():
            share = flicker(codes, rgb)
            result.depth_flicker[camera.name] = {"raw": share, "aligned": share}
        if job.depth.check:
            near_far = camera.depth_range or job.depth.check_range
            compared = check_depth(episode, camera, codes, job.depth.code, near_far)
            result.depth_check |= {} if compared is None else {camera.name: asdict(compared)}
        seconds["depth"] += time.perf_counter() - clock
        valid = [np.count_nonzero(frame) / frame.size for frame in codes]
        result.depth_valid[camera.name] = round(float(np.mean(valid)), 4)
        result.findings += depth_checks.check_depth(camera.name, valid)
        if levels:
            ends = depth_checks.held_shares(codes)
            result.depth_ends[camera.name] = [round(share, 4) for share in ends]
            stated, metres = job.depth.estimator is None and job.depth.spec != "stereo", float(np.median(levels))
            span = camera.depth_range or depth_code.require_metric(job.depth.code)
            found = depth_checks.check_range(camera.name, ends, metres, span, recorded=stated)
            result.findings += reject_errors(found)
    for name, value in seconds.items():
        result.seconds[name] = result.seconds.get(name, 0.0) + value


def _check_views(
    job: EpisodeJob,
    result: EpisodeResult,
    rgb: np.ndarray,
    codes: np.ndarray | None,
    moving: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Checks of the pictures, what later checks compare over episodes (from `rows`), and the findings' thumbnails."""
    digest = hashlib.sha256()
    found: list[Finding] = []
    for view, camera in enumerate(job.cameras):
        found += picture_checks.check_pictures(camera.name, rgb[view], moving, job.fps)
        pictures = np.asarray(rgb[view, rows])
        result.signatures[camera.name] = picture_checks.signature(pictures)
        digest.update(pictures.tobytes())
        if codes is not None and job.depth.code.kind == "metric":
            near, far = camera.depth_range or depth_code.require_metric(job.depth.code)
            result.depth_grids[camera.name] = depth_checks.depth_grid(np.asarray(codes[view, rows]), near, far)
    result.pictures_hash = digest.hexdigest()
    names = [camera.name for camera in job.cameras]
    shown = {(finding.camera or names[0], finding.frame) for finding in [*result.findings, *found]}
    shown |= {(name, 0) for name in names}  # findings over episodes come later, and show the first picture
    for name, frame in sorted((name, frame) for name, frame in shown if frame is not None and name in names):
        picture = picture_checks.thumbnail(np.asarray(rgb[names.index(name), frame]))
        result.thumbnails[f"{name}:{frame}"] = base64.b64encode(jpeg(picture)).decode()
    result.findings += reject_errors(found)


def _code_relative(inverse: np.ndarray, codes: np.ndarray) -> None:
    """Inverse depth of one episode and view -> codes, stretched to its own smallest and largest value."""
    low, high = np.inf, -np.inf
    for frame in inverse:
        finite = frame[np.isfinite(frame)]
        if len(finite):
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if not np.isfinite(low):
        return  # nothing valid: all stay 0
    for at, frame in enumerate(inverse):
        codes[at] = depth_code.relative_to_code(frame, low, high if high > low else low + 1.0)
