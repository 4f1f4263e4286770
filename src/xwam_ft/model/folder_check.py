"""Whether a backbone's folder is one we can use: whole, and of the kind of Wan2.2-TI2V. Reads no weight.

Relatives are told by their configurations: Wan 2.1 and the 14B models have a VAE of 16 channels, the 14B models of
Wan 2.2 two transformers, and the image-to-video models further inputs that a joint sequence has no place for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xwam_ft.errors import UserError
from xwam_ft.files import read_json, stand_in

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
