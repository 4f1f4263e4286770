"""One training step: counts known beforehand, gradients that do not depend on how a step is cut up, guards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.clips import StepGeometry, Stream, generator_at
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.errors import UserError
from xwam_ft.learn.counts import StepCounts
from xwam_ft.learn.draws import action_is_clean, action_prefixes, draw
from xwam_ft.learn.module import TrainingModule
from xwam_ft.learn.optimizer import trained_parameters
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.network import Prediction
from xwam_ft.model.noise import Sigmas, sample_sigmas
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet

STEP = 1


def make_module(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet, geometry: StepGeometry, run: Path | None = None
) -> TrainingModule:
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, shard_set.contract)
    counts = StepCounts(cache, recipe.noise, recipe.seed, geometry)
    return TrainingModule(network, recipe, geometry, counts.of_step, cache.prompt_embeddings[0], run=run)


def gradients(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet, batch: int, accumulate: int, ranks: int = 1
) -> dict[str, Tensor]:
    """Gradients of step STEP as Lightning and DDP would combine them: means over micro-batches and ranks."""
    geometry = StepGeometry(batch, accumulate, ranks)
    module = make_module(recipe, cache, shard_set, geometry)
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    for rank in range(ranks):
        for index in range(accumulate):
            loss = module.training_step(dataset[geometry.micro_batch(STEP, index, rank)], index)
            (loss / accumulate / ranks).backward()
    return {name: parameter.grad for name, parameter in trained_parameters(module.network).items()}


def test_gradients_do_not_depend_on_how_a_step_is_cut(recipe: Recipe, cache: LatentCache, shard_set: ShardSet) -> None:
    whole = gradients(recipe, cache, shard_set, 8, 1)
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for cut in ((1, 8, 1), (2, 2, 2)):
        pieces = gradients(recipe, cache, shard_set, *cut)
        for name, gradient in whole.items():
            torch.testing.assert_close(pieces[name], gradient, atol=1e-6 * scale, rtol=1e-5, msg=f"{name} at {cut}")


PREFIXES = {"action_prefix": {"max": 3, "probability": 0.7}, "clean_action_probability": 0.3}


@pytest.mark.parametrize("noise", [{}, PREFIXES], ids=["plain", "prefixes"])
def test_counts_known_beforehand_are_the_losses_own(
    noise: dict[str, Any], changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    recipe, geometry = changed(noise=noise), StepGeometry(4, 2)
    module = make_module(recipe, cache, shard_set, geometry)
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    module.network = Answering(lambda *streams: Prediction(*streams, depth=streams[0]))
    actions: list[float] = []
    for step in (1, 2, 3, 1):  # asked in any order
        sums: dict[str, float] = {}
        for index in range(2):
            batch = dataset[geometry.micro_batch(step, index)]
            draws = draw(batch, recipe.noise, 0.0, recipe.seed)
            terms = module.loss_terms(batch, draws, module.predict(module.add_noise(batch, draws), draws))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.count)
        assert sums == module.counts_of_step(step)
        actions.append(sums["action"])
    assert len(set(actions)) > 1, "steps whose counts are alike would not show one taken for another"


class Answering(torch.nn.Module):
    """In a network's place: keeps what it is told beside the streams, and answers what `answer` makes of all of it."""

    def __init__(self, answer: Callable[..., Prediction]) -> None:
        super().__init__()
        self.answer = answer
        self.told: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(
        self, video: Tensor, action: Tensor, proprio: Tensor, text: Tensor, t_video: Tensor, t_action: Tensor,
        *, action_held: Tensor | None = None,
    ) -> Prediction:  # fmt: skip
        self.told.append((t_video, t_action, action_held))
        return self.answer(video, action, proprio)


