"""Content hashes of model parts: two backbones are the same if their configurations and weights are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

_BLOCK = 1 << 24


def folder_fingerprint(folder: Path, parts: Iterable[str]) -> str:
    """sha256 over names and bytes of the .json and .safetensors files below each part, streamed."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".model") or not path.is_file():
                continue
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


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
