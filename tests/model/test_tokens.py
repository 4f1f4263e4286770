"""Sequence order, spans, rotary positions and patches."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from xwam_ft.model.tokens import (
    ACTION,
    HELD,
    VIDEO,
    SequenceLayout,
    Span,
    rotary_tables,
    sinusoid,
    to_tokens,
    unpatchify,
)

LAYOUT = SequenceLayout(frames=3, views=2, rows=4, columns=5, actions=32, states=9, actions_per_frame=4)


def test_three_spans_cover_the_sequence() -> None:
    assert LAYOUT.spans == (Span(0, 41, HELD), Span(41, 121, VIDEO), Span(121, 161, ACTION))
    assert LAYOUT.length == 3 * 40 + 32 + 9
    assert LAYOUT.video_spans == (Span(0, 40, HELD), Span(40, 120, VIDEO))


def test_positions_of_robot_tokens_are_fractions_of_a_latent_frame() -> None:
    positions = LAYOUT.positions()
    assert positions[0].tolist() == [0, 0, 0]  # proprio state 0
    actions = positions[LAYOUT.first_action : LAYOUT.first_action + 32]
    assert actions[:, 0].tolist() == [i / 16 for i in range(32)]
    assert positions[-8:, 0].tolist() == [j / 4 for j in range(1, 9)]
    assert not positions[LAYOUT.first_action :, 1:].any()
    last_video = positions[LAYOUT.first_action - 1]
    assert last_video.tolist() == [2, 3, 4]


@pytest.mark.parametrize("width", [24, 128])  # of a head: three times 8, and Wan's 44 for time and twice 42
def test_rotary_tables_are_wans_own_at_whole_positions(width: int) -> None:
    """Video tokens of each view, and every 16th action (a whole latent frame), share Wan's table."""
    cos, sin = rotary_tables(LAYOUT.positions(), width)
    wan_cos, wan_sin = WanRotaryPosEmbed(width, (1, 1, 1), 64)(torch.zeros(1, 1, 3, 4, 5))
    wan_cos, wan_sin = wan_cos[0, :, 0, 0::2], wan_sin[0, :, 0, 1::2]
    video = slice(LAYOUT.first_video, LAYOUT.first_action)
    for ours, wan in ((cos, wan_cos), (sin, wan_sin)):
        grid = ours[video].unflatten(0, (3, 2, 20))
        for view in range(2):
            torch.testing.assert_close(grid[:, view].flatten(0, 1), wan, rtol=0, atol=1e-7)
        torch.testing.assert_close(ours[LAYOUT.first_action + 16], wan.unflatten(0, (3, 20))[1, 0], rtol=0, atol=1e-7)


def test_timestep_features_are_diffusers_up_to_float32() -> None:
    t = torch.tensor([0.0, 1.0, 417.0, 999.0])
    wanted = Timesteps(num_channels=32, flip_sin_to_cos=True, downscale_freq_shift=0)(t)
    torch.testing.assert_close(sinusoid(t, 32), wanted, rtol=0, atol=2e-4)


def test_unpatchify_inverts_a_patch_embedding_that_copies_its_patch() -> None:
    channels, patch = 3, (1, 2, 2)
    copy = nn.Conv3d(channels, channels * 4, patch, patch, bias=False)
    weight = torch.zeros(2, 2, channels, channels, 1, 2, 2)  # outputs: cell by cell, channels last
    for row in range(2):
        for column in range(2):
            for channel in range(channels):
                weight[row, column, channel, channel, 0, row, column] = 1
    copy.weight.data = weight.flatten(0, 2)
    latents = torch.randn(2, channels, 3, 2, 4, 6)
    tokens = to_tokens(copy(latents.movedim(3, 1).flatten(0, 1)), views=2)
    layout = SequenceLayout(3, 2, 2, 3, 0, 0, 1)
    torch.testing.assert_close(unpatchify(tokens.flatten(1, 4), layout, patch), latents)
