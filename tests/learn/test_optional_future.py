"""`model.future: optional`, from the recipe to the robot: draws, losses, the plan, a run, its bundle, its answers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import tiny_training
from shared import QUIET
from tiny_training import recipe_tree
from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.encode.cache import LatentCache
from xwam_ft.encode.clips import StepGeometry, Stream
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.errors import UserError
from xwam_ft.evaluate.evaluate import evaluate_bundle
from xwam_ft.evaluate.imagine import imagine
from xwam_ft.export.export import export_run
from xwam_ft.learn.draws import draw, futures_hidden
from xwam_ft.learn.warm_start import other_future
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.noise import sample_sigmas
from xwam_ft.model.skeleton import read_skeleton
from xwam_ft.model.stored_part import PUBLISHED
from xwam_ft.model.trainable import trainable_network
from xwam_ft.plan.acting import acting
from xwam_ft.plan.memory import count_activations, random_batch
from xwam_ft.plan.plan import make_plan, shape_network
from xwam_ft.plan.plan_report import print_plan
from xwam_ft.policy.messages import metadata
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.policy.source import PolicySource
from xwam_ft.recipe import Recipe
from xwam_ft.runs.origin import open_origin
from xwam_ft.shards import ShardSet

from .test_module import STEP, gradients, make_module

Change = Callable[..., Recipe]
OPTIONAL = {"future": "optional"}


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_that_trains_one_of_both_alone_is_refused(recipe: Recipe, share: float) -> None:
    tree = recipe.model_dump(mode="json")
    tree["model"] |= {"future": "optional", "future_hidden_share": share}
    with pytest.raises(ValueError, match="future_hidden_share"):
        Recipe.model_validate(tree)


def test_the_asked_share_is_hidden_whatever_the_noise(recipe: Recipe) -> None:
    positions = range(2000)
    hidden = futures_hidden(positions, 0.3, recipe.seed)
    assert abs(float(hidden.float().mean()) - 0.3) < 0.031  # three standard deviations
    assert torch.equal(hidden[7:9], futures_hidden([7, 8], 0.3, recipe.seed))
    assert not torch.equal(hidden, futures_hidden(positions, 0.3, recipe.seed + 1))
    levels = [sample_sigmas(1, recipe.noise, torch.Generator().manual_seed(position)).video for position in positions]
    assert abs(float(torch.corrcoef(torch.stack([hidden.float(), torch.cat(levels)]))[0, 1])) < 0.08


def test_no_other_random_number_moves_and_validation_hides_every_future(
    changed: Change, recipe: Recipe, cache: LatentCache, shard_set: ShardSet
) -> None:
    batch = ClipDataset(cache, cache.of_split("train"), recipe.seed)[list(range(8))]
    module = make_module(changed(model=OPTIONAL), cache, shard_set, StepGeometry(8))
    plain, draws = draw(batch, recipe.noise, 0.0, recipe.seed), module.draw(batch, 0.0)
    assert plain.future_hidden is None
    assert draws.future_hidden is not None
    assert 0 < int(draws.future_hidden.sum()) < 8
    for ours, theirs in zip(draws.noise.parts, plain.noise.parts, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(draws.sigmas.video, plain.sigmas.video)
    validation = module.draw(batch, 0.0, Stream.VALIDATION)
    assert validation.future_hidden is not None
    assert validation.future_hidden.all()


def test_gradients_of_a_mixed_step_do_not_depend_on_how_it_is_cut(
    changed: Change, cache: LatentCache, shard_set: ShardSet
) -> None:
    recipe = changed(model=OPTIONAL)
    hidden = futures_hidden(StepGeometry(8).positions(STEP), 0.5, recipe.seed)
    assert 0 < int(hidden.sum()) < 8
    whole, pieces, joint = (
        gradients(chosen, cache, shard_set, *cut)
        for chosen, cut in ((recipe, (8, 1)), (recipe, (2, 2, 2)), (changed(), (8, 1)))
    )
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=1e-6 * scale, rtol=1e-5, msg=name)
    assert any(float((joint[name] - gradient).abs().max()) > 1e-3 * scale for name, gradient in whole.items())


@pytest.mark.slow
def test_the_plan_counts_what_hiding_keeps_and_what_leaving_out_saves(
    changed: Change, recipe: Recipe, shard_set: ShardSet
) -> None:
    chosen = changed(model=OPTIONAL)
    plan, joint = make_plan(chosen, shard_set), make_plan(recipe, shard_set)
    assert joint.acting is None
    assert plan.activations.plain > joint.activations.plain
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, chosen, shard_set.contract)
    batch = random_batch(shard_set.contract, plan.latents, plan.text, 2, "cpu", depth=True)
    real = count_activations(network, chosen, batch, scores=True, mixed=False)
    assert real.plain == pytest.approx(2 * plan.activations.plain, rel=0.01)
    # Two views of 32x64 at tiny: 1 state, 2 latent frames of 2 x 1 x 2 tokens, 8 actions, 4 further states.
    call = plan.acting
    assert call is not None
    frame = plan.latents[2] * plan.latents[3] * plan.latents[4] // 4
    assert (call.tokens, call.all_tokens) == (1 + frame + 8 + 4, 1 + 2 * frame + 8 + 4)
    shown = io.StringIO()
    print_plan(plan, chosen, Console(file=shown, width=140))
    assert f"{call.tokens} of {call.all_tokens}" in shown.getvalue()


@pytest.mark.slow
def test_at_the_published_size_a_call_computes_little_more_than_a_third(
    recipe: Recipe, shard_set: ShardSet, contract_with: Callable[..., Contract]
) -> None:
    base = shard_set.contract
    cameras = tuple(base.cameras[0].model_copy(update={"name": name}) for name in ("a", "b", "c"))
    timing = base.timing.model_copy(update={"frame_skip": 4, "clip_frames": 9})
    contract = base.model_copy(update={"cameras": cameras, "timing": timing})
    skeleton = read_skeleton(PUBLISHED, dtype="bfloat16")
    network = shape_network(skeleton, recipe, replace(shard_set, contract=contract)).eval()
    text = skeleton.backbone.text_len, int(skeleton.backbone.transformer.config.text_dim)
    batch = random_batch(contract, skeleton.backbone.latent_shape(3, 9, 256, 320), text, 1, "meta", depth=False)
    found = acting(network, batch)
    assert (found.tokens, found.all_tokens) == (281, 761)
    assert 0.33 < found.flops / found.all_flops < 281 / 761
    layers = (
        24 * 3072**2 + 4 * 3072 * 14336
    )  # multiply-adds of a token in a block: 4 + 2 attention products, feed-forward
    assert found.flops > 2 * 30 * 281 * layers / 4


@pytest.fixture(scope="module")
def made(shard_set: ShardSet, cache: LatentCache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps with an optional future, and its bundle."""
    folder = tmp_path_factory.mktemp("optional")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe_tree(shard_set.folder)))
    rates = [f"optim.lr_{name}=1e-2" for name in ("lora", "heads", "depth")]
    sets = ["model.future=optional", "trainer.max_steps=2", "optim.warmup_steps=0", *rates]
    run = tiny_training.train(folder / "recipe.yaml", folder / "run", sets, QUIET)
    export_run(run, folder / "bundle", console=QUIET)
    return run, folder / "bundle"


