"""Views that several readers share: picture files, arrays of depth, and how one picture becomes numbers."""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import listed
from xwam_ft.prepare.episode import EpisodeError, VideoView, View

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt16
    from numpy import ndarray

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
ARRAYS = (".npy", ".npz")
GRAY = ("I;16", "I;16L", "I;16B", "I", "F")  # Pillow's modes of more than 8 bits; F holds real numbers


def open_picture(data: bytes | Path, where: str) -> Any:
    """A decoded Pillow picture.

    Raises:
        EpisodeError: `where` is absent, empty or no picture.
    """
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise EpisodeError(f"{where} is not a readable picture") from None
    return picture


def to_rgb(picture: Any, where: str) -> UInt8[ndarray, "h w 3"]:
    if picture.mode in GRAY:
        raise EpisodeError(f"{where} holds depth ({picture.mode}), not colours")
    return np.asarray(picture.convert("RGB"))


def to_counts(picture: Any, where: str) -> UInt16[ndarray, "h w"] | Float32[ndarray, "h w"]:
    """Depth as recorded: 16-bit counts, or real numbers of a floating-point TIFF."""
    if picture.mode not in GRAY:
        raise EpisodeError(f"{where} holds {picture.mode} of 8 bits, not 16-bit depth")
    return np.asarray(picture).astype(np.float32 if picture.mode == "F" else np.uint16)


@dataclass(frozen=True)
class PictureFiles:
    """One picture file a frame, in frame order."""

    folder: Path
    files: tuple[Path, ...]

    @property
    def path(self) -> Path:
        return self.folder

    @property
    def frames(self) -> int:
        return len(self.files)

    def size(self) -> tuple[int, int]:
        picture = open_picture(self.files[0], str(self.files[0]))
        return picture.height, picture.width

    def codec(self) -> str:
        return f"{self.files[0].suffix[1:].lower()} files"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return stacked([to_rgb(open_picture(file, str(file)), str(file)) for file in self._chosen(rows)], self.folder)

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"] | Float32[ndarray, "n h w"]:
        return stacked(
            [to_counts(open_picture(file, str(file)), str(file)) for file in self._chosen(rows)], self.folder
        )

    def _chosen(self, rows: Sequence[int]) -> list[Path]:
        return [self.files[row] for row in rows]


@dataclass(frozen=True)
class DepthArray:
    """Depth in a .npy or .npz file, [F, H, W] or [F, H, W, 1]; in an .npz the array `depth`, or the only one."""

    path: Path
    first: int
    frames: int
    whole: bool = False

    def size(self) -> tuple[int, int]:
        return self._array().shape[1:3]

    def codec(self) -> str:
        return f"array {self._array().dtype}"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        raise EpisodeError(f"{self.path} is an array of depth, not of colours")

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"] | Float32[ndarray, "n h w"]:
        array = self._array()
        chosen = np.asarray(array[[self.first + row for row in rows]]).reshape(len(rows), *array.shape[1:3])
        return chosen if chosen.dtype == np.uint16 else chosen.astype(np.float32)

    def _array(self) -> np.ndarray:
        loaded = _load_depth(self.path)
        needed = self.first + self.frames
        if len(loaded) < needed or (self.whole and len(loaded) > needed):
            raise EpisodeError(f"{self.path} holds {len(loaded)} frames of depth, the episode has {needed}")
        return loaded


@functools.lru_cache(maxsize=2)  # an episode is read in blocks, and an .npz can only be read whole
def _load_depth(path: Path) -> np.ndarray:
    try:
        loaded: Any = np.load(path, mmap_mode="r")
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                names = list(archive.keys())
                if "depth" not in names and len(names) != 1:
                    raise EpisodeError(f"{path} holds the arrays {listed(names)}, and which is depth is not said")
                loaded = archive["depth" if "depth" in names else names[0]]
    except (OSError, ValueError, zipfile.BadZipFile):
        raise EpisodeError(f"{path} is not a readable array of depth") from None
    if loaded.ndim not in (3, 4) or (loaded.ndim == 4 and loaded.shape[3] != 1) or loaded.dtype.kind not in "uif":
        raise EpisodeError(
            f"{path} holds {loaded.dtype} of shape {list(loaded.shape)}, not depth [frames, height, width]"
        )
    return loaded


def find_view(path: Path, first: int, frames: int, *, whole: bool = False) -> View | str:
    """The view of a video, an array of depth or a folder of pictures, `frames` long from `first`; or what is wrong.

    Args:
        whole: the episode is all of it, so more pictures than frames are wrong too (of a video, `check_files` tells).
    """
    if path.is_dir():
        files = picture_files(path)
        if len(files) < first + frames or (whole and len(files) > frames):
            return f"{path} holds {len(files)} pictures, the episode has {first + frames} frames"
        return PictureFiles(path, files[first : first + frames])
    if not path.is_file():
        return f"{path} is named and not there"
    if path.suffix.lower() in ARRAYS:
        return DepthArray(path, first, frames, whole)
    if path.suffix.lower() in VIDEOS:
        return VideoView(path, first, frames)
    return f"{path} is neither a video, an array (.npy, .npz) nor a folder of pictures"


def picture_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder in the order of the numbers in their names."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    return tuple(sorted(found, key=lambda path: natural(path.name)))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts frame_10 after frame_9."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def stacked(pictures: list[np.ndarray], where: object) -> np.ndarray:
    """[n, ...]; pictures of two sizes in one camera are told."""
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise EpisodeError(f"{where} holds pictures of {sizes[0]} and of {sizes[1]} pixels (height, width)")
    return np.stack(pictures)
