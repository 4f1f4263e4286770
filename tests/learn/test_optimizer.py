"""Decay groups, the average, and optimizer state by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xwam_ft.errors import UserError
from xwam_ft.learn.optimizer import (
    AveragedWeights,
    optimizer_tensors,
    restore_optimizer,
    split_decay,
)
from xwam_ft.model.adapters import parameter_groups
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.trainable import trainable_network
from xwam_ft.recipe import Recipe
from xwam_ft.shards import ShardSet


def test_every_trained_parameter_is_in_one_group_and_only_matrices_decay(recipe: Recipe, shard_set: ShardSet) -> None:
    backbone = load_backbone("tiny", dtype="float32", parts=("transformer",))
    network = trainable_network(backbone, recipe, shard_set.contract)
    groups = split_decay(network, parameter_groups(network, recipe.optim))
    members = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(members) == sorted(trained)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            matrix = parameter.ndim == 2 and name != "view_embedding.weight"
            assert (group["weight_decay"] > 0) == matrix, name


def test_the_average_is_the_warmed_up_moving_average() -> None:
    values = [1.0, 2.0, 4.0]
    average = AveragedWeights({"w": torch.tensor(0.0, dtype=torch.bfloat16)}, decay=0.25)
    expected = 0.0
    for count, value in enumerate(values):
        keep = min(0.25, (1 + count) / (10 + count))
        expected = keep * expected + (1 - keep) * value
        average.update({"w": torch.tensor(value, dtype=torch.bfloat16)}, count)
    assert average.weights["w"].dtype == torch.float32
    assert float(average.weights["w"]) == pytest.approx(expected)


def test_optimizer_state_goes_round_by_name(tmp_path: Path) -> None:
    def steps(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            sum((parameter**2).sum() for parameter in parameters.values()).backward()
            optimizer.step()

    def fresh() -> dict[str, torch.nn.Parameter]:
        return {"b.weight": torch.nn.Parameter(torch.ones(2)), "a": torch.nn.Parameter(torch.full((3,), 2.0))}

    whole = fresh()
    steps(torch.optim.AdamW(whole.values()), whole, 5)

    first = fresh()
    before = torch.optim.AdamW(first.values())
    steps(before, first, 2)
    second = {name: torch.nn.Parameter(first[name].detach().clone()) for name in reversed(first)}  # another order
    after = torch.optim.AdamW(second.values())
    restore_optimizer(after, second, optimizer_tensors(before, first), tmp_path)
    steps(after, second, 3)
    for name, parameter in whole.items():
        assert torch.equal(parameter, second[name])


def test_optimizer_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    with pytest.raises(UserError, match="other parameters \\('b' is in only one of them\\)"):
        restore_optimizer(
            optimizer, {"a": parameter}, {"step.a": torch.tensor(1.0), "step.b": torch.tensor(1.0)}, tmp_path
        )
