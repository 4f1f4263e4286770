"""The files of a latent cache: one a segment, which depends on that segment alone, so any process may write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from xwam_ft.encode.cache import CachedClip
from xwam_ft.encode.cache_files import CacheFiles
from xwam_ft.encode.clip_tensors import augmentation_of, encode_clips
from xwam_ft.errors import UserError
from xwam_ft.processes import side_by_side, worker_number
from xwam_ft.shards import cut_clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xwam_ft.model.backbone import Backbone
    from xwam_ft.progress import Advance
    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import SegmentEntry
    from xwam_ft.shards import ShardSet


@dataclass(frozen=True)
class SegmentPlan:
    """The clips of one segment that are cached."""

    entry: SegmentEntry
    instruction: str
    wordings: tuple[str, ...]  # of it, where there are several
    starts: list[int]
    copies: int  # of every clip

    @property
    def file(self) -> str:
        return f"segments/{self.entry.key}.safetensors"

    @property
    def texts(self) -> tuple[str, ...]:
        return self.wordings or (self.instruction,)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(start, copy) of every row of the file."""
        return [(start, copy) for start in self.starts for copy in range(self.copies)]

    def cached(self) -> list[CachedClip]:
        keys = [f"{self.entry.key}-{start:06d}" for start in self.starts]
        return [
            CachedClip(
                key, self.file, place * self.copies, self.entry.split, self.instruction, self.copies, self.wordings
            )
            for place, key in enumerate(keys)
        ]


Plan = list[SegmentPlan]


def plan_segments(shard_set: ShardSet, stride: int, copies: int) -> Plan:
    """Every segment that owns a clip start on the stride, in the order of the index."""
    plan: dict[str, SegmentPlan] = {}
    for reference in shard_set.clips(None, stride):
        entry = reference.entry
        number = copies if entry.split == "train" else 1
        if entry.key not in plan:
            episode = shard_set.episode(entry.episode)
            plan[entry.key] = SegmentPlan(entry, episode.instruction, episode.instructions, [], number)
        plan[entry.key].starts.append(reference.start)
    if not any(part.entry.split == "train" for part in plan.values()):
        raise UserError("holds no clips to train on", shard_set.folder, "prepare more or longer recordings")
    return list(plan.values())


@dataclass(frozen=True)
class Encoding:
    """What a segment's file is made by.

    Args:
        files: of the cache.
        device: "cpu" or "cuda"; of several GPUs each worker process takes one.
        threads: of torch in a worker process on a CPU; 0 leaves torch's own choice.
    """

    recipe: Recipe
    shard_set: ShardSet
    files: CacheFiles
    device: str
    with_depth: bool
    threads: int = 0

    @property
    def place(self) -> str:
        """This process's device."""
        return f"cuda:{worker_number() % torch.cuda.device_count()}" if self.device == "cuda" else self.device

    def write(self, part: SegmentPlan, vae: Backbone, advance: Advance | None = None) -> None:
        """Encode the clips of a segment and write their file, whole or not at all."""
        save(self.encoded(part, vae, advance), self.files, part.file, self.recipe.backbone.dtype)

    def encoded(self, part: SegmentPlan, vae: Backbone, advance: Advance | None = None) -> dict[str, Tensor]:
        """What the file of a segment holds, by name; its clips along the first axis."""
        recipe, contract = self.recipe, self.shard_set.contract
        segment = self.shard_set.read(part.entry)
        rows: list[dict[str, Tensor]] = []
        for first in range(0, len(part.rows), recipe.data.encode_batch):
            chosen = part.rows[first : first + recipe.data.encode_batch]
            clips = [cut_clip(segment, start, contract.timing) for start, _ in chosen]
            changes = [
                augmentation_of(recipe, contract, clip.key, part.entry.split, copy)
                for clip, (_, copy) in zip(clips, chosen, strict=True)
            ]
            rows.append(encode_clips(clips, contract, vae, with_depth=self.with_depth, augmentations=changes))
            if advance is not None:
                advance(len(clips))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def missing_of(encoding: Encoding, plan: Sequence[SegmentPlan], advance: Advance) -> list[SegmentPlan]:
    """The segments whose files are not there; the others count as done."""
    there = encoding.files.there([part.file for part in plan])
    advance(sum(len(part.rows) for part in plan if part.file in there))
    return [part for part in plan if part.file not in there]


def write_segments(
    encoding: Encoding, plan: Sequence[SegmentPlan], vae: Backbone, workers: int, advance: Advance
) -> None:
    """Write every file of the plan that is missing.

    Args:
        vae: what this process encodes with, where it does.
        workers: processes; 1 does it in this one.

    Raises:
        UserError: a segment cannot be read or encoded; a worker process died.
    """
    if not (missing := missing_of(encoding, plan, advance)):
        return
    if (workers := min(workers, len(missing))) == 1:
        vae = vae.to(encoding.place)
        for part in missing:
            encoding.write(part, vae, advance)
        return
    died = UserError(
        "a process that encodes died, most likely for lack of memory",
        encoding.files.folder,
        "run it again with fewer --workers or a smaller data.encode_batch; what is encoded is kept",
    )
    done = side_by_side(_write, missing, workers, died=died, begin=take, given=(encoding,))
    for part, _ in done:
        advance(len(part.rows))


def save(tensors: dict[str, Tensor], files: CacheFiles, name: str, dtype: str) -> None:
    """Write one of the files (`stored`)."""
    from safetensors.torch import save_file

    whole = stored(tensors, dtype)
    files.write(name, lambda path: save_file(whole, path))


def stored(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """As they stand in files: latents in the backbone's dtype, motion and masks as they are."""
    cast = {
        name: tensor.to(getattr(torch, dtype)) if name in ("rgb", "depth") else tensor
        for name, tensor in tensors.items()
    }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in cast.items()}


_own: dict[str, Any] = {}  # of a worker process: its encoding, and its VAE from the first segment on


def take(encoding: Encoding) -> None:
    """Begin in a worker process."""
    _own["encoding"] = encoding
    if encoding.threads:
        torch.set_num_threads(encoding.threads)


def _write(part: SegmentPlan) -> None:
    encoding, vae = own()
    encoding.write(part, vae)


def own() -> tuple[Encoding, Backbone]:
    """What this worker process began with, and its VAE, which is loaded once."""
    from xwam_ft.model.backbone import load_backbone

    encoding: Encoding = _own["encoding"]
    if "vae" not in _own:
        spec = encoding.recipe.backbone
        vae = load_backbone(spec.path, dtype=spec.dtype, parts=("vae",), revision=spec.revision)
        _own["vae"] = vae.to(encoding.place)
    return encoding, _own["vae"]
