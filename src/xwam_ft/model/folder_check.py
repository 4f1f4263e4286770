"""Whether a backbone's folder is one we can use: whole, and of the kind of Wan2.2-TI2V. Reads no weight.

Relatives are told by their configurations: Wan 2.1 and the 14B models have a VAE of 16 channels, the 14B models of
Wan 2.2 two transformers, and the image-to-video models further inputs that a joint sequence has no place for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from xwam_ft import hub
from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json, stand_in
from xwam_ft.model.tensor_files.source import needs_import, refuse_bundle
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
TRANSFORMER, VAE = "WanTransformer3DModel", "AutoencoderKLWan"
"""What diffusers calls the classes of our parts; relatives such as VACE, Animate and S2V have others."""
JOINT = "joint"
"""The folder of X-WAM's own parts, in a backbone that was imported."""
OLD_CHANNELS = 16
VIEWS_FILE = "view_embedding.safetensors"
"""Ours, beside a transformer's weights."""
STEMS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call the files of a part's weights."""
MAX_TEXT_LEN = 512
"""Text positions of the Wan models."""
INDEX = ".safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "spiece.model")
"""Either holds a tokenizer's words; one of bytes needs none."""
_NUMBERED = re.compile(r"(.+-)(\d{5})-of-(\d{5})\.safetensors")


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
        for path in weight_files(folder / name):
            require_whole(path)


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


def weight_files(part: Path) -> list[Path]:
    """The files that hold the weights of a part: those of its index, or its one file, and none beside them.

    Raises:
        UserError: some are missing, or it cannot be told which they are.
    """
    for stem in STEMS:
        one, index = part / f"{stem}.safetensors", part / f"{stem}{INDEX}"
        if one.is_file() and index.is_file():
            raise UserError(
                f"holds one file of weights ({one.name}) and an index of several: two downloads in one folder",
                part,
                "remove the older of them",
            )
        if one.is_file() or one.is_symlink():
            return [one]
        if index.is_file():
            return [part / name for name in _require_there(part, _indexed(index))]
    numbered = [found for path in sorted(part.glob("*.safetensors")) if (found := _NUMBERED.fullmatch(path.name))]
    if numbered:
        stem, total = numbered[0][1], numbered[0][3]
        _require_there(part, {f"{stem}{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1)})
        raise incomplete(part, f"{stem.rstrip('-')}{INDEX}")
    others = [path.name for path in sorted(part.glob("*.safetensors")) if path.name != VIEWS_FILE]
    wanted = " nor ".join(f"{stem}.safetensors" for stem in STEMS)
    raise incomplete(part, f"{wanted}, but {listed(others, 2)}" if others else "*.safetensors")


def _indexed(index: Path) -> set[str]:
    try:
        return {str(name) for name in read_json(index)["weight_map"].values()}
    except (KeyError, TypeError, AttributeError):
        raise UserError("is no index of safetensors (no weight_map)", index, again(index)) from None


def _require_there(part: Path, names: set[str]) -> list[str]:
    if absent := sorted(name for name in names if not (part / name).is_file()):
        raise incomplete(part, listed([absent[0], *(f"{part.name}/{name}" for name in absent[1:])], 3))
    return sorted(names)


def incomplete(part: Path, names: str) -> UserError:
    """That files of a part are missing."""
    return UserError(f"the part {part.name!r} is incomplete (no {part.name}/{names})", part.parent, again(part))


def text_positions(longest: float | None) -> int:
    """Text positions that are fed, by a tokenizer's `model_max_length`: fewer than the models have, or nothing said."""
    return min(int(longest or MAX_TEXT_LEN), MAX_TEXT_LEN)


def require_whole(path: Path) -> None:
    """Raise a `UserError` unless a safetensors file is there to its last byte, as its own header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return
    except (SafetensorError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        found = stand_in(path) or (f"is cut off or damaged ({reason})", "")
        fix = found[1] if found[1].startswith("run `git") else again(path)
        raise UserError(found[0], path, fix) from error


def again(path: Path) -> str:
    """How a file that is damaged, or what a folder lacks, is downloaded again.

    A file that is there counts as downloaded, however little of it is, and in the hub's cache it is a link to a blob
    that stays: so it is removed first, or the download forced.
    """
    there = path.is_file()
    for folder in path.parents:
        if (repo := hub.fetched_from(folder)) is not None:
            file = f"{quote(path.relative_to(folder).as_posix())} --force-download " if there else ""
            return f"fetch it again, with network: hf download {repo.id} {file}--revision {repo.revision}"
    first = "remove it, and " if there else ""
    if any((folder / JOINT / "config.json").is_file() for folder in path.parents):  # Wan's weights are not X-WAM's
        return f"{first}copy it again from where it came, or import the checkpoint again: data_tools/import_xwam.py"
    return f"{first}copy it again from where it came, or fetch it: hf download {PUBLISHED} --local-dir FOLDER"


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError("holds no settings by name", path, again(path))
    return found
