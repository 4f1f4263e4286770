"""Export: the bundle is the run, merged; and whatever would make it something else is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from shared import QUIET
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.export import proof
from xwam_ft.export.export import export_run
from xwam_ft.model.adapters import load_trainable
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.trainable import trainable_network
from xwam_ft.policy import selfcheck
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.recipe import load_recipe
from xwam_ft.runs.checkpoint import latest_checkpoint, write_checkpoint
from xwam_ft.runs.folder import open_run
from xwam_ft.shards import ShardSet
from xwam_ft.train.train import train_recipe

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def changed_run(trained_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the run whose newest checkpoint holds other weights, or another state."""

    def change(weights: Callable[[Tensors], Tensors] = lambda w: w, **state: object) -> Path:
        run = Path(shutil.copytree(trained_run, tmp_path / "changed"))
        old = latest_checkpoint(run)
        assert old is not None
        trainable, ema, optimizer = old.trainable(), old.ema(), old.optimizer()
        assert ema is not None
        shutil.rmtree(old.folder)
        write_checkpoint(run, replace(old.state, **state), weights(trainable), optimizer, weights(ema), keep=1)
        return run

    return change


def refused(run: Path, out: Path, **options: object) -> str:
    with pytest.raises(UserError) as error:
        export_run(run, out, console=QUIET, **options)  # pyright: ignore[reportArgumentType]
    assert not list(out.parent.glob(".*unproved*")), "a draft was left"
    assert not out.exists(), "a bundle was left"
    return str(error.value)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.slow
def test_the_bundle_acts_as_the_run_s_unmerged_network(
    trained_run: Path, shard_set: ShardSet, tmp_path: Path, ema: bool
) -> None:
    bundle = export_run(trained_run, tmp_path / "bundle", ema=ema, console=QUIET)
    exported = Policy.load(bundle, "cpu")
    folder = open_run(trained_run)
    assert folder.checkpoint is not None
    backbone = load_backbone("tiny", dtype="float32")
    network = trainable_network(backbone, folder.recipe, folder.contract)
    weights = folder.checkpoint.ema() if ema else folder.checkpoint.trainable()
    assert weights is not None
    load_trainable(network, weights, "test")
    live = Policy(network.eval(), backbone, exported.prompts, folder.contract, exported.settings)
    inputs = [clip_observation(folder.contract, shard_set.read_clip(ref)) for ref in shard_set.clips(None, 20)]
    seeds = list(range(len(inputs)))
    np.testing.assert_allclose(exported.infer_batch(inputs, seeds), live.infer_batch(inputs, seeds), atol=2e-4)
    # The run's branch is an adapter on shared blocks, the bundle's is copies: the depth is the same.
    assert network.config.depth_shared
    assert not exported.network.config.depth_shared
    ours, theirs = exported.imagine(inputs[0], 0).depth, live.imagine(inputs[0], 0).depth
    assert ours is not None
    assert theirs is not None
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 16  # of 65535


@pytest.mark.slow
def test_averaged_and_last_weights_differ(trained_run: Path, bundle: Path, tmp_path: Path) -> None:
    last = export_run(trained_run, tmp_path / "last", ema=False, console=QUIET)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (bundle, last))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_nothing_of_lora_is_left_in_the_bundle(bundle: Path) -> None:
    assert not [name for name in load_file(bundle / "model.safetensors") if "lora" in name]


@pytest.mark.slow
def test_without_depth_the_actions_are_the_same(trained_run: Path, bundle: Path, tmp_path: Path) -> None:
    slim = export_run(trained_run, tmp_path / "slim", depth=False, console=QUIET)
    assert not [name for name in load_file(slim / "model.safetensors") if "depth_branch" in name]
    ours, theirs = Policy.load(bundle, "cpu"), Policy.load(slim, "cpu")
    check = selfcheck.load(bundle / "selfcheck.safetensors", ours)
    assert check.difference(theirs) < 1e-5
    assert theirs.imagine(check.inputs, 0).depth is None


@pytest.mark.slow
def test_a_further_prompt_is_embedded(trained_run: Path, tmp_path: Path) -> None:
    bundle = export_run(trained_run, tmp_path / "bundle", prompts=["wave  at me"], console=QUIET)
    known = Policy.load(bundle, "cpu").prompts
    assert set(known) == {"", "wave at me", "pick up the cube", "put the cube in the bowl"}
    expected = load_backbone("tiny", dtype="float32", parts=("text",)).encode_prompts(["wave at me"])[0]
    torch.testing.assert_close(known["wave at me"], expected)


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes(trained_run: Path, bundle: Path, tmp_path: Path) -> None:
    again = export_run(trained_run, tmp_path / "bundle", console=QUIET)
    for path in bundle.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("which", ["transformer.", "depth_branch."])
