"""Labelled rows of video and contact sheets.

A row is one source of pictures (recorded, imagined), views side by side; its label stands to the left, a caption, where
there is one, on every frame of it. Frames are uint8 RGB [V, T, h, w, 3]. Small pictures are enlarged by a whole number,
nearest neighbour, so that pixels stay pixels and the writing stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAGE = (18, 20, 24)
INK = (236, 238, 242)
NOTE = (140, 190, 255)
WARNING = (255, 196, 61)
MARGIN = 8
TILE_WIDTH = 256  # pictures narrower than this are enlarged
GUTTER = 132  # least width of the column of labels, so that pages keep their size while notes change
TITLE = 22  # height of the strip with the camera names


@dataclass(frozen=True)
class PictureRow:
    """One row: what it is, its frames, and what every one of its frames must say (or nothing)."""

    label: str
    frames: UInt8[ndarray, "v t h w 3"]
    caption: str | None = None


def enlarge(frames: UInt8[ndarray, "*n h w 3"], width: int = TILE_WIDTH) -> UInt8[ndarray, "*n H W 3"]:
    """Repeat pixels by the smallest whole number that makes pictures at least `width` wide."""
    factor = max(1, math.ceil(width / frames.shape[-2]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def pages(
    rows: Sequence[PictureRow], cameras: Sequence[str], notes: Sequence[str], first: int = 0
) -> Iterator[UInt8[ndarray, "H W 3"]]:
    """Rows below each other, one page a frame, in order; every page of one size.

    Args:
        rows: all of equal V, T and picture size.
        cameras: names of the views, written above them.
        notes: T words for the corner, the time say.
        first: frame to begin with.
    """
    for index in range(first, rows[0].frames.shape[1]):
        yield _page(rows, cameras, [index], notes[index])


def contact_sheet(
    rows: Sequence[PictureRow], cameras: Sequence[str], notes: Sequence[str], columns: int = 5
) -> UInt8[ndarray, "H W 3"]:
    """One picture: for every view a strip of all rows, with up to `columns` frames evenly spread over the rows' T."""
    count = rows[0].frames.shape[1]
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(columns, count)).round().astype(int)).tolist()
    strips: list[np.ndarray] = []
    for view, camera in enumerate(cameras):
        per_view = [PictureRow(row.label, row.frames[view : view + 1], row.caption) for row in rows]
        strips.append(_page(per_view, [notes[index] for index in chosen], chosen, camera))
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), mode="edge") for s in strips])


def _page(
    rows: Sequence[PictureRow], titles: Sequence[str], chosen: Sequence[int], corner: str
) -> UInt8[ndarray, "H W 3"]:
    """Rows of tiles: every view of the one chosen frame, or the one view's chosen frames; sides are even."""
    font = ImageFont.load_default(size=14)
    tiles = [[enlarge(view[index]) for view in row.frames for index in chosen] for row in rows]
    height, width = tiles[0][0].shape[:2]
    gutter = max(
        GUTTER, 2 * MARGIN + math.ceil(max(font.getlength(text) for text in (corner, *(r.label for r in rows))))
    )
    across = gutter + len(titles) * (width + MARGIN)
    down = TITLE + len(rows) * (height + MARGIN)
    page = Image.new("RGB", (across + across % 2, down + down % 2), PAGE)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, TITLE // 2), corner, font=font, fill=NOTE, anchor="lm")
    for column, title in enumerate(titles):
        left = gutter + column * (width + MARGIN)
        draw.text((left, TITLE // 2), title, font=font, fill=INK, anchor="lm")
    for index, (row, pictures) in enumerate(zip(rows, tiles, strict=True)):
        top = TITLE + index * (height + MARGIN)
        draw.text((MARGIN, top + height // 2), row.label, font=font, fill=INK, anchor="lm")
        for column, picture in enumerate(pictures):
            left = gutter + column * (width + MARGIN)
            page.paste(Image.fromarray(picture), (left, top))
            if row.caption is not None:
                _caption(draw, row.caption, left, top + height, width, font)
    return np.asarray(page)


def _caption(draw: ImageDraw.ImageDraw, text: str, left: int, bottom: int, width: int, font: Font) -> None:
    """A dark band along the foot of a picture with the caption on it."""
    draw.rectangle((left, bottom - 20, left + width - 1, bottom - 1), fill=(0, 0, 0))
    draw.text((left + width // 2, bottom - 10), text, font=font, fill=WARNING, anchor="mm")
