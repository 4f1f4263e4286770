"""The network that a run begins with; under FSDP2 its weights stay in their files until it is cut over processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from xwam_ft.encode.inputs import first_rank
from xwam_ft.learn.warm_start import START_FILE, begin, read_start
from xwam_ft.model.adapters import load_trainable
from xwam_ft.model.backbone import PARTS, load_backbone, part_fingerprints
from xwam_ft.model.deferred import StoredRows, deferred_parameters
from xwam_ft.model.sharding import read_rows
from xwam_ft.model.tiny import UNTRAINED
from xwam_ft.model.trainable import brings_depth, trainable_network
from xwam_ft.runs.checkpoint import list_checkpoints

if TYPE_CHECKING:
    import torch

    from xwam_ft.contract import Contract
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.model.network import JointNetwork
    from xwam_ft.recipe import Recipe


@dataclass(frozen=True)
class Unread:
    """What a network still lacks.

    Args:
        rows: of parameters on the meta device, by name.
        start: the file of what the run starts from.
    """

    rows: dict[str, StoredRows]
    start: Path | None

    def read_into(self, network: JointNetwork, device: torch.device) -> None:
        """Give the network its weights: of parameters that are cut over processes this one's rows alone."""
        read_rows(network, self.rows, device)
        if self.start is not None:
            load_trainable(network, read_start(self.start), self.start)


@dataclass(frozen=True)
class Start:
    """A network prepared for training, the fingerprint of its transformer, and what is still in files."""

    network: JointNetwork
    fingerprint: str
    text_dim: int
    unread: Unread | None


def start_network(
    recipe: Recipe, contract: Contract, run: Path | None, report: list[str] | None, console: Console | None
) -> Start:
    """The network of a recipe for recordings under a contract, at its start.

    Args:
        run: whose checkpoint is gone on from, where it has one; keeps what the recipe starts from.
        report: of `trainable_network`. console: is told what of another run was started from.

    Raises:
        UserError: as `load_backbone`, `trainable_network` and `begin`.
    """
    begins = recipe.init_from is not None and (run is None or not list_checkpoints(run))
    kept = run / START_FILE if begins and run is not None else None
    # What is started from is worked out on the whole network, by one process.
    works_out = begins and (kept is None or (first_rank() and not kept.is_file()))
    backbone = _backbone(recipe, defer=not works_out and defers(recipe))
    if _fits_an_adapter(backbone, recipe, contract):
        backbone = _backbone(recipe, defer=False)
    network = trainable_network(backbone, recipe, contract, report)
    if begins and (works_out or backbone.deferred is None):
        begin(network, backbone, recipe, contract, run, console or Console(quiet=True))
    unread = None
    if backbone.deferred is not None:
        unread = Unread(deferred_parameters(network, backbone.deferred, backbone.joint), kept)
    return Start(network, backbone.fingerprint, int(backbone.transformer.config.text_dim), unread)


def defers(recipe: Recipe) -> bool:
    """Whether processes read their own rows of a recipe's backbone alone, as far as the recipe says."""
    return recipe.trainer.strategy == "fsdp2" and why_whole(recipe) is None


def why_whole(recipe: Recipe, *, fits: bool = False) -> str | None:
    """What makes every process of an FSDP2 run load the whole network, as the recipe says it; None: nothing does.

    Args:
        fits: a depth branch that the backbone brings is fitted by an adapter.
    """
    if recipe.trainer.strategy != "fsdp2":
        return None
    if recipe.backbone.path == UNTRAINED:  # drawn by every process, there is no file
        return f"backbone.path={UNTRAINED}"
    if recipe.model.lora.dora and _adapts(recipe):  # magnitudes are reckoned from whole weights
        return "model.lora.dora=true"
    return "model.depth.branch=adapter" if fits else None


def _adapts(recipe: Recipe) -> bool:
    return recipe.model.train == "lora" or recipe.model.depth.train == "lora"


def _backbone(recipe: Recipe, *, defer: bool) -> Backbone:
    spec = recipe.backbone
    return load_backbone(
        spec.path,
        dtype=spec.dtype,
        parts=("transformer",),
        revision=spec.revision,
        quantize=spec.quantize,
        defer=defer,
    )


def _fits_an_adapter(backbone: Backbone, recipe: Recipe, contract: Contract) -> bool:
    """Whether a depth branch that the backbone brings becomes an adapter, which takes whole weights."""
    brought = brings_depth(backbone, recipe.model.depth.blocks)
    form = recipe.model.branch_on(depth=contract.depth.kind != "none", brought=brought)
    return backbone.deferred is not None and brought and form == "adapter"


def require_backbone_whole(recipe: Recipe, console: Console) -> None:
    """Raise a `UserError` where a part of the backbone is missing, damaged or another model's, before hours are spent.

    Of a hub id all parts are fetched. Hashes are wanted later, and remembered; of the transformer's weights
    names and shapes alone are read.
    """
    path, revision = recipe.backbone.path, recipe.backbone.revision
    part_fingerprints(path, PARTS, revision=revision, console=console)
    load_backbone(path, parts=("transformer",), revision=revision, defer=True)
