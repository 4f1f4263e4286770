"""Which kernel computes attention: torch's `scaled_dot_product_attention` has several, equal up to rounding.

The choice lies on each attention module, as diffusers' own choice of processor does: it goes along into copies of a
block and into what a gradient checkpoint runs again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from xwam_ft.model.network import JointNetwork

Attention: TypeAlias = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""`auto` leaves the choice to torch (on a CPU: plain attention for short sequences, see blocks.py)."""

SDPA_BACKENDS: dict[Attention, SDPBackend | None] = {
    "auto": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def choose_attention(network: JointNetwork, attention: Attention) -> JointNetwork:
    """Choose the attention kernel of every block of a network, in place; `auto` is how a network starts.

    Raises:
        UserError: no such kernel, or one that does not run on the network's device with its dtype and head size.
    """
    if attention not in SDPA_BACKENDS:
        raise UserError(
            f"{attention!r} is no attention kernel", "attention", f"choose one of {', '.join(SDPA_BACKENDS)}"
        )
    kernel = SDPA_BACKENDS[attention]
    modules: list[Any] = [module for module in network.modules() if hasattr(module, "to_q")]
    if kernel is not None and network.device.type != "meta":
        _require_runs(modules[0], kernel, attention)
    for module in modules:
        module.sdpa_backend = kernel
    return network


@torch.no_grad()
def _require_runs(attention: Any, kernel: SDPBackend, name: str) -> None:
    bias = attention.to_q.bias
    size = len(bias) // attention.heads
    tokens = torch.zeros(1, attention.heads, 16, size, device=bias.device, dtype=bias.dtype)
    try:
        with sdpa_kernel(kernel):
            scaled_dot_product_attention(tokens, tokens, tokens)
    except RuntimeError as error:
        dtype = str(bias.dtype).removeprefix("torch.")
        raise UserError(
            f"the attention kernel {name!r} does not run on {bias.device.type} with {dtype} heads of {size} numbers",
            "attention",
            "choose another, or auto",
        ) from error
