"""Adapters folded into weights, and the depth branch from one of its forms into the other.

shared -> copies is exact: each copy is the shared block with the depth adapter merged. copies -> shared is a truncated
singular value decomposition of (copy - block) at the adapter's rank, the best approximation there is
(Eckart-Young); what it loses is reported layer by layer, and too much is refused.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from xwam_ft.errors import UserError
from xwam_ft.model.adapters import lora_config
from xwam_ft.model.branch import DEPTH, MAIN, DepthBranch, branch_blocks, lora_layers
from xwam_ft.model.quantize import plain_linear
from xwam_ft.recipe_model import LoraSpec

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.model.network import JointNetwork

FIT_LIMIT = 0.1
"""Largest relative error of a layer's update (Frobenius norm) that fitting an adapter may leave."""


@torch.no_grad()
def merge_adapters(network: JointNetwork, dtype: torch.dtype = torch.float32) -> JointNetwork:
    """Fold every adapter into its Linear, computed in float32 by peft's own formulas, and remove it; in place.

    A branch on shared blocks becomes copies first, since afterwards the blocks hold the main stream's adapter.
    Merged layers get `dtype`. In bfloat16 a small update mostly vanishes in rounding (at 0.13 % of the weight's
    rms three quarters of it): compare outputs before shipping such a merge.
    """
    materialise_branch(network, dtype)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A"):
                layer: Any = child
                setattr(parent, name, merged_linear(layer, layer.active_adapters, dtype))
    for module in (network.transformer, network.depth_branch):
        if hasattr(module, "peft_config"):
            delattr(module, "peft_config")
    return network


