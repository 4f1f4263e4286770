"""Nothing is asked of a GPU that it would refuse: every verb on one that a CPU stands in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import xwam_ft
from pretended_gpu import PretendedTensor, pretended_gpu
from shared import QUIET
from tiny_training import recipe_tree, resume, smoke_test, train
from xwam_ft.shards import ShardSet

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
PLAIN = "trainer.precision=32-true"
GPU = ["trainer.accelerator=gpu", PLAIN]


@pytest.fixture
def toy_recipe(toy_set: ShardSet, tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(toy_set.folder)))
    return path


def test_numbers_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    rows, layer = torch.randn(3, 4), torch.nn.Linear(4, 4)
    wanted = layer(rows).square().sum()
    wanted.backward()
    bias = layer.bias.grad.clone()
    layer.zero_grad()
    with pretended_gpu():
        layer.to("cuda")
        loss = layer(rows.cuda())[:2].new_zeros(()) + layer(rows.to("cuda:0")).square().sum()
        loss.backward()
        assert loss.device == layer.weight.grad.device == torch.zeros_like(loss).device == torch.device("cuda:0")
        torch.optim.AdamW(layer.parameters(), fused=True).step()
        assert isinstance(layer.bias.detach(), PretendedTensor)
        assert torch.equal(loss.detach().cpu(), wanted.detach())
        assert torch.equal(layer.bias.grad.cpu(), bias)


REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], str]] = {
    "two places": (lambda there: there + torch.ones(3), "two devices"),
    "into the CPU's": (lambda there: torch.zeros(()).add_(there.sum()), "two devices"),
    "an index there": (lambda there: torch.ones(3)[there.argsort()], "two devices"),
    "stacked": (lambda there: torch.stack([there, torch.ones(3)]), "two devices"),
    "a weight left behind": (lambda there: torch.nn.Linear(3, 3)(there), "two devices"),
    "numpy": (lambda there: there.numpy(), "to numpy"),
    "drawn": (lambda there: torch.randn(3, device=there.device, generator=torch.Generator()), "generator"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what: str) -> None:
    act, said = REFUSED[what]
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError), match=said):
        act(torch.ones(3, device="cuda"))


def test_what_cuda_takes_is_taken() -> None:
    with pretended_gpu():
        there = torch.arange(3.0, device="cuda")
        assert (there * torch.tensor(2.0))[torch.tensor([2, 0])].tolist() == [4.0, 0.0]
        here = torch.zeros(3)
        here.copy_(there)
        assert here.device.type == "cpu"
        assert here.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.slow
def test_a_training_there_validates_imagines_stops_and_goes_on(toy_recipe: Path) -> None:
    run, few = toy_recipe.parent / "there", ["checkpoint.every_steps=1", "validation.every_steps=2"]
    with pretended_gpu():
        train(toy_recipe, run, [*GPU, *few, "trainer.max_steps=2", "validation.imagine_clips=1"], QUIET)
        resume(run, QUIET, ["trainer.max_steps=3"])
    plain = train(toy_recipe, toy_recipe.parent / "here", [*few, "trainer.max_steps=3", PLAIN], QUIET)
    there, here = (load_file(one / "checkpoints/step-000003/trainable.safetensors") for one in (run, plain))
    assert max(float((there[name] - here[name]).abs().max()) for name in here) < 1e-3


FORMS = {
    "pixels": [
        *("data.cache=none", "data.augment={crop: true, brightness: 0.2}"),
        *("trainer.precision=bf16-mixed", "backbone.dtype=bfloat16"),
    ],
    "full": [
        *("model.train=full", "model.gradient_checkpointing=true", "model.future=optional"),
        *("model.depth.branch=copy", "model.depth.train=full", "noise.action_prefix={max: 4, probability: 0.5}"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_there(toy_recipe: Path, form: str) -> None:
    short = ["trainer.max_steps=2", "checkpoint.every_steps=2"]
    with pretended_gpu():
        run = train(toy_recipe, toy_recipe.parent / "run", [*GPU, *short, *FORMS[form]], QUIET)
    assert (run / "checkpoints/step-000002/trainable.safetensors").is_file()


@pytest.mark.slow
def test_a_recipe_is_tried_and_measured_there(toy_recipe: Path) -> None:
    with pretended_gpu():
        smoke_test(toy_recipe, GPU, QUIET)
        plan = xwam_ft.plan(toy_recipe, probe=True, **{"trainer.accelerator": "gpu", "trainer.precision": "32-true"})
    assert plan.probe is not None


@pytest.mark.slow
def test_a_bundle_is_proved_acts_imagines_and_is_judged_there(toy_set: ShardSet, toy_run: Path, tmp_path: Path) -> None:
    with pretended_gpu():
        bundle = xwam_ft.export(toy_run, tmp_path / "bundle").path
        policy = xwam_ft.Policy.load(bundle)
        assert policy.device.type == "cuda"
        policy.warm_up()
        xwam_ft.imagine(bundle, toy_set.folder, episode=2, out=tmp_path / "imagined")
        less = {"latency": False, "train_split": False, "seams": False}
        xwam_ft.evaluate(bundle, toy_set.folder, out=tmp_path / "evaluation", clips=2, **less)
    assert (tmp_path / "imagined/contact_sheet.png").is_file()
    assert (tmp_path / "evaluation/metrics.json").is_file()
