"""A run's checkpoint as it would be exported: opened, compared with its run and backbone, and made into a policy.

A bundle is this in files (export.py); `evaluate RUN@1500` and `imagine RUN@1500` ask it without writing any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft import hub
from xwam_ft.errors import UserError
from xwam_ft.export.weights import DTYPES, RunWeights, open_weights
from xwam_ft.files import read_json
from xwam_ft.model.backbone import load_backbone, locate_backbone, part_fingerprints
from xwam_ft.model.embed import embed_prompts
from xwam_ft.model.tensor_files.source import open_checkpoint
from xwam_ft.model.tensor_files.stream import Piece, made
from xwam_ft.model.tiny import UNTRAINED
from xwam_ft.places import RECIPE_FILE, neither, run_at
from xwam_ft.policy import text_encoder
from xwam_ft.policy.bundle import MANIFEST, bundle_config, make_policy
from xwam_ft.policy.from_hub import bundle_at
from xwam_ft.policy.policy import NO_TEXT, Policy
from xwam_ft.policy.settings import Settings
from xwam_ft.policy.source import PolicySource
from xwam_ft.progress import progress_bar
from xwam_ft.prompts import clean_prompt
from xwam_ft.runs.best import best_checkpoint
from xwam_ft.runs.checkpoint import still_there
from xwam_ft.runs.folder import RunFolder, open_run, require_backbone_there, require_sealed
from xwam_ft.runs.origin import seen_in

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.model.folder_check import Part
    from xwam_ft.runs.checkpoint import Checkpoint

NETWORK, VAE = "network.", "vae."
_PARTS = {"transformer": "transformer", "vae": "VAE", "text": "text encoder"}


@dataclass(frozen=True)
class Job:
    """What every step of one export needs; nothing of the network is in memory yet."""

    folder: RunFolder
    checkpoint: Checkpoint
    weights: RunWeights
    device: str
    dtype: str
    merged: bool
    encoder: text_encoder.Kind | None = None

    @property
    def settings(self) -> Settings:
        validation = self.folder.recipe.validation
        return Settings(
            action_steps=validation.action_steps,
            video_steps=validation.video_steps,
            shift=self.folder.recipe.noise.shift,
        )

    @property
    def origin(self) -> dict[str, Any]:
        """Where the base came from."""
        spec = self.folder.recipe.backbone
        return {"path": spec.path, "revision": spec.revision, "fingerprint": self.checkpoint.state.backbone}

    @property
    def vae_folder(self) -> Path:
        spec = self.folder.recipe.backbone
        return locate_backbone(spec.path, ("vae",), spec.revision) / "vae"

    def pieces(self) -> list[Piece]:
        """Every tensor of network and VAE as a bundle holds them."""
        network = [
            Piece(NETWORK + piece.name, piece.shape, piece.dtype, piece.make)
            for piece in self.weights.pieces(DTYPES[self.dtype], merged=self.merged)
        ]
        vae = open_checkpoint(self.vae_folder).tensors.items()
        return network + [Piece(VAE + name, stored.shape, torch.float32, stored.read) for name, stored in vae]

    def config(self, text_len: int) -> dict[str, Any]:
        """config.json of a bundle."""
        recipe = self.folder.recipe
        adapters = None if self.merged else recipe.model.model_dump(mode="json", include={"lora", "depth", "train"})
        return bundle_config(
            self.weights.skeleton(merged=self.merged),
            read_json(self.vae_folder / "config.json"),
            text_len,
            self.settings,
            backbone=self.origin,
            trained=recipe.backbone.path != UNTRAINED,
            action_prefix=recipe.noise.action_prefix.max,
            future=recipe.model.future,
            dtype=self.dtype,
            run=self.folder.path.name,
            step=self.checkpoint.state.step,
            adapters=adapters,
            encoder=self.encoder,
        )

    def embedded(self, further: Sequence[str] = ()) -> tuple[dict[str, Tensor], int]:
        """Embeddings [S, Dt] of the contract's instructions, further ones and the empty one; and S."""
        spec = self.folder.recipe.backbone
        text = load_backbone(spec.path, dtype=spec.dtype, parts=("text",), revision=spec.revision).to(self.device)
        texts = sorted({clean_prompt(words) for words in (*self.folder.contract.prompts, *further, NO_TEXT)})
        return dict(zip(texts, embed_prompts(text, texts, DTYPES[spec.dtype]), strict=True)), text.text_len


