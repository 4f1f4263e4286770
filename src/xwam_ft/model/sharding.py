"""FSDP2: weights, gradients and AdamW's state of a run cut over its processes (torch's `fully_shard`).

One group a transformer block, gathered when the block runs, and one of all that lies outside the blocks. Outside a
forward pass a trained parameter is a `DTensor` that holds this process' rows. Checkpoints are of whole tensors
(`gathered`, `placed_like`), so a run may be resumed with any strategy. Under the others nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from xwam_ft.errors import listed
from xwam_ft.model.deferred import held_part, held_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xwam_ft.model.deferred import StoredRows
    from xwam_ft.model.network import JointNetwork


def shard(network: JointNetwork, device: torch.device, processes: int, *, mixed: bool = False) -> None:
    """Cut every parameter of a network over the process group, block by block moved to `device`; in place.

    What lies on the meta device stays there, cut (`read_rows`).

    Args:
        mixed: gather blocks in bfloat16, half the bytes. Weights are held and gradients summed in float32; so are
            the stream between blocks and all that lies outside of them.
    """
    mesh = init_device_mesh(device.type, (processes,))
    network.call_blocks()
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in sharded_blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=half if mixed else MixedPrecisionPolicy())
    # Nothing is won by letting go of the outermost group between forward and backward.
    fully_shard(network, mesh=mesh, reshard_after_forward=False)


def sharded_blocks(network: JointNetwork) -> list[nn.Module]:
    """The blocks that are a group each; all other parameters are one more."""
    branch = network.depth_branch
    copies = [] if branch is None or network.config.depth_shared else list(branch.blocks)
    return [*network.transformer.blocks, *copies]


def share(parameter: Tensor, processes: int) -> int:
    """Numbers of a parameter that the first process holds: its rows are dealt out evenly, the last ones less."""
    return parameter.numel() if processes == 1 else -(-len(parameter) // processes) * math.prod(parameter.shape[1:])


@dataclass(frozen=True)
class Gathered:
    """Bytes that are whole on a device for a while, beside the parts it holds.

    Args:
        weights: while training: what lies outside the blocks, the block at work and the one fetched meanwhile.
        gradients: of what lies outside the blocks and of a block, until they are summed over devices.
        network: in validation, all weights.
    """

    weights: int
    gradients: int
    network: int


def gathered_bytes(network: JointNetwork, *, mixed: bool = False) -> Gathered:
    """What `shard` makes each of several processes gather; the network itself may be whole and on any device."""
    blocks = [list(block.parameters()) for block in sharded_blocks(network)]
    inside = {id(parameter) for block in blocks for parameter in block}
    outside = [parameter for parameter in network.parameters() if id(parameter) not in inside]

    def held(parameters: list[nn.Parameter]) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    def trained(parameters: list[nn.Parameter]) -> int:
        return held([parameter for parameter in parameters if parameter.requires_grad])

    def sent(block: list[nn.Parameter]) -> int:
        return 2 * sum(parameter.numel() for parameter in block) if mixed else held(block)

    sizes = [sent(block) for block in blocks]
    return Gathered(
        weights=held(outside) + sum(sorted(sizes)[-2:]),
        gradients=trained(outside) + max(map(trained, blocks)),
        network=held(outside) + sum(sizes),
    )


def is_sharded(network: JointNetwork) -> bool:
    return isinstance(network, FSDPModule)


@contextmanager
def whole(network: JointNetwork) -> Generator[None]:
    """Every process holds the whole network meanwhile, so that any of its parts can be called; all enter together.

    They must also run it equally often: FSDP counts forward passes, and so orders the gathering of the next step.
    """
    groups: list[Any] = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.reshard()
            group.set_reshard_after_forward(group is not network, recurse=False)


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The whole of each tensor, gathered one after another; on the CPU where it was sharded. All call it together.

    Args:
        keep: whether this process wants them; where not, it takes part and returns nothing.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        if keep:
            found[name] = full
    return found


def whole_number(value: Tensor) -> Tensor:
    """A scalar that may be cut over processes, whole on its device: nothing waits for it. All call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, equal on every process, on the parameter's device and cut as it is; a scalar stays whole.

    Of a tensor that is mapped to its file this process' rows alone are read.
    """
    if not isinstance(parameter, DTensor) or value.ndim == 0:
        return value.to(parameter.device)
    return _cut_like(parameter, held_part(value, parameter).to(parameter.device, copy=True))


def read_rows(network: JointNetwork, stored: Mapping[str, StoredRows], device: torch.device) -> None:
    """Read what of a network lies on the meta device, in place; where it is cut, this process' rows alone."""
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.is_meta:
            part = stored[name].read(held_rows(parameter), parameter.dtype, device)
            found[name] = _cut_like(parameter, part) if isinstance(parameter, DTensor) else part
    network.load_state_dict(found, strict=False, assign=True)
    left = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    assert not left, f"nothing was read for {listed(left, 3)}"


def _cut_like(parameter: DTensor, part: Tensor) -> Tensor:
    """What this process holds as a tensor cut as the parameter is."""
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
