"""An estimate against recorded depth: AbsRel and delta1, as the field reports them.

    AbsRel   mean of |d - g| / g                 delta1   share of pixels with max(d/g, g/d) < 1.25
over the pixels where both are known and neither is held at the end of its range. Relative depth is first given the one
scale and shift a camera and episode (of inverse depth) that fit the recorded depth best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import depth_code
from xwam_ft.pictures import resize_nearest
from xwam_ft.prepare.depth.align import robust_line
from xwam_ft.prepare.depth.sensor import Sensor
from xwam_ft.prepare.depth.views import require_length

if TYPE_CHECKING:
    from numpy import ndarray

    from xwam_ft.contract import DepthCode
    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode

BLOCK = 64
FIT_PIXELS = 200_000
GOOD = 1.25


@dataclass(frozen=True)
class DepthCheck:
    """Of one camera of one episode, or of several weighed by their pixels."""

    pixels: int
    abs_rel: float
    delta1: float

    @classmethod
    def over(cls, parts: Sequence[DepthCheck]) -> DepthCheck | None:
        """Several as one; None where no pixel was compared."""
        pixels = sum(part.pixels for part in parts)
        if not pixels:
            return None
        abs_rel = sum(part.abs_rel * part.pixels for part in parts) / pixels
        return cls(pixels, abs_rel, sum(part.delta1 * part.pixels for part in parts) / pixels)


def check_depth(
    episode: Episode, camera: CameraPlan, codes: ndarray, code: DepthCode, near_far: tuple[float, float]
) -> DepthCheck | None:
    """Compare an episode's stored codes [F, H, W] with its recorded depth; None where the camera has none.

    Args:
        near_far: of the codes, or the range within which relative depth is compared.
    """
    if camera.depth is None:
        return None
    require_length(episode, camera.depth.source)
    scale, shift = 1.0, 0.0
    if code.kind == "relative":
        step = max(1, round((codes.size / FIT_PIXELS) ** (1 / 3)))
        frames = range(0, len(codes), step)
        pairs = [
            (value[both], 1.0 / metres[both])
            for value, metres, both in _pairs(episode, camera, codes, frames, near_far, step)
        ]
        codes_there, inverse_there = (np.concatenate(part).astype(np.float64) for part in zip(*pairs, strict=True))
        line = robust_line(codes_there, inverse_there)
        if line is None:
            return DepthCheck(0, 0.0, 0.0)
        scale, shift = line
    pixels, absolute, good = 0, 0.0, 0
    for value, metres, both in _pairs(episode, camera, codes, range(len(codes)), near_far, 1):
        truth = metres[both]
        if code.kind == "relative":
            found = 1.0 / np.maximum(scale * value[both].astype(np.float64) + shift, 1.0 / (2.0 * near_far[1]))
        else:
            found = depth_code.code_to_metres(value[both], *near_far)
        pixels += len(truth)
        absolute += float(np.sum(np.abs(found - truth) / truth))
        good += int(np.count_nonzero(np.maximum(found / truth, truth / found) < GOOD))
    return DepthCheck(pixels, absolute / pixels, good / pixels) if pixels else DepthCheck(0, 0.0, 0.0)


def _pairs(
    episode: Episode,
    camera: CameraPlan,
    codes: ndarray,
    frames: Sequence[int],
    near_far: tuple[float, float],
    step: int,
) -> Iterable[tuple[ndarray, ndarray, ndarray]]:
    """Codes, recorded metres and where both count, block by block."""
    near, far = near_far
    empty = np.zeros((0, 0, 0, 3), dtype=np.uint8)
    for first in range(0, len(frames), BLOCK):
        rows = frames[first : first + BLOCK]
        recorded = Sensor().read(episode, camera, rows, empty)
        assert recorded is not None
        metres = resize_nearest(camera.turn(recorded), *codes.shape[1:])[:, ::step, ::step]  # pyright: ignore[reportArgumentType]
        value = np.asarray(codes[list(rows)])[:, ::step, ::step]
        known = np.isfinite(metres) & (metres > near) & (metres < far)
        yield value, metres, known & (value != depth_code.INVALID)
