"""Small pictures of an episode for people: evenly spaced frames, their depth below them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.depth_code import colour
from xwam_ft.pictures import resize_nearest, resize_pictures

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

THUMB_WIDTH = 160
GAP = 2


def contact_sheet(pictures: UInt8[ndarray, "n h w 3"], codes: UInt16[ndarray, "n h w"] | None) -> bytes:
    """A JPEG: one row of pictures, and one of depth in turbo colours (near = red, none = black)."""
    height = max(1, round(pictures.shape[1] * THUMB_WIDTH / pictures.shape[2]))
    rows = [_row(resize_pictures(pictures, height, THUMB_WIDTH))]
    if codes is not None:
        rows.append(_row(colour(resize_nearest(codes, height, THUMB_WIDTH))))
    sheet = np.concatenate(rows, axis=0)
    return jpeg(sheet[: sheet.shape[0] - GAP, : sheet.shape[1] - GAP])


def jpeg(picture: UInt8[ndarray, "h w 3"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _row(pictures: np.ndarray) -> np.ndarray:
    padded = np.pad(pictures, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)
