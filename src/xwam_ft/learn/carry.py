"""What another network learned, put into one that is about to be trained on the same backbone, in place.

Heads and views are kept by name (joint.py). An adapter takes over one beside its layer as it is, whatever its alpha;
one of a higher rank, or a weight that an adapter was folded into, as nearly as its rank can. What trains whole is kept
by name and shape. Nothing is lost in silence: the result says what was carried, what is new, what was left behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.errors import UserError, listed
from xwam_ft.model.adapters import stable_name, trainable_state
from xwam_ft.model.branch import DEPTH, MAIN, lora_layers
from xwam_ft.model.joint import JointWeights, Layout, graft
from xwam_ft.model.merge import FIT_LIMIT, lora_scale, merged_weight

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.contract import Contract
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.runs.origin import Origin

HEADS = ("view_embedding.", "action_encoder.", "action_decoder.", "proprio_encoder.", "proprio_decoder.")
SMALL = 1024
"""Matrices up to this side are decomposed whole; of larger ones the leading part alone is looked for."""


@dataclass
class Carried:
    """What became of every trained tensor.

    Args:
        sentences: about heads and views.
        kept: by part ("adapters", "depth branch", "transformer"), names that were carried over as they are.
        fitted: of adapters that were fitted, the share of the update that is lost.
        new: by part, names that start as drawn.
        left: names in the origin that have no place here.
    """

    sentences: list[str] = field(default_factory=list[str])
    kept: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    fitted: dict[str, float] = field(default_factory=dict[str, float])
    new: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    left: list[str] = field(default_factory=list[str])


@torch.no_grad()
def carry(
    network: JointNetwork, origin: Origin, contract: Contract, console: Console, *, brought: bool = False
) -> Carried:
    """Set the trained tensors of a fresh, prepared network to what `origin` learned.

    Args:
        brought: the backbone brings a trained depth branch.

    Raises:
        UserError: adapters of another kind (DoRA), or an update that no adapter of this rank can hold.
    """
    from xwam_ft.progress import progress_bar

    done, used = Carried(), set[str]()
    heads = {name: stored.read() for name, stored in origin.tensors.items() if name.startswith(HEADS)}
    joint = JointWeights(origin.config, heads, Layout.of(origin.contract))
    done.sentences = graft(network, joint, Layout.of(contract), of=origin.place, depth=False)
    used |= set(heads)
    no_depth = _other_branch(network, origin, brought=brought)
    if no_depth:
        done.sentences.append(no_depth)
    layers = list(_adapters(network))
    whole = trainable_state(network)
    rest = {name: tensor for name, tensor in whole.items() if ".lora_" not in name and not name.startswith(HEADS)}
    with progress_bar(console, f"start from {origin.place}", "layers", len(layers) + len(rest)) as advance:
        for stem, layer, adapter in layers:
            part = _part(stem)
            taken = [] if no_depth and part == "depth branch" else _into_adapter(layer, adapter, stem, origin, done)
            (done.kept if taken else done.new).setdefault(part, []).append(stem)
            used |= set(taken)
            advance(1)
        for name, parameter in rest.items():
            part = _part(name)
            taken = [] if no_depth and part == "depth branch" else _into_whole(parameter, name, origin)
            (done.kept if taken else done.new).setdefault(part, []).append(name)
            used |= set(taken)
            advance(1)
    done.left = sorted(_left(network, origin, used))
    return done


def _adapters(network: JointNetwork) -> Iterable[tuple[str, Any, str]]:
    """Stable stem, layer and adapter of every LoRA of the network."""
    names = {id(module): name for name, module in network.named_modules()}
    for layer in lora_layers(network):
        for adapter in (MAIN, DEPTH):
            if adapter in layer.lora_A:
                raw = f"{names[id(layer)]}.lora_A.{adapter}.weight"
                yield stable_name(network, raw).removesuffix(".lora_A.weight"), layer, adapter


def _part(name: str) -> str:
    if name.startswith("depth_branch."):
        return "depth branch"
    return "transformer"


def _other_branch(network: JointNetwork, origin: Origin, *, brought: bool) -> str:
    """Why a depth branch starts anew; empty where it does not, or there is none."""
    ours, theirs = network.config, origin.config
    if not ours.has_depth:
        return ""
    if not theirs.has_depth:
        return f"depth branch: new, since {origin.place} has none"
    if ours.depth_blocks != theirs.depth_blocks:
        return f"depth branch: new, of {ours.depth_blocks} blocks; that of {origin.place} has {theirs.depth_blocks}"
    if brought and ours.depth_shared != theirs.depth_shared and origin.lora is not None:
        # An adapter on copies that were trained before means nothing on the transformer's own blocks.
        return f"depth branch: as the backbone brings it, since that of {origin.place} has another model.depth.branch"
    return ""


def _into_adapter(layer: Any, adapter: str, stem: str, origin: Origin, done: Carried) -> list[str]:
    """Set one adapter; returns the names it was made from, none where it stays as drawn."""
    beside = {
        name.removeprefix(f"{stem}."): name
        for name in (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.lora_magnitude_vector.weight")
        if name in origin.tensors
    }
    down, up, scale = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]
    dora = adapter in layer.lora_magnitude_vector
    if beside:
        assert origin.lora is not None
        if origin.lora.dora != dora:
            raise UserError(
                f"was trained with model.lora.dora: {str(origin.lora.dora).lower()}, and this recipe has the other",
                origin.place,
                f"set it so: --set model.lora.dora={str(origin.lora.dora).lower()}",
            )
        their_down, their_up = (origin.tensors[f"{stem}.lora_{end}.weight"].read().to(up) for end in "AB")
        ratio, rank = lora_scale(origin.lora) / scale, len(their_down)
        if rank <= len(down):
            down[:rank] = their_down
            up.zero_()
            up[:, :rank] = their_up if ratio == 1.0 else their_up * ratio
            if dora:
                name = beside["lora_magnitude_vector.weight"]
                layer.lora_magnitude_vector[adapter].weight.copy_(origin.tensors[name].read())
            return list(beside.values())
        update = lora_scale(origin.lora) * (their_up @ their_down)
        done.fitted[stem] = _fit(layer, adapter, update, 0.0, stem, origin)
        return list(beside.values())
    name = f"{stem}.weight"
    if name not in origin.tensors:
        return []
    theirs = origin.tensors[name].read()
    base = layer.get_base_layer().weight
    if theirs.shape != base.shape:  # packed in 4 or 8 bits
        raise UserError(
            "holds its adapters folded into the weights, and they cannot be told from a base in 8 or 4 bits",
            origin.place,
            "start from the run it was exported from, or leave backbone.quantize out",
        )
    update = theirs.to(base.device).float() - base.float()
    spacing = torch.finfo(theirs.dtype).eps * torch.exp2(torch.floor(torch.log2(theirs.float().abs() + 1e-30)))
    rounding = float(spacing.square().sum() / 12) ** 0.5
    if not torch.any(update) or (theirs.dtype != base.dtype and float(update.norm()) < 2 * rounding):
        return []  # nothing was learned there
    done.fitted[stem] = _fit(layer, adapter, update, rounding, stem, origin)
    return [name]


def _fit(layer: Any, adapter: str, update: Tensor, rounding: float, stem: str, origin: Origin) -> float:
    """Give an adapter the nearest update that it can hold; returns the share (Frobenius norms) that is lost.

    Args:
        rounding: norm of what rounding alone has put into `update`; losing that is no loss.
    """
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    left, sizes, right = _leading(update, len(down))
    root = sizes.sqrt()
    down[: len(root)] = root[:, None] * right
    up.zero_()
    up[:, : len(root)] = left * root / layer.scaling[adapter]
    fitted = up.float() @ down.float() * layer.scaling[adapter]
    if adapter in layer.lora_magnitude_vector:  # the lengths that the fitted weights have
        whole = layer.get_base_layer().weight.float() + fitted
        layer.lora_magnitude_vector[adapter].weight.copy_(torch.linalg.norm(whole, dim=1))
    size, lost = float(update.norm()), float((update - fitted).norm())
    if lost > FIT_LIMIT * size and lost > 2 * rounding:
        raise UserError(
            f"holds an update of {stem} that no adapter of rank {len(down)} can: {lost / size:.0%} of it would be lost",
            origin.place,
            "give this recipe the model.lora.rank (and targets) it was trained with, or model.train: full",
        )
    return lost / size


def _leading(update: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading part of a singular value decomposition, of at most `rank`; the same on every call."""
    if max(update.shape) <= SMALL:
        left, sizes, right = torch.linalg.svd(update, full_matrices=False)
        right = right.mH
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, sizes, right = torch.svd_lowrank(update, q=min(rank + 16, *update.shape), niter=4)
    kept = min(rank, int((sizes > sizes[0] * 1e-6).sum()))
    return left[:, :kept], sizes[:kept], right[:, :kept].mH


