"""A frozen base in 8 or 4 bits (bitsandbytes), so that adapters train beside less memory.

The linear layers of the blocks are quantised; everything else (time and text embedding, norms, modulation, output
head) stays as it was loaded: X-WAM computes those in float32. `int8` is LLM.int8 (arXiv 2208.07339; row by row, the
inputs quantised as well), `nf4` the 4-bit code of QLoRA (arXiv 2305.14314; blocks of 64). Packing is done on the CPU
where weights are loaded, so the same weights give the same codes on any machine.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from xwam_ft.errors import require

if TYPE_CHECKING:
    from torch import Tensor

Quantize = Literal["int8", "nf4"]


def require_bitsandbytes(why: str) -> Any:
    """The module bitsandbytes; where it is not installed, a `UserError` whose place is the recipe key `why`."""
    if find_spec("bitsandbytes") is None:
        raise require("bitsandbytes", "quant", why)
    return import_module("bitsandbytes")


def quantize_blocks(transformer: Any, kind: Quantize) -> Any:
    """Pack the weights of every Linear in `transformer.blocks`; in place.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    library = require_bitsandbytes("backbone.quantize")
    for parent, name, linear in _linears(transformer.blocks):
        setattr(parent, name, _packed(library, linear, kind))
    return transformer


def dequantize_blocks(transformer: Any) -> Any:
    """Plain Linears in float32 with the values that the packed ones stand for; in place.

    An adapter was trained on these values, not on those before packing: an export merges into them.
    """
    from peft.utils.integrations import dequantize_module_weight

    for parent, name, linear in _linears(transformer.blocks):
        if is_quantized(linear):
            setattr(parent, name, plain_linear(linear, dequantize_module_weight(linear).float()))
    return transformer


def plain_linear(linear: Any, weight: Tensor, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A frozen Linear of its own with this weight and a copy of `linear`'s bias, both in `dtype`."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if linear.bias is not None:
        plain.bias = nn.Parameter(linear.bias.detach().to(dtype, copy=True), requires_grad=False)
    return plain.train(linear.training)


def is_quantized(module: object) -> bool:
    """Whether a module is a Linear whose weights are packed."""
    return isinstance(module, nn.Linear) and not module.weight.dtype.is_floating_point


def logical_size(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: a packed 4-bit one holds two a byte."""
    state = getattr(parameter, "quant_state", None)
    shape: Any = parameter.shape if state is None else state.shape
    return int(torch.Size(shape).numel())


def _packed(library: Any, linear: Any, kind: Quantize) -> Any:
    sizes, weight = (linear.in_features, linear.out_features), linear.weight.data
    bias = linear.bias is not None
    if kind == "nf4":
        packed = library.nn.Linear4bit(*sizes, bias=bias, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        # Else a first evaluation on a CPU with AVX512-BF16 would repack the weights in place, for inference alone.
        packed.support_avx512bf16_for_cpu = False
        packed.weight = library.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=packed)
    else:
        packed = library.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False, device="meta")
        packed.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if bias:
        packed.bias = nn.Parameter(linear.bias.data, requires_grad=False)
    return packed.to("cpu").train(linear.training)  # this is what packs


def _linears(root: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Every Linear below `root` as (parent, name, module)."""
    return [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
