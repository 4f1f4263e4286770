"""A bundle as what a run starts from: adapters found again in the weights they were folded into."""

from __future__ import annotations

import io
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from rich.console import Console
from safetensors.torch import load_file

from xwam_ft.cli import app
from xwam_ft.contract import load_contract
from xwam_ft.convert.convert import import_checkpoint
from xwam_ft.errors import UserError
from xwam_ft.export.export import export_run
from xwam_ft.learn.carry import Carried, carry
from xwam_ft.model.adapters import trainable_state
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.network import JointNetwork
from xwam_ft.model.tensor_files.source import Stored
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe, load_recipe
from xwam_ft.runs.origin import open_origin
from xwam_ft.train.train import resume_run, train_recipe

QUIET = Console(quiet=True)


def started(run: Path, place: Path) -> tuple[JointNetwork, Carried]:
    recipe, contract = load_recipe(run / "recipe.yaml"), load_contract(run / "contract.json")
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, contract)
    return network, carry(network, open_origin(str(place)), contract, QUIET)


def updates(network: JointNetwork) -> dict[str, torch.Tensor]:
    """Of every adapter B A, and whatever else trains."""
    state = trainable_state(network)
    made = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if ".lora_A." in name:
            made[name] = state[name.replace(".lora_A.", ".lora_B.")] @ down
    return made


def test_merged_adapters_are_found_again(trained_run: Path, bundle: Path) -> None:
    wanted, (network, done) = updates(started(trained_run, trained_run)[0]), started(trained_run, bundle)
    for name, tensor in updates(network).items():
        assert float((tensor - wanted[name]).norm()) <= 2e-4 * float(wanted[name].norm()), name
    assert done.left == []
    assert not done.new
    assert 0 < max(done.fitted.values()) < 1e-3


@pytest.mark.slow
def test_adapters_beside_their_base_are_taken_to_the_bit(trained_run: Path, tmp_path: Path) -> None:
    bundle = export_run(trained_run, tmp_path / "bundle", merged=False, console=QUIET)
    wanted, (network, done) = updates(started(trained_run, trained_run)[0]), started(trained_run, bundle)
    for name, tensor in updates(network).items():
        assert torch.equal(tensor, wanted[name]), name
    assert not done.fitted
    assert done.left == []


def test_what_rounding_did_to_merged_weights_is_not_taken_for_learned(
    trained_run: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, origin = updates(started(trained_run, trained_run)[0]), open_origin(str(bundle))

    def rounded(stored: Stored) -> Stored:
        return Stored(stored.shape, torch.bfloat16, lambda: stored.read().to(torch.bfloat16))

    tensors = {
        name: rounded(stored) if name.startswith(("transformer.", "depth_branch.")) else stored
        for name, stored in origin.tensors.items()
    }
    monkeypatch.setitem(globals(), "open_origin", lambda place: replace(origin, tensors=tensors))
    network, done = started(trained_run, bundle)
    names = [name for name in wanted if ".lora_A." in name]
    ours, theirs = (torch.cat([made[name].flatten() for name in names]) for made in (updates(network), wanted))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.9
    assert done.left == []


@pytest.mark.slow
def test_a_bundle_in_a_backbone_s_place_is_started_from_and_said(
    trained_run: Path, bundle: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(bundle, tmp_path / "my bundle")
    with pytest.raises(UserError, match="is a bundle, not a backbone") as error:
        load_backbone(str(place), parts=("transformer",))
    advice = shlex.split(error.value.fix.partition(": ")[2])
    assert advice == ["xwam-ft", "train", "RECIPE", "--init", str(place), "--set", "backbone.path=tiny"]
    with pytest.raises(UserError, match="is a bundle, not a backbone"):
        import_checkpoint(place, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()

    def trained(name: str, changes: list[str]) -> tuple[Path, str]:
        shown = io.StringIO()
        steps = ["trainer.max_steps=1", "checkpoint.every_steps=1"]
        recipe: Recipe = load_recipe(trained_run / "recipe.yaml", [*steps, *changes])
        train_recipe(recipe, tmp_path / name, Console(file=shown, width=300))
        return tmp_path / name, shown.getvalue()

    by_path, said = trained("path", [f"backbone.path={place}"])
    by_init, _ = trained("init", [f"init_from={advice[4]}", advice[6]])
    assert f"{place} is a bundle, not a backbone: training starts from what it learned, on its backbone tiny" in said
    run = shutil.copytree(trained_run, tmp_path / "my [b]: run")
    with pytest.raises(UserError, match=r"is a bundle, and .* goes on on the backbone that it was trained on") as error:
        resume_run(run, QUIET, {"backbone.path": str(place), "trainer.max_steps": 3})
    words = shlex.split(error.value.fix.partition(": ")[2])
    verbs: Any = typer.main.get_command(app)
    verbs.main([*words[1:], "--set", "trainer.max_steps=1"], standalone_mode=False)
    assert (Path(f"{run}-2") / "init").is_dir()
    ours, theirs = (load_file(run / "checkpoints/step-000001/trainable.safetensors") for run in (by_path, by_init))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(place)
    resume_run(by_init, QUIET, ["trainer.max_steps=2"])
    export_run(by_init, tmp_path / "out", console=QUIET)
    assert (tmp_path / "out/manifest.json").is_file()