def merged_linear(layer: Any, adapters: Sequence[str], dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A Linear of its own: the layer's base with these adapters folded in (LoRA, rsLoRA or DoRA)."""
    base = layer.get_base_layer()
    weight = base.weight.float()
    for adapter in adapters:
        if adapter in layer.lora_variant:
            weight = layer.lora_variant[adapter].merge_safe(layer, adapter, weight)
        elif adapter in layer.lora_A:
            weight = weight + layer.get_delta_weight(adapter).float()
    # A weight of its own even where nothing was added: the base's tensors may belong to a backbone that others use.
    return plain_linear(base, weight.clone() if weight is base.weight else weight, dtype)


def lora_scale(spec: LoraSpec) -> float:
    """What lora_B @ lora_A is multiplied by: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
    return spec.alpha / (spec.rank**0.5 if spec.rslora else spec.rank)


@torch.no_grad()
def merged_weight(base: Tensor, lora: Mapping[str, Tensor], spec: LoraSpec) -> Tensor:
    """One Linear's weight [out, in] with an adapter (`lora_A.weight`, `lora_B.weight`, ...) folded in; float32.

    Of some of its rows as well, with the same rows of everything but `lora_A.weight`.
    """
    layer = _adapted_layer(spec.model_dump_json())
    held = {name.replace(f".{MAIN}.", "."): parameter for name, parameter in layer.named_parameters()}
    assert held.keys() - lora.keys() == {"base_layer.weight"}, f"an adapter of {sorted(lora)}"
    try:
        held["base_layer.weight"].data = base.detach()
        for name in held.keys() & lora.keys():
            held[name].data = lora[name].float()
        return merged_linear(layer, [MAIN]).weight.detach()
    finally:
        for parameter in held.values():
            parameter.data = torch.empty(0)


@functools.lru_cache(maxsize=4)
def _adapted_layer(spec: str) -> Any:
    """A Linear with an adapter of peft, whose weights are to be replaced: putting one on takes longer than merging."""
    from peft import inject_adapter_in_model

    lora, holder = LoraSpec.model_validate_json(spec), cast("Any", nn.Module())
    with torch.random.fork_rng(devices=[]):  # torch and peft draw initial values
        holder.layer = nn.Linear(1, 1, bias=False)
        inject_adapter_in_model(lora_config(["layer"], lora), holder, adapter_name=MAIN)
    return holder.layer.eval().requires_grad_(False)


@torch.no_grad()
def materialise_branch(network: JointNetwork, dtype: torch.dtype = torch.float32) -> JointNetwork:
    """Turn a branch on shared blocks into copies with the depth adapter merged, exact in float32; in place.

    The transformer keeps its own adapter. Adapted layers of the copies get `dtype`.
    """
    branch = network.depth_branch
    if branch is None or not network.config.depth_shared:
        return network
    for index, twin in enumerate(branch_blocks(branch, network.transformer.blocks)):
        # A deep copy takes from its memo what it finds there: the merged layers in place of the adapted ones.
        memo = {id(layer): merged_linear(layer, [DEPTH], dtype) for layer in lora_layers(twin.block)}
        block = copy.deepcopy(twin.block, memo)
        block.scale_shift_table = branch.blocks[index].scale_shift_table
        branch.blocks[index] = block
    for layer in lora_layers(network.transformer):
        if DEPTH in layer.lora_A:
            layer.delete_adapter(DEPTH)
    network.transformer.peft_config.pop(DEPTH, None)
    network.config = replace(network.config, depth_shared=False)
    return network


def drop_branch(network: JointNetwork) -> JointNetwork:
    """Take the depth branch out, in place; a depth adapter on shared blocks goes with the next merge."""
    network.depth_branch = None
    network.config = replace(network.config, depth_blocks=0, depth_head=False, depth_shared=False)
    return network


@dataclass(frozen=True)
class LayerFit:
    """How well an adapter holds what a copied layer learned: |update - adapter| / |update|, Frobenius norms."""

    name: str
    error: float


def share_branch(network: JointNetwork) -> DepthBranch:
    """Turn a branch of copies into one on shared blocks with the copies' tables and head, in place.

    Returns the branch it was: what its blocks learned is lost until `fit_depth_adapter` puts it into the adapter.
    """
    old = network.depth_branch
    assert old is not None, "a network without depth branch"
    assert not network.config.depth_shared, "its blocks are shared already"
    with torch.random.fork_rng(devices=[]):  # torch draws initial values that the old ones replace
        branch = DepthBranch(network.transformer, len(old.blocks), shared=True)
    branch.proj_out, branch.scale_shift_table = old.proj_out, old.scale_shift_table
    for own, block in zip(branch.blocks, old.blocks, strict=True):
        own.scale_shift_table = block.scale_shift_table
    network.depth_branch = branch
    network.config = replace(network.config, depth_shared=True)
    return old


@torch.no_grad()
def fit_depth_adapter(network: JointNetwork, copies: DepthBranch, limit: float = FIT_LIMIT) -> list[LayerFit]:
    """Set the depth adapter of a prepared network to what `copies` of its blocks learned, as nearly as its rank can.

    Layers without an adapter can hold nothing, nor can biases: what the copies learned there is lost, and counted.
    The decomposition is whole, on the device the weights are on: at 5B size a hundred large ones.

    Returns:
        One `LayerFit` a layer that holds parameters, blocks in order.

    Raises:
        UserError: a layer loses more than `limit` of its update.
    """
    assert network.depth_branch is not None, "a network without depth branch"
    fits: list[LayerFit] = []
    for index, twin in enumerate(branch_blocks(network.depth_branch, network.transformer.blocks)):
        for name, learned in copies.blocks[index].named_modules():
            if name and next(learned.parameters(recurse=False), None) is not None:
                fits.append(LayerFit(f"block {index}, {name}", _fit(twin.block.get_submodule(name), learned)))
    worst = max(fits, key=lambda fit: fit.error)
    if worst.error > limit:
        beyond = sum(fit.error > limit for fit in fits)
        raise UserError(
            f"the adapter cannot hold the depth branch: of what {worst.name} learned {worst.error:.0%} is lost, and "
            f"{beyond} of {len(fits)} layers lose more than {limit:.0%}",
            "model.depth.branch",
            "set it to copy, or give the adapter a higher model.lora.rank and every layer",
        )
    return fits


def _fit(layer: Any, learned: nn.Module) -> float:
    """Put the update of one layer into its depth adapter, if it has one; returns the share that is lost."""
    adapted = hasattr(layer, "lora_A") and DEPTH in layer.lora_A
    base = dict((layer.get_base_layer() if hasattr(layer, "lora_A") else layer).named_parameters(recurse=False))
    updates = {name: value.float() - base[name].float() for name, value in learned.named_parameters(recurse=False)}
    whole = sum(float(update.square().sum()) for update in updates.values())
    if adapted:
        updates["weight"] = updates["weight"] - _set_adapter(layer, updates["weight"], base["weight"].float())
    lost = sum(float(update.square().sum()) for update in updates.values())
    return (lost / whole) ** 0.5 if whole else 0.0


def _set_adapter(layer: Any, update: Tensor, base: Tensor) -> Tensor:
    """The nearest update that the adapter can hold, after giving it that."""
    down, up = layer.lora_A[DEPTH].weight, layer.lora_B[DEPTH].weight
    left, sizes, right = torch.linalg.svd(update, full_matrices=False)
    kept = min(len(down), int((sizes > sizes[0] * 1e-6).sum()) if sizes[0] else 0)
    root = sizes[:kept].sqrt()
    # Rows of A beyond the update's rank keep their random values: with zeros on both sides they could never learn.
    down[:kept] = root[:, None] * right[:kept]
    up.zero_()
    up[:, :kept] = left[:, :kept] * root / layer.scaling[DEPTH]
    fitted = layer.get_delta_weight(DEPTH)
    if DEPTH in layer.lora_magnitude_vector:  # DoRA: the length the fitted weights have
        layer.lora_magnitude_vector[DEPTH].weight.copy_(torch.linalg.norm(base + fitted, dim=1))
    return fitted
