"""A run -> a bundle: load, check, merge, prove, write. A proof that fails leaves no bundle and one sentence why."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from xwam_ft.contract import require_same
from xwam_ft.errors import UserError, listed
from xwam_ft.export import proof
from xwam_ft.files import move_folder
from xwam_ft.model.adapters import load_trainable
from xwam_ft.model.backbone import Backbone, cast_weights, load_backbone
from xwam_ft.model.merge import drop_branch, merge_adapters
from xwam_ft.model.quantize import dequantize_blocks
from xwam_ft.policy import selfcheck
from xwam_ft.policy.bundle import load_policy, write_bundle
from xwam_ft.policy.policy import NO_TEXT, Policy, Settings, clip_observation
from xwam_ft.shards import ShardSet
from xwam_ft.train.checkpoint import EMA_FILE, TRAINABLE_FILE
from xwam_ft.train.folder import CONTRACT_FILE, RunFolder, open_run
from xwam_ft.train.session import trainable_network

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.network import JointNetwork
    from xwam_ft.observation import EncodedObservation
    from xwam_ft.train.checkpoint import Checkpoint

FORMATS = ("bundle",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def export_run(
    run: Path,
    out: Path,
    *,
    format: str = "bundle",
    ema: bool = True,
    depth: bool = True,
    dtype: str | None = None,
    prompts: list[str] | None = None,
    console: Console,
) -> Path:
    """Write the newest checkpoint of a run as a bundle.

    Args:
        format: "bundle".
        ema: take the averaged weights where the run has them.
        depth: keep the depth branch.
        dtype: of the merged linears; default the recipe's `backbone.dtype`. Merging is always computed in float32.
        prompts: further instructions to embed beside those seen in training.

    Raises:
        UserError: no run, no checkpoint, another backbone, a proof that fails, or `out` is taken.
    """
    if format not in FORMATS:
        raise UserError(f"format {format!r} is not written by this version", "--format", f"use {listed(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown", "--dtype", f"use one of: {listed(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists already and is not an empty folder", out, "choose another folder or remove it")
    folder = open_run(run)
    if folder.checkpoint is None:
        raise UserError("has no checkpoint yet", run, f"go on with it: xwam-ft train --resume {run}")
    recipe = folder.recipe
    dtype = dtype or recipe.backbone.dtype
    inputs = _recorded(folder)

    console.print("loading the backbone")
    base = recipe.backbone
    backbone = load_backbone(base.path, dtype=base.dtype, revision=base.revision, quantize=base.quantize)
    if base.quantize is not None:
        dequantize_blocks(backbone.transformer)
    trained, averaged = _weights(folder.checkpoint, ema=ema)
    network = _trained_network(folder, folder.checkpoint, backbone, trained, depth=depth)
    policy = _policy(network, backbone, folder, prompts or [])
    kept = _kept(trained, depth=depth)
    adapters = proof.require_adapter(kept, folder.checkpoint.folder)
    console.print("merging adapters in float32, and comparing")
    adapted = proof.outputs(network, policy, inputs)
    with proof.adapters_off(network):
        unadapted = proof.outputs(network, policy, inputs)
    merge_adapters(network, DTYPES[dtype])
    merged = proof.outputs(network, policy, inputs)
    proofs = proof.merge_proofs(unadapted, adapted, merged, proof.adapted_streams(kept))
    proof.require_merge(proofs, dtype, folder.checkpoint.folder)
    if recipe.model.train != "lora":
        cast_weights(network.transformer, DTYPES[dtype])

    origin = {
        "path": recipe.backbone.path,
        "revision": recipe.backbone.revision,
        "fingerprint": folder.checkpoint.state.backbone,
    }
    step = folder.checkpoint.state.step
    # Proved beside `out` and renamed only then, so that a bundle that exists is one that was proved.
    place = out.resolve()
    draft = place.with_name(f".{place.name}.unproved")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        reloaded = write_bundle(policy, inputs, draft, backbone=origin, dtype=dtype, run=run.name, step=step)
        proof.require_equal(policy, reloaded, out)
        difference = selfcheck.record(policy, inputs, seed=0).require(reloaded, dtype, out)
        load_policy(draft, policy.device.type)
        move_folder(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    table = Table("proof", "result", title=f"{out}: step {step}" + (", averaged weights" if averaged else ""))
    if adapters:
        table.add_row("adapters that moved from zero", f"{adapters} of {adapters}")
    for item in proofs:
        effect = f"{item.share:.2g} of the adapter's effect ({item.merge:.2g} of {item.adapter:.2g})"
        table.add_row(f"merging changes {item.stream} by", effect)
    table.add_row("read back, every tensor is", "equal")
    table.add_row("read back, a recorded request differs by", f"{difference:.2g} of the action's unit range")
    table.add_row("contract", folder.contract.sha256[:16])
    table.add_row("backbone", str(origin["fingerprint"])[:16])
    console.print(table)
    console.print(f"bundle: {out}", soft_wrap=True)
    return out


def _recorded(folder: RunFolder) -> EncodedObservation:
    """A held-out recorded observation (a training one where nothing is held out)."""
    shards = ShardSet.open(Path(folder.recipe.data.shards))
    require_same(folder.contract, folder.path / CONTRACT_FILE, shards.contract, shards.folder / CONTRACT_FILE)
    clips = shards.clips("held_out", 1) or shards.clips(None, 1)
    return clip_observation(folder.contract, shards.read_clip(clips[len(clips) // 2]))


def _weights(checkpoint: Checkpoint, *, ema: bool) -> tuple[dict[str, Tensor], bool]:
    averaged = checkpoint.ema() if ema else None
    return (checkpoint.trainable(), False) if averaged is None else (averaged, True)


def _trained_network(
    folder: RunFolder, checkpoint: Checkpoint, backbone: Backbone, trained: dict[str, Tensor], *, depth: bool
) -> JointNetwork:
    now, then = backbone.fingerprint, checkpoint.state.backbone
    if now != then:
        raise UserError(
            f"is not the backbone this run was trained on: its fingerprint is {now[:12]}, the run's {then[:12]}",
            folder.recipe.backbone.path,
            "restore that backbone; an adapter means nothing on another base",
        )
    network = trainable_network(backbone, folder.recipe, folder.contract)
    file = TRAINABLE_FILE if not (checkpoint.folder / EMA_FILE).exists() else f"{TRAINABLE_FILE} or {EMA_FILE}"
    load_trainable(network, trained, checkpoint.folder / file)
    if not depth:
        drop_branch(network)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device).eval().requires_grad_(False)


def _kept(trained: dict[str, Tensor], *, depth: bool) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in trained.items() if depth or not name.startswith("depth_branch.")}


def _policy(network: JointNetwork, backbone: Backbone, folder: RunFolder, further: list[str]) -> Policy:
    """A policy around the network in memory, with every prompt embedded once."""
    texts = sorted({" ".join(text.split()) for text in (*folder.contract.prompts, *further, NO_TEXT)})
    embeddings = backbone.encode_prompts(texts)
    validation = folder.recipe.validation
    settings = Settings(
        action_steps=validation.action_steps, video_steps=validation.video_steps, shift=folder.recipe.noise.shift
    )
    codec: Any = copy.copy(backbone)
    codec.transformer = codec.text_encoder = codec.tokenizer = None
    prompts = dict(zip(texts, embeddings.cpu(), strict=True))
    parts = network, codec.to(network.device), prompts, folder.contract, settings
    return Policy(*parts, trained=backbone.trained, action_prefix=folder.recipe.noise.action_prefix.max)
