"""Checkpoints of a run: what trained, and all that a bit-exact continuation needs. safetensors and JSON only.

    checkpoints/step-NNNNNN/
        trainable.safetensors   every trained parameter under its name in the network
        ema.safetensors         their running average, float32; only where the recipe asks for one
        optimizer.safetensors   AdamW's state: `<quantity>.<parameter name>`
        state.json              step, data cursor, learning rates, hashes, versions; sizes and SHA-256 of the files

No generator state needs storing: every random number of the run is a function of (seed, position), so the seed and
the next position are its generators. The frozen base is not in a checkpoint; its fingerprint is.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError, listed
from xwam_ft.files import atomic_folder, disk_errors, json_bytes, read_json, remove_folder, sha256
from xwam_ft.machine import installed_versions
from xwam_ft.places import CHECKPOINTS
from xwam_ft.runs.history import CLIPS, History

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 2
STATE_FILE = "state.json"
TRAINABLE_FILE = "trainable.safetensors"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})$")
_PACKAGES = ("xwam-ft", "torch", "lightning", "diffusers", "transformers", "peft", "numpy", "safetensors")


@dataclass(frozen=True)
class RunState:
    """What `state.json` says besides its file list.

    Args:
        step: optimizer steps done.
        position: the next position of the data order (see clips.py), `step * samples_per_step`.
        epoch: the epoch that position is in.
        seed: with the position, the state of every generator.
        samples_per_step: clips an optimizer step, over ranks and micro-batches.
        learning_rates: of the step to come, by parameter group.
        recipe: what of the recipe the weights depend on (folder.record); contract: SHA-256 of contract.json.
        backbone: fingerprint of the frozen transformer.
        encoders: fingerprints of VAE and text encoder.
        shards: SHA-256 of the shard set's index.
        network: the network's configuration.
        versions: of the libraries that wrote it.
        logged: what the loggers are told of the step, if anything; they are after this is written, and a kill may come
            between.
    """

    step: int
    position: int
    epoch: int
    seed: int
    samples_per_step: int
    learning_rates: dict[str, float]
    recipe: dict[str, Any]
    contract: str
    backbone: str
    encoders: str
    shards: str
    network: dict[str, Any]
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION
    logged: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder, its state read and its files checked."""

    folder: Path
    state: RunState

    def trainable(self) -> dict[str, Tensor]:
        return self._tensors(TRAINABLE_FILE)

    def ema(self) -> dict[str, Tensor] | None:
        """The averaged weights, or None where the run keeps none."""
        return self._tensors(EMA_FILE) if (self.folder / EMA_FILE).exists() else None

    def optimizer(self) -> dict[str, Tensor]:
        return self._tensors(OPTIMIZER_FILE)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / name)


def write_checkpoint(
    run: Path,
    state: RunState,
    trainable: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    keep: int,
    spare: Collection[int] = (),
) -> Path:
    """Write one checkpoint, whole or not at all, then remove all but the `keep` newest and those of steps in `spare`.

    Tensors that are cut over processes are gathered file by file, so that this one holds one file's at a time; the
    others meanwhile call `take_part` with the same.

    Raises:
        UserError: the disk is full or cannot be written; the checkpoints before are as they were.
    """
    folder = checkpoint_folder(run, state.step)
    if folder.exists():  # resumed and stopped again within one step
        take_part(trainable, optimizer, ema)
        return folder
    _remove_leftovers(run)
    parts = {TRAINABLE_FILE: trainable, OPTIMIZER_FILE: optimizer, EMA_FILE: ema}
    with run_disk_errors(run), atomic_folder(folder) as temporary:
        files: dict[str, dict[str, Any]] = {}
        for name, tensors in parts.items():
            if tensors is not None:
                _save(tensors, temporary / name)
                files[name] = {"size": (temporary / name).stat().st_size, "sha256": sha256(temporary / name)}
        (temporary / STATE_FILE).write_bytes(json_bytes({**asdict(state), "files": files}))
    for old in list_checkpoints(run)[:-keep]:
        if _step(old) not in spare:
            remove_folder(old)
    return folder


