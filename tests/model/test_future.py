"""The future hidden from what acts: as if it were not there, sample by sample; to the bit where it is not hidden."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy import CONFIG, JointNetwork, make_batch, make_network, make_transformer, outputs, relative

from xwam_ft.model import blocks
from xwam_ft.model.network import Prediction
from xwam_ft.model.sampler import Conditions, Sample, sample
from xwam_ft.model.streams import Streams
from xwam_ft.model.tokens import VIDEO

FRAMES = 3


@pytest.fixture
def batch():
    """Three samples of two future frames each."""
    made = make_batch(size=3)
    made.latents = torch.randn(3, 4, FRAMES, CONFIG.num_views, 4, 6, generator=torch.Generator().manual_seed(7))
    return made


def hidden(*rows: bool) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("short", [10**6, 0], ids=["plain", "fused"])
@pytest.mark.parametrize("shared", [False, True], ids=["copies", "adapter"])
def test_a_hidden_future_is_a_future_that_is_not_there(
    batch, monkeypatch: pytest.MonkeyPatch, short: int, shared: bool
) -> None:
    monkeypatch.setattr(blocks, "SHORT", short)
    network = make_network(dataclasses.replace(CONFIG, depth_shared=shared))
    first = dataclasses.replace(batch, latents=batch.latents[:, :, :1])
    with torch.no_grad():
        joint = batch.run(network)
        masked = batch.run(network, future_hidden=hidden(True, True, True))
        dropped = first.run(network, with_depth=False)
    for name in ("action", "proprio"):
        assert relative(getattr(masked, name), getattr(dropped, name)) < 2e-6, name
        assert relative(getattr(masked, name), getattr(joint, name)) > 1e-3, "the future plays no part in this network"
    assert relative(masked.video[:, :, :1], dropped.video) < 2e-6


def test_samples_of_a_mixed_batch_are_those_apart(network, batch) -> None:
    with torch.no_grad():
        mixed = outputs(batch.run(network, future_hidden=hidden(False, True, False)))
        seen = outputs(batch.run(network))
        none = outputs(batch.run(network, future_hidden=hidden(False, False, False)))
        alone = outputs(batch.run(network, future_hidden=hidden(True, True, True)))
    for name, tensor in mixed.items():
        assert torch.equal(none[name], seen[name]), "to the bit what a joint network gives"
        assert torch.equal(tensor[[0, 2]], seen[name][[0, 2]])
        torch.testing.assert_close(tensor[1], alone[name][1], rtol=0, atol=1e-6)
        assert not torch.equal(tensor[1], seen[name][1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_gradient_leads_from_actions_to_a_hidden_future(batch, checkpointing: bool) -> None:
    network = make_network().train()
    network.gradient_checkpointing = checkpointing
    batch.latents.requires_grad_()
    found = batch.run(network, future_hidden=hidden(True, False, True))
    acts = found.action.square().sum() + found.proprio.square().sum() + found.video[:, :, 0].square().sum()
    (gradient,) = torch.autograd.grad(acts, batch.latents, retain_graph=True)
    assert not gradient[[0, 2], :, 1:].any()
    assert gradient[1, :, 1:].any()
    assert gradient[:, :, 0].any(dim=(1, 2, 3, 4)).all()
    # What is imagined learns from everything it sees, the actions included.
    (back,) = torch.autograd.grad(found.video[:, :, 1:].square().sum(), batch.latents)
    assert back.flatten(3).any(dim=3).all()


def test_what_is_imagined_sees_the_actions_it_is_hidden_from(network, batch) -> None:
    other = dataclasses.replace(batch, action=batch.action + 1)
    with torch.no_grad():
        ours, theirs = (one.run(network, future_hidden=hidden(True, True, True)) for one in (batch, other))
    assert relative(ours.video[:, :, 1:], theirs.video[:, :, 1:]) > 1e-3
    assert relative(ours.depth[:, :, 1:], theirs.depth[:, :, 1:]) > 1e-3


def test_it_goes_along_with_actions_that_are_given(network, batch) -> None:
    held = torch.zeros(3, 8, dtype=torch.bool)
    held[:, :3] = True
    first = dataclasses.replace(batch, latents=batch.latents[:, :, :1])
    with torch.no_grad():
        masked = batch.run(network, action_held=held, future_hidden=hidden(True, True, True))
        dropped = first.run(network, action_held=held, with_depth=False)
    assert relative(masked.action, dropped.action) < 2e-6


def rollout(network: JointNetwork, batch, **options) -> Sample:
    noise = Streams.normal(
        (batch.latents.shape, batch.action.shape, batch.proprio.shape), torch.Generator().manual_seed(0)
    )
    known = Conditions(batch.latents[:, :, 0], batch.proprio[:, 0])
    return sample(network, known, batch.text, noise=noise, video_steps=6, action_steps=3, **options)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_call_that_leaves_the_future_out_gives_the_actions_that_are_imagined_with(
    network, batch, guidance: float
) -> None:
    lengths: list[int] = []
    forward = network.forward

    def counted(latents: torch.Tensor, *rest: torch.Tensor, **options: object) -> Prediction:
        lengths.append(network._layout(latents, *rest[:2]).length)
        return forward(latents, *rest, **options)

    network.forward = counted
    options = {"guidance": guidance, "null_text": torch.zeros_like(batch.text)}
    acting = rollout(network, batch, actions_only=True, hide_future=True, **options)
    short = set(lengths)
    whole = rollout(network, batch, hide_future=True, **options)
    joint = rollout(network, batch, actions_only=True, **options)
    assert short == {1 + 12 + 8 + 4}, "state, first frame, actions, states"
    assert acting.video.shape[2] == 1
    assert torch.equal(acting.video[:, :, 0], batch.latents[:, :, 0])
    assert whole.video.shape[2] == FRAMES
    for name in ("action", "proprio"):
        ours, theirs = getattr(acting, name), getattr(whole, name)
        assert relative(ours, theirs) < 1e-5
        assert relative(ours, getattr(joint, name)) > 1e-3
    assert whole.depth is not None
    assert acting.depth is None


def test_a_network_of_one_frame_has_nothing_to_hide(network) -> None:
    batch = make_batch()
    batch.latents = batch.latents[:, :, :1]
    with torch.no_grad():
        wanted, ours = batch.run(network), batch.run(network, future_hidden=hidden(True, True))
    assert torch.equal(ours.action, wanted.action)


def test_the_published_size_acts_on_281_of_761_tokens() -> None:
    """X-WAM's released setting: three views of 256x320, 32 actions, 9 states."""
    network = JointNetwork(make_transformer(num_layers=1), dataclasses.replace(CONFIG, num_views=3, depth_blocks=0))
    latents, action, proprio = torch.zeros(1, 4, 3, 3, 16, 20), torch.zeros(1, 32, 5), torch.zeros(1, 9, 6)
    layout = network._layout(latents, action, proprio)
    (future,) = [span for span in layout.spans if span.time == VIDEO]
    assert layout.length == 761
    assert layout.length - (future.stop - future.start) == 281
    assert network._layout(latents[:, :, :1], action, proprio).length == 281
