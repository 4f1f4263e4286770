"""A stage around any estimator: recorded depth as its prompt, and a cache by content.

One cache entry is one block of frames. Its name is a hash of the pictures, the prompt, the focal length, the stored
size and the estimator's fingerprint, so it does not matter which dataset, episode or embodiment they came from. It is
an .npz of three members: `video`, FFV1 with 16-bit codes (0 = none), and the `ends` of what code 1 and 65535 mean, in
logarithms of metres (`log`) or in the estimator's own inverse depth. What is used is what a later run will read,
rounding included, so that cached and fresh depth are the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path
from xwam_ft.pictures import resize_nearest
from xwam_ft.prepare.depth.estimator import DepthStage, Description, Estimator
from xwam_ft.prepare.depth.sensor import Sensor
from xwam_ft.prepare.depth.views import require_length
from xwam_ft.processes import worker_number

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.episode import Episode

CACHE_FORMAT = "1"
STEPS = 65534


class Estimated(DepthStage):
    """`size`: what is kept, (height, width); None: as the estimator gives it. `cache`: its folder; None: no cache."""

    def __init__(
        self, estimator: Estimator, description: Description, size: tuple[int, int] | None, cache: Path | None
    ) -> None:
        self.estimator, self.description = estimator, description
        self.size, self.cache = size, cache

    def read(
        self, episode: Episode, camera: CameraPlan, rows: Sequence[int], pictures: UInt8[ndarray, "n h w 3"]
    ) -> Float[ndarray, "n h2 w2"] | None:
        prompt = None
        if self.description.prompted:
            if camera.depth is None:
                return None
            require_length(episode, camera.depth.source)
            prompt = Sensor().read(episode, camera, rows, pictures)
            prompt = None if prompt is None else camera.turn(prompt)
        across = 1 if camera.rotate % 180 else 0  # pictures are upright, intrinsics as recorded
        focal = None if camera.intrinsics is None else abs(camera.intrinsics[across])
        if self.cache is None:
            return self._estimate(pictures, focal, prompt)
        path = self._place(self.cache, pictures, focal, prompt)
        if (kept := _load(path)) is not None:
            return kept
        block = PackedDepth.of(self._estimate(pictures, focal, prompt), metric=self.description.metric)
        with atomic_path(path) as temporary:
            temporary.write_bytes(block.pack())
        return block.depth()

    def _estimate(self, pictures: ndarray, focal: float | None, prompt: ndarray | None) -> ndarray:
        found = self.estimator.estimate(pictures, focal, prompt)
        assert len(found) == len(pictures)
        return found if self.size is None else resize_nearest(found, *self.size)  # pyright: ignore[reportArgumentType]

    def _place(self, cache: Path, pictures: ndarray, focal: float | None, prompt: ndarray | None) -> Path:
        digest = hashlib.sha256()
        for part in (CACHE_FORMAT, self.description.fingerprint, device_kind(), self.size, focal, pictures.shape):
            digest.update(f"{part}\n".encode())
        digest.update(pictures.tobytes())
        if prompt is not None:
            digest.update(f"{prompt.shape}\n".encode())
            digest.update(prompt.tobytes())
        name = digest.hexdigest()
        return cache / name[:2] / f"{name}.npz"


def device_kind() -> str:
    """`cuda` where there is a GPU, else `cpu`; estimates of the two differ in rounding."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_device() -> str:
    """The device of this process's estimator; several worker processes share several GPUs evenly.

    On a CPU torch is held to one thread: the bytes must not depend on how many processes share the machine.
    """
    import torch

    if device_kind() == "cpu":
        torch.set_num_threads(1)
        return "cpu"
    return f"cuda:{worker_number() % torch.cuda.device_count()}"


@dataclass(frozen=True)
class PackedDepth:
    """Depth as a cache entry holds it: codes [n, h, w], 0 = none, and what 1 and 65535 mean."""

    codes: UInt16[ndarray, "n h w"]
    low: float
    high: float
    log: bool  # low and high are logarithms of metres, not inverse depth

    @classmethod
    def of(cls, depth: Float[ndarray, "n h w"], *, metric: bool) -> PackedDepth:
        """Metres are rounded by at most 1e-4 of themselves, inverse depth by 1e-5 of the block's range."""
        value = np.asarray(depth, dtype=np.float64)
        valid = np.isfinite(value) & (value > 0) if metric else np.isfinite(value)
        value = np.log(np.where(valid, value, 1.0)) if metric else np.where(valid, value, 0.0)
        low, high = (float(value[valid].min()), float(value[valid].max())) if valid.any() else (0.0, 1.0)
        unit = (value - low) / (high - low) if high > low else np.zeros_like(value)
        return cls(np.where(valid, 1 + np.rint(unit * STEPS), 0).astype(np.uint16), low, high, metric)

    def depth(self) -> Float[ndarray, "n h w"]:
        """float32, NaN where there is none."""
        value = self.low + (self.codes.astype(np.float64) - 1) / STEPS * (self.high - self.low)
        return np.where(self.codes == 0, np.nan, np.exp(value) if self.log else value).astype(np.float32)

    def pack(self) -> bytes:
        buffer = io.BytesIO()
        video = np.frombuffer(media.gray16_bytes(self.codes, 1.0), dtype=np.uint8)
        np.savez(buffer, video=video, ends=np.array([self.low, self.high]), log=np.array(self.log))
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> PackedDepth:
        with np.load(io.BytesIO(data)) as archive:
            low, high = map(float, archive["ends"])
            return cls(media.read_gray16(archive["video"].tobytes()), low, high, bool(archive["log"]))


def _load(path: Path) -> ndarray | None:
    """A cached block; None where it is absent or damaged, so that it is made again."""
    try:
        return PackedDepth.unpack(path.read_bytes()).depth()
    except (OSError, KeyError, ValueError, UserError, zipfile.BadZipFile):
        return None
