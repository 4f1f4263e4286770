"""One Wan block over spans of equal timestep, on the submodules of diffusers' own `WanTransformerBlock`.

diffusers' forward wants modulation per token ([B, L, 6, D]); a joint sample has only three distinct timesteps,
so here it is [B, 3, 6, D] and applied span by span. Same numbers, a hundredth of the memory. The residual
stream, modulation and gates are float32 whatever the weights are; every Linear gets its input in its own dtype.
Keys and values are [B, heads, tokens, head_dim].
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xwam_ft.model.tokens import HELD, Span

if TYPE_CHECKING:
    from jaxtyping import Complex, Float, Int
    from torch import Tensor

Module: TypeAlias = Any
"""A diffusers or peft module: their submodules are known by name, not by type."""

SHORT = 512
"""Tokens up to which plain attention is used on a CPU, unless a kernel was chosen."""


class KeysValues(NamedTuple):
    """Keys (normed and, in self-attention, rotated) and values of some tokens."""

    keys: Float[Tensor, "b heads n d"]
    values: Float[Tensor, "b heads n d"]


class SharedText(NamedTuple):
    """Projected text of a batch in which several samples have the same: each once, and which one a sample has."""

    rows: Float[Tensor, "u s d"]
    place: Int[Tensor, " b"]


class Rotary(NamedTuple):
    """Cosines and sines of every token's rotation, float32; `turn`: both as complex numbers, where a CPU uses them."""

    cos: Float[Tensor, "l half"]
    sin: Float[Tensor, "l half"]
    turn: Complex[Tensor, "l half"] | None = None

    def part(self, start: int, stop: int) -> Rotary:
        turn = None if self.turn is None else self.turn[start:stop]
        return Rotary(self.cos[start:stop], self.sin[start:stop], turn)


def rotate(x: Float[Tensor, "b n heads d"], rotary: Rotary) -> Float[Tensor, "b n heads d"]:
    """Rotate neighbouring channel pairs (float32), back to the dtype of x.

    In real arithmetic, which compilers and GPUs fuse; on a CPU that runs operation by operation as one complex product,
    which is a fifth of the passes over memory, most of them in the backward pass.
    """
    if rotary.turn is not None and not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * rotary.turn[:, None]).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary.cos[:, None], rotary.sin[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 3 d"], scale: Float[Tensor, "b 3 d"], spans: Sequence[Span]
) -> Float[Tensor, "b n d"]:
    """x * (1 + scale) + shift, with the shift and scale of each token's span."""
    parts = [torch.addcmul(_of(shift, s), own, 1 + _of(scale, s)) for s, own in zip(spans, _cut(x, spans), strict=True)]
    return torch.cat(parts, dim=1)


def _cut(x: Float[Tensor, "b n d"], spans: Sequence[Span]) -> tuple[Float[Tensor, "b m d"], ...]:
    """The tokens of each span: in one split, since each slice on its own would cost a whole gradient of zeros."""
    return x.split([span.stop - span.start for span in spans], dim=1)


def _of(values: Float[Tensor, "b 3 d"], span: Span) -> Float[Tensor, "b m d"]:
    """The values of a span's timestep, and of HELD's where the span says so."""
    own = values[:, span.time, None]
    return own if span.held is None else torch.where(span.held[..., None], values[:, HELD, None], own)


def add_gated(
    x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], gate: Float[Tensor, "b 3 d"], spans: Sequence[Span]
) -> Float[Tensor, "b n d"]:
    """x + gate * update in float32, with the gate of each token's span."""
    streams = zip(spans, _cut(x, spans), _cut(update.float(), spans), strict=True)
    return torch.cat([torch.addcmul(kept, added, _of(gate, s)) for s, kept, added in streams], dim=1)


