"""Depth made elsewhere: `files:PATTERN?unit=UNIT[&align=yes]`.

The pattern is a path with {episode} (the dataset's own number, also {episode:06d}) and {camera} (the embodiment's
name), optionally {dataset} (the folder's name) and, for pictures, {frame}:
    .npy, .npz    [F, H, W]; in an .npz the array `depth`, or the only one
    .mkv          16-bit gray video of F frames
    .png          one 16-bit picture a frame, with {frame} in the pattern

The unit says what the numbers mean, since files do not:
    m, mm              metric depth
    1/m                metric inverse depth
    relative           inverse depth up to scale and shift, larger = nearer (what Depth Anything and MiDaS give)
    relative_depth     depth up to scale, larger = farther, larger than 0
NaN means no depth; so does 0 in m, mm, 1/m, relative_depth and in every .mkv and .png, and 65535 (65.535 in m), which
sensors write where they saw nothing, in m and mm. In a .npy of `relative`, 0 is a value as any other. `align=yes`, for
`relative` made picture by picture: undo every frame's own scale and shift, as is done for estimates; leave it out for a
model that saw the whole video.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.hub import name_of
from xwam_ft.prepare.depth.estimator import DepthStage
from xwam_ft.prepare.depth.sensor import unseen
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode

MEANINGS = {
    "m": "metric depth in m",
    "mm": "metric depth in mm",
    "1/m": "metric inverse depth",
    "relative": "relative inverse depth",
    "relative_depth": "relative depth, inverted",
}
SUFFIXES = (".npy", ".npz", ".mkv", ".png")
PLACEHOLDERS = {"episode", "camera", "dataset", "frame"}


class DepthPattern(NamedTuple):
    path: str
    unit: str
    align: bool

    @property
    def metric(self) -> bool:
        return self.unit in ("m", "mm", "1/m")

    @property
    def meaning(self) -> str:
        return MEANINGS[self.unit] + (", each frame's scale and shift undone" if self.align else "")


def parse_pattern(text: str) -> DepthPattern:
    """Pattern, unit and whether to align.

    Raises:
        UserError: no unit, an unknown one, an unknown placeholder or suffix, or one file for all episodes or cameras.
    """
    where = f"--depth files:{text}"
    pattern, _, query = text.partition("?")
    options = {name: value for name, _, value in (part.partition("=") for part in query.split("&") if part)}
    unit, align = options.pop("unit", ""), options.pop("align", "no")
    if unit not in MEANINGS:
        what = "does not state its unit" if not unit else f"ends with {query!r}{did_you_mean(unit, MEANINGS)}"
        raise UserError(what, where, f"end the pattern with ?unit= and one of {listed(MEANINGS)}")
    if options or align not in ("yes", "no"):
        raise UserError(f"ends with {query!r}", where, "after the unit only &align=yes is known")
    if align == "yes" and not unit.startswith("relative"):
        raise UserError(f"asks to align {MEANINGS[unit]}", where, "leave align out: metric depth has its scale")
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
        if not names <= PLACEHOLDERS:
            raise UserError(
                f"has the placeholder {listed(sorted(names - PLACEHOLDERS))}",
                where,
                f"use {listed(sorted(PLACEHOLDERS))}",
            )
        pattern.format(episode=0, camera="c", dataset="d", frame=0)
    except ValueError as error:
        raise UserError(f"cannot be filled ({error})", where, "write {episode:06d} and {camera}") from None
    if "episode" not in names or "camera" not in names:
        raise UserError("lacks {episode} or {camera}", where, "put both into the pattern")
    if Path(pattern).suffix not in SUFFIXES:
        raise UserError(f"ends with {Path(pattern).suffix!r}", where, f"give one of {listed(SUFFIXES)}")
    if (Path(pattern).suffix == ".png") != ("frame" in names):
        raise UserError(".png and {frame} belong together", where, "give one 16-bit picture a frame")
    return DepthPattern(pattern, unit, align == "yes")


class DepthFiles(DepthStage):
    def __init__(self, text: str) -> None:
        self.pattern, self.unit, _ = parse_pattern(text)

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        names = {"episode": episode.index, "camera": camera.name, "dataset": name_of(episode.dataset)}
        if self.pattern.endswith(".png"):
            depth = np.stack([_picture(Path(self.pattern.format(**names, frame=row))) for row in rows])
        else:
            depth = _rows(Path(self.pattern.format(**names)), rows, episode.length)
        if self.unit == "relative":
            counted = self.pattern.endswith((".mkv", ".png"))
            return np.where(counted & (depth == 0), np.nan, depth).astype(np.float32)
        if self.unit in ("m", "mm"):
            scale = 1e-3 if self.unit == "mm" else 1.0
            return np.where(unseen(depth, scale), np.nan, depth * scale).astype(np.float32)
        known = np.isfinite(depth) & (depth > 0)
        return np.where(known, 1.0 / np.where(known, depth, 1.0), np.nan).astype(np.float32)


def _rows(path: Path, rows: Sequence[int], length: int) -> np.ndarray:
    if not path.is_file():
        raise EpisodeError(f"{path}: the depth file is not there")
    if path.suffix == ".mkv":
        count = media.count_frames(path)
        _same_length(path, count, length)
        return media.read_gray16(path, rows).astype(np.float64)
    depth = _load(path, path.stat().st_mtime_ns)
    if depth.ndim != 3:
        raise EpisodeError(f"{path} holds an array of shape {list(depth.shape)}, not [frames, height, width]")
    _same_length(path, len(depth), length)
    return np.asarray(depth[list(rows)], dtype=np.float64)


def _same_length(path: Path, count: int, length: int) -> None:
    if count != length:
        raise EpisodeError(f"{path} holds {count} frames of depth, the episode has {length}")


@functools.lru_cache(maxsize=1)  # an episode is read in blocks, and an .npz can only be read whole
def _load(path: Path, modified: int) -> Any:
    del modified  # part of the key alone: a file made again is read again
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r")
        with np.load(path) as archive:
            names = list(archive.keys())
            if "depth" not in names and len(names) != 1:
                raise EpisodeError(f"{path} holds the arrays {listed(names)}, and which is depth is not said")
            return archive["depth" if "depth" in names else names[0]]
    except (ValueError, OSError) as error:
        raise EpisodeError(f"{path} is not a readable array ({error})") from None


def _picture(path: Path) -> np.ndarray:
    from PIL import Image

    if not path.is_file():
        raise EpisodeError(f"{path}: the depth picture is not there")
    picture = np.asarray(Image.open(path))
    if picture.ndim != 2 or picture.dtype == np.uint8:
        raise EpisodeError(f"{path} is not a 16-bit gray picture")
    return picture.astype(np.float64)
