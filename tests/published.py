"""The published Wan2.2-TI2V-5B-Diffusers folder at toy widths: its keys, layout, dtypes and tokenizer, and a hub cache.

Facts of the published files are in its model card; widths and the number of blocks are ours.
"""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HUB_ID = "example/Wan2.2-TI2V-toy-Diffusers"
COMMIT = "b8fff7315c768468a5333511427288870b2e9635"
WIDTH, TEXT_DIM, TEXT_LEN = 48, 16, 512
MEANS = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
DEVIATIONS = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
VAE: dict[str, Any] = {
    "base_dim": 8, "decoder_base_dim": 16, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "attn_scales": [], "temperal_downsample": [False, True, True], "is_residual": True, "in_channels": 12,
    "out_channels": 12, "patch_size": 2, "scale_factor_temporal": 4, "scale_factor_spatial": 16,
    "latents_mean": list(MEANS), "latents_std": list(DEVIATIONS),
}  # fmt: skip


def make_published(root: Path, videos: torch.Tensor | None = None) -> Path:
    """The folder, in plain files.

    Args:
        videos: [n, 3, t, h, w] in [-1, 1] that the VAE gives back, blurred; None: its weights are as drawn.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _transformer(root / "transformer")
        _vae(root / "vae", videos)
        _text(root / "text_encoder")
    _tokenizer(root / "tokenizer")
    _json(
        root / "model_index.json",
        {
            "_class_name": "WanPipeline", "_diffusers_version": "0.35.0.dev0", "boundary_ratio": None,
            "expand_timesteps": True, "scheduler": ["diffusers", "UniPCMultistepScheduler"],
            "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None],
            "vae": ["diffusers", "AutoencoderKLWan"],
        },
    )  # fmt: skip
    _json(
        root / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
            "flow_shift": 5.0, "solver_order": 2, "solver_type": "bh2",
        },
    )  # fmt: skip
    return root


def make_hub_cache(folder: Path, cache: Path, hub_id: str = HUB_ID) -> Path:
    """A hub cache that holds the folder: blobs by their hash, a snapshot of links to them. Returns the snapshot."""
    home = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            blob = home / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            depth = len(link.relative_to(home).parts) - 1
            link.symlink_to(Path(*[".."] * depth) / "blobs" / blob.name)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


def _transformer(folder: Path) -> None:
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=WIDTH // 2, in_channels=48, out_channels=48,
        text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=3, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024,
    )  # fmt: skip
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1


def _vae(folder: Path, videos: torch.Tensor | None) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(**VAE)
    if videos is not None:
        _fit(vae, videos)
    vae.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    _json(folder / "config.json", {**config, "clip_output": False})


@torch.no_grad()
def _fit(vae: Any, videos: torch.Tensor) -> None:
    """Let drawn weights give videos back, in closed form: random features, and a last layer fitted to them.

    Latents are brought to the published statistics by the encoder's last product, pictures by the decoder's last layer
    (least squares over its spatial window).
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    mean, deviation = torch.tensor(MEANS), torch.tensor(DEVIATIONS)
    latents = vae.encode(videos).latent_dist.mode()
    gain = deviation / latents.std(dim=(0, 2, 3, 4))
    shift = mean - gain * latents.mean(dim=(0, 2, 3, 4))
    last = vae.quant_conv
    last.weight[:48] *= gain.view(-1, 1, 1, 1, 1)
    last.bias[:48] = last.bias[:48] * gain + shift

    seen: list[torch.Tensor] = []
    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    vae.decode(vae.encode(videos).latent_dist.mode())
    hook.remove()
    frames = torch.cat(seen, dim=2).transpose(1, 2).flatten(0, 1)  # (n t) c h w
    windows = torch.nn.functional.unfold(frames, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    wanted = patchify(videos, 2).transpose(1, 2).flatten(0, 1).flatten(2).transpose(1, 2).flatten(0, 1).double()
    windows = torch.cat([windows, torch.ones(len(windows), 1, dtype=torch.float64)], dim=1)
    square = windows.T @ windows
    square += 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    solution = torch.linalg.solve(square, windows.T @ wanted).float()
    out = vae.decoder.conv_out
    out.weight.zero_()
    out.weight[:, :, -1] = solution[:-1].T.unflatten(1, (-1, 3, 3))
    out.bias.copy_(solution[-1])


def _text(folder: Path) -> None:
    """bfloat16 in shards, untied, without `encoder.embed_tokens.weight`."""
    from transformers import UMT5Config, UMT5EncoderModel

    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=400, d_model=TEXT_DIM, d_kv=4, d_ff=32, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    )  # fmt: skip
    encoder.to(torch.bfloat16).save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    whole.pop("encoder.embed_tokens.weight", None)
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    shards = {f"model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, held in shards.items():
        save_file({name: whole[name] for name in held}, folder / file, {"format": "pt"})
    index = {name: file for file, held in shards.items() for name in held}
    size = sum(tensor.numel() * tensor.element_size() for tensor in whole.values())
    _json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
    config = json.loads((folder / "config.json").read_text())
    _json(folder / "config.json", {**config, "tie_word_embeddings": False, "torch_dtype": "bfloat16"})


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0)]
    pieces = [
        ("\u2581", -2.0),
        *((letter, -4.0) for letter in string.ascii_letters + string.digits + string.punctuation),
    ]
    extra = [f"<extra_id_{number}>" for number in range(300)]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>",
        additional_special_tokens=extra,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "T5TokenizerFast", "extra_ids": 300, "model_max_length": int(1e30)}
    _json(folder / "tokenizer_config.json", config)


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
