"""Runs that start from other runs: the same network, by name, at any rank; losses are said; no old place needed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import tiny_training
from tiny_training import same_checkpoint
from xwam_ft.contract import Contract, Slot
from xwam_ft.encode.clip_source import ClipSource
from xwam_ft.errors import UserError
from xwam_ft.learn.carry import Carried, carry
from xwam_ft.learn.data import ClipDataModule
from xwam_ft.learn.warm_start import other_clock
from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.network import JointNetwork
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe, overridden
from xwam_ft.runs.origin import open_origin
from xwam_ft.shards import ShardSet

QUIET = Console(quiet=True)


def fresh(recipe: Recipe, contract: Contract) -> JointNetwork:
    spec = recipe.backbone
    return trainable_network(load_backbone(spec.path, dtype=spec.dtype, parts=("transformer",)), recipe, contract)


def started(recipe: Recipe, contract: Contract, place: Path | str) -> tuple[JointNetwork, Carried]:
    network = fresh(recipe, contract)
    return network, carry(network, open_origin(str(place)), contract, QUIET)


def averaged(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/step-000006/ema.safetensors")


@pytest.fixture
def outputs(cache: ClipSource, recipe: Recipe, shard_set: ShardSet) -> Callable[[JointNetwork], list[torch.Tensor]]:
    """What a network answers to a clip, at noise that is always the same."""
    from xwam_ft.learn.draws import draw
    from xwam_ft.learn.module import TrainingModule

    data = ClipDataModule(cache, recipe, shard_set.contract.sha256)

    def run(network: JointNetwork) -> list[torch.Tensor]:
        module = TrainingModule(network, recipe, data.geometry, lambda step: {}, data.empty_text)
        batch = data.dataset.batch([0, 1], torch.device("cpu"))
        draws = draw(batch, recipe.noise, 0.0, recipe.seed)
        network.eval()
        with torch.no_grad():
            found = module.predict(module.add_noise(batch, draws), draws)
        assert found.depth is not None
        return [found.video, found.action, found.proprio, found.depth]

    return run


def test_the_same_recipe_starts_with_the_very_weights_that_are_exported(
    finished: Path, recipe: Recipe, contract: Contract
) -> None:
    network, done = started(recipe, contract, finished)
    wanted = averaged(finished)
    ours = trainable_state(network)
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(ours[name], tensor), name
    assert done.left == []
    assert not done.new
    assert not done.fitted
    assert done.sentences[0] == "views: 2 of 2 kept by name"


@pytest.mark.parametrize(
    ("changes", "exact"),
    [
        ({"model.lora.alpha": 16}, True),
        ({"model.lora.rank": 5, "model.lora.rslora": True}, True),
        ({"model.depth.branch": "copy"}, True),
        ({"model.train": "full", "model.depth.branch": "copy"}, True),
        ({"model.lora.rank": 1}, False),
    ],
)
def test_another_form_of_adapters_answers_alike(
    finished: Path,
    recipe: Recipe,
    contract: Contract,
    outputs: Callable[[JointNetwork], list[torch.Tensor]],
    changes: dict[str, object],
    exact: bool,
) -> None:
    wanted = outputs(started(recipe, contract, finished)[0])
    base = outputs(fresh(recipe, contract))
    if not exact:
        with pytest.raises(UserError, match=r"holds an update of .* that no adapter of rank 1 can: \d+% of it") as no:
            started(overridden(recipe, changes), contract, finished)
        assert "model.lora.rank" in no.value.fix
        return
    network, done = started(overridden(recipe, changes), contract, finished)
    for ours, theirs, untrained in zip(outputs(network), wanted, base, strict=True):
        effect = float((theirs - untrained).abs().max())
        assert float((ours - theirs).abs().max()) < 1e-3 * effect
    assert done.left == []


def test_slots_and_cameras_are_taken_by_name_and_new_ones_start_at_nothing(
    finished: Path, recipe: Recipe, contract: Contract
) -> None:
    lift = Slot(name="lift", kind="vector", columns=("h",), elements=("h",), units=("m",), convention="absolute")
    tool, gripper = contract.slots
    ranges = contract.quantiles

    def moved(values: tuple[float, ...], new: float, width: int) -> tuple[float, ...]:
        return (values[-1], new, *values[:width])  # gripper, lift, tool

    quantiles = ranges.model_copy(
        update={
            f"{stream}_{end}": moved(getattr(ranges, f"{stream}_{end}"), new, width)
            for stream, width in (("proprio", 7), ("action", 6))
            for end, new in (("low", -1.0), ("high", 1.0))
        }
    )
    top = contract.cameras[0].model_copy(update={"name": "top"})
    other = contract.model_copy(
        update={"slots": (gripper, lift, tool), "quantiles": quantiles, "cameras": (*contract.cameras[::-1], top)}
    )
    network, done = started(recipe, Contract.model_validate(other.model_dump()), finished)
    wanted = averaged(finished)
    assert torch.equal(network.view_embedding.weight[:2], wanted["view_embedding.weight"].flip(0))
    order = [7, *range(7)]
    ours = network.proprio_encoder[0].weight
    assert torch.equal(ours[:, [0, *range(2, 9)]], wanted["proprio_encoder.0.weight"][:, order])
    assert not torch.any(ours[:, 1])
    rows = network.action_decoder[2].weight
    assert torch.equal(rows[[0, *range(2, 8)]], wanted["action_decoder.2.weight"][[6, *range(6)]])
    assert not torch.any(rows[1])
    assert "views: 2 of 3 kept by name, 1 new" in done.sentences
    assert "proprio: 8 of 9 numbers kept by name, new and zero: lift" in done.sentences


def test_another_pace_of_pictures_or_actions_is_said(contract: Contract) -> None:
    timing = contract.timing
    slower = contract.model_copy(update={"timing": timing.model_copy(update={"fps": timing.fps / 2})})
    skipping = contract.model_copy(
        update={"timing": timing.model_copy(update={"fps": timing.fps * 2, "frame_skip": timing.frame_skip * 2})}
    )
    picture, action = timing.frame_skip / timing.fps, timing.action_skip / timing.fps
    pictures = (
        f"timing: pictures are {2 * picture:.4g} s apart here and were {picture:.4g} s in old, which learned that pace"
    )
    actions = "timing: actions are {:.4g} s apart here and were {:.4g} s in old, which learned that pace".format
    assert other_clock(contract, contract, "old") == []
    assert other_clock(slower, contract, "old") == [pictures, actions(2 * action, action)]
    assert other_clock(skipping, contract, "old") == [actions(action / 2, action)]


def test_what_has_no_place_is_left_behind_by_name(finished: Path, recipe: Recipe, contract: Contract) -> None:
    changes = {"model.lora.targets": ["attn1.*"], "model.depth.branch": "none"}
    _, done = started(overridden(recipe, changes), contract, finished)
    assert any(name.startswith("transformer.blocks.0.ffn.net.0.proj.lora_A") for name in done.left)
    assert any(name.startswith("depth_branch.proj_out") for name in done.left)
    _, done = started(overridden(recipe, {"model.depth.blocks": 2}), contract, finished)
    assert any(line.startswith("depth branch: new, of 2 blocks; that of ") for line in done.sentences)


def test_other_kinds_of_adapters_and_places_are_refused(
    finished: Path, recipe: Recipe, contract: Contract, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"was trained with model\.lora\.dora: false") as error:
        started(overridden(recipe, {"model.lora.dora": True}), contract, finished)
    assert "--set model.lora.dora=false" in error.value.fix
    for place, said in ((tmp_path, "is neither a run nor a bundle"), (tmp_path / "gone", "is not there")):
        with pytest.raises(UserError, match=said):
            open_origin(str(place))
    with pytest.raises(UserError, match=r"has no checkpoint of step 5\. Fix: choose one that it kept: 3, 6"):
        open_origin(f"{finished}@5")


def test_another_backbone_is_refused_before_any_work(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    changes = [f"init_from={finished}", "backbone.path=tiny-untrained", "data.clip_stride=7"]
    with pytest.raises(UserError, match=r"was trained on another backbone, tiny with the fingerprint") as error:
        tiny_training.train(recipe_file, tmp_path / "run", changes, QUIET)
    assert error.value.fix.startswith("set backbone.path to tiny")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_started_from_another_needs_it_no_more(
    finished: Path, recipe_file: Path, make_shard_set: Callable[[Path, Contract], ShardSet], contract: Contract,
    tmp_path: Path,
) -> None:  # fmt: skip
    old = shutil.copytree(finished, tmp_path / "old")
    ranges = contract.quantiles.model_copy(update={"proprio_high": (0.55, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.4)})
    more = make_shard_set(tmp_path / "more", contract.model_copy(update={"quantiles": ranges}))
    changes = [f"init_from={old}@6", f"data.shards={more.folder}", "trainer.max_steps=2", "checkpoint.every_steps=1"]
    shown = io.StringIO()
    run = tiny_training.train(recipe_file, tmp_path / "run", changes, Console(file=shown, width=300))
    said = shown.getvalue()
    assert "step 6, averaged weights" in said
    assert "quantiles kept, within 1.5 times their old range: tool (proprio)" in said
    assert "quantiles refitted: gripper (proprio), whose width was 0..0.08 and is 0..0.4 now" in said
    report = json.loads((run / "init/report.json").read_text())
    assert report["origin"]["place"] == f"{old}@6"
    assert {row["slot"]: row["kept"] for row in report["quantiles"] if row["stream"] == "proprio"} == {
        "tool": True, "gripper": False,
    }  # fmt: skip
    assert load_file(run / "init/trainable.safetensors").keys() == averaged(finished).keys()
    made = json.loads((run / "contract.json").read_text())["quantiles"]["proprio_high"]
    assert made == [*contract.quantiles.proprio_high[:7], 0.4]

    shutil.rmtree(old)
    for kept in (0, 1):
        again = shutil.copytree(run, tmp_path / f"again-{kept}")
        for folder in (again / "checkpoints").iterdir():
            if int(folder.name[-6:]) > kept:
                shutil.rmtree(folder)
        tiny_training.resume(again, QUIET)
        same_checkpoint(again / "checkpoints/step-000002", run / "checkpoints/step-000002")
