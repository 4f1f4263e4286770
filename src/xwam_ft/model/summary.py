"""What a network holds and what training it costs in memory, by groups of modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from xwam_ft.model.adapters import stable_name
from xwam_ft.model.quantize import logical_size

if TYPE_CHECKING:
    from torch import nn

    from xwam_ft.model.network import JointNetwork

ADAMW_BYTES = 8
"""AdamW's two float32 moments of one trained number."""

ADAMW_8BIT_BYTES = 2 + 2 * 4 / 256
"""The same in 8 bits: two codes, and two float32 scales for every 256 of them."""


@dataclass(frozen=True)
class SummaryRow:
    """One group of modules: how many numbers it holds, how many of them train, in which dtypes, in how many bytes."""

    group: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that training holds from its first step to its last; activations come on top."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average


def summary_table(
    network: JointNetwork, numbers: Callable[[nn.Parameter], int] = torch.Tensor.numel
) -> list[SummaryRow]:
    """Rows for the transformer, each new part, the depth branch, and the adapters of transformer and branch.

    Args:
        numbers: how many of a parameter's stored numbers a device holds; those that train and the bytes follow.
    """
    rows: dict[str, list[nn.Parameter]] = {}
    for raw, parameter in network.named_parameters():
        name = stable_name(network, raw)
        top = name.split(".", 1)[0]
        rows.setdefault(f"{top} (LoRA)" if ".lora_" in name else top, []).append(parameter)
    return [
        SummaryRow(
            group,
            sum(logical_size(parameter) for parameter in parameters),
            sum(numbers(parameter) for parameter in parameters if parameter.requires_grad),
            tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})),
            sum(numbers(parameter) * parameter.element_size() for parameter in parameters),
        )
        for group, parameters in rows.items()
    ]


def memory_need(rows: list[SummaryRow], *, adamw_8bit: bool = False, average: bool = False) -> MemoryNeed:
    """Weights, float32 gradients, AdamW's moments, and the averaged weights where the run keeps them."""
    trained = sum(row.trainable for row in rows)
    return MemoryNeed(
        weights=sum(row.bytes for row in rows),
        gradients=4 * trained,
        optimizer=round(trained * (ADAMW_8BIT_BYTES if adamw_8bit else ADAMW_BYTES)),
        average=4 * trained if average else 0,
    )
