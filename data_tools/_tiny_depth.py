"""Training of the tiny depth estimator on the renders of _tiny_corpus, and its errors on what it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from _optimizers import MuonAndAdamW, convolutions
from xwam_ft.model.precision import fast_autocast
from xwam_ft.prepare.depth.tiny import FARTHEST, NEAREST, TinyDepth

BATCH = 16
WARMUP = 60
PEAK = 6e-3  # learning rate
OWN = 3.0


class Renders:
    """Pictures with depth of the tasks found in a corpus folder."""

    def __init__(self, corpus: Path, tasks: Sequence[str]) -> None:
        rgb: list[np.ndarray] = []
        metres: list[np.ndarray] = []
        focal: list[np.ndarray] = []
        for task in tasks:
            with np.load(corpus / "depth" / f"{task}.npz") as file:
                rgb.append(file["rgb"])
                metres.append(file["metres"])
                focal.append(file["focal"])
        self.rgb, self.metres = np.concatenate(rgb), np.concatenate(metres)
        # The benchmark's own cameras share few focal lengths; those pictures come three times as often.
        _, place, count = np.unique(np.concatenate(focal), return_inverse=True, return_counts=True)
        weight = np.where(count[place] > 1, OWN, 1.0)
        self.share = weight / weight.sum()

    def batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """RGB [n, 3, H, W] in [-1, 1] with its colours shaken, and log depth [n, H, W]; half of it mirrored."""
        index = rng.choice(len(self.rgb), size=BATCH, p=self.share)
        rgb = torch.from_numpy(self.rgb[index]).movedim(-1, 1).float() / 127.5 - 1
        metres = torch.from_numpy(self.metres[index].astype(np.float32)).clamp(NEAREST, FARTHEST)
        mirrored = torch.from_numpy(rng.random(BATCH) < 0.5)
        rgb = torch.where(mirrored[:, None, None, None], rgb.flip(3), rgb)
        metres = torch.where(mirrored[:, None, None], metres.flip(2), metres)
        gain = torch.from_numpy(rng.uniform(0.8, 1.2, (BATCH, 3, 1, 1))).float()
        offset = torch.from_numpy(rng.uniform(-0.15, 0.15, (BATCH, 3, 1, 1))).float()
        noise = 0.02 * torch.from_numpy(rng.standard_normal(rgb.shape, dtype=np.float32))
        return (rgb * gain + offset + noise).clamp(-1, 1), metres.log()


def loss_of(log: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of log depth, and of its differences between pixels 1, 2 and 4 apart."""
    error = log - wanted
    total = error.abs().mean()
    for _ in range(3):
        total = total + 0.25 * (error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean())
        error = F.avg_pool2d(error[:, None], 2)[:, 0]
    return total


def optimizer_of(network: TinyDepth) -> MuonAndAdamW:
    return MuonAndAdamW(*convolutions(network), (PEAK, PEAK))


def steps_of(network: TinyDepth, data: Renders, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of a step; what it draws depends on seed and step alone."""

    def loss_of_step(step: int) -> torch.Tensor:
        rgb, wanted = data.batch(np.random.default_rng([seed, step]))
        with fast_autocast():
            log = network(rgb)
        return loss_of(log.float(), wanted)

    return loss_of_step


def depth_errors(network: TinyDepth, rgb: np.ndarray, metres: np.ndarray) -> dict[str, float]:
    """AbsRel and delta1 over pixels nearer than 10 m, means over pictures [n, H, W, 3]; no scale is fitted."""
    found = network.metres(rgb)
    wanted = metres.astype(np.float64)
    valid = (wanted > NEAREST) & (wanted < FARTHEST * 0.99)
    relative = np.where(valid, np.abs(found - wanted) / np.where(valid, wanted, 1), 0)
    ratio = np.maximum(found / wanted.clip(NEAREST), wanted.clip(NEAREST) / found)
    pixels = valid.sum(axis=(1, 2))
    return {
        "abs_rel": float(np.mean(relative.sum(axis=(1, 2)) / pixels)),
        "delta1": float(np.mean(((ratio < 1.25) & valid).sum(axis=(1, 2)) / pixels)),
    }


def flicker(network: TinyDepth, rgb: np.ndarray, metres: np.ndarray) -> float:
    """Mean absolute change of the log error from one picture of a video [n, H, W, 3] to the next: 0 = none."""
    error = np.log(network.metres(rgb)) - np.log(metres.astype(np.float64).clip(NEAREST, FARTHEST))
    return float(np.abs(np.diff(error, axis=0)).mean())


def held_out(network: TinyDepth, frames: int = 24) -> dict[str, dict[str, float]]:
    """Errors on held-out tasks, by camera: the three it has seen in other tasks, and four it has never seen.

    Flicker is taken over consecutive pictures, 20 a second.
    """
    from _tiny_corpus import HEIGHT, HELD_OUT, STRIDE, WIDTH, generator, play
    from xwam_ft.evaluate.metaworld import Simulator

    cameras = ["corner", "corner3", "gripperPOV", "topview", "corner2", "corner4", "behindGripper"]
    rows: dict[str, list[dict[str, float]]] = {}
    for task in HELD_OUT:
        simulator = Simulator(task, cameras, HEIGHT, WIDTH)
        rgb: dict[str, list[np.ndarray]] = {}
        metres: dict[str, list[np.ndarray]] = {}
        for step, _ in enumerate(play(simulator, generator("held out", task))):
            if step % STRIDE == 0 and step < STRIDE * frames:
                for store, depth in ((rgb, False), (metres, True)):
                    for camera, picture in simulator.pictures(depth=depth).items():
                        store.setdefault(camera, []).append(picture)
        simulator.close()
        for camera in rgb:
            pictures, truth = np.stack(rgb[camera]), np.stack(metres[camera])
            row = depth_errors(network, pictures, truth) | {"flicker": flicker(network, pictures, truth)}
            rows.setdefault(camera, []).append(row)
    table = {
        camera: {name: float(np.mean([row[name] for row in found])) for name in found[0]}
        for camera, found in rows.items()
    }
    return table | {"all": {name: float(np.mean([row[name] for row in table.values()])) for name in table["corner"]}}