def open_job(
    folder: RunFolder,
    *,
    ema: bool = True,
    depth: bool = True,
    dtype: str | None = None,
    merged: bool = True,
    encoders: bool = True,
    encoder: text_encoder.Kind | None = None,
    console: Console | None = None,
) -> Job:
    """Check that a run's checkpoint is what it was trained as, on the backbone it was trained on.

    Args:
        encoders: VAE and text encoder too, which a policy is made from.
        encoder: how the bundle holds the text encoder itself, None: not.
        console: shown how far the hashing of the backbone is.

    Raises:
        UserError: no checkpoint; a recipe, contract or backbone other than in training.
    """
    run = folder.path
    if folder.checkpoint is None:
        raise UserError("has no checkpoint yet", run, f"go on with it: xwam-ft train --resume {quote(str(run))}")
    require_sealed(folder)
    require_backbone_there(folder)
    _require_base(folder, folder.checkpoint, encoders=encoders, console=console)
    with still_there(folder.checkpoint):
        weights = open_weights(folder.recipe, folder.checkpoint, ema=ema, depth=depth)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Job(folder, folder.checkpoint, weights, device, dtype or folder.recipe.backbone.dtype, merged, encoder)


def chosen_checkpoint(place: Path, step: int | None, best: str | None) -> tuple[Path, int | None, str | None]:
    """The run and step to export (None: the newest), and what to say of the choice.

    Args:
        place: RUN, RUN@STEP, or a checkpoint's folder.
        best: a held-out number by which to choose.

    Raises:
        UserError: the step is named twice, or as `best_checkpoint`.
    """
    run, named = run_at(place)
    given = [what for what, there in (("@STEP", named), ("--step", step), ("--best", best)) if there is not None]
    if len(given) > 1:
        raise UserError(f"says twice which checkpoint is meant ({' and '.join(given)})", place, "give one of them")
    if best is None:
        return run, named if step is None else step, None
    if not (run / RECIPE_FILE).is_file():
        open_run(run)  # says what is wrong with it
    found = best_checkpoint(run, best)
    return run, found.step, str(found)


def policy_source(place: Path, console: Console) -> PolicySource:
    """What a bundle, `RUN` or `RUN@STEP` names, as a policy to be loaded; neither is read yet.

    A bundle may be one of the Hub, which is fetched.

    Raises:
        UserError: neither of them, or an `@` that names no step of a run.
    """
    if (repo := hub.repo_of(place, "model")) is not None:
        folder = bundle_at(place, console)
        return PolicySource(str(hub.fetched_from(folder) or repo), folder, lambda: Policy.load(folder))
    run, step = run_at(place)
    if step is None and not (run / RECIPE_FILE).is_file():
        if not (run / MANIFEST).is_file():
            raise neither(place)
        return PolicySource.of(place)
    folder = open_run(run, step=step)
    named = "" if folder.checkpoint is None else f"@{folder.checkpoint.state.step}"
    return PolicySource(f"{run}{named}", run, lambda: _run_policy(folder, console))


def _run_policy(folder: RunFolder, console: Console) -> Policy:
    """The policy that exporting the checkpoint would give, to the bit; its averaged weights where it has them."""
    job = open_job(folder)
    console.print(f"step {job.checkpoint.state.step} of {folder.path}, not exported", soft_wrap=True, markup=False)
    prompts, text_len = job.embedded()
    pieces, where = job.pieces(), job.checkpoint.folder
    state: dict[str, Tensor] = {}
    size = sum(piece.bytes for piece in pieces)
    with still_there(job.checkpoint), progress_bar(console, "read", "bytes", size) as advance:
        for piece in pieces:
            state[piece.name] = made(piece, where)
            advance(piece.bytes)
    policy = make_policy(job.config(text_len), state, prompts, folder.contract, job.device, folder.path)
    policy.seen = seen_in(folder)
    return policy


def _require_base(folder: RunFolder, checkpoint: Checkpoint, *, encoders: bool, console: Console | None) -> None:
    """The backbone's files are those of training."""
    spec, state = folder.recipe.backbone, checkpoint.state
    parts: tuple[Part, ...] = ("transformer", "vae", "text") if encoders else ("transformer",)
    now = part_fingerprints(spec.path, parts, revision=spec.revision, console=console)
    then = dict(zip(("transformer", "vae", "text"), (state.backbone, *state.encoders.split("/")), strict=True))
    for part in parts:
        if now[part] != then[part]:
            raise UserError(
                f"is not the backbone this run was trained on: the fingerprint of its {_PARTS[part]} is "
                f"{now[part][:12]}, the run's {then[part][:12]}",
                spec.path,
                "restore that backbone; what a run learned means nothing on another",
            )
