"""LoRA's forward in one product more than its base's: `addmm` adds the update where the base's output lies.

peft scales and adds in passes of their own, and keeps two more tensors of the output's size; at toy size on a CPU these
passes take a seventh of a training step. Same numbers to rounding. Whatever is not the plain case (dropout, DoRA, a
quantised or merged base, adapters in another dtype, mixed precision) goes peft's way.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def use_short_forward(layer: Any) -> None:
    """Let a peft LoRA layer on a plain Linear take the short way where it can, in place; its adapters may change."""
    if type(layer.base_layer) is nn.Linear:
        layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Float[Tensor, "*n i"], *rest: Any, **options: Any) -> Float[Tensor, "*n o"]:
    adapter = _lone_adapter(layer, x)
    if rest or options or adapter is None:
        return type(layer).forward(layer, x, *rest, **options)
    base = layer.base_layer
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    flat = x.flatten(0, -2)
    out = F.linear(flat, base.weight, base.bias)
    return torch.addmm(out, F.linear(flat, down), up.t(), alpha=layer.scaling[adapter]).unflatten(0, x.shape[:-1])


def _lone_adapter(layer: Any, x: Tensor) -> str | None:
    """The one adapter that is active, where it is plain LoRA in the dtype of base and input."""
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on meta
    if torch.compiler.is_compiling() or mixed:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or layer.disable_adapters or layer.merged:
        return None
    [name] = active
    plain = isinstance(layer.lora_dropout[name], nn.Identity) and name not in layer.lora_variant
    plain = plain and not layer.lora_bias.get(name, False)
    dtypes = {x.dtype, layer.base_layer.weight.dtype, layer.lora_A[name].weight.dtype}
    return name if plain and len(dtypes) == 1 else None
