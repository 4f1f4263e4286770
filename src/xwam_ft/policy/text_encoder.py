"""A bundle's own text encoder, for texts that were not embedded when it was exported.

    text_encoder/model.safetensors, config.json    bfloat16, or the linears in 8 bits: `NAME` and a scale a row
    tokenizer/                                     the backbone's

Eight bits are a row's numbers over its largest, rounded; they are unpacked where they are used, since an instruction is
encoded once and then kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.model.backbone import Backbone, locate_backbone
from xwam_ft.model.tensor_files.source import Stored, open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, require_written, write_stream

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.progress import Advance

Kind = Literal["bfloat16", "int8"]
KINDS: tuple[str, ...] = get_args(Kind)
FOLDERS = ("text_encoder", "tokenizer")
MODEL = "model.safetensors"
SCALE = "_scale"
_EMBEDDINGS = ("shared.weight", "embed_tokens.weight", "relative_attention_bias.weight")
_LEVELS = 127.0


class Int8Linear(nn.Module):
    """A Linear without bias whose weight is int8 [out, in] times a float32 scale [out]."""

    def __init__(self, out: int, inner: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out, inner, dtype=torch.int8, device="meta"))
        self.register_buffer(f"weight{SCALE}", torch.empty(out, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.weight_scale
        weight: Any = self.weight
        return nn.functional.linear(x, weight.to(x.dtype) * scale.to(x.dtype)[:, None])


def pieces(backbone: str, revision: str | None, kind: Kind) -> list[Piece]:
    """Every tensor of the text encoder as it is written; nothing is read before its turn."""
    folder = locate_backbone(backbone, ("text",), revision) / "text_encoder"
    found: list[Piece] = []
    for name, stored in open_checkpoint(folder).tensors.items():
        if kind == "int8" and name.endswith(".weight") and len(stored.shape) == 2 and not name.endswith(_EMBEDDINGS):
            found.append(Piece(name, stored.shape, torch.int8, _packed(stored, 0)))
            found.append(Piece(name + SCALE, stored.shape[:1], torch.float32, _packed(stored, 1)))
        else:
            found.append(Piece(name, stored.shape, torch.bfloat16, stored.read))
    return found


def write(bundle: Path, backbone: str, revision: str | None, kind: Kind, advance: Advance) -> None:
    """Write encoder and tokenizer into a bundle, tensor by tensor, and read them back.

    Raises:
        UserError: a tensor that reads back changed.
    """
    source = locate_backbone(backbone, ("text",), revision)
    target = bundle / "text_encoder"
    target.mkdir()
    digests = write_stream(target / MODEL, pieces(backbone, revision, kind), {"format": "pt"}, advance)
    require_written(open_checkpoint(target / MODEL).tensors, digests, target / MODEL)
    shutil.copyfile(source / "text_encoder" / "config.json", target / "config.json")
    (bundle / "tokenizer").mkdir()
    for path in sorted((source / "tokenizer").iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, bundle / "tokenizer" / path.name)


def load(bundle: Path, text_len: int, device: str) -> Callable[[str], Tensor]:
    """Text -> its embedding [S, Dt] on the CPU, by a bundle's own encoder.

    Raises:
        UserError: tensors that the encoder does not have, or that it lacks.
    """
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    values = read_json(bundle / "text_encoder" / "config.json")
    with torch.device("meta"):
        encoder: Any = UMT5EncoderModel(UMT5Config.from_dict(values))
    state = load_file(bundle / "text_encoder" / MODEL)
    if torch.device(device).type == "cpu":  # the file is mapped, and may be copied over while this is at work
        state = {name: tensor.clone() for name, tensor in state.items()}
    for name in [name.removesuffix(f".weight{SCALE}") for name in state if name.endswith(SCALE)]:
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, Int8Linear(*state[f"{name}.weight"].shape))
    table = next(state[name] for name in ("shared.weight", "encoder.embed_tokens.weight") if name in state)
    state |= {"shared.weight": table, "encoder.embed_tokens.weight": table}
    missing, strange = encoder.load_state_dict(state, assign=True, strict=False)
    if missing or strange:
        said = f"lacks or has too many tensors: {listed([*missing, *strange], 3)}"
        raise UserError(said, bundle / "text_encoder" / MODEL, "copy the bundle again, or export it again")
    whole = Backbone(
        name=str(bundle),
        transformer=None,
        vae=None,
        text_encoder=encoder.eval().requires_grad_(False).to(device),
        tokenizer=AutoTokenizer.from_pretrained(bundle / "tokenizer"),
        text_len=text_len,
        trained=True,
        _fingerprint=lambda part: "",
    )
    return lambda text: whole.encode_prompts([text])[0].float().cpu()


def difference(encoder: Callable[[str], Tensor], prompts: Mapping[str, Tensor]) -> float:
    """The largest |encoded - embedded| / |embedded| of prompts whose embeddings are known."""
    return max(float((encoder(text) - known.float()).norm() / known.float().norm()) for text, known in prompts.items())


def stated_licence(backbone: str, revision: str | None) -> str | None:
    """The licence that a backbone's README.md states, as the Hub calls it."""
    page = locate_backbone(backbone, ("text",), revision) / "README.md"
    lines = page.read_text(encoding="utf-8", errors="replace").splitlines() if page.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None) or None


def licence(backbone: str, revision: str | None) -> str:
    """Whose licence the encoder is under, for people."""
    said = stated_licence(backbone, revision)
    if said is None:
        return f"its licence is that of {backbone}, whose folder does not state it: look before you pass the bundle on"
    return f"its licence is that of {backbone}: {json.dumps(said)}"


def _packed(stored: Stored, part: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        weight = stored.read().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / _LEVELS
        return scale if part else (weight / scale[:, None]).round().to(torch.int8)

    return make
