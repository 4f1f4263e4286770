"""Recorded depth: 16-bit counts of a stated unit, or LeRobot's 12-bit logarithmic code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.prepare.depth import DepthStage
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.prepare.embodiment import DepthVideo
    from xwam_ft.prepare.embodiment_slots import CameraPlan
    from xwam_ft.prepare.episode import Episode

# LeRobot v0.6 writes HEVC gray12le with these; code 0 means invalid (it would decode to LOG_MIN).
LOG_MIN, LOG_MAX, LOG_SHIFT, LOG_STEPS = 0.01, 10.0, 3.5, 4095


class Sensor(DepthStage):
    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        if camera.depth is None:
            return None
        view = episode.views.get(camera.depth.source)
        if view is None:
            raise EpisodeError(f"depth {camera.depth.source!r} was not recorded")
        try:
            counts = view.read_gray16(rows)
        except UserError as error:
            raise EpisodeError(str(error)) from None
        return to_metres(counts, camera.depth)


def to_metres(counts: UInt16[ndarray, "*n"], video: DepthVideo) -> Float[ndarray, "*n"]:
    """Recorded counts -> metres, float32; 0 stays 0, which means invalid."""
    if video.unit == "lerobot_log12":
        table = lerobot_log12(np.arange(LOG_STEPS + 1))
        return table[np.minimum(counts, LOG_STEPS)].astype(np.float32)
    scale = {"mm": 1e-3, "m": 1.0}[video.unit] if isinstance(video.unit, str) else float(video.unit)
    return (counts * scale).astype(np.float32)


def lerobot_log12(code: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """d = exp(code (ln(max + shift) - ln(min + shift)) / 4095 + ln(min + shift)) - shift; code 0 -> 0 (invalid)."""
    low, high = math.log(LOG_MIN + LOG_SHIFT), math.log(LOG_MAX + LOG_SHIFT)
    metres = np.exp(code * (high - low) / LOG_STEPS + low) - LOG_SHIFT
    return np.where(np.asarray(code) == 0, 0.0, metres)
