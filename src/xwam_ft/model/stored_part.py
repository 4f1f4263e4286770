"""The files that hold one part of a backbone: which they are, whether they are whole, and a loaded module against them.

diffusers and transformers go on, with a line in a log at most, where a weight of the module has no counterpart in the
files: it stays as it was drawn. transformers 5.0 to 5.2 leave the embedding of Wan's text encoder so (untied, and its
file holds `shared.weight` alone), and every instruction then means the same. Hence `require_loaded`, whatever the
version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from xwam_ft import hub
from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json, stand_in

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
JOINT = "joint"
"""The folder of X-WAM's own parts, in a backbone that was imported."""
VIEWS_FILE = "view_embedding.safetensors"
"""Ours, beside a transformer's weights."""
STEMS = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call the files of a part's weights."""
INDEX = ".safetensors.index.json"
SHARED, EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"
"""Names of the token embedding: as UMT5's file holds it, and as its encoder reads it."""
OTHER_NAME = {SHARED: EMBEDDING, EMBEDDING: SHARED}
CHUNK = 16384
"""Rows of the embedding compared at a time."""
_NUMBERED = re.compile(r"(.+-)(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class StoredPart:
    """The weights of one part, in the safetensors files that hold them.

    Args:
        folder: of the part, such as BACKBONE/transformer; its config.json lies there too.
        files: those of its index, or its one file, and none beside them.
    """

    folder: Path
    files: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path) -> StoredPart:
        """What a folder holds.

        Raises:
            UserError: some files are missing, or it cannot be told which they are.
        """
        for stem in STEMS:
            one, index = folder / f"{stem}.safetensors", folder / f"{stem}{INDEX}"
            if one.is_file() and index.is_file():
                raise UserError(
                    f"holds one file of weights ({one.name}) and an index of several: two downloads in one folder",
                    folder,
                    "remove the older of them",
                )
            if one.is_file() or one.is_symlink():
                return cls(folder, (one,))
            if index.is_file():
                return cls(folder, tuple(folder / name for name in _require_there(folder, _indexed(index))))
        numbered = [found for path in sorted(folder.glob("*.safetensors")) if (found := _NUMBERED.fullmatch(path.name))]
        if numbered:
            stem, total = numbered[0][1], numbered[0][3]
            _require_there(
                folder, {f"{stem}{number:05d}-of-{total}.safetensors" for number in range(1, int(total) + 1)}
            )
            raise incomplete(folder, f"{stem.rstrip('-')}{INDEX}")
        others = [path.name for path in sorted(folder.glob("*.safetensors")) if path.name != VIEWS_FILE]
        wanted = " nor ".join(f"{stem}.safetensors" for stem in STEMS)
        raise incomplete(folder, f"{wanted}, but {listed(others, 2)}" if others else "*.safetensors")

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    def places(self) -> dict[str, Path]:
        """The file of each weight, by name."""
        from safetensors import safe_open

        found: dict[str, Path] = {}
        for path in self.files:
            with safe_open(path, "pt") as stored:
                found |= dict.fromkeys(stored.keys(), path)
        return found

    def require_whole(self) -> None:
        """Raise a `UserError` unless each file is there to its last byte, as its own header says."""
        from safetensors import SafetensorError, safe_open

        for path in self.files:
            try:
                with safe_open(path, "pt"):
                    continue
            except (SafetensorError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                found = stand_in(path) or (f"is cut off or damaged ({reason})", "")
                fix = found[1] if found[1].startswith("run `git") else again(path)
                raise UserError(found[0], path, fix) from error

    def require_used(self, module: Any, names: Iterable[str]) -> None:
        """Raise a `UserError` where the module has no place for one of these weights: it is built as another model.

        A configuration with fewer blocks than the files have gives a network that runs and is not the trained one.
        """
        known, ignored = set(module.state_dict()), module._keys_to_ignore_on_load_unexpected or ()
        strange = [name for name in names if name not in known and not any(re.search(each, name) for each in ignored)]
        if strange:
            what = f"its files hold {listed(sorted(strange), 3)}, which its config.json has no place for"
            raise UserError(what, self.folder, again(self.folder / "config.json"))

    def require_loaded(self, module: Any, libraries: str) -> None:
        """Compare a freshly loaded module with the files.

        Of each tensor the first row is compared, of the token embedding all of them; a tensor without a counterpart in
        the files is refused. Numbers of the file are rounded to the dtype they were loaded in.

        Args:
            libraries: what loaded it, for the sentence: "transformers 5.24.0".

        Raises:
            UserError: a weight that is not what the files hold.
        """
        import torch
        from safetensors import safe_open

        handles = [safe_open(path, "pt") for path in self.files]
        stored: dict[str, Any] = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
        absent: list[str] = []
        for name, tensor in module.state_dict().items():
            source = other if (other := OTHER_NAME.get(name)) in stored and name not in stored else name
            if source not in stored:
                absent.append(name)
            elif not _equal(tensor, stored[source].get_slice(source), whole=name in (SHARED, EMBEDDING)):
                if not torch.isfinite(stored[source].get_tensor(source).float()).all():
                    what = f"its files hold {name}, not all of whose numbers are finite"
                    raise UserError(what, self.folder, again(self.folder))
                raise self._differs(f"{name} is not what its file holds once {libraries} has loaded it")
        if absent:
            raise self._differs(f"{listed(absent, 3)} {'is' if len(absent) == 1 else 'are'} in none of its files")

    def _differs(self, what: str) -> UserError:
        fix = (
            "install the versions that were tried (pip install -U xwam-ft), or download the folder again: it may be of "
            "another model"
        )
        return UserError(what, self.folder, fix)


def _indexed(index: Path) -> set[str]:
    try:
        return {str(name) for name in read_json(index)["weight_map"].values()}
    except (KeyError, TypeError, AttributeError):
        raise UserError("is no index of safetensors (no weight_map)", index, again(index)) from None


def _require_there(part: Path, names: set[str]) -> list[str]:
    if absent := sorted(name for name in names if not (part / name).is_file()):
        raise incomplete(part, listed([absent[0], *(f"{part.name}/{name}" for name in absent[1:])], 3))
    return sorted(names)


def _equal(tensor: Tensor, stored: Any, *, whole: bool) -> bool:
    import torch

    if list(tensor.shape) != list(stored.get_shape()):
        return False
    if tensor.ndim == 0:
        return bool(torch.equal(tensor.detach(), stored[...].to(tensor.dtype)))
    rows = len(tensor) if whole else min(len(tensor), 1)
    parts = [slice(first, min(first + CHUNK, rows)) for first in range(0, rows, CHUNK)]
    return all(torch.equal(tensor[part].detach(), stored[part].to(tensor.dtype)) for part in parts)


def incomplete(part: Path, names: str) -> UserError:
    """That files of a part are missing."""
    return UserError(f"the part {part.name!r} is incomplete (no {part.name}/{names})", part.parent, again(part))


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
