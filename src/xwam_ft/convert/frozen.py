"""The frozen copies in X-WAM's checkpoints, under Wan's own names -> diffusers' VAE and transformers' UMT5 encoder.

`vae.{mean,std}` and `vae.model.*` are Wan2.2's VAE; `text_encoder.model.*` is the UMT5 encoder. Names follow from the
modules' order in both implementations; configurations from the tensors' shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from xwam_ft.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

_RESIDUAL = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_VAE_OUTSIDE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{side}.{theirs}": f"{side}.{ours}"
        for side in ("encoder", "decoder")
        for theirs, ours in {
            "conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out",
            "middle.1": "mid_block.attentions.0",
        }.items()
    },
}  # fmt: skip
_VAE_STAGE = re.compile(
    r"(encoder|decoder)\.(?:down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(residual\.\d|shortcut|resample\.1|time_conv)"
    r"\.(weight|bias|gamma)$"
)
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.middle\.([02])\.(residual\.\d)\.(weight|bias|gamma)$")

_TEXT_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_TEXT_OUTSIDE = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}


def vae_name(name: str) -> str | None:
    """A VAE tensor of Wan's own, without its `vae.model.` -> diffusers' name; None for one it does not know."""
    if match := _VAE_STAGE.match(name):
        side, stage, index, part, leaf = match.groups()
        way = "down" if side == "encoder" else "up"
        if part in _RESIDUAL:
            return f"{side}.{way}_blocks.{stage}.resnets.{index}.{_RESIDUAL[part]}.{leaf}"
        return f"{side}.{way}_blocks.{stage}.{way}sampler.{part}.{leaf}"
    if match := _VAE_MIDDLE.match(name):
        side, index, part, leaf = match.groups()
        if part in _RESIDUAL:
            return f"{side}.mid_block.resnets.{int(index) // 2}.{_RESIDUAL[part]}.{leaf}"
    for theirs, ours in _VAE_OUTSIDE.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return None


def text_name(name: str) -> str | None:
    """A UMT5 tensor of Wan's own, without its `text_encoder.model.` -> transformers' name."""
    if name in _TEXT_OUTSIDE:
        return _TEXT_OUTSIDE[name]
    match = re.match(r"blocks\.(\d+)\.(.+)\.weight$", name)
    if match is None or match[2] not in _TEXT_BLOCK:
        return None
    return f"encoder.block.{match[1]}.{_TEXT_BLOCK[match[2]]}.weight"


def vae_config(shapes: Shapes, mean: list[float], std: list[float], where: object) -> dict[str, Any]:
    """Constructor values of diffusers' `AutoencoderKLWan` (its residual form) from Wan's names and shapes.

    Args:
        mean, std: of the latents, one number a channel.

    Raises:
        UserError: tensors missing that give a size.
    """

    def read() -> dict[str, Any]:
        base = shapes["encoder.conv1.weight"][0]
        stages = _count(shapes, r"encoder\.downsamples\.(\d+)\.")
        blocks = _count(shapes, r"encoder\.downsamples\.0\.downsamples\.(\d+)\.residual\.")
        channels = shapes["encoder.conv1.weight"][1]
        return {
            "base_dim": base,
            "decoder_base_dim": shapes["decoder.head.0.gamma"][0],
            "z_dim": shapes["conv2.weight"][0],
            "dim_mult": [
                shapes[f"encoder.downsamples.{stage}.downsamples.0.residual.2.weight"][0] // base
                for stage in range(stages)
            ],
            "num_res_blocks": blocks,
            "attn_scales": [],
            "temperal_downsample": [
                f"encoder.downsamples.{stage}.downsamples.{blocks}.time_conv.weight" in shapes
                for stage in range(stages - 1)
            ],
            "is_residual": True,
            "in_channels": channels,
            "out_channels": shapes["decoder.head.2.weight"][0],
            "patch_size": math.isqrt(channels // 3),
            "latents_mean": mean,
            "latents_std": std,
        }

    config = _sizes(read, "vae", where)
    config["scale_factor_temporal"] = 2 ** sum(config["temperal_downsample"])
    config["scale_factor_spatial"] = config["patch_size"] * 2 ** (len(config["dim_mult"]) - 1)
    return config


def text_config(shapes: Shapes, where: object) -> dict[str, Any]:
    """Constructor values of transformers' `UMT5Config` from Wan's names and shapes."""

    def read() -> dict[str, Any]:
        buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
        vocabulary, width = shapes["token_embedding.weight"]
        return {
            "vocab_size": vocabulary,
            "d_model": width,
            "d_kv": shapes["blocks.0.attn.q.weight"][0] // heads,
            "d_ff": shapes["blocks.0.ffn.fc1.weight"][0],
            "num_layers": _count(shapes, r"blocks\.(\d+)\."),
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu",
            "dropout_rate": 0.0,
        }

    return _sizes(read, "text encoder", where)


def _count(shapes: Shapes, pattern: str) -> int:
    return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))


def _sizes(read: Callable[[], dict[str, Any]], what: str, where: object) -> dict[str, Any]:
    try:
        return read()
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise UserError(
            f"its {what} lacks what gives its sizes ({error})",
            where,
            "give a whole checkpoint, or one without that part and --vae-text",
        ) from None
