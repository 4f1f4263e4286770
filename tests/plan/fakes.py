"""Networks of full size without their memory: fake tensors, and a list of the products they are put through."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default)


class Products(TorchDispatchMode):
    """Dtype and shapes of every matrix product, convolution and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[torch.dtype, tuple[int, ...], tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS or "scaled_dot_product" in func.__name__:
            given = [value for value in args if isinstance(value, torch.Tensor)]
            left, right = given[:2] if func is aten.convolution.default else given[-2:]
            self.seen[left.dtype, tuple(left.shape), tuple(right.shape)] += 1
        return out


def faked(value: Any, mode: FakeTensorMode) -> Any:
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: faked(getattr(value, field.name), mode) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def place_fakes(module: nn.Module) -> None:
    """Give a module on the meta device fake tensors on the CPU, where autocast works; shared ones stay shared."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                if tensor is not None:
                    store[name] = made[id(tensor)]
