"""A run -> a bundle: check, write, read back, prove. A proof that fails leaves no bundle and one sentence why.

At most one network is in memory at a time: first the run's, for its outputs with and without adapters; then the file
is written tensor by tensor; then the bundle as it reads back answers the same observation.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.table import Table

from xwam_ft.encode.data_sets import open_sets
from xwam_ft.errors import UserError, listed
from xwam_ft.evaluate.familiar import training_novelty
from xwam_ft.export import card, formats, pictures_proof, proof, reference_file, served
from xwam_ft.export.checkpoint import Job, open_job
from xwam_ft.export.needs import lacking, needs_of, require_disk
from xwam_ft.export.weights import DTYPES
from xwam_ft.files import (
    UNWRITABLE,
    disk_errors,
    move_folder,
    require_new,
    write_bytes_atomic,
    write_text_atomic,
)
from xwam_ft.locks import sole_writer
from xwam_ft.machine import free_memory, gigabytes
from xwam_ft.model.adapters import load_trainable
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.merge import drop_branch
from xwam_ft.model.quantize import dequantize_blocks
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import require_written
from xwam_ft.model.trainable import trainable_network
from xwam_ft.policy import novelty, seen, selfcheck, text_encoder
from xwam_ft.policy.bundle import NOVELTY, PICTURE, SELFCHECK, load_policy, read_parts, seal, write_parts
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.progress import progress_bar
from xwam_ft.runs.checkpoint import still_there
from xwam_ft.runs.folder import RunFolder, open_run, require_own_shards, require_sealed, require_shards
from xwam_ft.runs.origin import seen_before
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.network import Prediction
    from xwam_ft.model.tensor_files.stream import Piece
    from xwam_ft.observation import EncodedObservation

FORMATS = ("bundle", "peft", "diffusers", "xwam")
_NEXT = {
    "bundle": "xwam-ft serve {typed}",
    "peft": "PeftModel.from_pretrained(transformer, {out!r})",
    "diffusers": "pipeline.load_lora_weights({out!r}), of a WanPipeline",
}


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
    with_text_encoder: str | None = None,
    name: str | None = None,
    console: Console,
) -> Path:
    """Write a checkpoint of a run.

    Args:
        name: of the bundle on the Hub, for its card.
        with_text_encoder: "bfloat16" or "int8": put the text encoder into the bundle, for texts nobody embedded.
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
    _check_options(out, format, dtype, merged, prompts, wan, with_text_encoder)
    folder = open_run(run, step=step)
    shards = _recordings(folder) if format == "bundle" and folder.checkpoint is not None else None
    console.print("reading the checkpoint")
    encoders = format in ("bundle", "xwam")
    kind: Any = with_text_encoder
    job = open_job(
        folder, ema=ema, depth=depth, dtype=dtype, merged=merged, encoders=encoders, encoder=kind, console=console
    )
    weights, checkpoint = job.weights, job.checkpoint
    with still_there(checkpoint):
        adapters = proof.require_adapter(weights.trained, checkpoint.folder)
    if not adapters and not merged:
        raise UserError("has no adapters that could stay unmerged", run, "leave --unmerged out")
    averaged = ", averaged weights" if weights.averaged else ""
    title = f"{out}: step {checkpoint.state.step}{averaged}"
    table = Table("proof", "result", title=title)
    if adapters:
        table.add_row("adapters that moved from zero", f"{adapters} of {adapters}")
    needs = needs_of(job, format, wan)
    console.print(f"{needs}; {gigabytes(free_memory())} are free", soft_wrap=True)
    if kind is not None:
        spec = folder.recipe.backbone
        console.print(f"text encoder: {text_encoder.licence(spec.path, spec.revision)}", soft_wrap=True, markup=False)
    with sole_writer(out, "exporting to it"), still_there(checkpoint), _proved(out) as draft:
        require_new(out)  # another may have ended since
        require_disk(draft, needs)
        if format == "bundle":
            assert shards is not None
            _bundle(_Draft(job, shards, draft, name, table, console), prompts or [])
        elif format == "xwam":
            for row in reference_file.write(weights, folder.contract, DTYPES[job.dtype], wan, draft, console):
                table.add_row(*row)
        else:
            for row in formats.write(format, weights, draft):
                table.add_row(*row)
    table.add_row("contract", folder.contract.sha256[:16])
    table.add_row("backbone", str(checkpoint.state.backbone)[:16])
    console.print(table)
    console.print(f"{format}: {out}", soft_wrap=True, markup=False)
    if format in _NEXT:
        shown = _NEXT[format].format(out=str(out), typed=quote(str(out)))
        console.print(f"next: {shown}", soft_wrap=True, markup=False)
    if format == "bundle":
        console.print(f"or in Python: Policy.load({str(out)!r})", soft_wrap=True, markup=False)
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
    out: Path,
    format: str,
    dtype: str | None,
    merged: bool,
    prompts: Sequence[str] | None,
    wan: Path | None,
    encoder: str | None,
) -> None:
    if format not in FORMATS:
        raise UserError(f"format {format!r} is not written by this version", "--format", f"use {listed(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown", "--dtype", f"use one of: {listed(DTYPES)}")
    if encoder is not None and encoder not in text_encoder.KINDS:
        fix = f"use one of: {listed(text_encoder.KINDS)}"
        raise UserError(f"is {encoder!r}", "--with-text-encoder", fix)
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
        "--with-text-encoder": encoder is not None and format != "bundle",
        "--dtype": dtype is not None and format in ("peft", "diffusers"),
    }
    for option, given in idle.items():
        if given:
            raise UserError(f"changes nothing with --format {format}", option, "leave it out")
    require_new(out)


