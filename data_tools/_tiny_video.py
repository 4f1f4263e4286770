"""Training of the tiny video transformer: flow matching of a clip's future from its first frame and the instruction.

The network is the product's own joint network without action and state tokens; all three views are in one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from _optimizers import MuonAndAdamW
from xwam_ft.evaluate.metaworld import instruction
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.noise import add_noise, shift
from xwam_ft.model.precision import fast_autocast
from xwam_ft.model.sampler import SampleNoise, sample
from xwam_ft.model.solver import SHIFT

CLIP = 5
BATCH = 32
WARMUP = 100
MUON, ADAMW = 4e-3, 1e-3  # learning rates
TEXT_DROPOUT = 0.1


@dataclass(frozen=True)
class Latents:
    """Clips of some tasks, float16 [n, C, 2, V, h, w], normalised, and the number of each one's instruction."""

    video: torch.Tensor
    task: torch.Tensor
    prompts: tuple[str, ...]


@torch.no_grad()
def encode_task(vae: Any, corpus: Path, task: str, every: int) -> torch.Tensor:
    """Clips that start `every` pictures apart, as latents: float16 [n, C, 2, V, h, w], normalised."""
    with np.load(corpus / "video" / f"{task}.npz") as file:
        ends, rgb = np.cumsum(file["lengths"]), file["rgb"]
    starts = [start for start in range(0, ends[-1] - CLIP + 1, every) if not _crosses(start, ends)]
    batches = [starts[first : first + 8] for first in range(0, len(starts), 8)]
    clips = [_pixels(np.stack([rgb[start : start + CLIP] for start in batch])) for batch in batches]
    return torch.cat([_encode(vae, pixels, views=rgb.shape[1]).half() for pixels in clips])


def _pixels(clips: np.ndarray) -> torch.Tensor:
    """uint8 [n, T, V, H, W, 3] -> [n * V, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 2, 5, 1, 3, 4).flatten(0, 1).float() / 127.5 - 1


def _encode(vae: Any, pixels: torch.Tensor, views: int) -> torch.Tensor:
    mean, std = _statistics(vae)
    mode = vae.encode(pixels).latent_dist.mode()
    return ((mode - mean) / std).unflatten(0, (-1, views)).permute(0, 2, 3, 1, 4, 5)


def _statistics(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std


class Prior(nn.Module):
    """The video network and the text encoder that is trained with it.

    Args:
        tokenizer: of the text encoder.
    """

    def __init__(self, transformer: Any, text_encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        config = NetworkConfig(num_views=3, action_dim=1, proprio_dim=1, actions_per_frame=4, depth_blocks=0)
        self.network = JointNetwork(transformer, config)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt")
        return self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state

    def velocity(self, video: torch.Tensor, text: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nothing = video.new_zeros(len(video), 0, 1)
        return self.network(video, nothing, nothing, text, 1000 * sigma, 1000 * sigma).video


def loss_of(prior: Prior, data: Latents, rng: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity of what comes after the first latent frame."""
    index = torch.randint(len(data.video), (BATCH,), generator=rng)
    clean = data.video[index].float()
    sigma = shift(torch.rand(BATCH, generator=rng, dtype=torch.float64), SHIFT).float()
    noise = torch.randn(clean.shape, generator=rng)
    noised = add_noise(clean, noise, sigma)
    noised[:, :, 0] = clean[:, :, 0]
    told = torch.where(torch.rand(BATCH, generator=rng) < TEXT_DROPOUT, len(data.prompts), data.task[index])
    used, place = told.unique(return_inverse=True)
    with fast_autocast():
        text = prior.embed([(*data.prompts, "")[number] for number in used.tolist()])[place]
        found = prior.velocity(noised, text, sigma).float()
    return F.mse_loss(found[:, :, 1:], (noise - clean)[:, :, 1:])


def optimizer_of(prior: Prior) -> MuonAndAdamW:
    """Of everything but the encoders and decoders of actions and states, which no video trains."""
    parameters = {
        name: value for name, value in prior.named_parameters() if "action_" not in name and "proprio_" not in name
    }
    matrices = {name: value for name, value in parameters.items() if value.ndim == 2 and ".blocks." in name}
    others = [value for name, value in parameters.items() if name not in matrices]
    return MuonAndAdamW(list(matrices.values()), others, (MUON, ADAMW))


def steps_of(prior: Prior, data: Latents, seed: int) -> Callable[[int], torch.Tensor]:
    """The loss of a step; what it draws depends on seed and step alone."""

    def loss_of_step(step: int) -> torch.Tensor:
        words = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
        return loss_of(prior, data, torch.Generator().manual_seed(int(words[0] >> np.uint64(1))))

    return loss_of_step


@torch.no_grad()
def generated_psnr(prior: Prior, vae: Any, corpus: Path, task: str, clips: int, steps: int) -> dict[str, float]:
    """PSNR in dB of the pictures after the first: generated, the VAE's own limit, and the first picture repeated."""
    with np.load(corpus / "video" / f"{task}.npz") as file:
        ends, rgb = np.cumsum(file["lengths"]), file["rgb"]
    starts = [int(start) for start in np.linspace(0, ends[-1] - CLIP, clips * 2) if not _crosses(start, ends)][:clips]
    pixels = _pixels(np.stack([rgb[start : start + CLIP] for start in starts]))
    latents = _encode(vae, pixels, views=rgb.shape[1])
    mean, std = _statistics(vae)
    nothing = torch.zeros(len(starts), 0, 1)
    noise = SampleNoise(torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), nothing, nothing)
    text = prior.embed([instruction(task)]).expand(len(starts), -1, -1)
    drawn = sample(
        prior.network, latents[:, :, 0], torch.zeros(len(starts), 1), text,
        noise=noise, video_steps=steps, action_steps=steps, with_depth=False,
    ).video  # fmt: skip

    def decode(z: torch.Tensor) -> torch.Tensor:
        per_view = z.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        return vae.decode(per_view * std + mean).sample.clamp(-1, 1)

    def psnr(pictures: torch.Tensor) -> float:
        error = (pictures[:, :, 1:] - pixels[:, :, 1:]).square().mean(dim=(1, 2, 3, 4))
        return float((10 * torch.log10(4 / error)).mean())

    return {
        "generated": psnr(decode(drawn)),
        "vae": psnr(decode(latents)),
        "repeat_first": psnr(pixels[:, :, :1].expand_as(pixels)),
    }


def _crosses(start: float, ends: np.ndarray) -> bool:
    first = int(start)
    return bool(np.any((ends > first) & (ends < first + CLIP)))
