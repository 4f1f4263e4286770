"""Recorded depth: 16-bit counts of a stated unit, or LeRobot's 12-bit logarithmic code."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import depth_code
from xwam_ft.errors import UserError
from xwam_ft.prepare.depth.estimator import DepthPart, DepthStage
from xwam_ft.prepare.embodiment.schema import DepthVideo
from xwam_ft.prepare.episode import EpisodeError, LogCode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode

FULL = 65535  # what 16-bit sensors write where they saw nothing, as others write 0
FULL_METRES = 65.535  # the same after a conversion from millimetres
LOG_STEPS = 4095  # LeRobot v0.6 writes HEVC gray12le; code 0 means invalid (it would decode to the lowest depth)


class Sensor(DepthStage):
    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        counts = self._counts(episode, camera, rows)
        return None if counts is None else to_metres(*counts)

    def coded(self, part: DepthPart, span: tuple[float, float]) -> tuple[UInt16[ndarray, "n h w"], ndarray] | None:
        """Counts are looked up, and only those of pixels that are stored."""
        if (found := self._counts(part.episode, part.camera, part.rows)) is None:
            return None
        counts, video, code = found
        fitted = part.fit(counts)
        if counts.dtype != np.uint16:  # real numbers
            metres = to_metres(fitted, video, code)
            return depth_code.metres_to_code(metres, *span), metres[:, ::4, ::4]
        metres, codes = _tables(video.unit, code, span)
        return codes[fitted], metres[fitted[:, ::4, ::4]]

    def _counts(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int]
    ) -> tuple[ndarray, DepthVideo, LogCode | None] | None:
        """What was recorded, and what it means."""
        if camera.depth is None:
            return None
        view = episode.views.get(camera.depth.source)
        if view is None:
            raise EpisodeError(f"depth {camera.depth.source!r} was not recorded")
        try:
            counts = view.read_gray16(rows)
        except UserError as error:
            raise EpisodeError(str(error)) from None
        return counts, camera.depth, getattr(view, "code", None)


@functools.lru_cache(maxsize=8)
def _tables(
    unit: Any, code: LogCode | None, span: tuple[float, float]
) -> tuple[Float[ndarray, " 65536"], UInt16[ndarray, " 65536"]]:
    """The metres of every 16-bit count, and their codes."""
    metres = to_metres(np.arange(FULL + 1, dtype=np.uint16), DepthVideo(source="", unit=unit), code)
    return metres, depth_code.metres_to_code(metres, *span)


def to_metres(
    counts: UInt16[ndarray, "*n"] | Float32[ndarray, "*n"], video: DepthVideo, code: LogCode | None = None
) -> Float[ndarray, "*n"]:
    """Recorded counts -> metres, float32; 0 means invalid, and so does what says "nothing seen" (`unseen`).

    Args:
        code: how the recording says its 12-bit counts are coded; None: LeRobot's defaults.
    """
    if video.unit == "lerobot_log12":
        table = lerobot_log12(np.arange(LOG_STEPS + 1), code or LogCode())
        codes = np.where(np.asarray(counts) > LOG_STEPS, 0, counts).astype(np.intp)
        return table[codes].astype(np.float32)
    scale = {"mm": 1e-3, "m": 1.0}[video.unit] if isinstance(video.unit, str) else float(video.unit)
    return np.where(unseen(counts, scale), 0.0, counts * scale).astype(np.float32)


def unseen(counts: Float[ndarray, "*n"], scale: float) -> Bool[ndarray, "*n"]:
    """Where 16-bit depth, `scale` metres a count, says that nothing was seen: its largest count; in metres, that count
    as millimetres. NaN, infinity, 0 and less are no depth in any case (depth_code.py)."""
    full = np.asarray(counts) == FULL
    return full if scale != 1.0 else full | (np.abs(np.asarray(counts) - FULL_METRES) < 1e-3)


def lerobot_log12(code: Float[ndarray, "*n"], form: LogCode = LogCode()) -> Float[ndarray, "*n"]:  # noqa: B008
    """d = exp(code (ln(max + shift) - ln(min + shift)) / 4095 + ln(min + shift)) - shift; code 0 -> 0 (invalid).

    Linear, where the recording says so: d = min + code (max - min) / 4095.
    """
    if form.log:
        low, high = math.log(form.low + form.shift), math.log(form.high + form.shift)
        metres = np.exp(code * (high - low) / LOG_STEPS + low) - form.shift
    else:
        metres = form.low + np.asarray(code) * (form.high - form.low) / LOG_STEPS
    return np.where(np.asarray(code) == 0, 0.0, metres)
