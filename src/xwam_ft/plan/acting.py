"""What one denoising step of an action call computes where the future is optional, beside one that imagines as well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from xwam_ft.encode.batch import Batch
    from xwam_ft.model.network import JointNetwork


@dataclass(frozen=True)
class Acting:
    """Tokens of a clip and floating-point operations of a step (a multiply-add is two), without the future and with."""

    tokens: int
    flops: int
    all_tokens: int
    all_flops: int


def acting(network: JointNetwork, batch: Batch) -> Acting:
    """Count both, computing nothing.

    Args:
        network, batch: on the meta device; the batch of one clip.
    """
    first = replace(batch, latents=batch.latents[:, :, :1])
    return Acting(_tokens(network, first), _flops(network, first), _tokens(network, batch), _flops(network, batch))


def _tokens(network: JointNetwork, batch: Batch) -> int:
    return len(network.rotary_of(*batch.streams.parts).cos)


@torch.no_grad()
def _flops(network: JointNetwork, batch: Batch) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    context, time = network.encode_text(batch.text), torch.empty(1, device=network.device)
    with FlopCounterMode(display=False) as counter:
        network(*batch.streams.parts, context, time, time, with_depth=False)
    return counter.get_total_flops()
