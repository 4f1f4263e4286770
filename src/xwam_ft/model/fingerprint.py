"""Content hashes of model parts: two backbones are the same if their configurations and weights are.

34 GB take a minute to hash, on every command and every rank; so a folder's hash is remembered beside other caches of
the user, under the paths, sizes, times and inodes of its files. Among the times is the one at which a file's record
changed (ctime), which nobody can set: one that is written over, or replaced by another of the same size and time, is
another file. Files touched within the last seconds are hashed without being remembered: another change in the same tick
of the clock could not be told.

The Hub's client writes down the hash of what it fetches, and while a file is read this is compared as well: what a full
disk or a lost machine left may have its whole size and header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.files import write_json_atomic
from xwam_ft.model.folder_check import FOLDERS, Part
from xwam_ft.model.stored_part import JOINT, again
from xwam_ft.model.tiny import UNTRAINED, untrained_transformer
from xwam_ft.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.progress import Advance

_BLOCK = 1 << 24


_SMALL = 1 << 24
"""Bytes below which hashing costs less than looking it up is worth."""
_RECORDS = Path(".cache") / "huggingface" / "download"
"""Where `hf download --local-dir` writes down what it fetched."""
_TICK = 5.0
_REMEMBERED = 256


def part_fingerprint(path: str, folder: Path, part: Part, console: Console | None = None) -> str:
    """Content hash of a part of the backbone `path`, whose files lie in `folder`; `console` is shown how far it is."""
    if path == UNTRAINED and part == "transformer":
        # Of a fresh build: the loaded one may be cast or carry adapters by now.
        return module_fingerprint({"transformer": untrained_transformer()})
    return folder_fingerprint(folder, fingerprinted(part), console)


def fingerprinted(part: Part) -> tuple[str, ...]:
    """The folders of a part; X-WAM's own parts, where there are any, belong to its transformer."""
    return (*FOLDERS[part], JOINT) if part == "transformer" else FOLDERS[part]


def folder_fingerprint(folder: Path, parts: Iterable[str], console: Console | None = None) -> str:
    """sha256 over names and bytes of the .json and .safetensors files below each part, streamed, or as remembered."""
    files = [path for part in parts for path in sorted((folder / part).rglob("*")) if _counts(path)]
    stats = [(path.relative_to(folder).as_posix(), path.resolve(), path.stat()) for path in files]
    total = sum(stat.st_size for _, _, stat in stats)
    if total < _SMALL:
        return _hash(folder, files)
    known = [[name, str(real), *_record(stat)] for name, real, stat in stats]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    remembered = _remembered()
    if key in remembered:
        return remembered[key]
    if console is not None:
        with progress_bar(console, f"hash {files[0].relative_to(folder).parts[0]}", "bytes", total) as advance:
            found = _hash(folder, files, advance)
    else:
        found = _hash(folder, files)
    same = all(_record(path.stat()) == _record(stat) for path, (_, _, stat) in zip(files, stats, strict=True))
    if same and all(time.time() - max(stat.st_mtime, stat.st_ctime) > _TICK for _, _, stat in stats):
        _remember(key, found)
    return found


def _record(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _counts(path: Path) -> bool:
    return path.suffix in (".json", ".safetensors", ".model") and path.is_file()


def _hash(folder: Path, files: Iterable[Path], advance: Advance | None = None) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        own, wanted = _known_hash(folder, path, size)
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                if advance is not None:
                    advance(len(block))
                if own is not None:
                    own.update(block)
        if own is not None and own.hexdigest() != wanted:
            raise UserError("is damaged: its content is not what the Hub has under its name", path, again(path))
    return digest.hexdigest()


def _known_hash(folder: Path, path: Path, size: int) -> tuple[Any, str]:
    """What hashes a file that the Hub's client fetched, and its hash as the Hub says; None where nobody said one.

    Large files are known by their SHA-256, others by git's SHA-1. It is a blob's name in the Hub's cache; in a folder
    that was downloaded it stands beside the time, after which people may have changed a file on purpose.
    """
    blob, wanted = path.resolve(), ""
    if blob.parent.name == "blobs":
        wanted = blob.name
    elif (record := folder / _RECORDS / f"{path.relative_to(folder).as_posix()}.metadata").is_file():
        _, etag, at = (*record.read_text(encoding="utf-8").splitlines(), "", "", "")[:3]
        if re.fullmatch(r"\d+(\.\d*)?", at) and path.stat().st_mtime <= float(at) + 1:
            wanted = etag
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", wanted):
        return None, ""
    return hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(b"blob %d\0" % size), wanted


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xwam-ft" / "fingerprints.json"


def _remembered() -> dict[str, str]:
    try:
        found = json.loads(_place().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none yet, or damaged: everything is hashed again
    return found if isinstance(found, dict) else {}


def _remember(key: str, found: str) -> None:
    kept = dict(list(_remembered().items())[1 - _REMEMBERED :]) | {key: found}
    with contextlib.suppress(OSError):  # a home that cannot be written to costs time, nothing else
        write_json_atomic(_place(), kept)


def module_fingerprint(modules: Mapping[str, Any]) -> str:
    """sha256 over the configurations and float32 weights of modules in memory."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        digest.update(name.encode())
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        # Keys with an underscore are bookkeeping: diffusers lists defaults in an order that differs by process.
        shown = {
            key: value
            for key, value in config.items()
            if "version" not in key and key != "dtype" and not key.startswith("_")
        }
        digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
        for key, tensor in sorted(module.state_dict().items()):
            digest.update(f"{key}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