def linear_float32(linear: Module, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
    """A Linear in float32 whatever dtype its weights are stored in."""
    return F.linear(x, linear.weight.float(), linear.bias.float())


def weight_dtype(linear: Module) -> torch.dtype:
    """The dtype a Linear computes in; a quantised one's weights are packed integers, and its bias is not."""
    dtype: torch.dtype = linear.weight.dtype
    return dtype if dtype.is_floating_point else linear.bias.dtype


def text_keys_values(block: Module, text: Float[Tensor, "b s d"] | SharedText) -> KeysValues:
    """Cross-attention keys and values of projected text: they depend on neither noise nor step."""
    if isinstance(text, SharedText):
        once = text_keys_values(block, text.rows)
        return KeysValues(once.keys[text.place], once.values[text.place])
    attention = block.attn2
    text = text.to(weight_dtype(attention.to_k))
    keys = attention.norm_k(attention.to_k(text))
    return KeysValues(_heads(attention, keys), _heads(attention, attention.to_v(text)))


def block_forward(
    block: Module,
    x: Float[Tensor, "b n d"],
    text: Float[Tensor, "b s d"] | SharedText | KeysValues,
    time: Float[Tensor, "b 3 6 d"],
    rotary: Rotary,
    spans: Sequence[Span],
    also: KeysValues | None = None,
) -> tuple[Float[Tensor, "b n d"], KeysValues]:
    """Self-attention, cross-attention, feed-forward; returns the stream and its self-attention keys and values.

    Args:
        text: projected text, or its keys and values for this block.
        time: the projected timestep embeddings of HELD, VIDEO and ACTION.
        also: keys and values of other tokens that this stream attends to besides its own.
    """
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table.float() + time).unbind(dim=2)

    attention = block.attn1
    h = modulate(block.norm1(x), shift, scale, spans).to(weight_dtype(attention.to_q))
    own = KeysValues(
        _heads(attention, attention.norm_k(attention.to_k(h)), rotary), _heads(attention, attention.to_v(h))
    )
    seen = own
    if also is not None:
        seen = KeysValues(torch.cat([own.keys, also.keys], 2), torch.cat([own.values, also.values], 2))
    apart = next((span for span in spans if span.hidden is not None), None)
    x = add_gated(x, _attend(attention, h, seen, rotary, apart), gate, spans)

    cross = block.attn2
    if not isinstance(text, KeysValues):
        text = text_keys_values(block, text)
    x = x + _attend(cross, block.norm2(x).to(weight_dtype(cross.to_q)), text).float()

    h = modulate(block.norm3(x), ffn_shift, ffn_scale, spans).to(weight_dtype(block.ffn.net[2]))
    return add_gated(x, block.ffn(h), ffn_gate, spans), own


def _attend(
    attention: Module,
    h: Float[Tensor, "b n d"],
    seen: KeysValues,
    rotary: Rotary | None = None,
    apart: Span | None = None,
) -> Float[Tensor, "b n d"]:
    query = _heads(attention, attention.norm_q(attention.to_q(h)), rotary)
    out = _kernel(attention, query, seen)
    if apart is not None:
        out = _without(attention, query, seen, apart, out)
    return attention.to_out[0](out.transpose(1, 2).flatten(2).to(h.dtype))


def _kernel(attention: Module, query: Float[Tensor, "b heads n d"], seen: KeysValues) -> Float[Tensor, "b heads n d"]:
    kernel: SDPBackend | None = getattr(attention, "sdpa_backend", None)  # attention.py
    if kernel is None and query.device.type == "cpu" and query.shape[2] <= SHORT:
        # torch's fused kernel takes a third of a training step at a hundred tokens: its backward is slow there.
        return plain_attention(query, seen)
    with nullcontext() if kernel is None else sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(query, seen.keys, seen.values)


def _without(
    attention: Module,
    query: Float[Tensor, "b heads n d"],
    seen: KeysValues,
    apart: Span,
    out: Float[Tensor, "b heads n d"],
) -> Float[Tensor, "b heads n d"]:
    """`out` with the answers to queries outside a span, of the samples that it is hidden in, taken without it.

    A second call in the place of a mask: fused kernels take no mask or are slow with one. It is of the whole batch,
    whichever samples need it, so that shapes stay the same.
    """
    assert apart.hidden is not None
    length = query.shape[2]
    cut = [apart.start, apart.stop - apart.start, length - apart.stop]

    def outside(x: Tensor) -> Tensor:
        before, _, after = x.split(cut, dim=2)
        return torch.cat([before, after], dim=2)

    alone = _kernel(attention, outside(query), KeysValues(outside(seen.keys), outside(seen.values)))
    first, last = alone.split([cut[0], cut[2]], dim=2)
    before, span, after = out.split(cut, dim=2)
    chosen = apart.hidden[:, None, None, None]
    return torch.cat([torch.where(chosen, first, before), span, torch.where(chosen, last, after)], dim=2)


def plain_attention(query: Float[Tensor, "b heads n d"], seen: KeysValues) -> Float[Tensor, "b heads n d"]:
    """softmax(query keys^T / sqrt(d)) values, product by product: torch's "math" kernel in fewer passes."""
    folded = [part.flatten(0, 1) for part in (query, seen.keys, seen.values)]  # (b heads) n d
    scores = torch.baddbmm(
        query.new_zeros(()), folded[0], folded[1].transpose(1, 2), beta=0, alpha=query.shape[-1] ** -0.5
    )
    return torch.bmm(scores.softmax(dim=-1), folded[2]).unflatten(0, query.shape[:2])


def _heads(attention: Module, x: Float[Tensor, "b n d"], rotary: Rotary | None = None) -> Float[Tensor, "b heads n e"]:
    x = x.unflatten(2, (attention.heads, -1))
    return (x if rotary is None else rotate(x, rotary)).transpose(1, 2)
