"""Weights that stay in their files until it is known which of their rows a process holds.

A transformer lies on the meta device meanwhile; what a network adds to it (adapters, heads, views, tables) is drawn as
ever. Under FSDP2 each process then reads its own rows alone (sharding.py), and none ever holds the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from xwam_ft.errors import UserError, listed
from xwam_ft.model.load_part import cast_weights
from xwam_ft.model.stored_part import StoredPart

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.joint import JointWeights

BRANCH = "depth_branch.blocks."


@dataclass(frozen=True)
class StoredRows:
    """A tensor in a file.

    Args:
        shape: of the whole.
        dtype: what its numbers are rounded to, as where the whole is loaded; a parameter may be wider.
        take: reads some rows, into memory of their own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    take: Callable[[slice], Tensor]

    def read(self, rows: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows [n, ...] in memory of their own."""
        start, stop, _ = rows.indices(self.shape[0])
        if stop <= start:
            return torch.empty((0, *self.shape[1:]), dtype=dtype, device=device)
        return self.take(slice(start, stop)).to(self.dtype).to(device, dtype)


def held_rows(parameter: Tensor) -> slice:
    """The rows of a parameter that this process holds: all, unless it is cut (fully_shard deals rows out evenly)."""
    if not isinstance(parameter, DTensor):
        return slice(None)
    mesh = parameter.device_mesh
    most = -(-len(parameter) // mesh.size())
    first = min(mesh.get_local_rank() * most, len(parameter))
    return slice(first, min(first + most, len(parameter)))


def held_part(whole: Tensor, parameter: Tensor) -> Tensor:
    """A view of what this process holds of a whole tensor that goes where `parameter` is."""
    return whole if whole.ndim == 0 else whole[held_rows(parameter)]


def defer_transformer(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, StoredRows]]:
    """Wan's transformer of `folder` on the meta device, and its weights by name as they lie in its files.

    Raises:
        UserError: a weight that is in none of the files, or has another shape there.
    """
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
    from safetensors import safe_open

    part = StoredPart.find(folder)
    with torch.device("meta"):
        transformer: Any = WanTransformer3DModel.from_config(part.config())
    of = transformer.config  # its tables are reckoned, and in no file
    transformer.rope = WanRotaryPosEmbed(of.attention_head_dim, tuple(of.patch_size), of.rope_max_seq_len)
    cast_weights(transformer, dtype)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in part.files:
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - a file handle, not a dict
                files[name], shapes[name] = file, tuple(stored.get_slice(name).get_shape())
    wanted = dict(transformer.named_parameters())
    fix = "download the folder again: it may be of another model"
    if absent := [name for name in wanted if name not in files]:
        raise UserError(f"{listed(absent, 3)} {'is' if len(absent) == 1 else 'are'} in none of its files", folder, fix)
    odd = [
        f"{name} {list(shapes[name])} (wanted {list(tensor.shape)})"
        for name, tensor in wanted.items()
        if shapes[name] != tuple(tensor.shape)
    ]
    if odd:
        raise UserError(f"{listed(odd, 3)}: of another shape than its config.json says", folder, fix)
    part.require_used(transformer, files)
    rows = {name: StoredRows(shapes[name], p.dtype, _taker(files[name], name)) for name, p in wanted.items()}
    return transformer, rows


def _taker(file: Path, name: str) -> Callable[[slice], Tensor]:
    def take(rows: slice) -> Tensor:
        from safetensors import safe_open

        # Opened for each tensor: a file held open stays mapped, and the pages read would count as ours.
        with safe_open(file, "pt") as stored:
            return stored.get_slice(name)[rows].clone()

    return take


def deferred_parameters(
    network: nn.Module, rows: Mapping[str, StoredRows], joint: JointWeights | None
) -> dict[str, StoredRows]:
    """What each parameter of a prepared network that lies on the meta device is read from, by its name there.

    Args:
        rows: of the transformer (`defer_transformer`).
        joint: of the backbone, where it brings a depth branch of its own.
    """
    plain = {name: name.replace(".base_layer.", ".") for name, _ in network.named_parameters()}
    branch = {name for name in plain.values() if name.startswith("depth_branch.") and ".lora_" not in name}
    brought: Mapping[str, Tensor] = {} if joint is None else joint.tensors
    if branch != {name for name in brought if name.startswith("depth_branch.")}:
        brought = {}  # as `graft` decides
    blocks: Any = network.get_submodule("transformer.blocks")
    copied: Any = network.get_submodule(BRANCH.rstrip(".")) if any(n.startswith(BRANCH) for n in branch) else ()
    first = len(blocks) - len(copied)

    def source(name: str) -> StoredRows:
        if not name.startswith(BRANCH):
            return rows[name.removeprefix("transformer.")]
        number, _, rest = name.removeprefix(BRANCH).partition(".")
        block = rows[f"blocks.{first + int(number)}.{rest}"]
        if name not in brought:
            return block
        tensor = brought[name]
        return StoredRows(tuple(tensor.shape), block.dtype, lambda part: tensor[part].clone())

    return {name: source(plain[name]) for name, parameter in network.named_parameters() if parameter.is_meta}


@contextmanager
def weights_stood_in(module: nn.Module) -> Generator[None]:
    """Give linears on the meta device weights of their shape on the CPU meanwhile, that hold one number each.

    peft draws an adapter beside its layer and moves it to where the layer's weight is: to the meta device it would be
    lost.
    """
    linears = [part for part in module.modules() if isinstance(part, nn.Linear) and part.weight.is_meta]
    held = [linear.weight for linear in linears]
    for linear, weight in zip(linears, held, strict=True):
        one = torch.zeros((), dtype=weight.dtype, device="cpu").expand(weight.shape)
        linear.weight = nn.Parameter(one, requires_grad=False)
    try:
        yield
    finally:
        for linear, weight in zip(linears, held, strict=True):
            linear.weight = weight
