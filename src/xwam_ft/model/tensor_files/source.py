"""Open a checkpoint in any of its forms: names, shapes and dtypes at once, each tensor when it is asked for.

Forms: a DeepSpeed folder (`.../last.ckpt/checkpoint/mp_rank_00_model_states.pt`; any folder on that way, or the file),
a torch file with a state dict (under `module`, `state_dict`, or by itself), and safetensors (a file, or a folder with
several and their index).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from xwam_ft.consoles import setting
from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.model.tensor_files.torch_zip import AGAIN, StoredTensor, TorchZip

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATES = "mp_rank_00_model_states.pt"
_STEPS = ("", "checkpoint", "last.ckpt/checkpoint", "checkpoints/last.ckpt/checkpoint")
HALVES = ("high_noise_model", "low_noise_model")
"""Folders of Wan2.2's A14B models, which are two transformers."""
_TORCH = (".pt", ".pth", ".ckpt", ".bin")
SUPPORTED = "Wan2.2-TI2V-5B and X-WAM checkpoints made from it are supported"
FORMS = (
    f"a DeepSpeed folder (with checkpoint/{STATES}), a torch file with a state dict, or safetensors with their index"
)


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint; `read` fetches it (a CPU tensor of its own memory)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class StoredTensors:
    """An open checkpoint.

    Args:
        where: the file or folder its tensors come from.
        tensors: by the names they have there.
        config: constructor values stored beside or in it ({} where there are none).
        ignored: entries that are no weights, with the reason.
        stand_ins: classes and functions that a torch file names; none of them ran.
    """

    where: Path
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    stand_ins: tuple[str, ...] = ()


def open_checkpoint(path: Path) -> StoredTensors:
    """Find the form of `path` and list its tensors.

    Raises:
        UserError: no such path, no known form, files missing, truncated or damaged, or a pickle without tensors.
    """
    if not path.exists():
        raise UserError("no such file or folder", path, f"give {FORMS}")
    if path.is_file():
        return open_safetensors([path]) if path.suffix == ".safetensors" else _open_torch(path)
    if any((path / half).is_dir() for half in HALVES):
        raise UserError("is a Wan2.2-A14B model of two transformers", path, f"give another: {SUPPORTED}")
    if (states := find_states(path)) is not None:
        if others := sorted(states.parent.glob("mp_rank_0[1-9]_model_states.pt")):
            raise UserError(
                f"is split over {len(others) + 1} model-parallel ranks", states.parent, "gather it into one file first"
            )
        return _open_torch(states)
    if (path / "transformer" / "config.json").is_file():
        raise UserError("is a backbone folder already", path, "write it as `backbone.path` in the recipe")
    if files := _safetensors_of(path):
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        return open_safetensors(files, path, config)
    torch_files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix in _TORCH)
    if len(torch_files) == 1:
        return _open_torch(torch_files[0])
    found = listed(sorted(entry.name for entry in path.iterdir()), 6)
    raise UserError(f"holds no checkpoint that can be read (it has {found})", path, f"give {FORMS}")


def find_states(path: Path) -> Path | None:
    """The DeepSpeed states file at or below a folder, where there is one."""
    candidates = (path / step / STATES for step in _STEPS)
    return next((file for file in candidates if file.is_file()), None)


