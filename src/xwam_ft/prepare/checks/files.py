"""Files there, videos as long as the table, long enough for a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xwam_ft import media
from xwam_ft.errors import UserError
from xwam_ft.prepare.episode import VideoView
from xwam_ft.prepare.findings import Finding, problem_findings

if TYPE_CHECKING:
    from xwam_ft.contract import Timing
    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode


def check_files(episode: Episode, cameras: list[CameraPlan], timing: Timing, *, depth: bool) -> list[Finding]:
    """Errors of the episode's files, before any is decoded; faults of a camera that nobody asked for are none."""
    used = [camera.source for camera in cameras]
    used += [camera.depth.source for camera in cameras if depth and camera.depth is not None]
    paths = {str(view.path) for name, view in episode.views.items() if name not in used}
    paths -= {str(view.path) for name, view in episode.views.items() if name in used}  # one file may hold all cameras
    found = problem_findings(
        problem
        for problem in episode.problems
        if getattr(problem, "camera", "") in ("", *used) and not any(path in problem for path in paths)
    )
    if found:
        return found  # a file that is not there has no length either
    if episode.length < timing.frame_skip + 1:
        text = f"{episode.length} frames are too short: two pictures of a clip are {timing.frame_skip + 1} frames"
        return [Finding("too-short", "error", text)]
    for source in used:
        view = episode.views.get(source)
        if view is None:
            found.append(Finding("missing-camera", "error", f"camera {source!r} was not recorded", source))
        elif isinstance(view, VideoView) and not view.shared:
            found += _count(view, source)
    return found


def _count(view: VideoView, source: str) -> list[Finding]:
    try:
        counted = media.count_frames(view.path)
    except UserError as error:
        return [Finding("unreadable-recording", "error", f"{error.where}: {error.what}", source, fix=error.fix)]
    if counted == view.frames:
        return []
    text = f"{view.path} holds {counted} frames, the table of the episode has {view.frames}"
    if counted > view.frames:
        text += f": which of {source!r} belong to it is unknown"
    return [Finding("length-mismatch", "error", text, source)]