def _recordings(folder: RunFolder) -> ShardSet:
    """The run's shard set, under the run's contract."""
    require_shards(folder)
    if folder.checkpoint is not None and folder.decided is not None:
        require_sealed(folder)
    shards = open_sets(folder.recipe.data, under=folder.decided).joined
    require_own_shards(folder, shards)
    return shards


class _Draft(NamedTuple):
    """A bundle that is being made: from which job and recordings, where, and the table of what is proved of it."""

    job: Job
    shards: ShardSet
    folder: Path
    name: str | None
    table: Table
    console: Console


def _bundle(draft: _Draft, further: list[str]) -> None:
    inputs = _recorded(draft.job.folder, draft.shards)
    draft.console.print("embedding instructions")
    prompts, text_len = draft.job.embedded(further)
    pieces = draft.job.pieces()
    known = seen_before(draft.job.folder.path) | set(seen.digests(draft.shards, "train").values())
    config = draft.job.config(text_len) | {"seen": sorted(known)}
    lacks = lacking(sum(piece.bytes for piece in pieces), free_memory())
    if lacks is None:
        _proved_bundle(draft, pieces, config, prompts, inputs)
    else:
        _unproved_bundle(draft, pieces, config, prompts, lacks)


def _proved_bundle(
    draft: _Draft, pieces: list[Piece], config: dict[str, Any], prompts: dict[str, Tensor], inputs: EncodedObservation
) -> None:
    """What it answers is what the run's own network answers, before it is written, read back, and served."""
    draft.console.print("asking the run's own network, with and without its adapters")
    before = _outputs_of_run(draft.job, prompts, inputs)
    gc.collect()
    _write(draft, pieces, config, prompts)
    shown = _measured(draft, config, before, inputs)
    gc.collect()  # one network at a time: the next is what a robot loads
    torch.cuda.empty_cache()
    _seal(draft, config, prompts, shown)
    again = load_policy(draft.folder, draft.job.device)  # what a robot does: hashes, then the recorded request
    difference = selfcheck.load(draft.folder / SELFCHECK, again).difference(again)
    draft.table.add_row("read back, a recorded request differs by", f"{difference:.2g} of the action's unit range")
    for row in served.prove(again, draft.shards, draft.folder):
        draft.table.add_row(*row)


def _unproved_bundle(
    draft: _Draft, pieces: list[Piece], config: dict[str, Any], prompts: dict[str, Tensor], lacks: str
) -> None:
    """No network fits into memory: the files are what was meant, and what they answer is said to be not known."""
    rounding = draft.job.weights.rounding
    _write(draft, pieces, config, prompts)
    if rounding:
        proof.require_rounding(*proof.worst_rounding(rounding), draft.job.dtype, draft.job.checkpoint.folder)
    asked = (
        "outputs, merged against adapter",
        *pictures_proof.WHAT,
        "a recorded request, read back",
        "served, as in process",
    )
    for what in asked:
        draft.table.add_row(what, f"not run: {lacks}")
    _seal(draft, config, prompts, card.NOT_RUN)


