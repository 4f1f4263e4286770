"""The built-in `tiny` backbone: the classes of Wan2.2-TI2V at a size that trains on two CPU cores.

Its weights ship with the package, in diffusers' folder layout like any other backbone's; data_tools/pretrain_tiny.py
made them (see bundled/tiny/README.md). Here are the modules before that training: what it starts from, and
`tiny-untrained`, the same VAE and text encoder around a transformer nobody trained, for comparison.
Pictures of 96x128 become latents of 48 x 6x8 (factor 16 in space, 4 in time) and 12 tokens a view and latent frame.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xwam_ft.bundled import bundled

TINY, UNTRAINED = "tiny", "tiny-untrained"
SEED = 20260426
TEXT_LEN = 64
TEXT_DIM = 64
LATENT_CHANNELS = 48
PATCH = (1, 2, 2)


def tiny_folder() -> Path:
    """Where the shipped weights lie: transformer, vae, text_encoder, tokenizer."""
    return bundled("tiny")


def untrained_transformer() -> Any:
    """Weights from a fixed seed, the same on every call, without touching torch's global generator; float32."""
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
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
    return transformer


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


def untrained_vae() -> Any:
    """The plain form of Wan's VAE; its latent statistics are measured after training."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 1)
        return AutoencoderKLWan(
            base_dim=32,
            z_dim=LATENT_CHANNELS,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[True, True],
            latents_mean=[0.0] * LATENT_CHANNELS,
            latents_std=[1.0] * LATENT_CHANNELS,
            in_channels=48,
            out_channels=48,
            patch_size=4,
            scale_factor_temporal=4,
            scale_factor_spatial=16,
        )


def untrained_text() -> tuple[Any, Any]:
    """A text encoder over bytes, and its tokenizer."""
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    tokenizer = ByT5Tokenizer(model_max_length=TEXT_LEN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED + 2)
        config = UMT5Config(
            vocab_size=len(tokenizer), d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
        )
        return UMT5EncoderModel(config), tokenizer
