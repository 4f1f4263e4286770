"""A run -> a bundle: check, write, read back, prove. A proof that fails leaves no bundle and one sentence why.

At most one network is in memory at a time: first the run's, for its outputs with and without adapters; then the file
is written tensor by tensor; then the bundle as it reads back answers the same observation.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from xwam_ft.contract import require_same
from xwam_ft.errors import UserError, listed
from xwam_ft.export import card, formats, pictures_proof, proof, reference_file, served
from xwam_ft.export.weights import RunWeights, open_weights
from xwam_ft.files import (
    UNWRITABLE,
    disk_errors,
    move_folder,
    read_json,
    require_room,
    write_bytes_atomic,
    write_text_atomic,
)
from xwam_ft.locks import sole_writer
from xwam_ft.model.adapters import load_trainable
from xwam_ft.model.backbone import load_backbone, locate_backbone, part_fingerprints
from xwam_ft.model.embed import embed_prompts
from xwam_ft.model.merge import drop_branch
from xwam_ft.model.quantize import dequantize_blocks
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, require_written
from xwam_ft.model.tiny import UNTRAINED
from xwam_ft.model.trainable import trainable_network
from xwam_ft.policy import selfcheck
from xwam_ft.policy.bundle import PICTURE, SELFCHECK, bundle_config, load_policy, read_parts, seal, write_parts
from xwam_ft.policy.policy import NO_TEXT, Policy, Settings, clip_observation
from xwam_ft.progress import progress_bar
from xwam_ft.prompts import clean_prompt
from xwam_ft.shards import ShardSet
from xwam_ft.train.folder import CONTRACT_FILE, RunFolder, open_run, require_sealed, require_shards

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.backbone import Part
    from xwam_ft.model.network import Prediction
    from xwam_ft.observation import EncodedObservation
    from xwam_ft.train.checkpoint import Checkpoint
from xwam_ft.encode.data_sets import open_sets

FORMATS = ("bundle", "peft", "diffusers", "xwam")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PARTS = {"transformer": "transformer", "vae": "VAE", "text": "text encoder"}
_NEXT = {
    "bundle": "xwam-ft serve {typed}, or Policy.load({out!r})",
    "peft": "PeftModel.from_pretrained(transformer, {out!r})",
    "diffusers": "pipeline.load_lora_weights({out!r}), of a WanPipeline",
}
_SPARE = 1.25
"""Memory a network needs to answer, over that of its weights."""


@dataclass(frozen=True)
class _Job:
    """What every step of one export needs."""

    folder: RunFolder
    checkpoint: Checkpoint
    weights: RunWeights
    shards: ShardSet | None  # of a bundle alone: its proofs and card are measured on recordings
    device: str
    dtype: str
    merged: bool
    origin: dict[str, Any]

    @property
    def settings(self) -> Settings:
        validation = self.folder.recipe.validation
        return Settings(
            action_steps=validation.action_steps,
            video_steps=validation.video_steps,
            shift=self.folder.recipe.noise.shift,
        )


def export_run(
    run: Path,
    out: Path,
    *,
    format: str = "bundle",
    ema: bool = True,
    depth: bool = True,
    dtype: str | None = None,
    merged: bool = True,
    prompts: list[str] | None = None,
    wan: Path | None = None,
    step: int | None = None,
    console: Console,
) -> Path:
    """Write a checkpoint of a run.

    Args:
        step: that of the checkpoint; default the newest.
        format: "bundle"; "peft" or "diffusers" (the adapter alone); "xwam" (the reference implementation's names).
        ema: take the averaged weights where the run has them.
        depth: keep the depth branch.
        dtype: of the merged linears; default the recipe's `backbone.dtype`. Merging is always computed in float32.
        merged: fold adapters into the base; otherwise they stay beside it.
        prompts: further instructions to embed beside those seen in training.
        wan: for "xwam", the folder of the original Wan files, whose VAE and text encoder are copied.

    Raises:
        UserError: no run, no checkpoint, another backbone, a proof that fails, or `out` is taken.
    """
    _check_options(out, format, dtype, merged, prompts, wan)
    folder = open_run(run, step=step)
    if folder.checkpoint is None:
        raise UserError("has no checkpoint yet", run, f"go on with it: xwam-ft train --resume {quote(str(run))}")
    checkpoint, spec = folder.checkpoint, folder.recipe.backbone
    shards = _recordings(folder) if format == "bundle" else None
    require_sealed(folder)
    _require_base(folder, checkpoint, encoders=format in ("bundle", "xwam"))
    console.print("reading the checkpoint")
    weights = open_weights(folder.recipe, checkpoint, ema=ema, depth=depth)
    adapters = proof.require_adapter(weights.trained, checkpoint.folder)
    origin = {"path": spec.path, "revision": spec.revision, "fingerprint": checkpoint.state.backbone}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not adapters and not merged:
        raise UserError("has no adapters that could stay unmerged", run, "leave --unmerged out")
    job = _Job(folder, checkpoint, weights, shards, device, dtype or spec.dtype, merged, origin)
    averaged = ", averaged weights" if weights.averaged else ""
    title = f"{out}: step {checkpoint.state.step}{averaged}"
    table = Table("proof", "result", title=title)
    if adapters:
        table.add_row("adapters that moved from zero", f"{adapters} of {adapters}")
    with sole_writer(out, "exporting to it"), _proved(out) as draft:
        if format == "bundle":
            _bundle(job, draft, prompts or [], table, console)
        elif format == "xwam":
            for row in reference_file.write(weights, folder.contract, DTYPES[job.dtype], wan, draft, console):
                table.add_row(*row)
        else:
            for row in formats.write(format, weights, draft):
                table.add_row(*row)
    table.add_row("contract", folder.contract.sha256[:16])
    table.add_row("backbone", str(origin["fingerprint"])[:16])
    console.print(table)
    console.print(f"{format}: {out}", soft_wrap=True, markup=False)
    if format in _NEXT:
        shown = _NEXT[format].format(out=str(out), typed=quote(str(out)))
        console.print(f"next: {shown}", soft_wrap=True, markup=False)
    return out


@contextmanager
def _proved(out: Path) -> Generator[Path]:
    """A draft beside `out` that is renamed once it is proved, so that what exists is what was proved."""
    place = out.resolve()
    draft = place.with_name(f".{place.name}.unproved")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with disk_errors(out, UNWRITABLE):
            draft.mkdir(parents=True)
        with disk_errors(out):
            yield draft
            move_folder(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_options(
    out: Path, format: str, dtype: str | None, merged: bool, prompts: Sequence[str] | None, wan: Path | None
) -> None:
    if format not in FORMATS:
        raise UserError(f"format {format!r} is not written by this version", "--format", f"use {listed(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown", "--dtype", f"use one of: {listed(DTYPES)}")
    if format == "xwam" and wan is None:
        raise UserError(
            "format xwam holds Wan's VAE and text encoder",
            "--wan",
            "give the folder of Wan's own Wan2.2_VAE.pth and models_t5_umt5-xxl-enc-bf16.pth",
        )
    idle = {
        "--wan": wan is not None and format != "xwam",
        "--unmerged": not merged and format != "bundle",
        "--prompt": bool(prompts) and format != "bundle",
        "--dtype": dtype is not None and format in ("peft", "diffusers"),
    }
    for option, given in idle.items():
        if given:
            raise UserError(f"changes nothing with --format {format}", option, "leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists already and is not an empty folder", out, "choose another folder or remove it")


def _recordings(folder: RunFolder) -> ShardSet:
    """The run's shard set, under the run's contract."""
    require_shards(folder)
    shards = open_sets(folder.recipe.data, contract=folder.decided).joined
    require_same(folder.contract, folder.path / CONTRACT_FILE, shards.contract, shards.folder / CONTRACT_FILE)
    return shards


def _require_base(folder: RunFolder, checkpoint: Checkpoint, *, encoders: bool) -> None:
    """The backbone's files are those of training; `encoders`: VAE and text encoder too, which a bundle is made from."""
    spec, state = folder.recipe.backbone, checkpoint.state
    parts: tuple[Part, ...] = ("transformer", "vae", "text") if encoders else ("transformer",)
    now = part_fingerprints(spec.path, parts, revision=spec.revision)
    then = dict(zip(("transformer", "vae", "text"), (state.backbone, *state.encoders.split("/")), strict=True))
    for part in parts:
        if now[part] != then[part]:
            raise UserError(
                f"is not the backbone this run was trained on: the fingerprint of its {_PARTS[part]} is "
                f"{now[part][:12]}, the run's {then[part][:12]}",
                spec.path,
                "restore that backbone; what a run learned means nothing on another",
            )


def _bundle(job: _Job, draft: Path, further: list[str], table: Table, console: Console) -> None:
    contract, weights, spec = job.folder.contract, job.weights, job.folder.recipe.backbone
    assert job.shards is not None
    inputs = _recorded(job.folder, job.shards)
    console.print("embedding instructions")
    text = load_backbone(spec.path, dtype=spec.dtype, parts=("text",), revision=spec.revision).to(job.device)
    texts = sorted({clean_prompt(words) for words in (*contract.prompts, *further, NO_TEXT)})
    prompts = dict(zip(texts, embed_prompts(text, texts, DTYPES[spec.dtype]), strict=True))
    text_len = text.text_len
    del text
    vae_folder = locate_backbone(spec.path, ("vae",), spec.revision) / "vae"
    pieces = [
        Piece(f"network.{piece.name}", piece.shape, piece.dtype, piece.make)
        for piece in weights.pieces(DTYPES[job.dtype], merged=job.merged)
    ]
    pieces += [
        Piece(f"vae.{name}", stored.shape, torch.float32, stored.read)
        for name, stored in open_checkpoint(vae_folder).tensors.items()
    ]
    size = sum(piece.bytes for piece in pieces)
    require_room(draft, size)
    lacking = _lacking(size, job.device)
    before: list[list[Prediction]] = []
    if lacking is None:
        console.print("asking the run's own network, with and without its adapters")
        before = _outputs_of_run(job, prompts, inputs)
        gc.collect()
    model = job.folder.recipe.model
    adapters = None if job.merged else model.model_dump(mode="json", include={"lora", "depth", "train"})
    config = bundle_config(
        weights.skeleton(merged=job.merged),
        read_json(vae_folder / "config.json"),
        text_len,
        job.settings,
        backbone=job.origin,
        trained=spec.path != UNTRAINED,
        action_prefix=job.folder.recipe.noise.action_prefix.max,
        dtype=job.dtype,
        run=job.folder.path.name,
        step=job.checkpoint.state.step,
        adapters=adapters,
    )
    with progress_bar(console, "write", "bytes", size) as advance:
        digests = write_parts(draft, pieces, config, contract, prompts, advance)
    require_written(open_checkpoint(draft / "model.safetensors").tensors, digests, draft.parent)
    proof.require_beside(draft, contract, config, prompts)
    if weights.rounding:
        block, share = proof.worst_rounding(weights.rounding)
        if lacking is not None:
            proof.require_rounding(block, share, job.dtype, job.checkpoint.folder)
        table.add_row("rounding takes at most", f"{share:.2g} of a block's update ({block})")
    table.add_row("read back, every tensor, prompt and setting is", "equal")
    shown = card.NOT_RUN
    if lacking is not None:
        for what in (
            "outputs, merged against adapter",
            *pictures_proof.WHAT,
            "a recorded request, read back",
            "served, as in process",
        ):
            table.add_row(what, f"not run: {lacking}")
    else:
        shown = _measured(job, draft, config, before, inputs, table)
        gc.collect()  # one network at a time: the next is what a robot loads
        torch.cuda.empty_cache()
    write_text_atomic(draft / "README.md", card.readme(contract, config, job.folder.recipe, texts, job.shards, shown))
    seal(draft, contract, job.origin)
    if lacking is None:
        again = load_policy(draft, job.device)  # what a robot does: hashes, then the recorded request
        difference = selfcheck.load(draft / SELFCHECK, again).difference(again)
        table.add_row("read back, a recorded request differs by", f"{difference:.2g} of the action's unit range")
        for row in served.prove(again, job.shards, draft):
            table.add_row(*row)


def _measured(
    job: _Job,
    draft: Path,
    config: dict[str, Any],
    before: list[list[Prediction]],
    inputs: EncodedObservation,
    table: Table,
) -> card.Shown:
    """Read the bundle back, hold its outputs against the run's, record a request, and measure it for its card."""
    reloaded = read_parts(draft, config, job.device)
    streams = proof.adapted_streams(job.weights.trained)
    after = proof.outputs(reloaded.network, reloaded, inputs)
    proofs = proof.merge_proofs(before[0], before[1], after, streams)
    proof.require_merge(proofs, job.dtype, job.checkpoint.folder, merged=job.merged)
    for item in proofs:
        effect = f"{item.share:.2g} of the adapter's effect ({item.merge:.2g} of {item.adapter:.2g})"
        table.add_row(f"{'merging' if job.merged else 'the bundle'} changes {item.stream} by", effect)
    check = selfcheck.record(reloaded, inputs, seed=0)
    selfcheck.save(check, draft / SELFCHECK)
    assert job.shards is not None
    shown = card.measure(reloaded, job.shards, job.folder.recipe.validation.clips)
    for row in shown.proof:
        table.add_row(*row)
    write_bytes_atomic(draft / PICTURE, shown.picture)
    return shown


def _recorded(folder: RunFolder, shards: ShardSet) -> EncodedObservation:
    """A held-out recorded observation (a training one where nothing is held out)."""
    clips = shards.clips("held_out", 1) or shards.clips(None, 1)
    return clip_observation(folder.contract, shards.read_clip(clips[len(clips) // 2]))


def _outputs_of_run(job: _Job, prompts: dict[str, Tensor], inputs: EncodedObservation) -> list[list[Prediction]]:
    """Outputs of base and of base with adapters, from the run's network as it was trained."""
    spec, weights = job.folder.recipe.backbone, job.weights
    backbone = load_backbone(
        spec.path, dtype=spec.dtype, parts=("transformer", "vae"), revision=spec.revision, quantize=spec.quantize
    )
    if spec.quantize is not None:
        dequantize_blocks(backbone.transformer)
    network = trainable_network(backbone, job.folder.recipe, job.folder.contract)
    averaged = job.checkpoint.ema() if weights.averaged else None
    load_trainable(network, averaged or job.checkpoint.trainable(), weights.source)
    if not weights.config.has_depth:
        drop_branch(network)
    network.to(job.device).eval().requires_grad_(False)
    backbone.transformer = None
    policy = Policy(network, backbone.to(job.device), prompts, job.folder.contract, job.settings)
    adapted = proof.outputs(network, policy, inputs)
    with proof.adapters_off(network):
        return [proof.outputs(network, policy, inputs), adapted]


def _lacking(size: int, device: str) -> str | None:
    """Why a network of `size` bytes cannot be asked here; None where it can."""
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else _available()
    need = int(size * _SPARE)
    return None if need <= free else f"it takes {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"


def _available() -> int:
    """Bytes of memory that this machine can still give."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
