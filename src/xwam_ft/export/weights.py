"""What a run's network holds, tensor by tensor: base, adapters and what else trained, read when its turn comes.

Names are those of the network written: with adapters merged (the depth branch then as copies), or beside the base.
Merging is computed in float32 by peft's own formulas, a layer at a time; how much of each block's update is lost, in
rounding above all, is counted on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.model.adapters import prepare_for_training, stable_name
from xwam_ft.model.assemble import empty_network
from xwam_ft.model.backbone import load_backbone, locate_backbone
from xwam_ft.model.merge import lora_scale, merged_weight
from xwam_ft.model.network import JointNetwork, NetworkConfig
from xwam_ft.model.quantize import dequantize_blocks
from xwam_ft.model.stored_part import JOINT
from xwam_ft.model.tensor_files.source import Stored, open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece
from xwam_ft.model.tiny import UNTRAINED
from xwam_ft.runs.checkpoint import EMA_FILE, TRAINABLE_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from xwam_ft.recipe import Recipe
    from xwam_ft.runs.checkpoint import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS_NUMBERS = 1 << 19
"""Numbers of a layer that are merged at a time: float32 of so many stays in a processor's cache."""
_BRANCH_BLOCK = re.compile(r"depth_branch\.blocks\.(\d+)\.")
_BLOCK = re.compile(r"(?:transformer|depth_branch)\.blocks\.\d+")


@dataclass
class RunWeights:
    """A checkpoint over its base; nothing of it is in memory but a base that lies in no file.

    Args:
        config: of the network as trained, without depth branch where that is left out.
        transformer: constructor values of diffusers' `WanTransformer3DModel`.
        base: the transformer's tensors; branch: those of a depth branch the backbone brought, under our names.
        trained: what trained, under stable names.
        source: the file that `trained` is in.
        averaged: it is the averaged weights.
        rounding: per block [lost, update], squared Frobenius norms; filled while merged pieces are made.
    """

    recipe: Recipe
    config: NetworkConfig
    transformer: dict[str, Any]
    base: Mapping[str, Stored]
    branch: Mapping[str, Stored]
    trained: Mapping[str, Stored]
    source: Path
    averaged: bool
    keep_float32: tuple[str, ...]
    rounding: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def skeleton(self, *, merged: bool) -> JointNetwork:
        """The network that is written, without weights; unmerged with its adapters."""
        config = replace(self.config, depth_shared=False) if merged else self.config
        network = empty_network(self.transformer, config)
        if not merged:
            model = self.recipe.model
            prepare_for_training(network, model.lora, model.depth, train=model.train)
        return network

    def pieces(self, dtype: torch.dtype, *, merged: bool) -> list[Piece]:
        """Every tensor of the network, block by block.

        Args:
            dtype: of merged layers, and of the whole transformer where it has no adapters.

        Raises:
            UserError: tensors trained that this network has no place for, or adapters of another rank.
        """
        network = self.skeleton(merged=merged)
        found: dict[str, str] = {}  # name in the network -> stable name
        for raw in network.state_dict():
            found[raw] = raw if merged else stable_name(network, raw).replace(".base_layer.", ".")
        if merged:
            stems = {name.rpartition(".")[0] for name in found}
            used = {name for name in self.trained if name in found or name.partition(".lora_")[0] in stems}
        else:
            used = set(self.trained) & set(found.values())
        if strangers := sorted(set(self.trained) - used):
            raise UserError(
                f"holds {len(strangers)} tensors that this network has no place for: {listed(strangers, 3)}",
                self.source,
                "restore the run's own recipe.yaml",
            )
        for name, stored in self.trained.items():
            if ".lora_A." in name and stored.shape[0] != self.recipe.model.lora.rank:
                raise UserError(
                    f"holds adapters of rank {stored.shape[0]}, and the recipe's are of rank "
                    f"{self.recipe.model.lora.rank}",
                    self.source,
                    "restore the run's own recipe.yaml",
                )
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        return [self._piece(raw, stable, shapes[raw], dtype, merged=merged) for raw, stable in found.items()]

    def _piece(self, raw: str, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, merged: bool) -> Piece:
        stem, _, leaf = name.rpartition(".")
        whole = self.recipe.model.train != "lora" and name.startswith("transformer.")
        kind = self._kept(name, dtype) if whole else None
        if name in self.trained:
            return Piece(raw, shape, kind or self.trained[name].dtype, self.trained[name].read)
        stored = self._base(name)
        trained_on = self._kept(name, self._dtype_of_base(stored))
        held = Stored(stored.shape, trained_on, lambda: stored.read().to(trained_on))
        if merged and f"{stem}.lora_A.weight" in self.trained:
            if leaf == "weight":
                return Piece(raw, shape, dtype, lambda: self._merged(stem, dtype))
            return Piece(raw, shape, dtype, held.read)
        return Piece(raw, shape, kind or trained_on, held.read)

    def _base(self, name: str) -> Stored:
        if name in self.branch:
            return self.branch[name]
        inside = name.removeprefix("transformer.")
        if (match := _BRANCH_BLOCK.match(name)) is not None:
            first = self._blocks - self.config.depth_blocks
            inside = f"blocks.{int(match[1]) + first}.{name[match.end() :]}"
        if inside not in self.base:
            raise UserError(
                f"holds no {inside}, which {name} is made from", self.recipe.backbone.path, "restore that backbone"
            )
        return self.base[inside]

    @cached_property
    def _blocks(self) -> int:
        return len_blocks(self.base)

    def _dtype_of_base(self, stored: Stored) -> torch.dtype:
        # What was unpacked from 8 or 4 bits is float32, since nothing narrower holds it.
        spec = self.recipe.backbone
        return stored.dtype if spec.quantize is not None else getattr(torch, spec.dtype)

    def _kept(self, name: str, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if any(part in self.keep_float32 for part in name.split(".")) else dtype

    def _merged(self, stem: str, dtype: torch.dtype) -> Tensor:
        held = self._base(f"{stem}.weight")
        base = held.read().to(self._dtype_of_base(held))  # as it was trained on
        lora = {
            name.removeprefix(f"{stem}."): stored.read()
            for name, stored in self.trained.items()
            if name.startswith(f"{stem}.lora_")
        }
        spec, final = self.recipe.model.lora, torch.empty(base.shape, dtype=dtype)
        match = _BLOCK.match(stem)
        assert match is not None, f"an adapter outside the blocks: {stem}"
        counts = self.rounding.setdefault(match[0], [0.0, 0.0])
        step = max(1, ROWS_NUMBERS // base.shape[1])
        for rows in (slice(first, first + step) for first in range(0, base.shape[0], step)):
            part = {name: one if name == "lora_A.weight" else one[rows] for name, one in lora.items()}
            before = base[rows].float()
            exact = merged_weight(before, part, spec)
            final[rows] = exact
            if spec.dora:
                update = exact - before
            else:  # by the definition, so that a mistake in merging shows as well
                update = (lora_scale(spec) * part["lora_B.weight"].float()) @ part["lora_A.weight"].float()
            counts[0] += float(torch.linalg.vector_norm((final[rows].float() - before).sub_(update))) ** 2
            counts[1] += float(torch.linalg.vector_norm(update)) ** 2
        return final


def len_blocks(tensors: Mapping[str, Any]) -> int:
    """How many blocks a transformer's tensors are of."""
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))