def test_one_zeroed_adapter_is_refused(changed_run: Callable[..., Path], tmp_path: Path, which: str) -> None:
    def zero(weights: Tensors) -> Tensors:
        name = next(name for name in sorted(weights) if name.startswith(which) and ".lora_B." in name)
        return weights | {name: torch.zeros_like(weights[name])}

    message = refused(changed_run(zero), tmp_path / "bundle")
    assert "1 of " in message
    assert "adapters are zero" in message
    assert which in message


@pytest.mark.slow
def test_an_adapter_lost_in_bfloat16_is_refused_with_the_way_out(
    changed_run: Callable[..., Path], tmp_path: Path
) -> None:
    def shrink(weights: Tensors) -> Tensors:
        return {name: tensor * 0.02 if ".lora_B." in name else tensor for name, tensor in weights.items()}

    run = changed_run(shrink)
    message = refused(run, tmp_path / "bundle", dtype="bfloat16")
    assert "merging in bfloat16 changes" in message
    assert "export with --dtype float32" in message
    export_run(run, tmp_path / "bundle", dtype="float32", console=QUIET)


def test_another_base_is_refused(changed_run: Callable[..., Path], tmp_path: Path) -> None:
    message = refused(changed_run(backbone="0" * 64), tmp_path / "bundle")
    assert "is not the backbone this run was trained on" in message
    assert "000000000000" in message


def test_shards_of_another_contract_are_refused(changed_run: Callable[..., Path], tmp_path: Path) -> None:
    run = changed_run()
    tree = json.loads((run / "contract.json").read_text())
    tree["quantiles"]["action_high"][0] += 1e-3
    (run / "contract.json").write_text(json.dumps(tree))
    message = refused(run, tmp_path / "bundle")
    assert "does not hold the contract of" in message
    assert "quantiles" in message


def _swap_cameras(tree: dict[str, Any]) -> None:
    tree["cameras"].reverse()


def _move_quantile(tree: dict[str, Any]) -> None:
    tree["quantiles"]["action_high"][0] += 1e-3


