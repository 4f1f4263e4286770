"""What trains: LoRA (through peft) on a frozen transformer, the new heads, and the depth branch.

Groups: `lora` (adapters on the transformer's blocks), `backbone` (the transformer itself, where all of it trains),
`heads` (view embedding, encoders and decoders of actions and proprio) and `depth` (the branch: adapters, modulation
tables and head, or all of it). Whatever trains is float32, also on a bfloat16 base; peft casts at each Linear.

Names of trained tensors are those of `named_parameters` without peft's adapter names. The depth adapter on shared
blocks (branch.py) is named as it would be on copies of them, `depth_branch.blocks.i...`: what trained in one form of
the branch loads into the other.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.tensor import DTensor

from xwam_ft.errors import UserError
from xwam_ft.model.branch import DEPTH, MAIN, lora_layers, use_adapters
from xwam_ft.model.deferred import held_part, weights_stood_in
from xwam_ft.model.lora_forward import use_short_forward
from xwam_ft.model.network import JointNetwork
from xwam_ft.model.reference import check_state

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor, nn

    from xwam_ft.recipe import OptimSpec
    from xwam_ft.recipe_model import DepthSpec, LoraSpec

Train = Literal["lora", "heads", "full"]
GROUPS = ("backbone", "lora", "heads", "depth")
_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.")


def prepare_for_training(
    network: JointNetwork, lora: LoraSpec, depth: DepthSpec, *, train: Train = "lora", seed: int = 0
) -> JointNetwork:
    """Freeze the base, inject adapters, and set what trains; in place.

    The adapters start at zero, so the outputs stay those of the base. `seed` draws their A matrices. With `train`
    "heads" the transformer stays as it is; with "full" all of it trains, and the backbone's own tensors with it.
    A branch on shared blocks gets its adapter on them, whether or not the main stream has one there.
    """
    shared = network.config.depth_shared
    assert not (shared and (train == "full" or depth.train == "full")), "shared blocks are frozen (recipe.py)"
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if train == "lora":
            _inject(lora_config(lora.layers, lora), network.transformer, MAIN)
        if network.depth_branch is not None and network.config.depth_blocks and depth.train == "lora":
            if shared:
                _inject(lora_config(_pattern(network, lora.layers), lora), network.transformer, DEPTH)
            else:
                _inject(lora_config(lora.layers, lora), network.depth_branch, MAIN)
    use_adapters(lora_layers(network.transformer), [MAIN] if train == "lora" else [])
    for raw, parameter in network.named_parameters():
        group = _group(stable_name(network, raw), whole_branch=depth.train == "full")
        if group is not None and (group != "backbone" or train == "full"):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return network


def lora_config(targets: list[str] | str, lora: LoraSpec) -> LoraConfig:
    """A recipe's `lora` section in peft's terms, on layers of these names (or that this regular expression matches)."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] - peft divides it; a float is right
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=targets,
        bias="none",
    )


def _inject(config: LoraConfig, module: Any, name: str) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # the second adapter is meant
        with weights_stood_in(module):
            inject_adapter_in_model(config, module, adapter_name=name)
    for layer in lora_layers(module):
        use_short_forward(layer)


def _pattern(network: JointNetwork, layers: list[str]) -> str:
    """These layers of the blocks that the branch shares, as peft matches names of the transformer's modules."""
    blocks = len(network.transformer.blocks)
    shared = "|".join(str(index) for index in range(blocks - network.config.depth_blocks, blocks))
    return rf"blocks\.({shared})\.({'|'.join(re.escape(layer) for layer in layers)})"


def stable_name(network: JointNetwork, raw: str) -> str:
    """The name under which a parameter is stored; `raw` is its name in `network.named_parameters()`."""
    if f".{DEPTH}." in raw:
        first = len(network.transformer.blocks) - network.config.depth_blocks
        raw = _BLOCK.sub(lambda match: f"depth_branch.blocks.{int(match[1]) - first}.", raw)
        return raw.replace(f".{DEPTH}.", ".")
    return raw.replace(f".{MAIN}.", ".")


def _group(name: str, *, whole_branch: bool) -> str | None:
    """The group that would train a parameter of this stable name, None for one that never trains."""
    if name.startswith("transformer."):
        return "lora" if ".lora_" in name else "backbone"
    if not name.startswith("depth_branch."):
        return "heads"
    own = ".lora_" in name or "scale_shift_table" in name or name.startswith("depth_branch.proj_out.")
    return "depth" if whole_branch or own else None


def named_trainable(network: JointNetwork) -> Generator[tuple[str, nn.Parameter]]:
    """Every parameter that trains, with its stable name."""
    for raw, parameter in network.named_parameters():
        if parameter.requires_grad:
            yield stable_name(network, raw), parameter


def parameter_groups(network: JointNetwork, optim: OptimSpec) -> list[dict[str, Any]]:
    """Optimizer groups, each {"name", "params", "lr", "weight_decay"}; groups without parameters are left out."""
    rates = {"backbone": optim.lr_backbone, "lora": optim.lr_lora, "heads": optim.lr_heads, "depth": optim.lr_depth}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in named_trainable(network):
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
    return {name: parameter.detach() for name, parameter in named_trainable(network)}


def load_trainable(network: JointNetwork, tensors: Mapping[str, Tensor], where: object) -> None:
    """Set every trained tensor of a prepared network; of one that is cut over processes what this one holds of it.

    Raises:
        UserError: adapters of another rank; a trained tensor missing, unexpected, of another shape or not finite;
            `where` names the file.
    """
    own = trainable_state(network)
    for name in own.keys() & tensors.keys():
        if ".lora_A." in name and len(tensors[name]) != len(own[name]):
            theirs, ours = len(tensors[name]), len(own[name])
            raise UserError(
                f"holds adapters of rank {theirs}, and the recipe's are of rank {ours}",
                where,
                f"set model.lora.rank to {theirs}, or start a new run",
            )
    check_state(tensors, own, where)
    with torch.no_grad():
        for name, tensor in own.items():
            held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            held.copy_(held_part(tensors[name], tensor))


def zero_adapters(trained: Mapping[str, Tensor]) -> tuple[list[str], int]:
    """Adapters of a trained state that have stayed where they began, at zero, and how many adapters there are."""
    ups = {name: tensor for name, tensor in trained.items() if ".lora_B." in name}
    return sorted(name.removesuffix(".weight") for name, tensor in ups.items() if not torch.any(tensor)), len(ups)


def write_peft_adapter(
    network: JointNetwork,
    folder: Path,
    base: str | None = None,
    *,
    adapter: str = MAIN,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter on the transformer in peft's folder form (`adapter_config.json`, `adapter_model.safetensors`).

    `peft.PeftModel.from_pretrained(transformer, folder)` reads it. `base` names the backbone it belongs to. The depth
    adapter's folder holds its LoRA alone: modulation tables and head of the branch are no part of a transformer.
    `state` are the transformer's tensors by name, where those it holds are shards.
    """
    import copy

    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    from xwam_ft.files import atomic_path, write_text_atomic

    transformer = network.transformer
    config = copy.copy(transformer.peft_config[adapter])
    config.base_model_name_or_path = base
    config.inference_mode = True
    values = {key: _plain(value) for key, value in config.to_dict().items()}
    held = get_peft_model_state_dict(transformer, state, adapter_name=adapter, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    write_text_atomic(folder / "adapter_config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt"}))


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
