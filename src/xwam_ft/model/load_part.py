"""One part of a backbone from its folder, as its files hold it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.stored_part import EMBEDDING, SHARED, StoredPart, again

if TYPE_CHECKING:
    from torch import Tensor

SENTENCE = "pick up the cube"
"""What a text encoder's tokenizer knows."""
NO_KEYS_OF_OURS = ("clip_output",)
"""Keys of the published VAE's configuration that diffusers warns about: it clips what it decodes in any case."""


def load_text(folder: Path, dtype: torch.dtype) -> Any:
    """UMT5's encoder from `folder`/text_encoder, in `dtype`.

    Raises:
        UserError: it is not what its files hold.
    """
    from transformers import UMT5EncoderModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is the one to look at
    part = StoredPart.find(folder / "text_encoder")
    encoder = UMT5EncoderModel.from_pretrained(part.folder, dtype=dtype, use_safetensors=True)
    names = part.places()
    if SHARED not in names and EMBEDDING in names:  # as other versions save it; the encoder itself reads the second
        encoder.shared.weight = encoder.encoder.embed_tokens.weight
    part.require_loaded(encoder, f"transformers {version('transformers')}")
    part.require_used(encoder, [name for name in names if name.startswith("encoder.")])  # a whole UMT5 has a decoder
    return encoder


def load_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """Wan's transformer from `folder`/transformer, in `dtype` (but for what computes in float32).

    Raises:
        UserError: it is not what its files hold.
    """
    from diffusers import WanTransformer3DModel

    part = StoredPart.find(folder / "transformer")
    transformer = WanTransformer3DModel.from_pretrained(part.folder, torch_dtype=dtype, use_safetensors=True)
    part.require_loaded(transformer, f"diffusers {version('diffusers')}")
    part.require_used(transformer, part.places())
    return transformer


def load_vae(folder: Path) -> Any:
    """Wan's VAE from `folder`/vae, float32.

    Raises:
        UserError: its files lack a weight.
    """
    from safetensors.torch import load_file

    part = StoredPart.find(folder / "vae")
    with torch.device("meta"):
        vae = make_vae(part.config())
    weights = {name: tensor.float() for path in part.files for name, tensor in load_file(path).items()}
    vae.load_state_dict(weights, strict=False, assign=True)
    part.require_loaded(vae, f"diffusers {version('diffusers')}")
    part.require_used(vae, weights)
    _require_statistics(vae.config, part.folder / "config.json")
    return vae


def _require_statistics(config: Any, where: Path) -> None:
    """Latents are normalised by these: without them diffusers fills in those of Wan 2.1's 16 channels."""
    mean, deviation = list(config.latents_mean or ()), list(config.latents_std or ())
    if not len(mean) == len(deviation) == config.z_dim:
        counts = f"{len(mean)} latents_mean and {len(deviation)} latents_std for latents of {config.z_dim} channels"
    elif not all(0 < value < float("inf") for value in deviation):
        counts = "a latents_std that is not above 0"
    else:
        return
    raise UserError(f"has {counts}", where, again(where))


def load_tokenizer(folder: Path, vocabulary: int) -> Any:
    """The tokenizer of `folder`/tokenizer.

    Args:
        vocabulary: tokens that the text encoder knows.

    Raises:
        UserError: it is another model's, or has lost its words: every instruction of a length would then be alike.
    """
    from transformers import AutoTokenizer

    place = folder / "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except Exception as error:  # the library that reads its words raises a plain one, or is absent
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the tokenizer cannot be loaded ({reason})", place, again(place)) from error
    if len(tokenizer) > vocabulary:
        what = f"knows {len(tokenizer)} tokens, and the text encoder beside it {vocabulary}: it is another model's"
        raise UserError(what, place, again(place))
    if tokenizer.unk_token_id in tokenizer(SENTENCE, add_special_tokens=False).input_ids:
        raise UserError(f"does not know all of {SENTENCE!r}: its words are missing", place, again(place))
    return tokenizer


def load_views(path: Path, width: int) -> Tensor:
    """The view embedding [V, D] that lies beside a transformer.

    Raises:
        UserError: the file cannot be read, or is of a transformer of another width.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)["view_embedding.weight"].float()
    except (SafetensorError, KeyError) as error:
        raise UserError(f"cannot be read ({error})", path, "restore it, or remove it: it is optional") from error
    if found.ndim != 2 or found.shape[1] != width:
        shape = list(found.shape)
        raise UserError(f"has shape {shape}, and the transformer is {width} wide", path, "restore it, or remove it")
    return found


def cast_weights(module: Any, dtype: torch.dtype) -> Any:
    """Cast a built module as `from_pretrained` would: what computes in float32 stays float32."""
    keep = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        if not any(part in keep for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return module


def make_vae(config: Mapping[str, Any]) -> Any:
    """Wan's VAE as its configuration says, its weights drawn."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_config({name: v for name, v in config.items() if name not in NO_KEYS_OF_OURS})
