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
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from xwam_ft.encode.data_sets import open_sets
from xwam_ft.errors import UserError, listed
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
from xwam_ft.policy import novelty, selfcheck, text_encoder
from xwam_ft.policy.bundle import NOVELTY, PICTURE, SELFCHECK, load_policy, read_parts, seal, write_parts
from xwam_ft.policy.policy import Policy, clip_observation
from xwam_ft.progress import progress_bar
from xwam_ft.shards import ShardSet
from xwam_ft.train.checkpoint import still_there
from xwam_ft.train.folder import RunFolder, open_run, require_own_shards, require_sealed, require_shards

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.network import Prediction
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
    job = open_job(folder, ema=ema, depth=depth, dtype=dtype, merged=merged, encoders=encoders, encoder=kind)
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
            _bundle(job, shards, draft, prompts or [], table, console, name)
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


def _bundle(
    job: Job, shards: ShardSet, draft: Path, further: list[str], table: Table, console: Console, name: str | None
) -> None:
    contract, weights = job.folder.contract, job.weights
    inputs = _recorded(job.folder, shards)
    console.print("embedding instructions")
    prompts, text_len = job.embedded(further)
    pieces = job.pieces()
    size = sum(piece.bytes for piece in pieces)
    lacks = lacking(size, free_memory())
    before: list[list[Prediction]] = []
    if lacks is None:
        console.print("asking the run's own network, with and without its adapters")
        before = _outputs_of_run(job, prompts, inputs)
        gc.collect()
    config = job.config(text_len)
    with progress_bar(console, "write", "bytes", size) as advance:
        digests = write_parts(draft, pieces, config, contract, prompts, advance)
    require_written(open_checkpoint(draft / "model.safetensors").tensors, digests, draft.parent)
    proof.require_beside(draft, contract, config, prompts)
    if job.encoder is not None:
        table.add_row("its own text encoder, read back, differs by", _text_encoder(job, draft, prompts, console))
    if weights.rounding:
        block, share = proof.worst_rounding(weights.rounding)
        if lacks is not None:
            proof.require_rounding(block, share, job.dtype, job.checkpoint.folder)
        table.add_row("rounding takes at most", f"{share:.2g} of a block's update ({block})")
    table.add_row("read back, every tensor, prompt and setting is", "equal")
    shown = card.NOT_RUN
    if lacks is not None:
        for what in (
            "outputs, merged against adapter",
            *pictures_proof.WHAT,
            "a recorded request, read back",
            "served, as in process",
        ):
            table.add_row(what, f"not run: {lacks}")
    else:
        shown = _measured(job, shards, draft, config, before, inputs, table)
        gc.collect()  # one network at a time: the next is what a robot loads
        torch.cuda.empty_cache()
    write_text_atomic(
        draft / "README.md", card.readme(contract, config, job.folder.recipe, sorted(prompts), shards, shown, name)
    )
    seal(draft, contract, job.origin)
    if lacks is None:
        again = load_policy(draft, job.device)  # what a robot does: hashes, then the recorded request
        difference = selfcheck.load(draft / SELFCHECK, again).difference(again)
        table.add_row("read back, a recorded request differs by", f"{difference:.2g} of the action's unit range")
        for row in served.prove(again, shards, draft):
            table.add_row(*row)


def _text_encoder(job: Job, draft: Path, prompts: dict[str, Tensor], console: Console) -> str:
    """Put the text encoder into the bundle, and hold what it makes of the known instructions against the run's own."""
    spec, kind = job.folder.recipe.backbone, job.encoder
    assert kind is not None
    parts = text_encoder.pieces(spec.path, spec.revision, kind)
    with progress_bar(console, "write the text encoder", "bytes", sum(piece.bytes for piece in parts)) as advance:
        text_encoder.write(draft, spec.path, spec.revision, kind, advance)
    text_len = next(iter(prompts.values())).shape[0]
    worst = text_encoder.difference(text_encoder.load(draft, text_len, job.device), prompts)
    proof.require_text(worst, kind, draft.parent)
    return f"{worst:.2g} of an instruction's embedding"


def _measured(
    job: Job,
    shards: ShardSet,
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
    known = novelty.of_training(reloaded, shards)
    if known is not None:
        novelty.save(known, draft / NOVELTY)
    shown = card.measure(reloaded, shards, job.folder.recipe.validation.clips)
    for row in shown.proof:
        table.add_row(*row)
    write_bytes_atomic(draft / PICTURE, shown.picture)
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
