"""Depth as 16-bit inverse-depth codes, and what the VAE sees of it.

A code is 0 where there is no depth, else 1..65535, linear in inverse depth and *near = large*:
    metric      code = 1 + 65534 (1/d - 1/far) / (1/near - 1/far);   farther than `far` becomes 1, nearer than `near`
                becomes 65535 (both stay valid); zero, negative, NaN and infinite readings are invalid
    relative    the same line from a low to a high of an estimator's inverse depth, which has no unit
The VAE's picture is the code stretched to -1..1 with the holes filled (its receptive field would smear them), and the
mask of the pixels that were measured. Relative depth never becomes metres here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.contract import DepthCode

INVALID = 0
FARTHEST = 1
NEAREST = 65535
STEPS = NEAREST - FARTHEST
MIDDLE = 32768  # what a clip without any depth is filled with; the mask says that it means nothing


def metres_to_code(depth: Float[ndarray, "*n"], near: float, far: float) -> UInt16[ndarray, "*n"]:
    """Depth along the optical axis in metres -> codes, clamped to [near, far]; see the module's head for invalid."""
    metres = np.asarray(depth, dtype=np.float64)
    valid = np.isfinite(metres) & (metres > 0)
    inverse = 1.0 / np.where(valid, metres, far)
    return _encode(inverse, valid, 1.0 / far, 1.0 / near)


def code_to_metres(code: UInt16[ndarray, "*n"], near: float, far: float) -> Float[ndarray, "*n"]:
    """Codes -> float64 metres, NaN where invalid; the error of a round trip is half a step of inverse depth."""
    inverse = 1.0 / far + (np.asarray(code, dtype=np.float64) - FARTHEST) / STEPS * (1.0 / near - 1.0 / far)
    return np.where(np.asarray(code) == INVALID, np.nan, 1.0 / np.where(np.asarray(code) == INVALID, 1.0, inverse))


def is_exact(code: UInt16[ndarray, "*n"]) -> Bool[ndarray, "*n"]:
    """Where a code says how far something is: valid, and not held at the near or the far end of the range."""
    return (np.asarray(code) > FARTHEST) & (np.asarray(code) < NEAREST)


def to_metres(code: UInt16[ndarray, "*n"], depth: DepthCode) -> Float[ndarray, "*n"]:
    """Codes -> metres by the contract's depth code.

    Raises:
        UserError: the depth is relative (or there is none): it has no unit, so no metres come out of it.
    """
    near, far = require_metric(depth)
    return code_to_metres(code, near, far)


def require_metric(depth: DepthCode) -> tuple[float, float]:
    """(near, far) in metres of a metric depth code; a `UserError` for any other."""
    if depth.kind != "metric" or depth.near is None or depth.far is None:
        raise UserError(
            f"depth is {depth.kind!r} (source {depth.source!r}), which has no metres",
            "contract.json: depth",
            "prepare the recordings with metric depth (--depth sensor, or a metric estimator)",
        )
    return depth.near, depth.far


def relative_to_code(inverse_depth: Float[ndarray, "*n"], low: float, high: float) -> UInt16[ndarray, "*n"]:
    """An estimator's inverse depth (larger = nearer) -> codes, `low` -> 1, `high` -> 65535; non-finite: invalid."""
    inverse = np.asarray(inverse_depth, dtype=np.float64)
    valid = np.isfinite(inverse)
    return _encode(np.where(valid, inverse, low), valid, low, high)


