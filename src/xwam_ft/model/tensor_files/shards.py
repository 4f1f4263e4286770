"""Write tensors into safetensors shards with an index, one shard in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xwam_ft.errors import UserError
from xwam_ft.files import json_bytes
from xwam_ft.model.tensor_files.stream import all_finite

if TYPE_CHECKING:
    from xwam_ft.model.tensor_files.source import Stored
    from xwam_ft.progress import Advance


@dataclass(frozen=True)
class Move:
    """One tensor on its way: where it is, what it was and will be called, and its dtype there."""

    stored: Stored
    source: str
    target: str
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.stored.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


def write_shards(folder: Path, stem: str, moves: Sequence[Move], limit: int, where: object, advance: Advance) -> None:
    """Write `stem`.safetensors, or `stem`-0000i-of-0000n.safetensors and their index where they exceed `limit` bytes.

    Args:
        where: the checkpoint, for messages.
        advance: called with the bytes of each tensor when it is read.

    Raises:
        UserError: a tensor that holds numbers that are not finite (it is named).
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.torch import save_file

    by_name = {move.target: move for move in moves}
    plan = split_state_dict_into_shards_factory(
        by_name, get_storage_size=_size, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=limit
    )
    for name, targets in plan.filename_to_tensors.items():
        tensors: dict[str, torch.Tensor] = {}
        for target in targets:
            move = by_name[target]
            tensor = move.stored.read()
            if not all_finite(tensor):
                raise UserError(
                    f"{move.source} holds numbers that are not finite", where, "do not use these weights; train again"
                )
            tensors[target] = tensor.to(move.dtype).contiguous()
            advance(move.bytes)
        save_file(tensors, folder / name, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_bytes(json_bytes(index))


def _size(move: Move) -> int:
    return move.bytes
