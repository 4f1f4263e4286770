"""AdamW's groups, AdamW's state by parameter name, and the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import named_trainable
from xwam_ft.model.quantize import require_bitsandbytes
from xwam_ft.model.sharding import placed_like

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import OptimSpec


def trained_parameters(network: JointNetwork) -> dict[str, Parameter]:
    """Every trained parameter under the stable name that checkpoints use."""
    return dict(named_trainable(network))


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


def make_optimizer(groups: list[dict[str, Any]], optim: OptimSpec) -> torch.optim.Optimizer:
    """AdamW by a recipe: torch's own, fused into one kernel on a GPU, or bitsandbytes' with moments in 8 bits.

    Fused on a CPU too only where the recipe says so: it rounds otherwise than the plain one, though as repeatably.

    Raises:
        UserError: 8 bits are asked for and bitsandbytes is not installed.
    """
    if optim.adamw_8bit:
        return require_bitsandbytes("optim.adamw_8bit").optim.AdamW8bit(groups, betas=optim.betas)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    fused = devices == {"cuda"} if optim.fused == "auto" else optim.fused
    return torch.optim.AdamW(groups, betas=optim.betas, fused=fused)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AdamW's state as `<quantity>.<parameter name>`; stable against the order of parameters and groups.

    Args:
        names: every trained parameter by its name.
    """
    return {
        # bitsandbytes counts steps in an int
        f"{quantity}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
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
    counts_in_ints = not isinstance(optimizer, torch.optim.AdamW)  # bitsandbytes
    fused = {id(parameter) for group in optimizer.param_groups if group.get("fused") for parameter in group["params"]}

    def restored(parameter: Tensor, quantity: str, value: Tensor) -> Tensor | int:
        if quantity != "step":
            return placed_like(value, parameter)
        if counts_in_ints:
            return int(value)
        # The step count stays on the CPU, where AdamW keeps it unless it is fused.
        return value.to(parameter.device) if id(parameter) in fused else value

    for name, parameter in names.items():
        optimizer.state[parameter] = {
            quantity: restored(parameter, quantity, value) for quantity, value in stored[name].items()
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
        """Whole tensors, cut as the average is."""
        for name, value in tensors.items():
            self.weights[name].copy_(placed_like(value, self.weights[name]))
