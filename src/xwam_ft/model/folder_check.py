"""Whether a backbone's folder is one we can use: whole, and of the kind of Wan2.2-TI2V. Reads no weight.

Relatives are told by their configurations: Wan 2.1 and the 14B models have a VAE of 16 channels, the 14B models of
Wan 2.2 two transformers, and the image-to-video models further inputs that a joint sequence has no place for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json, stand_in
from xwam_ft.model.tiny import TINY

Part = Literal["transformer", "vae", "text"]
PARTS: tuple[Part, ...] = ("transformer", "vae", "text")
PUBLISHED = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
FOLDERS: dict[Part, tuple[str, ...]] = {
    "transformer": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "tokenizer"),
}  # fmt: skip
FIX = f"give a complete folder in diffusers layout, such as huggingface.co/{PUBLISHED}, its hub id, or {TINY!r}"
KINDS = ("model_index.json", "transformer/config.json", "vae/config.json")
"""Files that tell the kind; each may be missing."""
OLD_CHANNELS = 16


def require_kin(folder: Path, fix: str) -> None:
    """Raise a `UserError` that says which other Wan model a folder holds.

    Args:
        fix: what to give instead.
    """
    index, transformer, vae = (_config(folder / name) for name in KINDS)
    second = index.get("transformer_2") or ()
    if any(part is not None for part in second) or (folder / "transformer_2").is_dir():
        raise UserError(
            "is a 14B model of Wan 2.2 (it has a transformer_2), and one transformer is trained", folder, fix
        )
    further = [name for name in ("image_dim", "added_kv_proj_dim") if transformer.get(name) is not None]
    taken, made = transformer.get("in_channels"), transformer.get("out_channels")
    if further or taken != made:
        sign = f"{further[0]} is set" if further else f"it takes {taken} channels and makes {made}"
        raise UserError(f"is an image-to-video transformer ({sign}), not a text-and-image one", folder, fix)
    if OLD_CHANNELS in (taken, vae.get("z_dim")):
        raise UserError(f"is of Wan 2.1 (latents of {OLD_CHANNELS} channels), not of Wan 2.2 TI2V (48)", folder, fix)


def check_part(folder: Path, part: Part) -> None:
    """Raise a `UserError` where a part of a backbone folder is missing or incomplete."""
    for name in FOLDERS[part]:
        config = folder / name / ("tokenizer_config.json" if name == "tokenizer" else "config.json")
        if not config.is_file():
            raise UserError(f"the part {name!r} is missing (no {config.relative_to(folder)})", folder, FIX)
        if name == "tokenizer":
            continue
        wanted = {
            shard
            for index in (folder / name).glob("*.safetensors.index.json")
            for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        }
        absent = sorted(shard for shard in wanted if not (folder / name / shard).is_file())
        if absent or not any((folder / name).glob("*.safetensors")):
            files = listed(absent, 3) if absent else "*.safetensors"
            raise UserError(f"the part {name!r} is incomplete (no {name}/{files})", folder, FIX)
        for path in sorted((folder / name).glob("*.safetensors")):
            require_whole(path)


def require_whole(path: Path) -> None:
    """Raise a `UserError` unless a safetensors file is there to its last byte, as its own header says."""
    from safetensors import SafetensorError, safe_open

    again = "download it again: `hf download REPOSITORY` goes on where a download stopped"
    try:
        with safe_open(path, "pt"):
            return
    except (SafetensorError, OSError) as error:
        found = stand_in(path) or (f"is cut off or damaged ({str(error).strip().splitlines()[0]})", again)
        raise UserError(found[0], path, found[1]) from error


def _config(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.is_file() else {}