def _safetensors_of(folder: Path) -> list[Path]:
    """The safetensors of a folder, complete by their index or by their own numbers."""
    files = sorted(folder.glob("*.safetensors"))
    wanted = {file.name for file in files}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            wanted |= set(read_json(index)["weight_map"].values())
        except (KeyError, TypeError, AttributeError):
            raise UserError("is no index of safetensors (no weight_map)", index, AGAIN) from None
    for file in files:
        if numbered := re.fullmatch(r"(.+-)(\d{5})-of-(\d{5})\.safetensors", file.name):
            stem, _, total = numbered.groups()
            wanted |= {f"{stem}{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1)}
    if missing := sorted(wanted - {file.name for file in files}):
        raise UserError(f"is half downloaded: {listed(missing, 4)} missing", folder, "fetch those files too")
    return files


def open_safetensors(
    files: list[Path], where: Path | None = None, config: Mapping[str, Any] | None = None
) -> StoredTensors:
    """List the tensors of safetensors files.

    Args:
        where: what they are named by; default the first of them.
        config: of their network; default what their metadata say.

    Raises:
        UserError: one is truncated, holds a tensor of another file too, or a type we do not know.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Stored] = {}
    found = dict(config or {})
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                metadata, places = stored.metadata() or {}, _places(file)
                for name in stored.keys():  # noqa: SIM118 - a file handle, not a dict
                    if name in tensors:
                        raise UserError(f"holds {name} twice, the second time in {file.name}", file.parent, AGAIN)
                    piece = stored.get_slice(name)
                    shape, dtype = tuple(piece.get_shape()), _dtype(piece.get_dtype(), file)
                    tensors[name] = Stored(shape, dtype, _getter(file, places[name], shape, dtype))
        except (SafetensorError, OSError) as error:
            raise UserError(f"is truncated, or not safetensors ({error})", file, AGAIN) from None
        if not found and "config" in metadata:
            try:
                found = json.loads(metadata["config"])
            except json.JSONDecodeError as error:
                raise UserError(f"its metadata `config` is not JSON ({error})", file, AGAIN) from None
    return StoredTensors(where or files[0], tensors, found)


def _places(file: Path) -> dict[str, int]:
    """Where each tensor's bytes start in a safetensors file that the library has opened, and so checked."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    return {name: 8 + size + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}


def _getter(file: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    def read() -> Tensor:
        import torch

        # Read, not mapped as by the library: a mapped page that is read once costs several times its copying.
        data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        with file.open("rb") as stream:
            stream.seek(start)
            if stream.readinto(data.numpy().data) != len(data):  # pyright: ignore[reportAttributeAccessIssue]
                raise UserError("has become shorter while it was read", file, AGAIN)
        return data.view(dtype).reshape(shape)

    return read


def _dtype(name: str, file: Path) -> torch.dtype:
    import torch

    known = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    if name not in known:
        raise UserError(f"holds tensors of type {name}", file, f"give one of {listed(known)}")
    return known[name]


def _open_torch(path: Path) -> StoredTensors:
    archive = TorchZip(path)
    content, ignored = archive.content, dict[str, str]()
    state = content
    if isinstance(content, dict):
        for key in ("module", "state_dict"):
            if isinstance(content.get(key), dict) and content[key]:
                state = content[key]
                ignored = {str(name): "training state, no weights" for name in content if name != key}
                break
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        asks = f"; it asks for {listed(archive.stand_ins, 4)}, which was not run" if archive.stand_ins else ""
        raise UserError(f"holds no dict of tensors{asks}", path, f"give {FORMS}")
    if odd := _odd(state.items()):
        raise UserError(f"{listed(odd, 4)} in its weights are not tensors", path, f"give {FORMS}")
    tensors = {name: Stored(value.shape, value.dtype, _reader(archive, value)) for name, value in state.items()}
    return StoredTensors(path, tensors, ignored=ignored, stand_ins=archive.stand_ins)


def _odd(items: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{name!r:.80}" for name, value in items if not (isinstance(name, str) and isinstance(value, StoredTensor))]


def _reader(archive: TorchZip, stored: StoredTensor) -> Callable[[], Tensor]:
    return lambda: archive.read(stored)


def needs_import(path: Path) -> bool:
    """Whether a path holds weights in a form that `open_checkpoint` reads and no backbone folder does."""
    if path.is_file():
        return path.suffix in (*_TORCH, ".safetensors")
    if not path.is_dir() or (path / "transformer").is_dir():
        return False
    wan = any(path.glob("*.safetensors")) or any((path / half).is_dir() for half in HALVES)
    return wan or find_states(path) is not None


def bundle_backbone(path: Path) -> str | None:
    """The backbone that a bundle was trained on; None where a path is no bundle."""
    if not all((path / name).is_file() for name in ("manifest.json", "contract.json", "config.json")):
        return None
    return str(read_json(path / "config.json").get("backbone", {}).get("path"))


def refuse_bundle(path: Path) -> None:
    """Raise a `UserError` saying how to train on where a path is one of our own bundles."""
    if (backbone := bundle_backbone(path)) is not None:
        raise UserError(
            "is a bundle, not a backbone",
            path,
            f"start from what it learned: xwam-ft train RECIPE --init {quote(str(path))} "
            f"{setting('backbone.path', backbone)}",
        )