def request_of(contract: Contract, clip: Any, **options: Any) -> dict[str, Any]:
    places = conventions.state_slices(contract)
    return {
        "images": {name: clip.rgb[view, 0] for view, name in enumerate(contract.camera_names)},
        "state": {slot.name: clip.proprio[0, places[slot.name]] for slot in contract.slots},
        "prompt": clip.instruction,
        "options": {"seed": 5, **options},
    }


@pytest.mark.slow
def test_a_bundle_acts_without_the_future_and_imagines_what_it_would_do(
    made: tuple[Path, Path], shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made[1]
    assert json.loads((bundle / "config.json").read_text())["future"] == "optional"
    policy = Policy.load(bundle, "cpu")
    assert policy.future == metadata(policy)["future"] == "optional"
    clip = shard_set.read_clip(shard_set.clips("held_out", 1)[0])
    seen: list[int] = []
    forward = policy.network.forward

    def counted(latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(latents.shape[2])
        return forward(latents, *rest, **options)

    monkeypatch.setattr(policy, "forward", counted)
    plain = policy.infer(request_of(policy.contract, clip)).action
    assert set(seen) == {1}
    np.testing.assert_array_equal(policy.infer(request_of(policy.contract, clip, future=False)).action, plain)
    seen.clear()
    shown = policy.infer(request_of(policy.contract, clip, future=True)).action
    assert set(seen) == {2}
    assert np.abs(shown - plain).max() > 1e-3
    inputs = clip_observation(policy.contract, clip)
    imagined = policy.imagine(inputs, 5)
    np.testing.assert_allclose(imagined.action, plain, atol=1e-4)
    assert imagined.rgb.shape[1] == policy.contract.timing.clip_frames
    assert imagined.depth is not None
    policy.show_future()
    np.testing.assert_allclose(policy.imagine(inputs, 5).action, shown, atol=1e-4)


def test_evaluate_and_imagine_say_how_it_acted(made: tuple[Path, Path], shard_set: ShardSet, tmp_path: Path) -> None:
    source = PolicySource.of(made[1])
    found = {
        name: evaluate_bundle(chosen, shard_set.folder, None, 2, QUIET)[1]
        for name, chosen in (("without", source), ("with", source.with_future()))
    }
    assert (found["without"]["with_future"], found["with"]["with_future"]) == (False, True)
    errors = {name: metrics["slots"]["tool"]["position"]["policy"] for name, metrics in found.items()}
    assert errors["without"] != errors["with"]
    written = imagine(source.with_future(), shard_set.folder, 2, tmp_path / "out", QUIET)
    assert written["with_future"] is True


def test_a_joint_policy_is_asked_for_neither(bundle: Path, shard_set: ShardSet) -> None:
    config = json.loads((bundle / "config.json").read_text())
    assert "future" not in config
    assert "with_future" not in config["sampling"]
    policy = Policy.load(bundle, "cpu")
    clip = shard_set.read_clip(shard_set.clips("held_out", 1)[0])
    plain = policy.infer(request_of(policy.contract, clip)).action
    np.testing.assert_array_equal(policy.infer(request_of(policy.contract, clip, future=True)).action, plain)
    with pytest.raises(UserError, match=r"options\.future: is false, and this policy was trained .* model\.future"):
        policy.infer(request_of(policy.contract, clip, future=False))
    with pytest.raises(UserError, match="--with-future: changes nothing"):
        PolicySource.of(bundle).with_future().load()


def test_what_starts_from_another_kind_of_future_is_told(
    made: tuple[Path, Path], finished: Path, recipe: Recipe, changed: Change
) -> None:
    run, bundle = made
    optional = changed(model=OPTIONAL)
    for origin in (open_origin(str(run)), open_origin(str(bundle))):
        assert origin.future == "optional"
        assert other_future(optional, origin) == []
        assert "unlearns" in other_future(recipe, origin)[0]
    joint = open_origin(str(finished))
    assert other_future(recipe, joint) == []
    assert "is learned here" in other_future(optional, joint)[0]