def _into_whole(parameter: Tensor, name: str, origin: Origin) -> list[str]:
    """Set a tensor that trains whole; returns the names it was made from."""
    stem = name.removesuffix(".weight")
    beside = [one for one in origin.tensors if one.startswith(f"{stem}.lora_")] if origin.lora is not None else []
    stored = origin.tensors.get(name)
    if stored is not None and stored.shape == tuple(parameter.shape):
        parameter.copy_(stored.read())
    if beside:
        assert origin.lora is not None
        lora = {one.removeprefix(f"{stem}."): origin.tensors[one].read() for one in beside}
        parameter.copy_(merged_weight(parameter.detach().cpu(), lora, origin.lora))
    return beside or ([name] if stored is not None and stored.shape == tuple(parameter.shape) else [])


def _left(network: JointNetwork, origin: Origin, used: set[str]) -> Iterable[str]:
    """What the origin learned and nothing here holds: tensors that trained there; of a bundle, that differ here."""
    frozen = {stable_name(network, name).replace(".base_layer.", "."): p for name, p in network.named_parameters()}
    for name, stored in origin.tensors.items():
        if name in used or name.startswith(HEADS):
            continue
        if not origin.whole or ".lora_" in name:
            yield name
        elif name in frozen and frozen[name].shape == stored.shape:
            theirs = stored.read().to(frozen[name].device)
            if not torch.equal(theirs, frozen[name].detach().to(theirs.dtype)):
                yield name


def table_rows(done: Carried) -> list[tuple[str, str, str]]:
    """Part, carried over, new, for people."""
    rows: list[tuple[str, str, str]] = []
    for part in ("transformer", "depth branch"):
        kept, new = done.kept.get(part, []), done.new.get(part, [])
        if kept or new:
            fitted = [done.fitted[name] for name in kept if name in done.fitted]
            how = f", {len(fitted)} fitted (at most {max(fitted):.2g} of one is lost)" if fitted else ""
            rows.append((part, f"{len(kept)} of {len(kept) + len(new)}{how}", listed(new, 3) if new else ""))
    return rows
