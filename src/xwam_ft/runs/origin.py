"""What a run may start from: a checkpoint of another run, or a bundle. Opened, checked, its weights read on demand.

`init_from` names it: RUN (the newest checkpoint), RUN@STEP, or BUNDLE, which may be one of the Hub. Where a run keeps
averaged weights, these are what it starts from, since these are what is exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from xwam_ft import hub
from xwam_ft.contract import load_contract
from xwam_ft.encode.data_sets import open_sets
from xwam_ft.errors import UserError
from xwam_ft.files import read_json, sha256
from xwam_ft.model.adapters import prepare_for_training, stable_name
from xwam_ft.model.assemble import empty_network
from xwam_ft.model.backbone import part_fingerprints
from xwam_ft.model.network import NetworkConfig
from xwam_ft.model.tensor_files.source import open_safetensors
from xwam_ft.places import RECIPE_FILE, neither, run_at
from xwam_ft.policy.bundle import MANIFEST, verify_bundle
from xwam_ft.policy.from_hub import bundle_at
from xwam_ft.policy.seen import digests
from xwam_ft.recipe_model import DepthSpec, LoraSpec
from xwam_ft.runs.checkpoint import EMA_FILE, TRAINABLE_FILE
from xwam_ft.runs.folder import read_run, require_sealed
from xwam_ft.runs.moved import found_again

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.model.tensor_files.source import Stored
    from xwam_ft.policy.settings import Future
    from xwam_ft.recipe import BackboneSpec
    from xwam_ft.runs.folder import RunFolder

SEEN_FILE = "init/seen.json"
"""In a run: digests of the episodes that what it started from was trained on."""


@dataclass(frozen=True)
class Origin:
    """What is started from.

    Args:
        place: as it was named.
        said: what of it, for people ("step 420, averaged weights").
        contract: that its numbers mean something under.
        config: of its network.
        backbone: fingerprint of the transformer it was trained on; backbone_path: where that was.
        tensors: what trained, under stable names; of a bundle the whole network.
        whole: it is the whole network, and `lora` None where adapters are folded into it.
        lora: how its adapters are scaled.
        sha256: of the file with the weights.
        future: how it was trained to act, as `model.future`.
    """

    place: str
    said: str
    contract: Contract
    config: NetworkConfig
    backbone: str
    backbone_path: str
    tensors: Mapping[str, Stored]
    whole: bool
    lora: LoraSpec | None
    sha256: str
    future: Future = "joint"


def open_origin(place: str) -> Origin:
    """Open a run's checkpoint or a bundle.

    Raises:
        UserError: it is neither, has no checkpoint, is damaged, or its recipe was edited.
    """
    path, step, is_run = _located(place)
    return _of_run(place, path, step) if is_run else _of_bundle(place, path)


def require_backbone(origin: Origin, spec: BackboneSpec, fingerprint: str | None = None) -> None:
    """Raise a `UserError` unless a recipe's backbone is the one that a network was trained on.

    Args:
        fingerprint: of its transformer, where it is known.
    """
    ours = fingerprint or part_fingerprints(spec.path, ("transformer",), revision=spec.revision)["transformer"]
    if ours != origin.backbone:
        raise UserError(
            f"was trained on another backbone, {origin.backbone_path} with the fingerprint {origin.backbone[:12]}, and "
            f"that of {spec.path} is {ours[:12]}",
            origin.place,
            f"set backbone.path to {origin.backbone_path}: what a run learned means nothing on another",
        )


def seen_by(place: str) -> frozenset[str]:
    """Digests (policy/seen.py) of the episodes that a run or bundle was trained on, and what it started from before
    it; of a run those of shards that are still there.

    Raises:
        UserError: it is neither a run nor a bundle.
    """
    path, step, is_run = _located(place)
    if not is_run:
        return frozenset(read_json(path / "config.json").get("seen", ()))
    return seen_in(read_run(path, step))


def seen_in(run: RunFolder) -> frozenset[str]:
    """The same of a run that is open."""
    before = seen_before(run.path)
    try:
        shards = open_sets(found_again(run.recipe, run.path).data).joined
        return before | set(digests(shards, "train").values())
    except UserError:  # moved away, removed or damaged: what it had seen before stands in the run
        return before


def seen_before(run: Path) -> frozenset[str]:
    """Those that what a run started from was trained on, as far as the run knows."""
    return frozenset(read_json(run / SEEN_FILE)) if (run / SEEN_FILE).is_file() else frozenset()


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file() and (path / "contract.json").is_file()


def _located(place: str) -> tuple[Path, int | None, bool]:
    """Folder and step of a run (True), or the folder of a bundle."""
    here = bundle_at(place) if hub.repo_of(place, "model") else place
    path, step = run_at(here)
    if (path / RECIPE_FILE).is_file():
        return path, step, True
    if is_bundle(path):
        return path, None, False
    raise neither(place)


def _of_run(place: str, path: Path, step: int | None) -> Origin:
    run = read_run(path, step)
    if run.checkpoint is None:
        raise UserError("has no checkpoint yet", place, f"go on with it: xwam-ft train --resume {quote(str(path))}")
    require_sealed(run)
    state, model = run.checkpoint.state, run.recipe.model
    averaged = (run.checkpoint.folder / EMA_FILE).exists()
    file = run.checkpoint.folder / (EMA_FILE if averaged else TRAINABLE_FILE)
    return Origin(
        place=place,
        said=f"step {state.step}{', averaged weights' if averaged else ''}",
        contract=run.contract,
        config=NetworkConfig.from_dict(state.network),
        backbone=state.backbone,
        backbone_path=run.recipe.backbone.path,
        tensors=open_safetensors([file]).tensors,
        whole=False,
        lora=model.lora,
        sha256=sha256(file),
        future=model.future,
    )


def _of_bundle(place: str, path: Path) -> Origin:
    config: dict[str, Any] = verify_bundle(path)
    network_config = NetworkConfig.from_dict(config["network"])
    stored = open_safetensors([path / "model.safetensors"]).tensors
    tensors = {name.removeprefix("network."): one for name, one in stored.items() if name.startswith("network.")}
    lora = None
    if adapters := config.get("adapters"):
        network, lora = empty_network(config["transformer"], network_config), LoraSpec.model_validate(adapters["lora"])
        prepare_for_training(network, lora, DepthSpec.model_validate(adapters["depth"]), train=adapters["train"])
        tensors = {stable_name(network, name).replace(".base_layer.", "."): one for name, one in tensors.items()}
    return Origin(
        place=place,
        said=f"a bundle of run {config['run']}, step {config['step']}, its adapters {'beside' if lora else 'merged'}",
        contract=load_contract(path / "contract.json"),
        config=network_config,
        backbone=str(config["backbone"]["fingerprint"]),
        backbone_path=str(config["backbone"]["path"]),
        tensors=tensors,
        whole=True,
        lora=lora,
        sha256=sha256(path / "model.safetensors"),
        future=config.get("future", "joint"),
    )
