"""The depth branch: the last M blocks once more, on the video tokens, with own modulation tables and an own head.

Two forms of the same function. *Copies*: the branch holds blocks of its own. *Shared*: it runs the transformer's
blocks a second time under a second set of LoRA weights (peft's adapter `DEPTH` beside `MAIN` on the same Linear
layers); with the backbone frozen a fresh copy is nothing but the frozen weights, so it need not be held. Both give
the same output as long as they hold the same numbers, and name what trains alike: `depth_branch.blocks.i...`.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xwam_ft.model.blocks import KeysValues, Module, block_forward, text_keys_values

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from torch import Tensor

MAIN = "default"
"""The main stream's adapter: peft's own name for a lone one, and the only one its folder form knows."""

DEPTH = "depth"
"""The depth branch's adapter on the transformer's own blocks."""


class DepthBranch(nn.Module):
    """What the depth branch holds: M blocks (copies, or where shared their modulation tables alone) and a head."""

    def __init__(self, transformer: WanTransformer3DModel, depth_blocks: int, *, shared: bool = False) -> None:
        super().__init__()
        blocks = list(transformer.blocks)
        last = blocks[len(blocks) - depth_blocks :]
        self.blocks = nn.ModuleList(SharedBlock(block) if shared else copy.deepcopy(block) for block in last)
        self.proj_out = nn.Linear(transformer.proj_out.in_features, transformer.proj_out.out_features)
        self.scale_shift_table = nn.Parameter(torch.empty(1, 2, transformer.proj_out.in_features))


class SharedBlock(nn.Module):
    """The modulation table of a branch block whose weights are those of a block of the transformer."""

    def __init__(self, block: Module) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(block.scale_shift_table.detach().clone())


class Twin:
    """A block of the transformer as the branch runs it: its own table and adapter; otherwise the block."""

    def __init__(self, block: Module, own: SharedBlock) -> None:
        self.block, self.scale_shift_table = block, own.scale_shift_table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)


def branch_blocks(branch: DepthBranch, blocks: nn.ModuleList) -> list[Any]:
    """What the branch runs, in order: its copies, or `Twin`s of the last of the transformer's `blocks`."""
    own = list(branch.blocks)
    last = list(blocks)[len(blocks) - len(own) :]
    return [Twin(block, held) if isinstance(held, SharedBlock) else held for block, held in zip(last, own, strict=True)]


def run_block(block: Module | Twin, x: Tensor, *rest: Any) -> tuple[Tensor, KeysValues]:
    """`block_forward` under the block's own adapter.

    It is chosen in here, so that under gradient checkpointing a recomputation chooses it again.
    """
    if not isinstance(block, Twin):
        return block_forward(block, x, *rest)
    with depth_adapter(block.block):
        return block_forward(block, x, *rest)


def text_of_block(block: Module | Twin, text: Tensor) -> KeysValues:
    """`text_keys_values` under the block's own adapter."""
    if not isinstance(block, Twin):
        return text_keys_values(block, text)
    with depth_adapter(block.block):
        return text_keys_values(block, text)


@contextmanager
def depth_adapter(block: Module) -> Generator[None]:
    """Run `block` under the depth branch's adapter, and under none where it has none."""
    layers = lora_layers(block)
    before = [layer.active_adapters for layer in layers]
    use_adapters(layers, [DEPTH])
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            use_adapters([layer], names)


def lora_layers(module: nn.Module) -> list[Any]:
    """Every Linear below `module` that carries an adapter."""
    from peft.tuners.lora import LoraLayer

    return [part for part in module.modules() if isinstance(part, LoraLayer)]


def use_adapters(layers: list[Any], names: list[str]) -> None:
    """Choose which adapters of these layers count; which of them train is not touched."""
    for layer in layers:
        # Not peft's `set_adapter`: it takes requires_grad from every adapter that is not chosen, which would stop
        # the main stream's from learning, and grants it to the chosen one even where it is frozen.
        layer._active_adapter = names
