"""One part of a backbone from its folder, and what was loaded against the files it was loaded from.

diffusers and transformers go on, with a line in a log at most, where a weight of the module has no counterpart in the
files: it stays as it was drawn. transformers 5.0 to 5.2 leave the embedding of Wan's text encoder so (untied, and its
file holds `shared.weight` alone), and every instruction then means the same. Hence this look, whatever the version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.model.folder_check import again, weight_files

if TYPE_CHECKING:
    from torch import Tensor

SHARED, EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"
"""Names of the token embedding: as UMT5's file holds it, and as its encoder reads it."""
SENTENCE = "pick up the cube"
"""What a text encoder's tokenizer knows."""
OTHER_NAME = {SHARED: EMBEDDING, EMBEDDING: SHARED}
CHUNK = 16384
"""Rows of the embedding compared at a time."""
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
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype, use_safetensors=True)
    names = stored_names(folder / "text_encoder")
    if SHARED not in names and EMBEDDING in names:  # as other versions save it; the encoder itself reads the second
        encoder.shared.weight = encoder.encoder.embed_tokens.weight
    require_as_stored(encoder, folder / "text_encoder", f"transformers {version('transformers')}")
    own = [name for name in names if name.startswith("encoder.")]  # a whole UMT5 has a decoder too
    require_all_used(encoder, own, folder / "text_encoder")
    return encoder


def load_transformer(folder: Path, dtype: torch.dtype) -> Any:
    """Wan's transformer from `folder`/transformer, in `dtype` (but for what computes in float32).

    Raises:
        UserError: it is not what its files hold.
    """
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype, use_safetensors=True)
    require_as_stored(transformer, folder / "transformer", f"diffusers {version('diffusers')}")
    require_all_used(transformer, stored_names(folder / "transformer"), folder / "transformer")
    return transformer


def load_vae(folder: Path) -> Any:
    """Wan's VAE from `folder`/vae, float32.

    Raises:
        UserError: its files lack a weight.
    """
    from safetensors.torch import load_file

    with torch.device("meta"):
        vae = make_vae(json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")))
    weights = {
        name: tensor.float() for path in weight_files(folder / "vae") for name, tensor in load_file(path).items()
    }
    vae.load_state_dict(weights, strict=False, assign=True)
    require_as_stored(vae, folder / "vae", f"diffusers {version('diffusers')}")
    require_all_used(vae, weights, folder / "vae")
    _require_statistics(vae.config, folder / "vae" / "config.json")
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


def stored_names(folder: Path) -> list[str]:
    """The names of all weights of a part."""
    from safetensors import safe_open

    found: list[str] = []
    for path in weight_files(folder):
        with safe_open(path, "pt") as stored:
            found += stored.keys()
    return found


def require_all_used(module: Any, stored: Iterable[str], folder: Path) -> None:
    """Raise a `UserError` where files hold weights that a module has no place for: it is built as another model.

    A configuration with fewer blocks than the files have gives a network that runs and is not the trained one.
    """
    known, ignored = set(module.state_dict()), module._keys_to_ignore_on_load_unexpected or ()
    strange = [name for name in stored if name not in known and not any(re.search(each, name) for each in ignored)]
    if strange:
        what = f"its files hold {listed(sorted(strange), 3)}, which its config.json has no place for"
        raise UserError(what, folder, again(folder / "config.json"))


def require_as_stored(module: Any, folder: Path, libraries: str) -> None:
    """Compare a freshly loaded module with the safetensors files of its folder.

    Of each tensor the first row is compared, of the token embedding all of them; a tensor without a counterpart in the
    files is refused. Numbers of the file are rounded to the dtype they were loaded in.

    Args:
        libraries: what loaded it, for the sentence: "transformers 5.24.0".

    Raises:
        UserError: a weight that is not what the files hold.
    """
    from safetensors import safe_open

    handles = [safe_open(path, "pt") for path in weight_files(folder)]
    stored: dict[str, Any] = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
    absent: list[str] = []
    for name, tensor in module.state_dict().items():
        source = other if (other := OTHER_NAME.get(name)) in stored and name not in stored else name
        if source not in stored:
            absent.append(name)
        elif not _equal(tensor, stored[source].get_slice(source), whole=name in (SHARED, EMBEDDING)):
            if not torch.isfinite(stored[source].get_tensor(source).float()).all():
                raise UserError(f"its files hold {name}, not all of whose numbers are finite", folder, again(folder))
            raise _differs(f"{name} is not what its file holds once {libraries} has loaded it", folder)
    if absent:
        raise _differs(f"{listed(absent, 3)} {'is' if len(absent) == 1 else 'are'} in none of its files", folder)


def _equal(tensor: Tensor, stored: Any, *, whole: bool) -> bool:
    if list(tensor.shape) != list(stored.get_shape()):
        return False
    if tensor.ndim == 0:
        return bool(torch.equal(tensor.detach(), stored[...].to(tensor.dtype)))
    rows = len(tensor) if whole else min(len(tensor), 1)
    parts = [slice(first, min(first + CHUNK, rows)) for first in range(0, rows, CHUNK)]
    return all(torch.equal(tensor[part].detach(), stored[part].to(tensor.dtype)) for part in parts)


def _differs(what: str, folder: Path) -> UserError:
    return UserError(
        what,
        folder,
        "install the versions that were tried (pip install -U xwam-ft), or download the folder again: it may be of "
        "another model",
    )