def test_the_network_is_told_how_noisy_each_stream_is(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    """At sigma 1 the video is all noise; at 1/4 actions and states are three parts clip and one part noise."""
    recipe = changed(noise=PREFIXES)
    module = make_module(recipe, cache, shard_set, StepGeometry(4))
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[[0, 1, 2, 3]]
    levels = Sigmas(torch.ones(4), torch.full((4,), 0.25), torch.zeros(4, dtype=torch.bool))
    draws = replace(
        draw(batch, recipe.noise, 0.0, recipe.seed), sigmas=levels, action_prefix=torch.tensor([0, 1, 2, 3])
    )
    noised = module.add_noise(batch, draws)
    assert torch.equal(noised.video[:, :, 1:], draws.noise.video[:, :, 1:])
    for ours, clip, noise, first in (
        (noised.action, batch.action, draws.noise.action, 3),
        (noised.proprio, batch.proprio, draws.noise.proprio, 1),
    ):
        torch.testing.assert_close(4 * ours[:, first:], (3 * clip + noise)[:, first:])
    module.network = Answering(lambda *streams: Prediction(*streams, depth=None))
    module.predict(noised, draws)
    ((t_video, t_action, held),) = module.network.told
    assert t_video.tolist() == [1000.0] * 4
    assert t_action.tolist() == [250.0] * 4
    assert held is not None
    assert held.tolist() == [[step < length for step in range(8)] for length in range(4)]


@pytest.mark.parametrize("noise", [{}, PREFIXES], ids=["plain", "prefixes"])
def test_whoever_knows_the_velocities_has_no_loss(
    noise: dict[str, Any], changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    """x + sigma (noise - x) is what is shown at the sigma that is told, so noise - x follows from both."""
    recipe, geometry = changed(noise=noise), StepGeometry(8)
    module = make_module(recipe, cache, shard_set, geometry)
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[geometry.micro_batch(STEP, 0)]
    off = 0.0

    def velocity(shown: Tensor, clip: Tensor, timestep: Tensor) -> Tensor:
        sigma = (timestep / 1000).clamp(min=1e-6).view(-1, *[1] * (clip.ndim - 1))
        return (shown - clip) / sigma + off

    def answer(video: Tensor, action: Tensor, proprio: Tensor) -> Prediction:
        t_video, t_action, _ = module.network.told[-1]
        assert batch.depth is not None
        return Prediction(
            video=velocity(video, batch.latents, t_video),
            action=velocity(action, batch.action, t_action),
            proprio=velocity(proprio, batch.proprio, t_action),
            depth=batch.depth + off,
        )

    module.network = Answering(answer)
    assert float(module.training_step(batch, 0)) < 1e-6
    off = 1.0
    module.training_step(batch, 0)
    for name in ("video", "action", "proprio", "depth"):
        assert float(module.losses[name]) == pytest.approx(1.0, abs=1e-3), name  # every number that counts is off by 1


def test_validation_is_of_whole_chunks_at_noise_of_its_own(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    """At the same positions training has other levels, and prefixes, on which no held-out loss would count."""
    recipe = changed(noise=PREFIXES)
    module = make_module(recipe, cache, shard_set, StepGeometry(4))
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[[0, 1, 2, 3]]
    module.network = Answering(lambda *streams: Prediction(*streams, depth=streams[0]))
    for _ in range(2):
        module.validation_step(batch, 0)
    (t_video, t_action, held), again = module.network.told
    assert held is None
    assert torch.equal(again[0], t_video)
    assert torch.equal(again[1], t_action)
    training = draw(batch, recipe.noise, 0.0, recipe.seed)
    assert not torch.isclose(t_video, 1000 * training.sigmas.video).any()


def test_some_samples_of_the_step_have_clean_actions_and_some_have_not(recipe: Recipe) -> None:
    # Otherwise the tests above would not see a wrong division.
    clean = action_is_clean(StepGeometry(8).positions(STEP), recipe.noise, recipe.seed)
    assert 0 < int(clean.sum()) < 8


def test_draws_belong_to_positions_not_to_batches(recipe: Recipe, cache: LatentCache) -> None:
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    together = draw(dataset[[3, 4, 5]], recipe.noise, 0.5, recipe.seed)
    alone = draw(dataset[[4]], recipe.noise, 0.5, recipe.seed)
    torch.testing.assert_close(together.noise.video[1:2], alone.noise.video, atol=0, rtol=0)
    torch.testing.assert_close(together.sigmas.video[1:2], alone.sigmas.video, atol=0, rtol=0)
    assert torch.equal(together.sigmas.action_is_clean, action_is_clean([3, 4, 5], recipe.noise, recipe.seed))


def test_how_many_actions_are_given_clean_says_nothing_about_the_noise(changed: Callable[..., Recipe]) -> None:
    spec = changed(noise={"action_prefix": {"max": 3, "probability": 0.5}, "clean_action_probability": 0.5}).noise
    positions = range(700)
    lengths = action_prefixes(positions, spec, 0)
    assert lengths is not None
    levels = [sample_sigmas(1, spec, generator_at(0, Stream.NOISE, position)) for position in positions]
    for name in ("video", "action", "action_is_clean"):
        level = torch.cat([getattr(one, name) for one in levels]).float()
        for what in (lengths.float(), (lengths > 0).float()):
            assert abs(float(torch.corrcoef(torch.stack([what, level]))[0, 1])) < 0.13, name  # 3.5 standard deviations


def test_text_is_dropped_at_the_asked_rate(recipe: Recipe, cache: LatentCache) -> None:
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    batch = dataset[list(range(400))]
    dropped = draw(batch, recipe.noise, 0.25, recipe.seed).drop_text.float().mean()
    assert abs(float(dropped) - 0.25) < 0.07  # three standard deviations


def test_conditions_stay_clean(recipe: Recipe, cache: LatentCache, shard_set: ShardSet) -> None:
    module = make_module(recipe, cache, shard_set, StepGeometry(4))
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[[0, 1, 2, 3]]
    draws = draw(batch, recipe.noise, 1.0, recipe.seed)
    noised = module.add_noise(batch, draws)
    assert torch.equal(noised.video[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(noised.proprio[:, 0], batch.proprio[:, 0])
    assert not torch.equal(noised.video[:, :, 1], batch.latents[:, :, 1])
    assert torch.equal(noised.text, module.empty_text.expand_as(noised.text))
    clean = draws.sigmas.action_is_clean
    assert torch.equal(noised.action[clean], batch.action[clean])


def test_a_loss_that_is_not_finite_names_step_clips_and_checkpoint(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet, tmp_path: Path
) -> None:
    geometry = StepGeometry(2)
    (tmp_path / "checkpoints/step-000003").mkdir(parents=True)
    module = make_module(recipe, cache, shard_set, geometry, tmp_path)
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[geometry.micro_batch(STEP, 0)]
    batch.latents[0, 0, 1] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 2, in clips ") as error:
        module.training_step(batch, 0)
    assert all(key in error.value.what for key in batch.keys)
    assert "step-000003" in error.value.fix


def test_loss_weights_scale_their_terms(
    recipe: Recipe, changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    module = make_module(changed(loss={"video": 2.0, "action": 0.5}), cache, shard_set, StepGeometry(1))
    losses = {name: torch.tensor(1.0) for name in ("video", "action", "proprio", "depth")}
    assert float(module.weigh(losses)) == 4.5


def test_prefixes_are_clean_not_scored_and_belong_to_positions(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    recipe = changed(noise=PREFIXES)
    module = make_module(recipe, cache, shard_set, StepGeometry(8))
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[list(range(8))]
    draws = draw(batch, recipe.noise, 0.0, recipe.seed)
    assert draws.action_prefix is not None
    assert set(draws.action_prefix.tolist()) >= {0, 1}
    plain = draw(batch, changed().noise, 0.0, recipe.seed)
    assert torch.equal(draws.noise.action, plain.noise.action)  # no other random number moved
    noised = module.add_noise(batch, draws)
    for row, length in enumerate(draws.action_prefix.tolist()):
        assert torch.equal(noised.action[row, :length], batch.action[row, :length])
        if not draws.sigmas.action_is_clean[row]:
            assert not torch.isclose(noised.action[row, length:], batch.action[row, length:]).all(dim=1).any()
    prediction = module.predict(noised, draws)
    prediction.action.retain_grad()
    module.loss_terms(batch, draws, prediction)["action"].sum.backward()
    for row, length in enumerate(draws.action_prefix.tolist()):
        assert not prediction.action.grad[row, :length].any()
    validation = draw(batch, recipe.noise, 0.0, recipe.seed, Stream.VALIDATION)
    assert validation.action_prefix is None


def test_gradients_with_prefixes_do_not_depend_on_how_a_step_is_cut(
    changed: Callable[..., Recipe], cache: LatentCache, shard_set: ShardSet
) -> None:
    recipe = changed(noise=PREFIXES)
    whole, pieces = (gradients(recipe, cache, shard_set, *cut) for cut in ((8, 1), (2, 2, 2)))
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-6 * scale, rtol=1e-5, msg=name)


def test_an_exploding_loss_names_step_clips_and_checkpoint(
    recipe: Recipe, cache: LatentCache, shard_set: ShardSet, tmp_path: Path
) -> None:
    geometry = StepGeometry(1, 2)
    (tmp_path / "checkpoints/step-000003").mkdir(parents=True)
    module = make_module(recipe, cache, shard_set, geometry, tmp_path)
    dataset = ClipDataset(cache, cache.of_split("train"), recipe.seed)
    optimizer = torch.optim.SGD([{"name": "all", "params": list(trained_parameters(module.network).values())}], lr=0.0)
    batches = [dataset[geometry.micro_batch(STEP, index)] for index in range(2)]
    for index, batch in enumerate(batches):
        module.training_step(batch, index)
    usual = float(module.losses["total"])
    module.history.extend([usual / 90] * 25)
    module.on_before_optimizer_step(optimizer)  # 90 times the median: steep, not exploded
    module.history.extend([usual / 101] * 50)
    with pytest.raises(UserError, match=r"the loss has exploded: .* at step 1, .* in clips ") as error:
        module.on_before_optimizer_step(optimizer)
    assert all(key in error.value.what for batch in batches for key in batch.keys)
    assert "step-000003" in error.value.fix


def test_a_term_that_a_step_does_not_hold_is_not_logged_as_0() -> None:
    """With clean actions alone nothing of an action is scored: a loss of 0 would look learned."""
    logged: dict[str, Any] = {}
    asked: list[int] = []

    def counts(step: int) -> dict[str, float]:
        asked.append(step)
        return {"video": 96.0, "action": 1.0, "proprio": 12.0}  # 1: nothing valid, see StepCounts

    losses = {name: torch.tensor(value) for name, value in (("video", 2.0), ("action", 0.0), ("proprio", 0.5))}
    module: Any = SimpleNamespace(
        _require_steady=lambda: None,
        _trainer=object(),
        trainer=SimpleNamespace(_results=None),
        step=7,
        losses={**losses, "total": torch.tensor(2.5)},
        counts_of_step=counts,
        log_dict=lambda values, **_: logged.update(values),
        log=lambda name, value, **_: logged.update({name: value}),
    )
    groups: Any = SimpleNamespace(param_groups=[{"name": "heads", "lr": 1e-3}])
    TrainingModule.on_before_optimizer_step(module, groups)
    assert asked == [7]
    assert {name: float(value) for name, value in logged.items()} == {
        "train/loss_video": 2.0,
        "train/loss_proprio": 0.5,
        "train/loss_total": 2.5,
        "loss": 2.5,
        "step": 8.0,
        "lr/heads": 1e-3,
    }
