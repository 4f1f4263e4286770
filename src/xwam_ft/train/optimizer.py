"""AdamW's groups, the learning-rate curve, AdamW's state by parameter name, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import trainable_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from xwam_ft.model.network import JointNetwork


def learning_rate_factor(step: int, warmup_steps: int, max_steps: int) -> float:
    """What multiplies the base learning rate at optimizer step `step` (counted from 0).

    Linear over the first `warmup_steps` steps, reaching 1 on the last of them; then half a cosine that is 0 at
    `max_steps`, the first step that is not taken.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= max_steps:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / (max_steps - warmup_steps)))


def trained_parameters(network: JointNetwork) -> dict[str, Parameter]:
    """Every trained parameter under the stable name that checkpoints use."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return dict(zip(trainable_state(network), parameters, strict=True))


def split_decay(network: JointNetwork, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split each group in two, so that weight decay leaves biases, norms, modulation tables and embeddings alone."""
    spared = {
        id(parameter)
        for name, parameter in network.named_parameters()
        if parameter.ndim < 2 or "scale_shift_table" in name or name.startswith("view_embedding.")
    }
    split: list[dict[str, Any]] = []
    for group in groups:
        decayed = [parameter for parameter in group["params"] if id(parameter) not in spared]
        rest = [parameter for parameter in group["params"] if id(parameter) in spared]
        if decayed:
            split.append({**group, "params": decayed})
        if rest:
            split.append({**group, "name": f"{group['name']}_no_decay", "params": rest, "weight_decay": 0.0})
    return split


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's state as `<quantity>.<parameter name>`; stable against the order of parameters and groups.

    Args:
        names: every trained parameter by its name.
    """
    return {
        f"{quantity}.{name}": value
        for name, parameter in names.items()
        for quantity, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: Path
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        UserError: the stored state is of other parameters.
    """
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        quantity, _, name = key.partition(".")
        stored.setdefault(name, {})[quantity] = value
    if stored.keys() != names.keys():
        odd = sorted(stored.keys() ^ names.keys())[0]
        raise UserError(
            f"holds the optimizer state of other parameters ({odd!r} is in only one of them)",
            where,
            "resume with the recipe this run was made with",
        )
    for name, parameter in names.items():
        # The step count stays on the CPU, where AdamW keeps it unless it is fused or captured.
        optimizer.state[parameter] = {
            quantity: value if quantity == "step" else value.to(parameter.device)
            for quantity, value in stored[name].items()
        }


class AveragedWeights:
    """An exponential moving average of the trained parameters, in float32 whatever they are trained in.

    The decay is warmed up, min(decay, (1 + n) / (10 + n)) after n updates, so that early weights are forgotten.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().float().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], updates_before: int) -> None:
        keep = min(self.decay, (1 + updates_before) / (10 + updates_before))
        for name, value in parameters.items():
            self.weights[name].lerp_(value.detach().float(), 1.0 - keep)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self.weights[name].copy_(value)
