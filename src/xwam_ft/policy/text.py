"""Encoded instructions, kept from one request to the next.

A robot says the same few sentences again and again. What the network makes of one (its projection, and keys and
values for every block's cross-attention, 0.25 GB at 5B with a depth branch) depends on weights alone, so it is made
once, and made again when those weights have moved.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xwam_ft.model.network import JointNetwork, TextContext

KEPT = 4
"""Instructions kept at a time, the empty one of guidance included."""

_Stamp = tuple[object, ...]


class TextCache:
    """The contexts of the instructions last used with a network.

    Args:
        network: whose weights they are made with.
        kept: how many; the one not used for longest goes first.
    """

    def __init__(self, network: JointNetwork, kept: int = KEPT) -> None:
        self.network, self.kept = network, kept
        self._contexts: OrderedDict[str, tuple[_Stamp, TextContext]] = OrderedDict()
        self._weights: _Stamp = ()

    def __len__(self) -> int:
        return len(self._contexts)

    def clear(self) -> None:
        """Forget every instruction. Needed by hand only after weights were changed behind autograd's back (`.data`)."""
        self._contexts.clear()

    @torch.no_grad()
    def context(self, prompt: str, embedding: Float[Tensor, "s dt"]) -> TextContext:
        """What the network makes of an instruction, as a batch of one.

        Args:
            prompt: the name it is kept under.
            embedding: what the text encoder makes of it, on any device.
        """
        weights = _stamp(_text_weights(self.network))
        if weights != self._weights:
            self._contexts.clear()
            self._weights = weights
        source = _stamp([embedding])
        found = self._contexts.pop(prompt, None)
        if found is None or found[0] != source:
            found = source, self.network.encode_text(embedding[None].to(self.network.device))
        self._contexts[prompt] = found
        while len(self._contexts) > self.kept:
            self._contexts.popitem(last=False)
        return found[1]


def _text_weights(network: JointNetwork) -> Iterator[Any]:
    """The tensors an encoded instruction depends on, and which adapters count."""
    blocks: list[Any] = [*network.transformer.blocks, *getattr(network.depth_branch, "blocks", ())]
    parts = [network.transformer.condition_embedder.text_embedder]
    # A branch that shares the transformer's blocks holds none of these itself.
    crosses = [block.attn2 for block in blocks if hasattr(block, "attn2")]
    parts += [part for cross in crosses for part in (cross.to_k, cross.to_v, cross.norm_k)]
    for part in parts:
        yield from part.parameters()
        if hasattr(part, "active_adapters"):
            yield (tuple(part.active_adapters), part.disable_adapters)


def _stamp(parts: Any) -> _Stamp:
    """Equal as long as no tensor among `parts` was replaced, moved or written to; nothing is read from a device."""
    return tuple(
        (part.data_ptr(), part.dtype, part.device, 0 if part.is_inference() else part._version)
        if isinstance(part, torch.Tensor)
        else part
        for part in parts
    )
