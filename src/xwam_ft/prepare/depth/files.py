"""Depth made elsewhere: `files:PATTERN?unit=m|mm|relative`.

The pattern is a path with {episode} (the dataset's own number, also {episode:06d}) and {camera} (the embodiment's
name), optionally {dataset} (the folder's name) and, for pictures, {frame}:
    .npy, .npz    [F, H, W]; in an .npz the array `depth`, or the only one
    .mkv          16-bit gray video of F frames (mm, unless the unit says otherwise)
    .png          one 16-bit picture a frame, with {frame} in the pattern
`relative` is inverse depth, larger = nearer. Zero and NaN in metres, NaN in `relative`, mean no depth.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.prepare.depth import DepthStage
from xwam_ft.prepare.episode import EpisodeError

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.prepare.embodiment_slots import CameraPlan
    from xwam_ft.prepare.episode import Episode

UNITS = {"m": 1.0, "mm": 1e-3, "relative": 1.0}
SUFFIXES = (".npy", ".npz", ".mkv", ".png")
PLACEHOLDERS = {"episode", "camera", "dataset", "frame"}


def parse_pattern(text: str) -> tuple[str, str]:
    """Pattern and unit.

    Raises:
        UserError: no unit, an unknown one, an unknown placeholder or suffix, or one file for all episodes or cameras.
    """
    where = f"--depth files:{text}"
    pattern, _, query = text.partition("?")
    key, _, unit = query.partition("=")
    if key != "unit" or unit not in UNITS:
        what = "does not state its unit" if not query else f"ends with {query!r}{did_you_mean(unit, UNITS)}"
        raise UserError(what, where, "end the pattern with ?unit=m, ?unit=mm or ?unit=relative")
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
    return pattern, unit


class DepthFiles(DepthStage):
    def __init__(self, text: str) -> None:
        self.pattern, unit = parse_pattern(text)
        self.scale = UNITS[unit]

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        names = {"episode": episode.index, "camera": camera.name, "dataset": episode.dataset.name}
        if self.pattern.endswith(".png"):
            depth = np.stack([_picture(Path(self.pattern.format(**names, frame=row))) for row in rows])
        else:
            path = Path(self.pattern.format(**names))
            depth = _rows(path, rows, episode.length)
        return (depth * self.scale).astype(np.float32)


def _rows(path: Path, rows: Sequence[int], length: int) -> np.ndarray:
    if not path.is_file():
        raise EpisodeError(f"{path}: the depth file is not there")
    if path.suffix == ".mkv":
        count = media.count_frames(path)
        _same_length(path, count, length)
        return media.read_gray16(path, rows)
    depth = _load(path)
    if depth.ndim != 3:
        raise EpisodeError(f"{path} holds an array of shape {list(depth.shape)}, not [frames, height, width]")
    _same_length(path, len(depth), length)
    return np.asarray(depth[list(rows)], dtype=np.float64)


def _same_length(path: Path, count: int, length: int) -> None:
    if count != length:
        raise EpisodeError(f"{path} holds {count} frames of depth, the episode has {length}")


@functools.lru_cache(maxsize=1)
def _load(path: Path) -> Any:
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