def take_part(*parts: Mapping[str, Tensor] | None) -> None:
    """Send what this process holds of tensors that another one writes, in the order in which it does."""
    from xwam_ft.model.sharding import gathered

    for part in parts:
        gathered(part or {}, keep=False)


def best_steps(run: Path, weights: Mapping[str, float], count: int) -> list[int]:
    """The steps of the `count` checkpoints with the lowest held-out loss, best first.

    Losses over other numbers of clips are not compared: each number has its own best, those of the last one first.

    Args:
        run: its folder. A checkpoint whose step was not validated has no loss.
        weights: of the loss terms, as training weighs them.
    """
    found: dict[float | None, dict[int, float]] = {}
    for row in History(run).metrics():
        terms = [weight * row[f"held_out/{name}"] for name, weight in weights.items() if f"held_out/{name}" in row]
        if terms:
            losses = found.pop(row.get(CLIPS), {})  # the last one comes last
            found[row.get(CLIPS)] = losses | {int(row["step"]): sum(terms)}
    saved = {_step(folder) for folder in list_checkpoints(run)}
    best: list[int] = []
    for losses in reversed(found.values()):
        best += sorted(saved & losses.keys(), key=lambda step: (losses[step], -step))[:count]
    return list(dict.fromkeys(best))


@contextmanager
def run_disk_errors(run: Path) -> Generator[None]:
    """`disk_errors` of a run folder: says which checkpoint is the last, and how the run goes on."""

    def kept() -> str:
        folders = list_checkpoints(run)
        return f"the last checkpoint is {folders[-1]}" if folders else "no checkpoint was written before"

    with disk_errors(run, kept=kept, then=f"; then go on: xwam-ft train --resume {quote(str(run))}"):
        yield


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's state and check its files.

    Raises:
        UserError: a file is missing, cut off or changed, or another version of this package wrote it.
    """
    fix = "remove this checkpoint folder; resuming then starts from the one before"
    tree = read_json(folder / STATE_FILE)
    if tree.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"has schema version {tree.get('schema_version')}, not {SCHEMA_VERSION}",
            folder / STATE_FILE,
            "read it with the version of xwam-ft that wrote it",
        )
    for name, entry in tree.pop("files").items():
        path = folder / name
        if not path.is_file():
            raise UserError("the checkpoint's file is missing", path, fix)
        if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            raise UserError("is damaged: its size or SHA-256 is not what was written", path, fix)
    return Checkpoint(folder, RunState(**tree))


def latest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or None before the first."""
    while folders := list_checkpoints(run):
        try:
            return read_checkpoint(folders[-1])
        except (UserError, FileNotFoundError):
            if folders[-1].is_dir():
                raise  # otherwise a training has removed it meanwhile, and has written a newer one
    return None


@contextmanager
def still_there(checkpoint: Checkpoint) -> Generator[None]:
    """Says so where a checkpoint that is read piece by piece was removed meanwhile."""
    try:
        yield
    except Exception as error:
        if checkpoint.folder.is_dir():
            raise
        raise UserError(
            "was removed while it was read, by a training that keeps only its newest checkpoints (checkpoint.keep)",
            checkpoint.folder,
            "run the same command again",
        ) from error


def checkpoint_of(run: Path, step: int) -> Checkpoint:
    """The checkpoint of a step; a `UserError` names those there are."""
    folder = checkpoint_folder(run, step)
    if folder.is_dir():
        return read_checkpoint(folder)
    kept = kept_steps(run)
    raise UserError(f"has no checkpoint of step {step}", run, f"choose one that it kept: {listed(kept)}")


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    folders = [path for path in (run / CHECKPOINTS).glob("step-*") if _NAME.search(path.name)]
    return sorted(folders, key=_step)


def kept_steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, oldest first."""
    return [_step(folder) for folder in list_checkpoints(run)]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:06d}"


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on (machine.py)."""
    return installed_versions(_PACKAGES)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    from xwam_ft.model.sharding import gathered

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in gathered(tensors).items()}, path)


def _remove_leftovers(run: Path) -> None:
    """Half-written folders of a killed process."""
    for path in (run / CHECKPOINTS).glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
