"""Whether a backbone's folder is one we can use: whole, and of the kind of Wan2.2-TI2V. Reads no weight.

Relatives are told by their configurations: Wan 2.1 and the 14B models have a VAE of 16 channels, the 14B models of
Wan 2.2 two transformers, and the image-to-video models further inputs that a joint sequence has no place for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.model.stored_part import PUBLISHED, StoredPart, again, incomplete
from xwam_ft.model.tensor_files.source import needs_import, refuse_bundle
from xwam_ft.model.tiny import TINY

Part = Literal["transformer", "vae", "text"]
PARTS: tuple[Part, ...] = ("transformer", "vae", "text")
FOLDERS: dict[Part, tuple[str, ...]] = {
    "transformer": ("transformer",), "vae": ("vae",), "text": ("text_encoder", "tokenizer"),
}  # fmt: skip
FIX = f"give a complete folder in diffusers layout, such as huggingface.co/{PUBLISHED}, its hub id, or {TINY!r}"
KINDS = ("model_index.json", "transformer/config.json", "vae/config.json")
"""Files that tell the kind; each may be missing."""
TRANSFORMER, VAE = "WanTransformer3DModel", "AutoencoderKLWan"
"""What diffusers calls the classes of our parts; relatives such as VACE, Animate and S2V have others."""
OLD_CHANNELS = 16
MAX_TEXT_LEN = 512
"""Text positions of the Wan models."""
VOCABULARIES = ("tokenizer.json", "spiece.model")
"""Either holds a tokenizer's words; one of bytes needs none."""


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
    for name, values, known in (("transformer", transformer, TRANSFORMER), ("vae", vae, VAE)):
        if values.get("_class_name", known) != known:
            raise UserError(f"has as its {name} a {values['_class_name']}, not a {known}", folder, fix)
    latents = vae.get("z_dim")
    if isinstance(taken, int) and isinstance(latents, int) and taken != latents:
        what = f"has a transformer of latents of {taken} channels beside a VAE of {latents}: parts of two models"
        raise UserError(what, folder, fix)


def check_part(folder: Path, part: Part) -> None:
    """Raise a `UserError` where a part of a backbone folder is missing or incomplete."""
    for name in FOLDERS[part]:
        config = folder / name / ("tokenizer_config.json" if name == "tokenizer" else "config.json")
        if not config.is_file():
            raise UserError(f"the part {name!r} is missing (no {config.relative_to(folder)})", folder, FIX)
        if name == "tokenizer":
            _require_words(folder / name, read_json(config))
            continue
        StoredPart.find(folder / name).require_whole()


def _require_words(place: Path, config: Mapping[str, Any]) -> None:
    """transformers makes a tokenizer without them that takes every instruction and knows no word of it."""
    of_bytes = str(config.get("tokenizer_class")).startswith("ByT5")
    if not of_bytes and not any((place / words).is_file() for words in VOCABULARIES):
        raise incomplete(place, VOCABULARIES[0])


def require_level(folder: Path) -> None:
    """Raise a `UserError` where a folder is one part of a backbone or holds one a level below; a hub's cache too."""
    if (folder / KINDS[1]).is_file() or not folder.is_dir():
        return
    above = folder.absolute().parent
    if (above / KINDS[1]).is_file() and (folder / "config.json").is_file():
        raise UserError("is one part of a backbone", folder, f"give the folder above it, {above}")
    depths = ("*", "snapshots/*", "*/snapshots/*")
    if inside := [path.parents[1] for depth in depths for path in folder.glob(f"{depth}/{KINDS[1]}")]:
        newest = max(inside, key=lambda path: path.stat().st_mtime)
        raise UserError("holds no backbone itself, but in a folder below", folder, f"give {newest}")


def refuse_unimported(path: Path) -> None:
    """Raise a `UserError` saying what to do where a path holds weights in another layout than ours, or elsewhere."""
    refuse_bundle(path)
    require_level(path)
    if needs_import(path):
        raise UserError(
            "holds weights under the names of Wan or X-WAM themselves, not in diffusers' layout",
            path,
            f"import them once: python data_tools/import_xwam.py {path} OUT --vae-text FOLDER; then give OUT",
        )


def text_positions(longest: float | None) -> int:
    """Text positions that are fed, by a tokenizer's `model_max_length`: fewer than the models have, or nothing said."""
    return min(int(longest or MAX_TEXT_LEN), MAX_TEXT_LEN)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError("holds no settings by name", path, again(path))
    return found
