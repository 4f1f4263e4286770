"""The built-in `tiny` backbone: the classes of Wan2.2-TI2V at a size that trains on two CPU cores, untrained.

Weights come from a fixed seed, the same on every call, without touching torch's global generator. Pictures of
96x128 become latents of 12 x 12x16 (factor 8 in space, 4 in time) and 12 tokens a view and latent frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

SEED = 20260426
TEXT_LEN = 64
TEXT_DIM = 64
LATENT_CHANNELS = 12
PATCH = (1, 4, 4)

# Measured on 18 recorded robot clips and 64 smooth random ones; a function of SEED.
LATENTS_MEAN = [-0.005, -0.449, 0.574, 0.278, -0.3, 0.34, -0.19, 0.356, -0.136, 0.037, 0.698, -0.187]
LATENTS_STD = [0.784, 0.669, 0.999, 0.815, 0.647, 0.685, 0.659, 0.776, 0.683, 0.91, 0.733, 0.659]


def build_tiny_parts(parts: Sequence[str]) -> dict[str, Any]:
    """The asked-for parts (`transformer`, `vae`, `text`) in float32, each from its own seed."""
    built: dict[str, Any] = {}
    for offset, (part, build) in enumerate(_BUILDERS.items()):
        if part in parts:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED + offset)
                built |= build()
    return built


def _transformer() -> dict[str, Any]:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=PATCH,
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=64,
        ffn_dim=768,
        num_layers=6,
    )
    _init_to_train(transformer)
    return {"transformer": transformer}


@torch.no_grad()
def _init_to_train(transformer: Any) -> None:
    """Let an untrained, frozen stack carry what adapters then learn to use.

    torch's default shrinks every Linear by 1/sqrt(3), and Wan's starts all gates near 0, so that blocks hardly
    add anything: adapters then need about three times the steps. Here Linears keep the scale of their input, gates
    start near 0.5, and the output head inverts the patch embedding (a patch has as many numbers as a token).
    """
    width = transformer.proj_out.in_features
    cells = math.prod(PATCH)
    for block in transformer.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        block.scale_shift_table[:, [2, 5]] += 0.5  # the gates of self-attention and feed-forward
    # In float64: rounded to float32, the factorisation is the same whatever the thread count.
    basis = nn.init.orthogonal_(torch.empty(width, LATENT_CHANNELS * cells, dtype=torch.float64)).float()
    transformer.patch_embedding.weight.copy_(basis.view(width, LATENT_CHANNELS, *PATCH))
    nn.init.zeros_(transformer.patch_embedding.bias)
    # The head writes a patch cell by cell, channels last.
    transformer.proj_out.weight.copy_(basis.view(width, LATENT_CHANNELS, cells).permute(2, 1, 0).flatten(0, 1))
    nn.init.zeros_(transformer.proj_out.bias)


def _vae() -> dict[str, Any]:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        latents_mean=LATENTS_MEAN,
        latents_std=LATENTS_STD,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )
    for module in vae.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            # torch's default shrinks every layer and lets biases drown the picture.
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return {"vae": vae}


def _text() -> dict[str, Any]:
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    tokenizer = ByT5Tokenizer(model_max_length=TEXT_LEN)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return {"text_encoder": UMT5EncoderModel(config), "tokenizer": tokenizer}


_BUILDERS = {"transformer": _transformer, "vae": _vae, "text": _text}
