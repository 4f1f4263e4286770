"""The module that training runs takes the reference's own step: the same losses, the same gradients.

Random numbers are the golden file's; everything else (what is noised with which level, which timestep the network is
told, targets, masks, counts, weights, the backward pass) is `TrainingModule`'s.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xwam_ft.encode.batch import Batch
from xwam_ft.encode.clips import StepGeometry
from xwam_ft.learn import module as training_module
from xwam_ft.learn.draws import Draws
from xwam_ft.learn.module import TrainingModule
from xwam_ft.model.golden_file import GoldenFile, read_golden, relative_error
from xwam_ft.model.losses import LossMasks, loss_counts
from xwam_ft.model.noise import Sigmas
from xwam_ft.model.reference import build_from_reference, to_reference
from xwam_ft.model.streams import Streams
from xwam_ft.recipe import Recipe

GOLDEN = Path(__file__).parents[1] / "golden" / "xwam_step.safetensors"
CLIPS = 4


@pytest.fixture(scope="module")
def golden() -> GoldenFile:
    return read_golden(GOLDEN)


def recipe() -> Recipe:
    return Recipe.model_validate(
        {"backbone": {"path": "tiny"}, "data": {"shards": "s"}, "trainer": {"max_steps": 1, "batch_size": CLIPS}}
    )


def make_batch(golden: GoldenFile) -> Batch:
    latents, depth = golden.input("latents"), golden.input("depth_latents")
    return Batch(
        positions=tuple(range(CLIPS)),
        keys=tuple("abcd"),
        video_mask=torch.ones(CLIPS, latents.shape[2]),
        action=golden.input("actions"),
        action_mask=golden.input("action_mask"),
        proprio=golden.input("proprios"),
        proprio_mask=golden.input("proprio_mask"),
        text=golden.input("text"),
        depth_mask=torch.ones_like(depth[:, 0], dtype=torch.bool),
        latents=latents,
        depth=depth,
    )


def make_draws(golden: GoldenFile) -> Draws:
    wanted = golden.outputs["sigma_video"][""], golden.outputs["sigma_action"][""]
    sigmas = Sigmas(*wanted, golden.input("action_is_clean").bool())
    noise = (golden.input(f"noise_{name}") for name in ("video", "action", "proprio"))
    return Draws(sigmas, golden.input("drop_text").bool(), Streams(*noise))


def step(golden: GoldenFile, monkeypatch: pytest.MonkeyPatch, *, checkpointing: bool = False) -> TrainingModule:
    """A module after one backward pass over the golden step."""
    network = build_from_reference(golden.config, golden.weights)
    network.gradient_checkpointing = checkpointing
    batch, draws = make_batch(golden), make_draws(golden)
    masks = LossMasks(
        batch.video_mask, batch.action_mask, batch.proprio_mask, draws.sigmas.action_is_clean, batch.depth_mask
    )
    counts = {name: float(count) for name, count in loss_counts(masks, tuple(batch.latents.shape)).items()}
    monkeypatch.setattr(training_module, "draw", lambda *_: draws)
    module = TrainingModule(network, recipe(), StepGeometry(CLIPS), lambda _: counts, golden.input("null_text")[0])
    module.training_step(batch, 0).backward()
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_the_reference_s(
    golden: GoldenFile, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    module = step(golden, monkeypatch, checkpointing=checkpointing)
    for name in ("video", "action", "proprio", "depth", "total"):
        value = golden.outputs["loss"][name if name == "total" else f"{name}_loss"]
        assert relative_error(module.losses[name].reshape(1), value) <= 1e-6, name
    slopes = {name: value.grad for name, value in module.network.named_parameters() if value.grad is not None}
    ours = to_reference(slopes)
    wanted = golden.outputs["grad"]
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert relative_error(ours[name], gradient) <= 5e-5, name


def test_what_the_network_is_given_is_named_by_stream(golden: GoldenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub in the network's place: which level goes where, and what stays clean."""
    told: list[tuple[torch.Tensor, ...]] = []

    class Told(Exception):
        pass

    def forward(*given: torch.Tensor, action_held: object) -> None:
        told.append(given)
        raise Told

    network = build_from_reference(golden.config, golden.weights)
    monkeypatch.setattr(network, "forward", forward)
    batch, draws = make_batch(golden), make_draws(golden)
    monkeypatch.setattr(training_module, "draw", lambda *_: draws)
    module = TrainingModule(network, recipe(), StepGeometry(CLIPS), lambda _: {}, golden.input("null_text")[0])
    with pytest.raises(Told):
        module.training_step(batch, 0)
    video, action, proprio, text, video_time, action_time = told[0]
    assert torch.equal(video_time, 1000 * draws.sigmas.video)
    assert torch.equal(action_time, 1000 * draws.sigmas.action)
    assert not torch.equal(video_time, action_time)
    assert torch.equal(video[:, :, 0], batch.latents[:, :, 0])
    assert torch.equal(proprio[:, 0], batch.proprio[:, 0])
    assert torch.equal(action[0], batch.action[0]), "clip 0 has clean actions"
    assert draws.sigmas.action_is_clean[0]
    level = draws.sigmas.action[1]
    torch.testing.assert_close(proprio[1, 3], (1 - level) * batch.proprio[1, 3] + level * draws.noise.proprio[1, 3])
    torch.testing.assert_close(action[1, 3], (1 - level) * batch.action[1, 3] + level * draws.noise.action[1, 3])
    assert torch.equal(text[1], golden.input("null_text")[0])
    assert torch.equal(text[0], batch.text[0])