def fill_holes(code: UInt16[ndarray, "t h w"]) -> UInt16[ndarray, "t h w"]:
    """Give every invalid pixel the code of the nearest valid one of its frame; a frame without any takes the nearest
    filled frame in time (the earlier of two equally near), a clip without any is 32768 throughout."""
    from scipy.ndimage import distance_transform_edt

    if (code != INVALID).all():
        return code
    filled = code.copy()
    seen = (code != INVALID).reshape(len(code), -1).any(axis=1)
    if not seen.any():
        filled[:] = MIDDLE
        return filled
    for frame in np.flatnonzero(seen):
        holes = code[frame] == INVALID
        if holes.any():
            rows, columns = distance_transform_edt(holes, return_distances=False, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
            filled[frame] = code[frame][rows, columns]
    sources = np.flatnonzero(seen)
    for frame in np.flatnonzero(~seen):
        filled[frame] = filled[sources[np.abs(sources - frame).argmin()]]
    return filled


def code_to_picture(
    code: UInt16[ndarray, "t h w"], depth: DepthCode
) -> tuple[Float[ndarray, "t h w"], Bool[ndarray, "t h w"]]:
    """The clip one view's depth branch learns: holes filled, 1..65535 -> -1..1, near = bright; and the valid mask.

    With `clip_normalised` the clip's own smallest and largest valid code become -1 and 1 (a flat clip becomes 0).
    """
    valid = code != INVALID
    value = fill_holes(code).astype(np.float32)
    low, high = float(FARTHEST), float(NEAREST)
    if depth.clip_normalised:
        low, high = float(value.min()), float(value.max())  # filling adds no new values
    if high <= low or not valid.any():
        return np.zeros(code.shape, dtype=np.float32), valid
    return (value - low) * np.float32(2.0 / (high - low)) - np.float32(1.0), valid


def picture_to_code(picture: Float[ndarray, "*n"]) -> UInt16[ndarray, "*n"]:
    """A predicted picture (-1..1, clipped) -> codes. A prediction has no holes, so 0 never comes out.

    For `clip_normalised` depth the codes span the clip's own range, not the estimator's.
    """
    unit = (np.clip(np.nan_to_num(np.asarray(picture, dtype=np.float64)), -1.0, 1.0) + 1.0) / 2.0
    return np.rint(FARTHEST + unit * STEPS).astype(np.uint16)


def latent_mask(valid: Bool[ndarray, "t h w"], height_factor: int, width_factor: int) -> Float[ndarray, "tl hl wl"]:
    """1.0 where at least half of the pixels a latent cell covers are valid.

    A cell covers `height_factor` x `width_factor` pixels; the first latent frame one frame, each later one four.

    Raises:
        ValueError: T is not 4n+1, or the picture is not a whole number of cells.
    """
    frames, height, width = valid.shape
    if (frames - 1) % 4 or height % height_factor or width % width_factor:
        raise ValueError(f"{valid.shape} is not a whole number of latent cells of 4x{height_factor}x{width_factor}")
    blocks = valid.reshape(frames, height // height_factor, height_factor, width // width_factor, width_factor)
    share = blocks.mean(axis=(2, 4), dtype=np.float64)
    later = share[1:].reshape(-1, 4, *share.shape[1:]).mean(axis=1)
    return (np.concatenate([share[:1], later]) >= 0.5).astype(np.float32)


def colour(depth: UInt16[ndarray, "*n"] | Float[ndarray, "*n"]) -> UInt8[ndarray, "*n 3"]:
    """Codes, or inverse depth scaled to 0..1, -> RGB for people (matplotlib's turbo, near = red); invalid is black."""
    from matplotlib import colormaps

    value = np.asarray(depth)
    if value.dtype == np.uint16:
        invalid, unit = value == INVALID, (value.astype(np.float64) - FARTHEST) / STEPS
    else:
        invalid = ~np.isfinite(value)
        unit = np.clip(np.where(invalid, 0.0, value), 0.0, 1.0)
    table = (colormaps["turbo"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    rgb = table[np.clip(np.rint(unit * 255), 0, 255).astype(np.intp)]
    rgb[invalid] = 0
    return rgb


def _encode(inverse: np.ndarray, valid: np.ndarray, low: float, high: float) -> np.ndarray:
    if not high > low:
        raise ValueError(f"the range of inverse depth [{low}, {high}] is empty")
    unit = np.clip((inverse - low) / (high - low), 0.0, 1.0)
    return np.where(valid, np.rint(FARTHEST + unit * STEPS), INVALID).astype(np.uint16)
