"""Training of the tiny video transformer: flow matching of a clip's future from its first frame and the instruction.

The network is the product's own joint network without action and state tokens. Steps take turns with clips of 5, 9 and
13 pictures and with one to three views, drawn in any order for the places of the view embedding; pictures are 1, 2 or 4
of the corpus' apart. The causal VAE makes one latent of a clip's first pictures whatever follows, so the longest clips
are encoded once and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from xwam_ft.model.sampler import Conditions, sample
from xwam_ft.model.solver import SHIFT
from xwam_ft.model.streams import Streams

SPANS = (4, 3, 2)  # latent frames of clips of 13, 9 and 5 pictures
STRIDES = (1, 2, 4)  # pictures of the corpus from one of a clip to the next
TURNS = ((2, 3), (3, 3), (4, 3), (2, 1), (2, 3), (3, 2), (2, 2), (3, 1))
"""What the steps are about, in turn: latent frames and views."""
FUTURES = {"0.2 s": (5, 1), "0.8 s": (9, 2)}  # what is measured: pictures, and how many of the corpus apart
MOVES = 0.1  # change of a number in [-1, 1] against the first picture from which on a pixel counts as moving
BATCH = 32
WARMUP = 100
MUON, ADAMW = 4e-3, 1e-3  # learning rates
TEXT_DROPOUT = 0.1


@dataclass(frozen=True)
class Latents:
    """Clips of some tasks, normalised, and the number of each one's instruction.

    Args:
        video: float16 [n, C, Tl, V, h, w] of clips of Tl latent frames, by Tl; the longer ones cut are in the shorter.
        task: [n] of each.
    """

    video: dict[int, torch.Tensor]
    task: dict[int, torch.Tensor]
    prompts: tuple[str, ...]


@torch.no_grad()
def encode_task(vae: Any, corpus: Path, task: str, every: int) -> dict[str, torch.Tensor]:
    """Clips that start `every` pictures apart, as latents: float16 [n, C, Tl, V, h, w], normalised, by Tl.

    Each start gives its longest clip at each stride.
    """
    with np.load(corpus / "video" / f"{task}.npz") as file:
        ends, rgb = np.cumsum(file["lengths"]), file["rgb"]
    found: dict[str, list[torch.Tensor]] = {str(span): [] for span in SPANS}
    for stride in STRIDES:
        chosen = {span: [] for span in SPANS}
        for start in range(0, int(ends[-1]), every):
            left = int(ends[np.searchsorted(ends, start, side="right")]) - start
            span = next((span for span in SPANS if 4 * (span - 1) * stride < left), None)
            if span is not None:
                chosen[span].append(start + stride * np.arange(4 * span - 3))
        for span, rows in chosen.items():
            for first in range(0, len(rows), 4):
                pixels = _pixels(rgb[np.stack(rows[first : first + 4])])
                found[str(span)].append(_encode(vae, pixels, views=rgb.shape[1]).half())
    return {span: torch.cat(parts) for span, parts in found.items() if parts}


def joined(encoded: Sequence[dict[str, torch.Tensor]], prompts: tuple[str, ...]) -> Latents:
    """The clips of several tasks, one element a task; clips of each length, those cut from longer ones included."""
    video: dict[int, torch.Tensor] = {}
    task: dict[int, torch.Tensor] = {}
    for span in SPANS:
        longer = [
            (number, tensor[:, :, :span])
            for number, of_task in enumerate(encoded)
            for held, tensor in of_task.items()
            if int(held) >= span
        ]
        if longer:
            video[span] = torch.cat([tensor for _, tensor in longer])
            task[span] = torch.cat([torch.full((len(tensor),), number) for number, tensor in longer])
    return Latents(video, task, prompts)


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
        """Of one to three views, in the first places of the view embedding."""
        nothing = video.new_zeros(len(video), 0, 1)
        views = video.shape[3]
        self.network.config = replace(self.network.config, num_views=views)
        places = {"view_embedding.weight": self.network.view_embedding.weight[:views]}
        inputs = (video, nothing, nothing, text, 1000 * sigma, 1000 * sigma)
        found = torch.func.functional_call(self.network, places, inputs)
        self.network.config = replace(self.network.config, num_views=3)
        return found.video


def loss_of(prior: Prior, data: Latents, rng: torch.Generator, span: int = 2, views: int = 3) -> torch.Tensor:
    """Mean squared error of the velocity of what comes after the first latent frame.

    Args:
        span: latent frames of the clips.
        views: of them, drawn anew for every step.
    """
    index = torch.randint(len(data.video[span]), (BATCH * 2 // span,), generator=rng)
    seen = torch.randperm(data.video[span].shape[3], generator=rng)[:views]
    clean = data.video[span][index][:, :, :, seen].float()
    sigma = shift(torch.rand(len(index), generator=rng, dtype=torch.float64), SHIFT).float()
    noise = torch.randn(clean.shape, generator=rng)
    noised = add_noise(clean, noise, sigma)
    noised[:, :, 0] = clean[:, :, 0]
    dropped = torch.rand(len(index), generator=rng) < TEXT_DROPOUT
    told = torch.where(dropped, len(data.prompts), data.task[span][index])
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
        span, views = TURNS[step % len(TURNS)]
        return loss_of(prior, data, torch.Generator().manual_seed(int(words[0] >> np.uint64(1))), span, views)

    return loss_of_step


@torch.no_grad()
def generated_psnr(
    prior: Prior, vae: Any, corpus: Path, task: str, clips: int, steps: int, future: tuple[int, int]
) -> dict[str, float]:
    """PSNR in dB of the pictures after the first: generated, the VAE's own limit, and the first picture repeated.

    Each also over the moving pixels alone. `future`: pictures of a clip, and how many of the corpus they are apart.
    """
    frames, stride = future
    span = (frames - 1) * stride + 1
    with np.load(corpus / "video" / f"{task}.npz") as file:
        ends, rgb = np.cumsum(file["lengths"]), file["rgb"]
    spread = np.linspace(0, ends[-1] - span, clips * 2).astype(int)
    starts = [start for start in spread.tolist() if not np.any((ends > start) & (ends < start + span))][:clips]
    pixels = _pixels(np.stack([rgb[start : start + span : stride] for start in starts]))
    latents = _encode(vae, pixels, views=rgb.shape[1])
    mean, std = _statistics(vae)
    nothing = torch.zeros(len(starts), 0, 1)
    noise = Streams(torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), nothing, nothing)
    text = prior.embed([instruction(task)]).expand(len(starts), -1, -1)
    drawn = sample(
        prior.network, Conditions(latents[:, :, 0], torch.zeros(len(starts), 1)), text,
        noise=noise, video_steps=steps, action_steps=steps, with_depth=False,
    ).video  # fmt: skip
    moving = ((pixels - pixels[:, :, :1]).abs().amax(dim=1, keepdim=True) > MOVES)[:, :, 1:].expand(-1, 3, -1, -1, -1)

    def decode(z: torch.Tensor) -> torch.Tensor:
        per_view = z.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        return vae.decode(per_view * std + mean).sample.clamp(-1, 1)

    shown = {"generated": decode(drawn), "vae": decode(latents), "repeat_first": pixels[:, :, :1].expand_as(pixels)}
    rows: dict[str, float] = {}
    for name, pictures in shown.items():
        error = (pictures[:, :, 1:] - pixels[:, :, 1:]).square()
        rows[name] = float((10 * torch.log10(4 / error.mean(dim=(1, 2, 3, 4)))).mean())
        rows[f"{name}, moving"] = float(10 * torch.log10(4 / error[moving].mean())) if moving.any() else float("nan")
    return rows
