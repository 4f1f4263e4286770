"""How like the recorded future an imagined one is: PSNR and SSIM of pictures, AbsRel and delta1 of metric depth.

    psnr     dB, of a frame's RGB; counted as at most 100 dB, which equal pictures reach
    ssim     structural similarity (Wang et al. 2004), 11 x 11 Gaussian window of sigma 1.5
    abs_rel  mean of |d' - d| / d
    delta1   share of pixels with max(d'/d, d/d') < 1.25
    rmse     root mean square of d' - d, metres
    lpips    how unlike pictures are to a network that sees (lpips.py), where its weights are given

`psnr_moving` and `ssim_moving` count the pixels alone that move in the recording (`moving_region`). The predictor that
repeats the first frame is bad there by that choice, so whole pictures stand beside.

Only recorded frames after a clip's first count (the first is given to the model). Beside the model stands the predictor
that repeats the first frame: a scene that hardly moves makes it strong. Depth is compared where both the future and the
first recorded frame have a reading, so that both predictors are scored on the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8
    from numpy import ndarray

    from xwam_ft.evaluate.lpips import Measure

BEST_PSNR = 100.0
MOVED = 24  # grey levels of 255
PREDICTORS = ("imagined", "repeat_first_frame")


def picture_scores(
    imagined: UInt8[ndarray, "t h w 3"], recorded: UInt8[ndarray, "t h w 3"]
) -> dict[str, Float[ndarray, " t"]]:
    """psnr and ssim of each frame: the first by torchmetrics, the second equal to its."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = imagined / 255.0, recorded / 255.0
    pair = torch.from_numpy(first), torch.from_numpy(second)
    psnr = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return {"psnr": psnr.clamp(max=BEST_PSNR).numpy(), "ssim": structural_similarity(first, second)}


def moving_region(recorded: UInt8[ndarray, "t h w 3"]) -> Bool[ndarray, "h w"]:
    """Pixels of a view that, in some frame of the clip, are not what they were in its first: by more than `MOVED` grey
    levels in a colour, which noise and codecs do not reach, or beside such a pixel."""
    from scipy.ndimage import binary_dilation

    change = np.abs(recorded[1:].astype(np.int16) - recorded[:1]).max(axis=(0, 3))
    return binary_dilation(change > MOVED)


def moving_scores(
    imagined: UInt8[ndarray, "t h w 3"], recorded: UInt8[ndarray, "t h w 3"], region: Bool[ndarray, "h w"]
) -> dict[str, Float[ndarray, " t"]]:
    """psnr_moving and ssim_moving of each frame; NaN where nothing moves."""
    if not region.any():
        return {"psnr_moving": np.full(len(recorded), np.nan), "ssim_moving": np.full(len(recorded), np.nan)}
    first, second = imagined / 255.0, recorded / 255.0
    square = np.mean((first - second)[:, region] ** 2, axis=(1, 2))
    return {"psnr_moving": to_psnr(square), "ssim_moving": similarity_map(first, second)[:, region].mean(axis=(1, 2))}


def flicker(pictures: UInt8[ndarray, "t h w 3"], still: Bool[ndarray, "h w"]) -> float:
    """Grey levels by which still pixels go to and fro from frame to frame: half of the second difference's mean size.

    Pixels that alternate between two values have their difference; a slow change, however large, has none. NaN of fewer
    than three frames, or where nothing stands still.
    """
    if len(pictures) < 3 or not still.any():
        return float("nan")
    return float(np.abs(np.diff(pictures[:, still].astype(np.float64), n=2, axis=0)).mean() / 2)


def to_psnr(square: Float[ndarray, "*n"]) -> Float[ndarray, "*n"]:
    """dB of a mean squared error of pictures in 0..1, at most `BEST_PSNR`."""
    return np.minimum(-10 * np.log10(np.maximum(square, 1e-30)), BEST_PSNR)


def structural_similarity(first: Float[ndarray, "t h w 3"], second: Float[ndarray, "t h w 3"]) -> Float[ndarray, " t"]:
    """SSIM of pictures in 0..1, a number each; at their edges the window sees them mirrored."""
    return similarity_map(first, second).mean(axis=(1, 2, 3))


def similarity_map(first: Float[ndarray, "t h w 3"], second: Float[ndarray, "t h w 3"]) -> Float[ndarray, "t h w 3"]:
    """SSIM around every pixel.

    torchmetrics' window is not separated and in double precision takes 20 times as long, which was most of the time of
    imagining; in single precision, flat pictures are off by 1e-3.
    """
    from scipy.ndimage import gaussian_filter

    def local(values: ndarray) -> ndarray:
        return gaussian_filter(values, 1.5, mode="mirror", radius=5, axes=(1, 2))

    of_first, of_second = local(first), local(second)
    spread = np.maximum(local(first**2) - of_first**2, 0) + np.maximum(local(second**2) - of_second**2, 0)
    together = local(first * second) - of_first * of_second
    light = (2 * of_first * of_second + 0.01**2) / (of_first**2 + of_second**2 + 0.01**2)
    return light * (2 * together + 0.03**2) / (spread + 0.03**2)


def depth_scores(
    imagined: Float[ndarray, "t h w"], recorded: Float[ndarray, "t h w"], counted: ndarray
) -> dict[str, Float[ndarray, " t"]]:
    """abs_rel and delta1 of each frame, metres, over the pixels that count; NaN where none does."""
    scores: dict[str, list[float]] = {"abs_rel": [], "delta1": []}
    for predicted, truth, mask in zip(imagined, recorded, counted, strict=True):
        p, d = predicted[mask], truth[mask]
        scores["abs_rel"].append(float(np.mean(np.abs(p - d) / d)) if len(d) else np.nan)
        scores["delta1"].append(float(np.mean(np.maximum(p / d, d / p) < 1.25)) if len(d) else np.nan)
    return {name: np.asarray(values) for name, values in scores.items()}


