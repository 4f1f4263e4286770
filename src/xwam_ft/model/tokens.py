"""The token sequence of a joint sample: its order, its timesteps, its rotary positions.

Legend: B batch, V views, Tl latent frames, h x w latent grid, C latent channels, D width, Ta action steps,
Tp proprio states, L tokens.  The sequence we run is

    [ proprio 0 | video: frame, view, row, column | actions | proprio 1.. ]

Attention does not depend on the order of tokens once each knows its position, so this is the published
sequence (video, actions, proprio) with one state moved to the front: that way tokens of equal timestep are
neighbours, and a sample needs three spans: *held* (proprio 0 and latent frame 0, timestep 0), *video*
(the other frames) and *action* (actions and the other states).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

TEMPORAL_STRIDE = 4
"""RGB frames a latent frame stands for (after the first): the temporal stride of every Wan VAE."""

HELD, VIDEO, ACTION = 0, 1, 2
"""Index of a span's timestep among the three distinct ones of a sample."""


@dataclass(frozen=True)
class Span:
    """Tokens `start:stop`, which share the timestep number `time` (HELD, VIDEO or ACTION).

    `held` marks those among them that a sample is given clean, at HELD's timestep; None: none. `hidden` marks the
    samples in which no token outside the span attends to it, while its own attend to all; None: none.
    """

    start: int
    stop: int
    time: int
    held: Bool[Tensor, "b n"] | None = None
    hidden: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True)
class SequenceLayout:
    """Sizes of one joint sequence, after patching: everything that positions and spans follow from."""

    frames: int
    views: int
    rows: int
    columns: int
    actions: int
    states: int
    actions_per_frame: int

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame, all views."""
        return self.views * self.rows * self.columns

    @property
    def first_video(self) -> int:
        return min(self.states, 1)

    @property
    def first_action(self) -> int:
        return self.first_video + self.frames * self.frame_tokens

    @property
    def length(self) -> int:
        return self.first_action + self.actions + max(self.states - 1, 0)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The whole sequence in runs of equal timestep (empty runs left out)."""
        held = self.first_video + self.frame_tokens
        spans = (Span(0, held, HELD), Span(held, self.first_action, VIDEO))
        return _nonempty(*spans, Span(self.first_action, self.length, ACTION))

    def spans_with(
        self, held: Bool[Tensor, "b ta"] | None, hidden: Bool[Tensor, " b"] | None = None
    ) -> tuple[Span, ...]:
        """The same where some actions are given clean (at timestep 0, as the conditions are), or the future is hidden.

        Args:
            held: the actions that are given; hidden: the samples whose frames after the first are hidden.
        """
        spans = self.spans
        if hidden is not None:
            spans = tuple(replace(span, hidden=hidden) if span.time == VIDEO else span for span in spans)
        if held is None:
            return spans
        *others, last = spans
        states = held.new_zeros(held.shape[0], last.stop - last.start - self.actions)
        return (*others, replace(last, held=torch.cat([held, states], dim=1)))

    @property
    def video_spans(self) -> tuple[Span, ...]:
        """The same for the video tokens alone, counted from the first of them (the depth branch's stream)."""
        tokens = self.frames * self.frame_tokens
        return _nonempty(Span(0, self.frame_tokens, HELD), Span(self.frame_tokens, tokens, VIDEO))

    def positions(self) -> Float[Tensor, "l 3"]:
        """Time (in latent frames), row and column of every token, float64.

        Views share positions. Action step i sits at i / (4 * actions_per_frame), state j at j / 4, both at
        row 0, column 0: a latent frame spans four frames.
        """
        axes = [torch.arange(n, dtype=torch.float64) for n in (self.frames, self.views, self.rows, self.columns)]
        frame, _, row, column = torch.meshgrid(*axes, indexing="ij")
        video = torch.stack([frame, row, column], dim=-1).reshape(-1, 3)
        action = _on_the_time_axis(self.actions, TEMPORAL_STRIDE * self.actions_per_frame)
        state = _on_the_time_axis(self.states, TEMPORAL_STRIDE)
        return torch.cat([state[:1], video, action, state[1:]])


def _nonempty(*spans: Span) -> tuple[Span, ...]:
    return tuple(span for span in spans if span.stop > span.start)


def _on_the_time_axis(count: int, per_latent_frame: int) -> Float[Tensor, "n 3"]:
    position = torch.zeros(count, 3, dtype=torch.float64)
    position[:, 0] = torch.arange(count, dtype=torch.float64) / per_latent_frame
    return position


def rotary_tables(positions: Float[Tensor, "l 3"], head_dim: int) -> tuple[Float[Tensor, "l d"], Float[Tensor, "l d"]]:
    """Cosine and sine of every token's rotation, d = head_dim / 2 angles each, float32.

    The head is split as in Wan: rows and columns get 2 * (head_dim // 6) channels each, time the rest; angle j
    of an axis of n channels at position p is p * 10000^(-2j/n). Angles are taken in float64.
    """
    side = 2 * (head_dim // 6)
    angles: list[Tensor] = []
    for axis, channels in enumerate((head_dim - 2 * side, side, side)):
        rate = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
        angles.append(positions[:, axis, None] * rate)
    angle = torch.cat(angles, dim=1)
    return angle.cos().float(), angle.sin().float()


def sinusoid(timestep: Float[Tensor, "*n"], channels: int) -> Float[Tensor, "*n channels"]:
    """Wan's timestep features: cosines, then sines, of t * 10000^(-2j/channels); float32.

    Taken in float64 where the device has it: at t = 1000 a float32 angle is already off by 6e-5.
    """
    half = channels // 2
    precision = torch.float32 if timestep.device.type == "mps" else torch.float64
    rate = torch.exp(torch.arange(half, dtype=precision, device=timestep.device) * (-math.log(10000.0) / half))
    angle = timestep.to(precision)[..., None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


def to_tokens(features: Float[Tensor, "bv d f r c"], views: int) -> Float[Tensor, "b f v r c d"]:
    """Patch features of views folded into the batch -> one grid a sample, channels last."""
    return features.unflatten(0, (-1, views)).permute(0, 3, 1, 4, 5, 2)


def unpatchify(
    tokens: Float[Tensor, "b n o"], layout: SequenceLayout, patch: tuple[int, int, int]
) -> Float[Tensor, "b c tl v h w"]:
    """Head outputs, each p_t x p_h x p_w x C numbers of one patch -> latents."""
    p_t, p_h, p_w = patch
    grid = (layout.frames, layout.views, layout.rows, layout.columns, p_t, p_h, p_w, -1)
    cells = tokens.unflatten(2, (p_t * p_h * p_w, -1)).reshape(tokens.shape[0], *grid)
    # b f v r c p_t p_h p_w C -> b C (f p_t) v (r p_h) (c p_w)
    return cells.permute(0, 8, 1, 5, 2, 3, 6, 4, 7).flatten(7, 8).flatten(5, 6).flatten(2, 3)
