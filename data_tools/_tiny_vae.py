"""Training of the tiny VAE: reconstruction, a perceptual term and KL, on pictures of _tiny_corpus.

Batches take turns: clips of 5 pictures, the same zoomed into, single pictures from random cameras in random colours
(few tasks hold few objects: without these, objects of unseen tasks blur), and inverse depth as the model sees it. Some
of the RGB clips change their colours, so that the VAE does not live off the benchmark's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from _optimizers import MuonAndAdamW, Report, convolutions, train_by_clock

CLIP = 5
CLIPS, SINGLES, DEPTHS = 2, 8, 4  # clips or pictures a step
PERCEPTUAL, KL = 0.15, 1e-7
FAINT = 0.1  # standard deviation of a latent channel that carries nothing
WOKEN_LOG_VARIANCE = -6.0
WARMUP = 60
PEAK = 1e-2  # learning rate
RECOLOURED = 0.1  # share of clips; more slows the start down a lot
C1, C2 = 0.02**2, 0.06**2  # of SSIM, for pictures from -1 to 1


class Pictures:
    """Clips, pictures and depth of the tasks found in a corpus folder.

    Args:
        corpus: folder of _tiny_corpus.
        tasks: those to read.
    """

    def __init__(self, corpus: Path, tasks: Sequence[str]) -> None:
        self.rgb: list[np.ndarray] = []  # uint8 [frames, V, H, W, 3], one array an episode
        metres: list[np.ndarray] = []
        for task in tasks:
            with np.load(corpus / "video" / f"{task}.npz") as file:
                ends = np.cumsum(file["lengths"])
                episodes = np.split(file["rgb"], ends[:-1])
                metres.append(file["metres"])
            self.rgb += [episode for episode in episodes if len(episode) >= CLIP]
        self.metres = np.concatenate(metres)
        looks = [np.load(corpus / "depth" / f"{task}.npz")["rgb"] for task in tasks]
        self.looks = np.concatenate(looks)  # uint8 [n, H, W, 3], from random cameras in random colours

    def clips(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """RGB [n, 3, T, H, W] in [-1, 1], each of one view."""
        drawn: list[np.ndarray] = []
        for index in rng.integers(len(self.rgb), size=count):
            episode = self.rgb[index]
            start, view = rng.integers(len(episode) - CLIP + 1), rng.integers(episode.shape[1])
            drawn.append(episode[start : start + CLIP, view])
        return torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 127.5 - 1

    def zoomed(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Clips of which a part is shown at full size, so that no place in the picture is known by heart."""
        clips = self.clips(count, rng)
        height, width = clips.shape[-2:]
        for index in range(count):
            share = rng.uniform(0.4, 0.95)
            rows, columns = round(share * height), round(share * width)
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            part = clips[index, :, :, top : top + rows, left : left + columns].transpose(0, 1)
            shown = F.interpolate(part, size=(height, width), mode="bilinear", antialias=True)
            clips[index] = (shown.flip(3) if rng.random() < 0.5 else shown).transpose(0, 1)
        return clips

    def single(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Random looks, [n, 3, 1, H, W] in [-1, 1]."""
        drawn = self.looks[rng.integers(len(self.looks), size=count)]
        return torch.from_numpy(drawn).movedim(-1, 1)[:, :, None].float() / 127.5 - 1

    def depths(self, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Inverse depth as the model is shown it, [n, 3, 1, H, W] in [-1, 1], coded over ranges drawn at random."""
        drawn: list[np.ndarray] = []
        for index in rng.integers(len(self.metres), size=count):
            metres = self.metres[index].astype(np.float32)
            near = max(0.05, float(np.quantile(metres, 0.01)) * rng.uniform(0.5, 1.0))
            far = max(near * 2, float(np.quantile(metres, 0.99)) * rng.uniform(0.7, 1.5))
            inverse = (1 / metres.clip(near, far) - 1 / far) / (1 / near - 1 / far)
            drawn.append(2 * inverse - 1)
        return (
            torch.from_numpy(np.stack(drawn).astype(np.float32))[:, None, None].expand(-1, 3, -1, -1, -1).contiguous()
        )


def recolour(clips: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Some of the clips with channels mixed, scaled or inverted."""
    out = clips.clone()
    for index in range(len(out)):
        if rng.random() < RECOLOURED:
            mix = rng.dirichlet(np.ones(3), size=3) if rng.random() < 0.5 else np.eye(3)[rng.permutation(3)]
            mix = mix * rng.choice([-1.0, 1.0], p=[0.2, 0.8]) * rng.uniform(0.6, 1.2)
            out[index] = torch.einsum("ij,jthw->ithw", torch.from_numpy(mix).float(), out[index])
    return (out + torch.from_numpy(rng.uniform(-0.1, 0.1, (len(out), 1, 1, 1, 1))).float()).clamp(-1, 1)


def perceptual_loss(ours: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - SSIM over windows of 8x8 and, of halved pictures, 16x16; pictures [n, 3, H, W] in [-1, 1].

    Windows are flat and 4 pixels apart: with torchmetrics' Gaussian ones this term costs as much as the VAE.
    """
    total = ours.new_zeros(())
    for _ in range(2):
        mean, wanted_mean = F.avg_pool2d(ours, 8, 4), F.avg_pool2d(wanted, 8, 4)
        variance = F.avg_pool2d(ours * ours, 8, 4) - mean * mean
        wanted_variance = F.avg_pool2d(wanted * wanted, 8, 4) - wanted_mean * wanted_mean
        covariance = F.avg_pool2d(ours * wanted, 8, 4) - mean * wanted_mean
        light = (2 * mean * wanted_mean + C1) / (mean * mean + wanted_mean * wanted_mean + C1)
        structure = (2 * covariance + C2) / (variance + wanted_variance + C2)
        total = total + (1 - light * structure).mean() / 2
        ours, wanted = F.avg_pool2d(ours, 2), F.avg_pool2d(wanted, 2)
    return total


def loss_of(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Loss of pictures [n, 3, T, H, W]."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    flat_ours, flat = decoded.float().movedim(2, 1).flatten(0, 1), pictures.movedim(2, 1).flatten(0, 1)
    distance = (flat_ours - flat).abs().mean() + 2 * (flat_ours - flat).square().mean()
    return distance + PERCEPTUAL * perceptual_loss(flat_ours, flat) + KL * posterior.kl().mean()


@torch.no_grad()
def wake(vae: Any, data: Pictures, seed: int) -> int:
    """Give latent channels that carry nothing unit spread and little noise; returns how many there were.

    A channel that starts as a faint signal under unit noise is ignored by the decoder and never grows: without this
    half of them stay empty.
    """
    latents = _latents_of(vae, data, 64, seed)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    faint = (std < FAINT).nonzero().flatten()
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias  # of means, then of log variances
    weight[faint] /= std[faint].view(-1, 1, 1, 1, 1)
    bias[faint] = (bias[faint] - mean[faint]) / std[faint]
    weight[faint + len(std)] = 0
    bias[faint + len(std)] = WOKEN_LOG_VARIANCE
    return len(faint)


def train_vae(vae: Any, data: Pictures, *, seconds: float, seed: int, report: Report) -> int:
    """Train in place for a time; returns the steps done."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)

    def loss_of_step(step: int) -> torch.Tensor:
        turn = step % 6
        if turn in (0, 3):
            pictures = recolour(data.clips(CLIPS, rng), rng)
        elif turn == 1:
            pictures = recolour(data.zoomed(CLIPS, rng), rng)
        elif turn in (2, 4):
            pictures = data.single(SINGLES, rng)
        else:
            pictures = data.depths(DEPTHS, rng)
        return loss_of(vae, pictures)

    optimizer = MuonAndAdamW(*convolutions(vae), (PEAK, PEAK))
    return train_by_clock(vae, optimizer, loss_of_step, seconds=seconds, warmup=WARMUP, report=report)


@torch.no_grad()
def reconstruction_psnr(vae: Any, pictures: torch.Tensor) -> float:
    """Mean over clips [n, 3, T, H, W] of the PSNR in dB (data range 2), mode of the posterior."""
    values: list[float] = []
    for clip in pictures.split(4):
        decoded = vae.decode(vae.encode(clip).latent_dist.mode()).sample.clamp(-1, 1)
        values += (10 * torch.log10(4 / (decoded - clip).square().mean(dim=(1, 2, 3, 4)))).tolist()
    return float(np.mean(values))


@torch.no_grad()
def latent_statistics(vae: Any, data: Pictures, clips: int, seed: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over RGB clips."""
    latents = _latents_of(vae, data, clips, seed)
    return (
        [round(value, 4) for value in latents.mean(dim=(0, 2, 3, 4)).tolist()],
        [round(value, 4) for value in latents.std(dim=(0, 2, 3, 4)).tolist()],
    )


def _latents_of(vae: Any, data: Pictures, clips: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.cat([vae.encode(data.clips(8, rng)).latent_dist.mode() for _ in range(clips // 8)])
