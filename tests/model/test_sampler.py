"""The denoising loop: its grid, its exactness on a known flow, what a policy call leaves out, guidance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import make_batch

from xwam_ft.errors import UserError
from xwam_ft.model.network import JointNetwork, Prediction, TextContext
from xwam_ft.model.sampler import Conditions, guide, sample
from xwam_ft.model.solver import Solver, flow_grid
from xwam_ft.model.streams import Streams


def noise_like(batch, seed: int = 0) -> Streams:
    shapes = batch.latents.shape, batch.action.shape, batch.proprio.shape
    return Streams.normal(shapes, torch.Generator().manual_seed(seed))


def run(network, batch, *, prefix=None, actions=None, rows=None, **options):
    known = Conditions(batch.latents[:, :, 0], batch.proprio[:, 0], prefix, actions, rows)
    defaults = {"noise": noise_like(batch), "video_steps": 4, "action_steps": 2}
    return sample(network, known, batch.text, **(defaults | options))


def test_grid_and_timesteps_are_the_documented_ones() -> None:
    unshifted = np.linspace(0.999, 0, 11)[:-1]
    np.testing.assert_allclose(flow_grid(10, 5.0), 5 * unshifted / (1 + 4 * unshifted))
    solver = Solver(10)
    assert solver.timesteps.tolist() == [int(1000 * sigma) for sigma in flow_grid(10)]
    assert solver.sigmas.tolist() == pytest.approx([*flow_grid(10), 0.0])


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_solver_is_exact_for_a_straight_flow(steps: int) -> None:
    """velocity = noise - x everywhere on the path: any number of steps ends on the data."""
    noise, data = torch.randn(2, 5), torch.randn(2, 5)
    solver = Solver(steps)
    sigma = solver.sigmas[0]
    x = (1 - sigma) * data + sigma * noise
    for k in range(steps):
        x = solver.step(noise - data, k, x)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


def test_a_policy_call_gives_the_actions_of_the_whole_run(network, batch) -> None:
    whole, policy = run(network, batch), run(network, batch, actions_only=True)
    assert torch.equal(whole.action, policy.action)
    assert torch.equal(whole.proprio, policy.proprio)
    assert policy.depth is None
    assert not torch.equal(whole.video, policy.video)


def test_conditions_stand_in_the_result(network, batch) -> None:
    result = run(network, batch)
    assert torch.equal(result.video[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(result.proprio[:, 0], batch.proprio[:, 0])


def test_the_branch_runs_once_and_actions_are_clean_after_their_steps(network, batch) -> None:
    calls = []
    forward = network.forward

    def recorded(video, action, proprio, text, t_video, t_action, *, with_depth):
        calls.append((float(t_video[0]), float(t_action[0]), with_depth))
        return forward(video, action, proprio, text, t_video, t_action, with_depth=with_depth)

    network.forward = recorded
    done = []
    run(network, batch, progress=lambda k, n: done.append((k, n)))
    video, action = Solver(4).timesteps.tolist(), Solver(2).timesteps.tolist()
    assert calls == [
        (video[0], action[0], False),
        (video[1], action[1], False),
        (video[2], 0, False),
        (video[3], 0, True),
    ]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    calls.clear()
    run(network, batch, with_depth=False)
    assert not any(with_depth for *_, with_depth in calls)


def test_guidance_extrapolates_from_the_empty_prompt_and_leaves_depth_alone(network, batch) -> None:
    null = make_batch(seed=1).text
    plain = run(network, batch)
    for unguided in (run(network, batch, guidance=0.0), run(network, batch, guidance=1.0, null_text=null)):
        assert torch.equal(unguided.action, plain.action)
    assert not torch.equal(run(network, batch, guidance=2.0, null_text=null).action, plain.action)
    with torch.no_grad():
        conditional = batch.run(network)
        batch.text = null
        empty = batch.run(network)
    guided = guide(conditional, empty, 2.0)
    for name in ("video", "action", "proprio"):
        with_text, without = getattr(conditional, name), getattr(empty, name)
        torch.testing.assert_close(getattr(guided, name), without + 2 * (with_text - without))
    assert guided.depth is conditional.depth


def test_noise_is_a_function_of_the_generator(network, batch) -> None:
    first, second, other = (noise_like(batch, seed) for seed in (3, 3, 4))
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.proprio, second.proprio)
    assert not torch.equal(first.action, other.action)
    before = torch.random.get_rng_state()
    run(network, batch)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("video_steps", "action_steps"), [(4, 5), (4, 0)])
def test_step_counts_that_do_not_fit_are_refused(network, batch, video_steps: int, action_steps: int) -> None:
    with pytest.raises(UserError, match=f"{action_steps} action steps and 4 video steps.*1 <= action_steps"):
        run(network, batch, video_steps=video_steps, action_steps=action_steps)


def test_guidance_needs_the_empty_prompt(network, batch) -> None:
    with pytest.raises(UserError, match=r"guidance 2\.0 without the embedding of the empty prompt"):
        run(network, batch, guidance=2.0)


def test_a_network_that_knows_the_data_is_followed_to_it(batch) -> None:
    """With the true velocities of one clip the sampler returns that clip, whatever the step counts."""

    noise = noise_like(batch)

    class Oracle(JointNetwork):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def encode_text(self, text):
            return TextContext(text)

        def forward(self, video, action, proprio, text, t_video, t_action, *, with_depth):
            clip = (batch.latents, batch.action, batch.proprio)
            drawn = (noise.video, noise.action, noise.proprio)
            return Prediction(*(n - x for n, x in zip(drawn, clip, strict=True)), None)

    result = run(Oracle(), batch, noise=noise, video_steps=6, action_steps=3)
    for ours, wanted in ((result.video, batch.latents), (result.action, batch.action), (result.proprio, batch.proprio)):
        # The first grid point is sigma = 0.9998, not 1: what is left of the data there is missing from pure noise.
        assert float((ours - wanted).abs().max()) < 2e-3


def test_states_are_denoised_on_the_grid_of_the_actions(batch) -> None:
    """Numbers that begin alike, under velocities that depend on them alike, stay alike at every step."""

    class Curved(JointNetwork):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def encode_text(self, text):
            return TextContext(text)

        def forward(self, video, action, proprio, text, t_video, t_action, *, with_depth):
            return Prediction(video, action.sin(), proprio.sin(), None)

    noise = Streams(*(torch.ones_like(stream) for stream in (batch.latents, batch.action, batch.proprio)))
    for shift in (5.0, 2.0):
        result = run(Curved(), batch, noise=noise, video_steps=6, action_steps=4, shift=shift)
        ends = torch.cat([result.action.flatten(), result.proprio[:, 1:].flatten()])
        assert float(ends.max() - ends.min()) == 0.0
        assert float(ends.max()) < 0.9, "it moved"


def test_the_chunk_goes_on_from_a_prefix_that_stays_clean(network, batch) -> None:
    seen = []
    forward = network.forward

    def recorded(video, action, *rest, **options):
        seen.append((action.clone(), options["action_held"]))
        return forward(video, action, *rest, **options)

    network.forward = recorded
    prefix = batch.action[:, :3]
    result = run(network, batch, prefix=prefix, guidance=2.0, null_text=make_batch(seed=1).text)
    assert len(seen) == 8  # four steps, each with and without text
    for action, held in seen:
        assert torch.equal(action[:, :3], prefix)
        assert held.int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 2
    assert torch.equal(result.action[:, :3], prefix)
    network.forward = forward
    assert not torch.allclose(run(network, batch, prefix=prefix).action, run(network, batch).action)
    other = run(network, batch, prefix=prefix + 1).action[:, 3:]
    assert not torch.allclose(run(network, batch, prefix=prefix).action[:, 3:], other)
    assert torch.equal(run(network, batch, prefix=prefix[:, :0]).action, run(network, batch).action)


def test_a_whole_chunk_may_be_given_to_some_samples_of_a_batch(network, batch) -> None:
    plain, given = run(network, batch), run(network, batch, actions=batch.action)
    assert torch.equal(given.action, batch.action)
    assert not torch.allclose(given.video, plain.video)
    other = run(network, batch, actions=batch.action + 1)
    assert not torch.allclose(given.video[:, :, 1:], other.video[:, :, 1:])
    assert not torch.allclose(given.proprio[:, 1:], other.proprio[:, 1:])
    mixed = run(network, batch, actions=batch.action, rows=torch.tensor([False, True]))
    for name in ("video", "action", "proprio", "depth"):
        wanted = torch.stack([getattr(plain, name)[0], getattr(given, name)[1]])
        torch.testing.assert_close(getattr(mixed, name), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"given actions of shape \(2, 7, 5\) for chunks of shape \(2, 8, 5\)"):
        run(network, batch, actions=batch.action[:, :7])


@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 3, 4)])
def test_a_prefix_that_does_not_fit_is_refused(network, batch, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"an action prefix of shape .* for chunks of shape \(2, 8, 5\)"):
        run(network, batch, prefix=torch.zeros(shape))
