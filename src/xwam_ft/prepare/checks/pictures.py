"""Black, blank and frozen cameras, from the pictures as stored, and what is kept to compare cameras over episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.pictures import resize_pictures
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from numpy import ndarray

BLACK = 8.0  # mean of 0..255 below which a picture shows nothing
EVEN = 1.5  # spread of 0..255 below which it does not, either: white, or the green of a packet that was lost
CELLS = 16  # pictures are compared in CELLS x CELLS cells: one that moves is enough
SAME = 0.5  # of 255, in the cell that changes most; a video encoder's own flicker stays below
REPEATED = 0.3  # share of identical neighbours, while the robot moves, from which it is said
PAUSE = 0.5  # s of identical pictures, while the robot moves, from which it is said
SIGNATURE = (6, 8)
BLOCK = 64


def check_pictures(
    camera: str, pictures: UInt8[ndarray, "f h w 3"], moving: Bool[ndarray, " g"], fps: float
) -> list[Finding]:
    """Black, blank and frozen pictures of one camera.

    Args:
        pictures: all of them, in memory or mapped.
        moving: of the F-1 steps between neighbours, those in which the robot moves.
    """
    brightness, contrast, change = _scan(pictures)
    black = brightness < BLACK
    blank = _nothing("black-camera", camera, "is black", black)
    blank += _nothing("blank-camera", camera, "shows one even colour", (contrast < EVEN) & ~black)
    blind = any(finding.severity == "error" for finding in blank)  # black pictures are alike, too
    return blank + ([] if blind else _frozen(camera, change, moving, fps))


def robot_moves(state: Float[ndarray, "f p"]) -> Bool[ndarray, " g"]:
    """Of the F-1 steps, those in which some number moves at half of its usual speed at least.

    The usual speed of a number is what 90 % of its steps stay below; numbers that cover less than 1e-3 count as still.
    """
    steps = np.abs(np.diff(state, axis=0))
    usual = np.quantile(steps, 0.9, axis=0) if len(steps) else np.zeros(state.shape[1])
    alive = (np.ptp(state, axis=0) > 1e-3) & (usual > 1e-6)
    return np.asarray((steps[:, alive] > usual[alive] / 2).any(axis=1))


def signature(pictures: UInt8[ndarray, "n h w 3"]) -> list[float]:
    """The median of a few pictures, 6 x 8 pixels: what a camera usually sees."""
    small = np.stack([_cells(picture.astype(np.float32), *SIGNATURE) for picture in pictures])
    return [round(float(value), 1) for value in np.median(small, axis=0).reshape(-1)]


def thumbnail(picture: UInt8[ndarray, "h w 3"], width: int = 160) -> UInt8[ndarray, "h2 w2 3"]:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return resize_pictures(picture[None], height, width)[0]


def _scan(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean brightness, spread of the channel with most where that is small [F], and the change of the cell that changes
    most between neighbours [F-1]."""
    brightness, contrast = np.zeros((2, len(pictures)))
    change = np.zeros(max(0, len(pictures) - 1))
    for first in range(0, len(pictures), BLOCK):
        block = np.asarray(pictures[first : first + BLOCK + 1, ::2, ::2, 1], dtype=np.float32)  # green, every second
        brightness[first : first + BLOCK] = block[:BLOCK].mean(axis=(1, 2))
        contrast[first : first + BLOCK] = block[:BLOCK].std(axis=(1, 2))
        for even in (first + np.flatnonzero(contrast[first : first + BLOCK] < EVEN)).tolist():
            contrast[even] = pictures[even, ::2, ::2].std(axis=(0, 1)).max()
        moved = np.abs(np.diff(block, axis=0))
        if len(moved):
            cells = _cells(moved.transpose(1, 2, 0), CELLS, CELLS)
            change[first : first + len(moved)] = cells.reshape(-1, len(moved)).max(axis=0)
    return brightness, contrast, change


def _cells(picture: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means over rows x columns cells of a picture [h, w, c]; fewer where it is smaller."""
    tops = np.unique(np.linspace(0, picture.shape[0], rows + 1).astype(int)[:-1])
    lefts = np.unique(np.linspace(0, picture.shape[1], columns + 1).astype(int)[:-1])
    sums = np.add.reduceat(np.add.reduceat(picture, tops, axis=0), lefts, axis=1)
    heights = np.diff([*tops, picture.shape[0]])
    widths = np.diff([*lefts, picture.shape[1]])
    return sums / (heights[:, None, None] * widths[None, :, None])


def _nothing(check: str, camera: str, what: str, empty: np.ndarray) -> list[Finding]:
    """Pictures that show nothing, [F] booleans."""
    which = np.flatnonzero(empty)
    if not len(which):
        return []
    if len(which) == len(empty):
        return [Finding(check, "error", f"camera {camera!r} {what}", camera, camera, 0)]
    text = f"camera {camera!r} {what} in {len(which)} of {len(empty)} pictures, first in frame {which[0]}"
    return [Finding(check, "warning", text, camera, camera, int(which[0]))]


def _frozen(camera: str, change: np.ndarray, moving: np.ndarray, fps: float) -> list[Finding]:
    same = change < SAME
    if moving.sum() < max(5, PAUSE * fps) or not same.any():
        return []
    share = float(same[moving].mean())
    if share == 1.0 and same.all():
        text = f"camera {camera!r} shows one picture throughout, while the robot moves"
        return [Finding("frozen-camera", "error", text, camera, camera, 0)]
    start, length = _longest(same, moving)
    if length >= max(5, PAUSE * fps):
        lasts = f"{length / fps:.2g} s from frame {start}"
        text = f"camera {camera!r} shows the same picture for {lasts}, while the robot moves"
        return [Finding("frozen-camera", "warning", text, camera, camera, start)]
    if share > REPEATED:
        text = f"camera {camera!r} repeats its picture in {share:.0%} of the frames in which the robot moves"
        return [Finding("frozen-camera", "warning", text, camera, camera, int(np.flatnonzero(same & moving)[0]))]
    return []


def _longest(same: np.ndarray, moving: np.ndarray) -> tuple[int, int]:
    """Start and length of the run of identical neighbours with the most moving steps in it; the length counts those."""
    best, start, length, first = 0, 0, 0, 0
    for at, (still, moves) in enumerate(zip(same, moving, strict=True)):
        if not still:
            length = 0
            continue
        first = at if length == 0 and (at == 0 or not same[at - 1]) else first
        length += int(moves)
        if length > best:
            best, start = length, first
    return start, best