@pytest.mark.parametrize("change", [_swap_cameras, _move_quantile])
def test_a_contract_changed_in_run_and_shards_alike_is_refused(
    changed_run: Callable[..., Path], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    run = changed_run()
    before = (run / "contract.json").read_bytes()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    shards = Path(shutil.copytree(recipe["data"]["shards"], tmp_path / "shards"))
    recipe["data"]["shards"] = str(shards)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tree = json.loads((run / "contract.json").read_text())
    change(tree)
    changed = Contract.model_validate(tree).to_bytes()
    (run / "contract.json").write_bytes(changed)
    message = refused(run, tmp_path / "bundle")
    assert "does not hold the contract of" in message
    (shards / "contract.json").write_bytes(changed)
    index = (shards / "index.json").read_text()
    old, new = (hashlib.sha256(data).hexdigest() for data in (before, changed))
    (shards / "index.json").write_text(index.replace(old, new))
    assert "is not the contract this run was trained under" in refused(run, tmp_path / "bundle")


@pytest.mark.slow
def test_unmerged_the_bundle_keeps_the_adapter_beside_the_base(trained_run: Path, bundle: Path, tmp_path: Path) -> None:
    kept = export_run(trained_run, tmp_path / "bundle", merged=False, console=QUIET)
    stored = load_file(kept / "model.safetensors")
    base = load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer.state_dict()
    name = "network.transformer.blocks.0.attn1.to_q"
    assert torch.equal(stored[f"{name}.base_layer.weight"], base["blocks.0.attn1.to_q.weight"])
    assert stored[f"{name}.lora_A.default.weight"].shape[0] == 2
    ours, theirs = Policy.load(kept, "cpu"), Policy.load(bundle, "cpu")
    assert ours.network.config.depth_shared
    check = selfcheck.load(bundle / "selfcheck.safetensors", theirs)
    assert check.difference(ours) < 2e-4
    with torch.no_grad():
        ours.network.get_parameter("transformer.blocks.0.attn1.to_q.lora_B.default.weight").zero_()
    assert check.difference(ours) > 0


@pytest.mark.slow
def test_a_machine_without_the_memory_says_what_was_not_run(
    trained_run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xwam_ft.export import export as module

    monkeypatch.setattr(module, "free_memory", lambda: 0)
    stream = io.StringIO()
    out = export_run(trained_run, tmp_path / "bundle", console=Console(file=stream, width=200))
    assert "not run: it takes" in stream.getvalue()
    assert "rounding takes at most" in stream.getvalue()
    assert not (out / "selfcheck.safetensors").exists()
    assert (out / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds no recorded request"):
        Policy.load(out, "cpu")
    assert "Not measured" in (out / "README.md").read_text()


def test_rounding_of_blocks_is_refused_beyond_the_limit() -> None:
    block, share = proof.worst_rounding({"a": [1.0, 1e4], "b": [1.0, 100.0]})
    assert (block, share) == ("b", 0.1)
    with pytest.raises(UserError, match=r"merging in bfloat16 changes b by 10%.*--unmerged"):
        proof.require_rounding(block, share, "bfloat16", Path("run"))
    proof.require_rounding("a", 0.01, "bfloat16", Path("run"))


def test_the_card_says_what_it_is_and_how_well_it_does(bundle: Path, shard_set: ShardSet) -> None:
    text = (bundle / "README.md").read_text()
    assert "xwam-ft serve" in text
    assert "Policy.load(" in text
    assert "| held-out | 1 | 1.7 |" in text  # 17 frames at 10 a second
    assert "LoRA of rank 2, alpha 2" in text
    from xwam_ft.evaluate.open_loop import figure, open_loop

    slots = open_loop(Policy.load(bundle, "cpu"), shard_set, clips=1).metrics()["slots"]
    row = slots["tool"]["position"]
    wanted = " | ".join(figure(row[method]) for method in ("policy", "mean_action", "hold_still"))
    assert f"| tool position | {row['unit']} | {wanted} |" in text
    assert (bundle / "imagined.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "part"),
    [({"format": "onnx"}, "'onnx' is not written by this version"), ({"dtype": "int4"}, "'int4' is unknown")],
)
def test_unknown_choices_are_refused(trained_run: Path, tmp_path: Path, options: dict[str, object], part: str) -> None:
    assert part in refused(trained_run, tmp_path / "bundle", **options)


def test_a_taken_folder_and_a_run_without_checkpoint_are_refused(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint yet" in refused(run, tmp_path / "bundle")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        export_run(trained_run, tmp_path / "taken", console=QUIET)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


@pytest.mark.slow
def test_heads_alone_with_a_depth_adapter_are_exported_with_and_without_depth(
    contract: Contract, make_shard_set: Callable[[Path, Contract], ShardSet], tmp_path: Path
) -> None:
    shards = make_shard_set(tmp_path / "shards", contract)
    tree = {
        "backbone": {"path": "tiny", "dtype": "float32"},
        "data": {"shards": str(shards.folder), "clip_stride": 7},
        "model": {"train": "heads", "lora": {"rank": 2, "dora": True}, "depth": {"blocks": 1}},
        "optim": {"lr_heads": 1e-2, "lr_depth": 1e-2, "warmup_steps": 0},
        "trainer": {"max_steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
        "validation": {"every_steps": 2, "clips": 1, "action_steps": 2, "video_steps": 3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = tmp_path / "run"
    train_recipe(load_recipe(tmp_path / "recipe.yaml"), run, QUIET)
    assert not (run / "adapter").exists()
    assert (run / "adapter-depth" / "adapter_model.safetensors").is_file()
    whole, slim = (
        Policy.load(export_run(run, tmp_path / name, depth=depth, console=QUIET), "cpu")
        for name, depth in (("whole", True), ("slim", False))
    )
    ours, theirs = whole.network.state_dict(), slim.network.state_dict()
    assert not [name for name in (*ours, *theirs) if "lora" in name]
    assert {name for name in ours if name not in theirs} == {name for name in ours if name.startswith("depth_branch.")}
    base = load_backbone("tiny", dtype="float32", parts=("transformer",)).transformer.state_dict()
    for name, tensor in base.items():
        assert torch.equal(ours[f"transformer.{name}"], tensor)
        assert torch.equal(theirs[f"transformer.{name}"], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["heads", "full"])
def test_a_run_without_adapters_is_exported_as_it_stands(
    contract: Contract,
    make_shard_set: Callable[[Path, Contract], ShardSet],
    tmp_path: Path,
    train: str,
) -> None:
    shards = make_shard_set(tmp_path / "shards", contract)
    tree = {
        "backbone": {"path": "tiny-untrained", "dtype": "float32"},
        "data": {"shards": str(shards.folder), "clip_stride": 7},
        "model": {"train": train, "depth": {"branch": "none"}},
        "optim": {"lr_heads": 1e-2, "lr_backbone": 1e-2, "warmup_steps": 0},
        "trainer": {"max_steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
        "validation": {"every_steps": 0, "clips": 1, "action_steps": 2, "video_steps": 3},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = tmp_path / "run"
    train_recipe(load_recipe(tmp_path / "recipe.yaml"), run, QUIET)
    assert not (run / "adapter").exists()
    policy = Policy.load(export_run(run, tmp_path / "bundle", console=QUIET), "cpu")
    assert not policy.trained
    folder = open_run(run)
    assert folder.checkpoint is not None
    state = policy.network.state_dict()
    trained = folder.checkpoint.trainable()
    assert any(name.startswith("transformer.") for name in trained) == (train == "full")
    for name, tensor in trained.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
