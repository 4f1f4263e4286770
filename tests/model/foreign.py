"""Checkpoints as others write them, at toy size: the golden network's weights in every form, with frozen copies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

GOLDEN = Path(__file__).parents[1] / "golden" / "xwam_tiny.safetensors"
HEADS = 4


def golden() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Constructor values and weights of the golden network, under the reference's names."""
    with safe_open(GOLDEN, framework="pt") as stored:
        names = [name for name in stored.keys() if name.startswith("weight.")]  # noqa: SIM118
        weights = {name.removeprefix("weight."): stored.get_tensor(name) for name in names}
        return json.loads(stored.metadata()["config"]), weights


def make_vae(seed: int = 0, channels: int = 8) -> AutoencoderKLWan:
    """Wan2.2's form of the VAE; the golden network has 8 latent channels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=8, decoder_base_dim=12, z_dim=channels, dim_mult=[1, 2, 2, 1], num_res_blocks=2, attn_scales=[],
            temperal_downsample=[False, True, True], latents_mean=[0.1 * i for i in range(channels)],
            latents_std=[1.0 + 0.1 * i for i in range(channels)], is_residual=True, in_channels=12, out_channels=12,
            patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16,
        )  # fmt: skip
        for parameter in vae.parameters():
            parameter.data.normal_(std=0.2)
        return vae.eval()


def make_text(seed: int = 0) -> UMT5EncoderModel:
    """An UMT5 encoder of the golden network's text width."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = UMT5Config(
            vocab_size=384, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )  # fmt: skip
        model = UMT5EncoderModel(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
        return model.eval()


def save_vae_text(folder: Path) -> Path:
    """A folder for --vae-text: vae, text_encoder, tokenizer."""
    make_vae(5).save_pretrained(folder / "vae")
    make_text(5).save_pretrained(folder / "text_encoder")
    ByT5Tokenizer(model_max_length=24).save_pretrained(folder / "tokenizer")
    return folder


def wan_vae_name(name: str) -> str:
    """diffusers' name of a VAE tensor -> Wan's; written from Wan's side, by rewriting."""
    name = name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    name = name.replace("conv_in", "conv1").replace("norm_out", "head.0").replace("conv_out", "head.2")
    name = name.replace("mid_block.resnets.0", "middle.0").replace("mid_block.resnets.1", "middle.2")
    name = name.replace("mid_block.attentions.0", "middle.1")
    for way, side in (("down", "encoder"), ("up", "decoder")):
        count = {"down": 2, "up": 3}[way]  # residual blocks of a stage; the sampler comes after them
        name = re.sub(rf"{side}\.{way}_blocks\.(\d)\.resnets\.", rf"{side}.{way}samples.\1.{way}samples.", name)
        name = re.sub(
            rf"{side}\.{way}_blocks\.(\d)\.{way}sampler\.", rf"{side}.{way}samples.\1.{way}samples.{count}.", name
        )
    inside = re.search(r"(samples\.\d\.\w+samples|middle)\.\d", name) is not None
    if inside:
        for ours, theirs in (("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"),
                             ("conv2", "residual.6"), ("conv_shortcut", "shortcut")):  # fmt: skip
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def wan_text_name(name: str) -> str:
    """transformers' name of an UMT5 tensor -> Wan's."""
    for ours, theirs in {
        "shared": "token_embedding", "encoder.final_layer_norm": "norm", "encoder.block": "blocks",
        "layer.0.layer_norm": "norm1", "layer.1.layer_norm": "norm2", "layer.0.SelfAttention.": "attn.",
        "attn.relative_attention_bias": "pos_embedding.embedding", "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1", "layer.1.DenseReluDense.wo": "ffn.fc2",
    }.items():  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def frozen_copies() -> dict[str, torch.Tensor]:
    """`vae.*` and `text_encoder.*` as X-WAM's checkpoints hold them."""
    vae, text = make_vae(), make_text()
    copies = {f"vae.model.{wan_vae_name(name)}": tensor for name, tensor in vae.state_dict().items()}
    copies["vae.mean"], copies["vae.std"] = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return copies | {
        f"text_encoder.model.{wan_text_name(name)}": tensor.bfloat16()
        for name, tensor in text.state_dict().items()
        if name != "encoder.embed_tokens.weight"
    }


def module(*, frozen: bool = False) -> dict[str, torch.Tensor]:
    """The whole of a released checkpoint's `module`."""
    network = {f"model.{name}": tensor for name, tensor in golden()[1].items()}
    return network | (frozen_copies() if frozen else {})


def save_deepspeed(folder: Path, weights: dict[str, torch.Tensor], **extra: object) -> Path:
    """`folder`/checkpoints/last.ckpt/checkpoint/mp_rank_00_model_states.pt; returns last.ckpt."""
    last = folder / "checkpoints" / "last.ckpt"
    (last / "checkpoint").mkdir(parents=True)
    content = {"module": weights, "global_steps": 7, "ds_config": {"zero": 2}, "optimizer": None} | extra
    torch.save(content, last / "checkpoint" / "mp_rank_00_model_states.pt")
    return last


def save_shards(folder: Path, weights: dict[str, torch.Tensor], count: int = 3) -> Path:
    """Several safetensors with their index, as Wan publishes its own files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(weights)
    index = {}
    for part in range(count):
        file = f"diffusion_pytorch_model-{part + 1:05d}-of-{count:05d}.safetensors"
        mine = names[part::count]
        save_file({name: weights[name].contiguous() for name in mine}, folder / file)
        index |= dict.fromkeys(mine, file)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder
