"""What an export will write and hold, said before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xwam_ft.export.reference_file import frozen_parts, reference_pieces
from xwam_ft.export.weights import DTYPES
from xwam_ft.files import require_room
from xwam_ft.machine import gigabytes
from xwam_ft.model.backbone import locate_backbone
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.policy import text_encoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xwam_ft.export.checkpoint import Job
    from xwam_ft.model.tensor_files.source import Stored
    from xwam_ft.model.tensor_files.stream import Piece

SPARE = 1.25
"""Memory a network needs to answer, over that of its weights."""
MERGING = 4
"""Copies of a layer, in float32, that merging it takes."""
LEAST = 1_000_000_000  # what the libraries take themselves


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Args:
        disk: written.
        memory: by what is done, the largest part first; writing itself holds one tensor at a time.
    """

    disk: int
    memory: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in self.memory)
        return f"writes {gigabytes(self.disk)}; memory, one after the other: {parts}"


def needs_of(job: Job, format: str, wan: Path | None) -> Needs:
    """Read from names and shapes alone.

    Raises:
        UserError: as opening Wan's files, where they are wanted.
    """
    if format in ("peft", "diffusers"):
        size = _bytes(job.weights.trained.values())
        return Needs(size, (("adapters", LEAST + size),))
    if format == "xwam":
        assert wan is not None, "checked with the options"
        frozen = frozen_parts(job.folder.recipe.backbone.path, job.folder.recipe.backbone.revision, wan)
        pieces = reference_pieces(job.weights, DTYPES[job.dtype], frozen)
        return Needs(sum(piece.bytes for piece in pieces), (("writing", _writing(pieces)),))
    spec, pieces = job.folder.recipe.backbone, job.pieces()
    size = sum(piece.bytes for piece in pieces)
    encoder = 0
    if job.encoder is not None:
        encoder = sum(piece.bytes for piece in text_encoder.pieces(spec.path, spec.revision, job.encoder))
    parts = [
        ("embedding instructions", LEAST + _text_bytes(job)),
        ("writing", _writing(pieces)),
        ("asking the network for its proofs", LEAST + int(size * SPARE)),
    ]
    return Needs(size + encoder, tuple(sorted(parts, key=lambda part: -part[1])))


def require_disk(draft: Path, needs: Needs) -> None:
    """Raise a `UserError` unless the disk has room for what will be written."""
    require_room(draft, needs.disk)


def lacking(size: int, free: int) -> str | None:
    """Why a network of `size` bytes cannot be asked here; None where it can."""
    need = int(size * SPARE)
    return None if need <= free else f"it takes {gigabytes(need)} of memory, and {gigabytes(free)} are free"


def _writing(pieces: Iterable[Piece]) -> int:
    """The largest tensor, in float32, as often as merging holds it."""
    return LEAST + MERGING * 4 * max(piece.bytes // piece.dtype.itemsize for piece in pieces)


def _text_bytes(job: Job) -> int:
    """Of the backbone's text encoder, in the dtype it is loaded in."""
    spec = job.folder.recipe.backbone
    folder = locate_backbone(spec.path, ("text",), spec.revision) / "text_encoder"
    return _bytes(open_checkpoint(folder).tensors.values(), DTYPES[spec.dtype])


def _bytes(tensors: Iterable[Stored], dtype: torch.dtype | None = None) -> int:
    return sum(math.prod(stored.shape) * (dtype or stored.dtype).itemsize for stored in tensors)
