"""What trains: LoRA (through peft) on a frozen transformer, the new heads, and the depth branch.

Groups: `lora` (adapters on the transformer's blocks), `backbone` (the transformer itself, where all of it trains),
`heads` (view embedding, encoders and decoders of actions and proprio) and `depth` (the branch: adapters, modulation
tables and head, or all of it). Whatever trains is float32, also on a bfloat16 base; peft casts at each Linear.

Names of trained tensors are those of `named_parameters` without peft's adapter name ("default").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from xwam_ft.model.network import JointNetwork
from xwam_ft.model.reference import check_state

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn

    from xwam_ft.recipe import DepthSpec, LoraSpec, OptimSpec

Train = Literal["lora", "heads", "full"]
GROUPS = ("backbone", "lora", "heads", "depth")
_ADAPTER = "default"  # peft's own name for a lone adapter: its folder form knows no other
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": tuple(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in _PROJECTIONS),
    "feedforward": ("ffn.net.0.proj", "ffn.net.2"),
}
"""Linear layers of a Wan block that a recipe's `lora.targets` stand for."""


def prepare_for_training(
    network: JointNetwork, lora: LoraSpec, depth: DepthSpec, *, train: Train = "lora", seed: int = 0
) -> JointNetwork:
    """Freeze the base, inject adapters, and set what trains; in place.

    The adapters start at zero, so the outputs stay those of the base. `seed` draws their A matrices. With `train`
    "heads" the transformer stays as it is; with "full" all of it trains, and the backbone's own tensors with it.
    """
    from peft import inject_adapter_in_model

    network.requires_grad_(False)
    adapted: list[Any] = [network.transformer] if train == "lora" else []
    if network.depth_branch is not None and depth.train == "lora":
        adapted.append(network.depth_branch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in adapted:
            inject_adapter_in_model(lora_config(lora), module, adapter_name=_ADAPTER)
    for name, parameter in network.named_parameters():
        group = _group(name, whole_branch=depth.train == "full")
        if group is not None and (group != "backbone" or train == "full"):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return network


def lora_config(lora: LoraSpec) -> LoraConfig:
    """A recipe's `lora` section in peft's terms."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - peft divides it; a float is right
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=[name for target in lora.targets for name in TARGETS[target]],
        bias="none",
    )


def _group(name: str, *, whole_branch: bool) -> str | None:
    """The group that would train a parameter, None for one that never trains."""
    if name.startswith("transformer."):
        return "lora" if ".lora_" in name else "backbone"
    if not name.startswith("depth_branch."):
        return "heads"
    own = ".lora_" in name or "scale_shift_table" in name or name.startswith("depth_branch.proj_out.")
    return "depth" if whole_branch or own else None


def parameter_groups(network: JointNetwork, optim: OptimSpec) -> list[dict[str, Any]]:
    """Optimizer groups, each {"name", "params", "lr", "weight_decay"}; groups without parameters are left out."""
    rates = {"backbone": optim.lr_backbone, "lora": optim.lr_lora, "heads": optim.lr_heads, "depth": optim.lr_depth}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            group = _group(name, whole_branch=True)
            assert group is not None, f"{name} trains, but belongs to no group"
            members[group].append(parameter)
    return [
        {"name": name, "params": params, "lr": rates[name], "weight_decay": optim.weight_decay}
        for name, params in members.items()
        if params
    ]


def trainable_state(network: JointNetwork) -> dict[str, Tensor]:
    """Every tensor that trains, under its stable name, detached (not copied)."""
    return {
        _stable(name): parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad
    }


def load_trainable(network: JointNetwork, tensors: Mapping[str, Tensor], where: object) -> None:
    """Set every trained tensor of a prepared network.

    Raises:
        UserError: a trained tensor missing, unexpected, of another shape or not finite; `where` names the file.
    """
    own = trainable_state(network)
    check_state(tensors, own, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _stable(name: str) -> str:
    return name.replace(f".{_ADAPTER}.", ".").removesuffix(f".{_ADAPTER}")


@torch.no_grad()
def merge_adapters(network: JointNetwork, dtype: torch.dtype = torch.float32) -> JointNetwork:
    """Fold every adapter into its Linear, computed in float32, and remove it; in place.

    Merged layers get `dtype`. In bfloat16 a small update mostly vanishes in rounding (at 0.13 % of the weight's
    rms three quarters of it): compare outputs before shipping such a merge.
    """
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not hasattr(layer, "lora_A"):
                continue
            lora: Any = layer
            base = lora.get_base_layer()
            weight = base.weight.float()
            for adapter in lora.active_adapters:
                down, up = lora.lora_A[adapter].weight.float(), lora.lora_B[adapter].weight.float()
                weight = weight + lora.scaling[adapter] * (up @ down)
            # A new Linear: the base's tensors may belong to a backbone that others use.
            merged = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
            merged.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
            if base.bias is not None:
                merged.bias = torch.nn.Parameter(base.bias.to(dtype, copy=True), requires_grad=False)
            setattr(parent, name, merged.train(lora.training))
    for module in (network.transformer, network.depth_branch):
        if hasattr(module, "peft_config"):
            delattr(module, "peft_config")
    return network


def write_peft_adapter(network: JointNetwork, folder: Path, base: str | None = None) -> None:
    """Write the transformer's adapter in peft's folder form (`adapter_config.json`, `adapter_model.safetensors`).

    `peft.PeftModel.from_pretrained(transformer, folder)` reads it. `base` names the backbone it belongs to.
    """
    import copy
    import json

    from safetensors.torch import save

    from xwam_ft.files import atomic_path, write_text_atomic

    config = copy.copy(network.transformer.peft_config[_ADAPTER])
    config.base_model_name_or_path = base
    config.inference_mode = True
    values = {key: _plain(value) for key, value in config.to_dict().items()}
    prefix = "transformer."
    tensors = {
        f"base_model.model.{name.removeprefix(prefix)}": tensor.cpu().contiguous()
        for name, tensor in trainable_state(network).items()
        if name.startswith(prefix)
    }
    write_text_atomic(folder / "adapter_config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


@dataclass(frozen=True)
class SummaryRow:
    """One group of modules: how many numbers it holds, how many of them train, in which dtypes."""

    group: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]


def summary_table(network: JointNetwork) -> list[SummaryRow]:
    """Rows for the transformer, each new part, the depth branch, and the adapters on transformer and branch."""
    rows: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        top = name.split(".", 1)[0]
        rows.setdefault(f"{top} (LoRA)" if ".lora_" in name else top, []).append(parameter)
    return [
        SummaryRow(
            group,
            sum(math.prod(parameter.shape) for parameter in parameters),
            sum(math.prod(parameter.shape) for parameter in parameters if parameter.requires_grad),
            tuple(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})),
        )
        for group, parameters in rows.items()
    ]