def open_weights(recipe: Recipe, checkpoint: Checkpoint, *, ema: bool, depth: bool) -> RunWeights:
    """Find everything a run's network is made of.

    Args:
        ema: the averaged weights, where the run has them.
        depth: with the depth branch.

    Raises:
        UserError: no such backbone, or files of it or of the checkpoint missing or damaged.
    """
    spec = recipe.backbone
    averaged = ema and (checkpoint.folder / EMA_FILE).exists()
    source = checkpoint.folder / (EMA_FILE if averaged else TRAINABLE_FILE)
    trained = dict(open_checkpoint(source).tensors)
    config = NetworkConfig.from_dict(checkpoint.state.network)
    if not depth:
        config = replace(config, depth_blocks=0, depth_head=False, depth_shared=False)
        trained = {name: stored for name, stored in trained.items() if not name.startswith("depth_branch.")}
    from diffusers import WanTransformer3DModel

    kind: Any = WanTransformer3DModel
    keep = tuple(kind._keep_in_fp32_modules or ())
    branch: dict[str, Stored] = {}
    if spec.path == UNTRAINED or spec.quantize is not None:
        backbone = load_backbone(
            spec.path, dtype=spec.dtype, parts=("transformer",), revision=spec.revision, quantize=spec.quantize
        )
        module = backbone.transformer if spec.quantize is None else dequantize_blocks(backbone.transformer)
        base = dict(_held(module))
        values = dict(module.config)
    else:
        folder = locate_backbone(spec.path, ("transformer",), spec.revision)
        base = dict(open_checkpoint(folder / "transformer").tensors)
        values = read_json(folder / "transformer" / "config.json")
        if (folder / JOINT).is_dir() and depth and config.depth_blocks and not config.depth_shared:
            described = NetworkConfig.from_dict(read_json(folder / JOINT / "config.json")["network"])
            if described.depth_blocks == config.depth_blocks:
                found = open_checkpoint(folder / JOINT).tensors
                branch = {name: stored for name, stored in found.items() if name.startswith("depth_branch.")}
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    return RunWeights(recipe, config, values, base, branch, trained, source, averaged, keep)


def _held(module: nn.Module) -> Iterator[tuple[str, Stored]]:
    for name, tensor in module.state_dict().items():
        yield name, Stored(tuple(tensor.shape), tensor.dtype, tensor.clone)
