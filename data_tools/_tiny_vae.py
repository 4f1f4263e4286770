"""Training of the tiny VAE: reconstruction, a perceptual term and KL, on pictures of _tiny_corpus.

Batches take turns: clips of 5, 9 and 13 pictures that are 1 to 4 pictures of the corpus apart, the same zoomed into,
single pictures from random cameras in random colours (few tasks hold few objects: without these, objects of unseen
tasks blur), and inverse depth as the model sees it. Some of the RGB clips change their colours, so that the VAE does
not live off the benchmark's. All three lengths are needed: the causal VAE takes a clip in parts (the first picture,
then four at a time) and carries features over, and only the third part is given features of a part of four.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from _optimizers import MuonAndAdamW, convolutions
from xwam_ft.model.precision import fast_autocast

LENGTHS, STRIDES = (5, 9, 13), (1, 2, 3, 4)
CLIPS = {5: 2, 9: 1, 13: 1}  # clips a step, by length
TURNS = (("clips", 9), ("single", 1), ("clips", 13), ("clips", 5), ("zoomed", 9), ("depths", 5), ("clips", 5),
         ("single", 1), ("clips", 13), ("zoomed", 5), ("clips", 9), ("depths", 1))  # fmt: skip
"""What the steps are about, in turn: kind and pictures a clip."""
SINGLES = 8  # pictures a step
SQUARED, PERCEPTUAL, KL = 4.0, 0.15, 1e-7  # weights of the terms beside L1
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
            self.rgb += episodes
        self.metres = np.concatenate(metres)
        looks = [np.load(corpus / "depth" / f"{task}.npz")["rgb"] for task in tasks]
        self.looks = np.concatenate(looks)  # uint8 [n, H, W, 3], from random cameras in random colours
        lengths = np.array([len(episode) for episode in self.rgb])
        self.holding = {  # episodes long enough for (pictures a clip, pictures of the corpus from one to the next)
            (frames, stride): np.flatnonzero(lengths > (frames - 1) * stride)
            for frames in LENGTHS
            for stride in STRIDES
        }

    def clips(self, count: int, rng: np.random.Generator, frames: int = 5, stride: int | None = None) -> torch.Tensor:
        """RGB [n, 3, T, H, W] in [-1, 1], each of one view; `stride` None: drawn for each clip from STRIDES."""
        drawn: list[np.ndarray] = []
        for _ in range(count):
            step = stride or int(rng.choice([one for one in STRIDES if len(self.holding[frames, one])]))
            episode = self.rgb[rng.choice(self.holding[frames, step])]
            span = (frames - 1) * step + 1
            start, view = rng.integers(len(episode) - span + 1), rng.integers(episode.shape[1])
            drawn.append(episode[start : start + span : step, view])
        return torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 127.5 - 1

    def zoomed(self, count: int, rng: np.random.Generator, frames: int = 5) -> torch.Tensor:
        """Clips of which a part is shown at full size, so that no place in the picture is known by heart."""
        clips = self.clips(count, rng, frames)
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

    def depths(self, count: int, rng: np.random.Generator, frames: int = 1) -> torch.Tensor:
        """Inverse depth as the model is shown it, [n, 3, T, H, W] in [-1, 1], coded over ranges drawn at random.

        The corpus holds depth of single pictures: a clip is a window that moves over one.
        """
        drawn: list[np.ndarray] = []
        for index in rng.integers(len(self.metres), size=count):
            metres = self.metres[index].astype(np.float32)
            near = max(0.05, float(np.quantile(metres, 0.01)) * rng.uniform(0.5, 1.0))
            far = max(near * 2, float(np.quantile(metres, 0.99)) * rng.uniform(0.7, 1.5))
            inverse = (1 / metres.clip(near, far) - 1 / far) / (1 / near - 1 / far)
            drawn.append(2 * inverse - 1)
        stills = torch.from_numpy(np.stack(drawn).astype(np.float32))[:, None, None]
        clips = stills if frames == 1 else torch.stack([_panned(still, frames, rng) for still in stills])
        return clips.expand(-1, 3, -1, -1, -1).contiguous()


def _panned(still: torch.Tensor, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """A window of a picture [1, 1, H, W] that moves and grows evenly: [1, T, H, W]."""

    def between(low: float, high: float) -> np.ndarray:
        first, last = rng.uniform(low, high, 2)
        return np.linspace(first, last, frames)

    scale = between(0.6, 0.95)
    centre = np.stack([between(-1, 1) for _ in range(2)]) * (1 - scale)
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(scale).float()
    theta[:, :, 2] = torch.from_numpy(centre.T).float()
    pictures = still.expand(frames, -1, -1, -1)
    return F.grid_sample(pictures, F.affine_grid(theta, list(pictures.shape), False), align_corners=False).transpose(
        0, 1
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
    with fast_autocast():
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    flat_ours, flat = decoded.float().movedim(2, 1).flatten(0, 1), pictures.movedim(2, 1).flatten(0, 1)
    distance = (flat_ours - flat).abs().mean() + SQUARED * (flat_ours - flat).square().mean()
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


def optimizer_of(vae: Any) -> MuonAndAdamW:
    return MuonAndAdamW(*convolutions(vae), (PEAK, PEAK))


def steps_of(vae: Any, data: Pictures, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of a step; what it draws depends on seed and step alone."""

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(int(rng.integers(2**62)))  # the posterior's sample
        kind, frames = TURNS[step % len(TURNS)]
        if kind == "single":
            pictures = data.single(SINGLES, rng)
        elif kind == "depths":
            pictures = data.depths(2 if frames > 1 else SINGLES // 2, rng, frames)
        else:
            draw = data.zoomed if kind == "zoomed" else data.clips
            pictures = recolour(draw(CLIPS[frames], rng, frames), rng)
        return loss_of(vae, pictures)

    return loss_of_step


@torch.no_grad()
def reconstruction_psnr(vae: Any, pictures: torch.Tensor) -> float:
    """Mean over clips [n, 3, T, H, W] of the PSNR in dB (data range 2), mode of the posterior."""
    values: list[float] = []
    for clip in pictures.split(4):
        decoded = vae.decode(vae.encode(clip).latent_dist.mode()).sample.clamp(-1, 1)
        values += (10 * torch.log10(4 / (decoded - clip).square().mean(dim=(1, 2, 3, 4)))).tolist()
    return float(np.mean(values))


@torch.no_grad()
def held_out(vae: Any, data: Pictures, count: int, seed: int) -> dict[str, Any]:
    """PSNR of clips of every length, of single pictures and of inverse depth, and the spread of latents.

    Clips are at the corpus' rate, 20 pictures a second, but for "clips of 9, all rates". Spread: standard deviation of
    each latent frame of clips of 13 over that of the first latent frame; 1 where the VAE treats them alike.
    """

    def drawn(frames: int, stride: int | None = 1) -> torch.Tensor:
        return data.clips(count, np.random.default_rng([seed, frames]), frames, stride)

    short, longest = drawn(5), drawn(13)
    latents = vae.encode(longest[: count // 2]).latent_dist.mode()
    spread = latents.std(dim=(0, 1, 3, 4))
    return {
        "psnr": {
            "clips of 5": reconstruction_psnr(vae, short),
            "clips of 9": reconstruction_psnr(vae, drawn(9)),
            "clips of 13": reconstruction_psnr(vae, longest),
            "clips of 9, all rates": reconstruction_psnr(vae, drawn(9, None)),
            "single pictures": reconstruction_psnr(vae, short[:, :, :1]),
            "inverse depth": reconstruction_psnr(vae, data.depths(count, np.random.default_rng(seed))),
        },
        "spread": [round(value, 3) for value in (spread / spread[0]).tolist()],
        "largest latent": round(float(latents.abs().max()), 1),
    }


@torch.no_grad()
def latent_statistics(vae: Any, data: Pictures, clips: int, seed: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over RGB clips."""
    latents = _latents_of(vae, data, clips, seed)
    return (
        [round(value, 4) for value in latents.mean(dim=(0, 2, 3, 4)).tolist()],
        [round(value, 4) for value in latents.std(dim=(0, 2, 3, 4)).tolist()],
    )


def _latents_of(vae: Any, data: Pictures, clips: int, seed: int) -> torch.Tensor:
    """Latents of clips of all lengths [n, C, Tl, h, w], every latent frame a sample: [n * Tl, C, 1, h, w]."""
    rng = np.random.default_rng(seed)
    drawn = [data.clips(8, rng, LENGTHS[turn % len(LENGTHS)]) for turn in range(math.ceil(clips / 8))]
    latents = [vae.encode(pictures).latent_dist.mode() for pictures in drawn]
    return torch.cat([part.movedim(2, 1).flatten(0, 1)[:, :, None] for part in latents])