def depth_rmse(
    imagined: Float[ndarray, "t h w"], recorded: Float[ndarray, "t h w"], counted: ndarray
) -> Float[ndarray, " t"]:
    """rmse of each frame, as `depth_scores`."""
    total = counted.sum(axis=(1, 2))
    square = np.where(counted, np.where(counted, imagined - recorded, 0.0) ** 2, 0.0).sum(axis=(1, 2))
    return np.where(total > 0, np.sqrt(square / np.maximum(total, 1)), np.nan)


@dataclass
class Fidelity:
    """Collects scores over clips and cameras; every frame counts alike.

    Args:
        detailed: also the scores of moving regions, and rmse of depth.
        lpips: also that of each frame.
        scores: by camera, predictor and score, the frames of every clip in turn.
    """

    cameras: list[str]
    detailed: bool = False
    lpips: Measure | None = None
    scores: dict[tuple[str, str, str], list[ndarray]] = field(
        default_factory=dict[tuple[str, str, str], "list[ndarray]"]
    )

    def add_pictures(self, camera: str, imagined: ndarray, recorded: ndarray) -> None:
        """A clip of one view, uint8 [T, h, w, 3] each, its recorded frames only, the given first one included."""
        still = np.broadcast_to(recorded[:1], recorded[1:].shape)
        self._add(camera, "imagined", picture_scores(imagined[1:], recorded[1:]))
        self._add(camera, "repeat_first_frame", picture_scores(still, recorded[1:]))
        if self.detailed:
            region = moving_region(recorded)
            self._add(camera, "imagined", moving_scores(imagined[1:], recorded[1:], region))
            self._add(camera, "repeat_first_frame", moving_scores(still, recorded[1:], region))
        if self.lpips is not None:
            self._add(camera, "imagined", {"lpips": self.lpips(imagined[1:], recorded[1:])})
            self._add(camera, "repeat_first_frame", {"lpips": self.lpips(still, recorded[1:])})

    def add_depth(self, camera: str, imagined: ndarray, recorded: ndarray) -> None:
        """A clip of one view in metres [T, h, w], NaN where nothing was measured."""
        still = np.broadcast_to(recorded[:1], recorded[1:].shape)
        counted = np.isfinite(recorded[1:]) & np.isfinite(still)
        self._add(camera, "imagined", depth_scores(imagined[1:], recorded[1:], counted))
        self._add(camera, "repeat_first_frame", depth_scores(still, recorded[1:], counted))
        if self.detailed:
            self._add(camera, "imagined", {"rmse": depth_rmse(imagined[1:], recorded[1:], counted)})
            self._add(camera, "repeat_first_frame", {"rmse": depth_rmse(still, recorded[1:], counted)})

    def table(self, camera: str | None = None) -> dict[str, dict[str, float | None]]:
        """{score: {"imagined": mean, "repeat_first_frame": mean}}, of one camera or of all."""
        table: dict[str, dict[str, float | None]] = {}
        for score in dict.fromkeys(score for _, _, score in self.scores):
            table[score] = {predictor: self._mean(camera, predictor, score) for predictor in PREDICTORS}
        return table

    def metrics(self) -> dict[str, Any]:
        """The JSON form: all cameras together, and each."""
        return {"all": self.table(), "cameras": {camera: self.table(camera) for camera in self.cameras}}

    def by_horizon(self) -> dict[str, dict[str, list[float | None]]]:
        """{score: {predictor: the mean of each imagined frame}}, over clips and cameras."""
        table: dict[str, dict[str, list[float | None]]] = {}
        for score in dict.fromkeys(score for _, _, score in self.scores):
            frames = {predictor: self._frames(predictor, score) for predictor in PREDICTORS}
            table[score] = {name: [mean_of(row) for row in np.moveaxis(rows, 2, 0)] for name, rows in frames.items()}
        return table

    def per_clip(self) -> dict[str, list[float | None]]:
        """{score: the mean of each clip}, over cameras and frames, of what was imagined."""
        names = dict.fromkeys(score for _, _, score in self.scores)
        return {score: [mean_of(row) for row in np.moveaxis(self._frames("imagined", score), 1, 0)] for score in names}

    def _frames(self, predictor: str, score: str) -> Float[ndarray, "v n t"]:
        """Cameras, clips and frames; NaN past a recording's end."""
        rows = [
            self.scores[camera, predictor, score]
            for camera in self.cameras
            if (camera, predictor, score) in self.scores
        ]
        longest = max(len(frames) for clips in rows for frames in clips)
        return np.array([[np.pad(f, (0, longest - len(f)), constant_values=np.nan) for f in clips] for clips in rows])

    def _add(self, camera: str, predictor: str, scores: dict[str, ndarray]) -> None:
        for name, values in scores.items():
            self.scores.setdefault((camera, predictor, name), []).append(np.asarray(values, dtype=np.float64))

    def _mean(self, camera: str | None, predictor: str, score: str) -> float | None:
        chosen = [camera] if camera is not None else self.cameras
        return mean_of(
            np.concatenate(
                [np.zeros(0), *(f for name in chosen for f in self.scores.get((name, predictor, score), []))]
            )
        )


def mean_of(values: ndarray) -> float | None:
    """Over what is known; None where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
