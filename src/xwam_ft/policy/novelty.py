"""How unlike the training recordings is what a policy sees: the distance of its pictures' latents from theirs.

Of each camera, the latent of one picture (the frozen VAE's, as the network is given it) is averaged over each quarter
of the picture. Training pictures give the mean and covariance of these numbers, shrunk towards a multiple of the
identity (OAS, Chen et al. 2010); what counts is Mahalanobis' distance. It is divided by the distance that 99 of 100
training pictures stay below when statistics are made without their episode: up to 1 is as usual, far above 1 is another
scene.

Legend: N pictures, V cameras, C latent channels, F = 4 C numbers a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.files import atomic_path

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor


FOLDS = 5
USUAL = 99  # percentile of training pictures that stands for 1


@dataclass(frozen=True)
class Novelty:
    """Statistics of the training pictures, a row a camera.

    `most` is the score of the farthest training picture, its episode held back; None in files made before it was kept.
    """

    cameras: tuple[str, ...]
    mean: Float[ndarray, "v f"]
    precision: Float[ndarray, "v f f"]
    scale: Float[ndarray, " v"]
    most: Float[ndarray, " v"] | None = None

    def scores(self, latents: Float[Tensor, "n c v h w"]) -> Float[ndarray, "n v"]:
        """Of pictures' latents, as `Policy.condition` gives them."""
        return _distances(features(latents), self.mean, self.precision) / self.scale

    def crossed(self, latents: Float[Tensor, "1 c v h w"]) -> Float[ndarray, "v v"]:
        """Of one observation: each camera's picture by every camera's statistics."""
        rows = features(latents).repeat(len(self.cameras), axis=0).swapaxes(0, 1)  # picture, statistics
        return _distances(rows, self.mean, self.precision) / self.scale

    def by_camera(self, latents: Float[Tensor, "1 c v h w"]) -> dict[str, float]:
        """Of one observation."""
        return {name: float(score) for name, score in zip(self.cameras, self.scores(latents)[0], strict=True)}


class NoveltyWatch:
    """Says once of each camera that its pictures are farther from the training pictures than any of these, and again
    only after they were as usual (up to 1) in between."""

    def __init__(self, novelty: Novelty | None) -> None:
        self._most: dict[str, float] = {}
        if novelty is not None and novelty.most is not None:
            self._most |= zip(novelty.cameras, map(float, novelty.most), strict=True)
        self._beyond: set[str] = set()

    def sentences(self, scores: Mapping[str, float]) -> list[str]:
        """Of one observation's score by camera: a sentence for each camera that crosses the line."""
        said: list[str] = []
        for name, score in scores.items():
            if score <= 1:
                self._beyond.discard(name)
            elif score > self._most.get(name, np.inf) and name not in self._beyond:
                self._beyond.add(name)
                said.append(
                    f"camera {name!r} is farther from the training pictures ({score:.2f}) than any of them "
                    f"({self._most[name]:.2f}): another scene, light or camera place? Said once until it is as usual"
                )
        return said


def features(latents: Float[Tensor, "n c v h w"]) -> Float[ndarray, "n v f"]:
    """The mean of each channel over each quarter of a picture."""
    from torch.nn.functional import adaptive_avg_pool2d

    count, channels, views = latents.shape[:3]
    pooled = adaptive_avg_pool2d(latents.float().movedim(2, 1).flatten(0, 1), 2)
    return pooled.reshape(count, views, 4 * channels).double().cpu().numpy()


def fit(rows: Float[ndarray, "n v f"], episodes: Sequence[int], cameras: Sequence[str]) -> Novelty:
    """Statistics of pictures' features; `episodes`: the one of each picture."""
    mean, precision = _statistics(rows)
    of = np.asarray(episodes)
    folds = [part for part in np.array_split(np.unique(of), FOLDS) if len(part)]
    if len(folds) > 1:
        distances = np.zeros(rows.shape[:2])
        for part in folds:
            held = np.isin(of, part)
            distances[held] = _distances(rows[held], *_statistics(rows[~held]))
    else:  # of one episode alone nothing can be held back
        distances = _distances(rows, mean, precision)
    scale = np.maximum(np.percentile(distances, USUAL, axis=0), 1e-6)
    return Novelty(tuple(cameras), mean, precision, scale, np.maximum(distances.max(axis=0) / scale, 1.0))


def save(novelty: Novelty, path: Path) -> None:
    from safetensors.numpy import save as to_bytes

    names = ("mean", "precision", "scale", *(() if novelty.most is None else ("most",)))
    tensors = {name: getattr(novelty, name).astype(np.float32) for name in names}
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, {"cameras": json.dumps(novelty.cameras)}))


def load(path: Path) -> Novelty:
    """What `save` wrote; that the file is whole is the manifest's to say."""
    from safetensors import safe_open

    with safe_open(path, "np") as stored:
        cameras = tuple(json.loads(stored.metadata()["cameras"]))
        tensors = {name: stored.get_tensor(name).astype(float) for name in stored.keys()}  # noqa: SIM118
    return Novelty(cameras, tensors["mean"], tensors["precision"], tensors["scale"], tensors.get("most"))


def _statistics(rows: Float[ndarray, "n v f"]) -> tuple[Float[ndarray, "v f"], Float[ndarray, "v f f"]]:
    """Mean and inverse shrunk covariance of each camera."""
    count, _, width = rows.shape
    mean = rows.mean(axis=0)
    precision = []
    for centred in np.moveaxis(rows - mean, 1, 0):
        sample = centred.T @ centred / count
        trace, square = float(np.trace(sample)), float(np.sum(sample**2))
        apart = (count + 1 - 2 / width) * (square - trace**2 / width)
        share = 1.0 if apart <= 0 else min(1.0, ((1 - 2 / width) * square + trace**2) / apart)
        shrunk = (1 - share) * sample + share * (trace / width + 1e-9) * np.eye(width)
        precision.append(np.linalg.inv(shrunk))
    return mean, np.stack(precision)


def _distances(rows: ndarray, mean: ndarray, precision: ndarray) -> Float[ndarray, "n v"]:
    off = rows - mean
    return np.sqrt(np.maximum(np.einsum("nvf,vfg,nvg->nv", off, precision, off) / rows.shape[2], 0.0))