def _write(draft: _Draft, pieces: list[Piece], config: dict[str, Any], prompts: dict[str, Tensor]) -> None:
    """Write the bundle's parts, and hold what reads back against what was meant, byte for byte."""
    job, contract, table, console = draft.job, draft.job.folder.contract, draft.table, draft.console
    with progress_bar(console, "write", "bytes", sum(piece.bytes for piece in pieces)) as advance:
        digests = write_parts(draft.folder, pieces, config, contract, prompts, advance)
    require_written(open_checkpoint(draft.folder / "model.safetensors").tensors, digests, draft.folder.parent)
    proof.require_beside(draft.folder, contract, config, prompts)
    if job.encoder is not None:
        table.add_row("its own text encoder, read back, differs by", _text_encoder(draft, prompts))
    if job.weights.rounding:
        block, share = proof.worst_rounding(job.weights.rounding)
        table.add_row("rounding takes at most", f"{share:.2g} of a block's update ({block})")
    table.add_row("read back, every tensor, prompt and setting is", "equal")


def _seal(draft: _Draft, config: dict[str, Any], prompts: dict[str, Tensor], shown: card.Shown) -> None:
    job = draft.job
    text = card.readme(job.folder.contract, config, job.folder.recipe, sorted(prompts), draft.shards, shown, draft.name)
    write_text_atomic(draft.folder / "README.md", text)
    seal(draft.folder, job.folder.contract, job.origin)


def _text_encoder(draft: _Draft, prompts: dict[str, Tensor]) -> str:
    """Put the text encoder into the bundle, and hold what it makes of the known instructions against the run's own."""
    spec, kind = draft.job.folder.recipe.backbone, draft.job.encoder
    assert kind is not None
    parts = text_encoder.pieces(spec.path, spec.revision, kind)
    size = sum(piece.bytes for piece in parts)
    with progress_bar(draft.console, "write the text encoder", "bytes", size) as advance:
        text_encoder.write(draft.folder, spec.path, spec.revision, kind, advance)
    text_len = next(iter(prompts.values())).shape[0]
    worst = text_encoder.difference(text_encoder.load(draft.folder, text_len, draft.job.device), prompts)
    proof.require_text(worst, kind, draft.folder.parent)
    return f"{worst:.2g} of an instruction's embedding"


def _measured(
    draft: _Draft, config: dict[str, Any], before: list[list[Prediction]], inputs: EncodedObservation
) -> card.Shown:
    """Read the bundle back, hold its outputs against the run's, record a request, and measure it for its card."""
    job, table = draft.job, draft.table
    reloaded = read_parts(draft.folder, config, job.device)
    streams = proof.adapted_streams(job.weights.trained)
    after = proof.outputs(reloaded.network, reloaded, inputs)
    proofs = proof.merge_proofs(before[0], before[1], after, streams)
    proof.require_merge(proofs, job.dtype, job.checkpoint.folder, merged=job.merged)
    for item in proofs:
        effect = f"{item.share:.2g} of the adapter's effect ({item.merge:.2g} of {item.adapter:.2g})"
        table.add_row(f"{'merging' if job.merged else 'the bundle'} changes {item.stream} by", effect)
    check = selfcheck.record(reloaded, inputs, seed=0)
    selfcheck.save(check, draft.folder / SELFCHECK)
    known = training_novelty(reloaded, draft.shards, draft.console)
    if known is not None:
        novelty.save(known, draft.folder / NOVELTY)
    shown = card.measure(reloaded, draft.shards, job.folder.recipe.validation.clips)
    for row in shown.proof:
        table.add_row(*row)
    write_bytes_atomic(draft.folder / PICTURE, shown.picture)
    return shown


def _recorded(folder: RunFolder, shards: ShardSet) -> EncodedObservation:
    """A held-out recorded observation (a training one where nothing is held out)."""
    clips = shards.clips("held_out", 1) or shards.clips(None, 1)
    return clip_observation(folder.contract, shards.read_clip(clips[len(clips) // 2]))


def _outputs_of_run(job: Job, prompts: dict[str, Tensor], inputs: EncodedObservation) -> list[list[Prediction]]:
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
