"""What is wrong with a recording, in words. Errors reject an episode; warnings let it go on and stand in the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.episode import EpisodeError, VideoView

if TYPE_CHECKING:
    from xwam_ft.contract import Slot, Timing
    from xwam_ft.prepare.embodiment_slots import CameraPlan, SlotPlan
    from xwam_ft.prepare.episode import Episode, Table

BLACK = 8  # mean of 0..255 below which a picture shows nothing
SERVO_FAULT = -1.0


def check_files(episode: Episode, cameras: list[CameraPlan], timing: Timing, *, depth: bool) -> None:
    """Files there, videos as long as the table, long enough for a clip.

    Raises:
        EpisodeError: the first sentence that rejects the episode.
    """
    used = [camera.source for camera in cameras]
    used += [camera.depth.source for camera in cameras if depth and camera.depth is not None]
    paths = {str(view.path) for name, view in episode.views.items() if name not in used}
    paths -= {str(view.path) for name, view in episode.views.items() if name in used}  # one file may hold all cameras
    for problem in episode.problems:
        if not any(path in problem for path in paths):  # a fault of a camera that nobody asked for is none
            raise EpisodeError(problem)
    if episode.length < timing.frame_skip + 1:
        raise EpisodeError(
            f"{episode.length} frames are too short: two pictures of a clip are {timing.frame_skip + 1} frames"
        )
    for source in used:
        view = episode.views.get(source)
        if view is None:
            raise EpisodeError(f"camera {source!r} was not recorded")
        if isinstance(view, VideoView) and not view.shared:
            _check_count(view, source)


def _check_count(view: VideoView, source: str) -> None:
    try:
        counted = media.count_frames(view.path)
    except UserError as error:
        raise EpisodeError(str(error)) from None
    if counted < view.frames:
        raise EpisodeError(f"{view.path} holds {counted} frames, the table of the episode has {view.frames}")
    if counted > view.frames:
        raise EpisodeError(
            f"{view.path} holds {counted} frames, the table of the episode has {view.frames}: "
            f"which of {source!r} belong to it is unknown"
        )


def check_table(episode: Episode, table: Table, plans: list[SlotPlan]) -> None:
    """Every used column there and finite.

    Raises:
        EpisodeError: the first sentence that rejects the episode.
    """
    for plan in plans:
        for reading in (plan.state, plan.command):
            for name in reading.columns if reading else ():
                if name not in table.columns:
                    raise EpisodeError(f"column {name!r} of slot {plan.slot.name!r} was not recorded")
                if name in table.problems:
                    raise EpisodeError(table.problems[name])
                bad = np.flatnonzero(~np.isfinite(table.columns[name]))
                if len(bad):
                    raise EpisodeError(
                        f"column {name!r} of slot {plan.slot.name!r} holds {table.columns[name][bad[0]]} "
                        f"at frame {bad[0]} ({len(bad)} of {len(table.columns[name])} frames)"
                    )


def table_warnings(episode: Episode, table: Table, fps: float, plans: list[SlotPlan], state: np.ndarray) -> list[str]:
    """Oddities of the numbers that do not reject the episode."""
    found = list(episode.notes)
    if table.timestamps is None:
        found.append("no timestamps were recorded; frame number / fps is used")
    elif len(table.timestamps) > 1:
        steps = np.diff(table.timestamps)
        if not np.any(steps):
            found.append("all timestamps are equal; frame number / fps is used")
        elif np.any(steps < 0):
            found.append(f"time runs backwards at frame {int(np.flatnonzero(steps < 0)[0]) + 1}")
        elif np.any(steps > 2.5 / fps):
            gap = int(np.argmax(steps))
            found.append(f"{steps[gap]:.2f} s pass between frames {gap} and {gap + 1}, at {fps:g} fps")
    at = 0
    for plan in plans:
        slot: Slot = plan.slot
        part = state[:, at : at + slot.state_width]
        at += slot.state_width
        if plan.state is None:
            continue
        if slot.kind == "gripper" and np.ptp(part, axis=0).max() < 1e-3:
            found.append(f"gripper {slot.name!r} never moves")
        elif slot.kind in ("pose", "joints") and len(part) > 1 and np.ptp(part, axis=0).max() < 1e-4:
            found.append(f"{slot.name!r} never moves")
        raw = np.stack([table.columns[name] for name in plan.state.columns], axis=1)
        faults = np.flatnonzero((raw == SERVO_FAULT).any(axis=1) & ~(raw == SERVO_FAULT).all(axis=1))
        if slot.kind == "joints" and 0 < len(faults) < len(raw) // 2:
            found.append(f"{slot.name!r} reads exactly -1 in {len(faults)} frames, as failed servo reads do")
    return found


def picture_warnings(camera: str, brightness: list[float]) -> list[str]:
    """Warnings from the mean brightness of sampled pictures of one camera."""
    if brightness and max(brightness) < BLACK:
        return [f"camera {camera!r} is black"]
    dark = sum(value < BLACK for value in brightness)
    return [f"camera {camera!r} is black in {dark} of {len(brightness)} sampled pictures"] if dark else []


def instruction_of(episode: Episode, table: Table, fallback: str | None) -> tuple[str, list[str]]:
    """The episode's instruction: its most frequent task, else its first listed one, else the embodiment's."""
    if table.task_index is not None and len(table.task_index) and episode.tasks:
        numbers, counts = np.unique(table.task_index, return_counts=True)
        text = episode.tasks.get(int(numbers[np.argmax(counts)]), "").strip()
        if text:
            note = [] if len(numbers) == 1 else [f"{len(numbers)} instructions in one episode; {text!r} is used"]
            return text, note
    for text in episode.instructions:
        if text.strip():
            note = [] if len(episode.instructions) == 1 else [f"of {listed(episode.instructions)} the first is used"]
            return text.strip(), note
    if fallback and fallback.strip():
        return fallback.strip(), []
    return "", ["no instruction was recorded; add `instruction:` to the embodiment file"]
