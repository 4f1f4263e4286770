"""Segments encoded on a Ray cluster, whose nodes need not share a disk with the machine that gives the work.

A worker reads the shard set where it lies, a URL or a folder that its node has too, and loads the VAE once. What it
makes goes to the cache's URL at once; where the cache is a folder, it comes back as bytes and is written there by
whoever gives the work. Before its first segment a worker looks whether it would make the same numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from xwam_ft import remote
from xwam_ft.encode.cache import libraries
from xwam_ft.encode.cache_files import CachedFile
from xwam_ft.encode.data_sets import require_same_shards
from xwam_ft.encode.segments import Encoding, SegmentPlan, missing_of, own, stored, take
from xwam_ft.errors import UserError
from xwam_ft.ray_cluster import Cluster, Told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from xwam_ft.progress import Advance
    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import ShardEntry
    from xwam_ft.shards import ShardSet

EVERYWHERE = "have it on every node at the same path"
LESS = "what is encoded is kept, and fewer --workers or a smaller data.encode_batch take less memory"
TOLD = Told("xwam-ft encode --ray", "segment", LESS)


@dataclass(frozen=True)
class Nodes:
    """What of a cluster encodes.

    Args:
        gpu: a worker has a GPU; otherwise a CPU.
        most: workers; None: as many as there are of those.
    """

    cluster: Cluster
    gpu: bool
    most: int | None

    @classmethod
    def of(cls, cluster: Cluster, recipe: Recipe, most: int | None) -> Nodes:
        """By the recipe's accelerator.

        Raises:
            UserError: it wants a GPU and the cluster has none.
        """
        wanted, gpus = recipe.trainer.accelerator, cluster.has(gpu=True)
        if wanted == "gpu" and not gpus:
            fix = "add a node with one, or set it to cpu or auto"
            raise UserError("is 'gpu', and the Ray cluster has no GPU", "trainer.accelerator", fix)
        return cls(cluster, wanted != "cpu" and gpus > 0, most)

    def damages(self, shard_set: ShardSet) -> Iterator[tuple[ShardEntry, str | None]]:
        """What is wrong with each of the shards, which the nodes read through."""
        there = replace(shard_set, folder=remote.absolute(shard_set.folder))
        told = Told(TOLD.command, "shard", "no segment was begun")
        shards = shard_set.index.shards
        return self.cluster.side_by_side(
            there.files.damage,
            shards,
            told=told,
            most=self.most,
            begin=require_same_shards,
            given=(there, shard_set.fingerprint),
        )

    def write(self, encoding: Encoding, plan: Sequence[SegmentPlan], advance: Advance, console: Console) -> None:
        """Write every file of the plan that is missing.

        Raises:
            UserError: a segment cannot be read or encoded; a node lacks what it needs; a segment whose workers died.
        """
        if not (missing := missing_of(encoding, plan, advance)):
            return
        there, files = _as_seen_anywhere(encoding, gpu=self.gpu), encoding.files
        done = self.cluster.side_by_side(
            _send,
            missing,
            told=TOLD,
            gpu=self.gpu,
            most=self.most,
            begin=_begin,
            given=(there, _Alike.here(there)),
            tell=lambda text: console.print(text, markup=False, soft_wrap=True),
        )
        for part, made in done:
            if isinstance(made, CachedFile):
                files.note(made)
            else:
                files.write(part.file, lambda path, data=made: path.write_bytes(data))
            advance(len(part.rows))


def _as_seen_anywhere(encoding: Encoding, *, gpu: bool) -> Encoding:
    """With paths that do not depend on the folder a process is in."""
    recipe, shard_set, path = encoding.recipe, encoding.shard_set, encoding.recipe.backbone.path
    if Path(path).is_dir():
        path = str(Path(path).absolute())
    return replace(
        encoding,
        recipe=recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"path": path})}),
        shard_set=replace(shard_set, folder=remote.absolute(shard_set.folder)),
        device="cuda" if gpu else "cpu",
        threads=0 if gpu else 1,
    )


@dataclass(frozen=True)
class _Alike:
    """What must be the same on every node, or its numbers would be others under the same name."""

    shards: str
    vae: str
    versions: str

    @classmethod
    def here(cls, encoding: Encoding) -> _Alike:
        from xwam_ft import __version__
        from xwam_ft.model.backbone import part_fingerprints

        spec = encoding.recipe.backbone
        vae = part_fingerprints(spec.path, ("vae",), revision=spec.revision)["vae"]
        return cls(encoding.shard_set.fingerprint, vae, f"{libraries()}, xwam-ft {__version__}")


def _begin(encoding: Encoding, wanted: _Alike) -> None:
    """Begin on a node.

    Raises:
        UserError: it lacks shards, backbone or GPU, or has others than the machine that gives the work.
    """
    spec = encoding.recipe.backbone
    require_same_shards(encoding.shard_set, wanted.shards)
    if Path(spec.path).is_absolute() and not Path(spec.path).is_dir():
        raise UserError("is not there", spec.path, f"{EVERYWHERE}, or give backbone.path an id of the Hub")
    here = _Alike.here(encoding)
    if here.versions != wanted.versions:
        fix = "install the same versions of it and its libraries on every node"
        raise UserError(f"its versions are {here.versions}, not {wanted.versions}", TOLD.command, fix)
    if here.vae != wanted.vae:
        raise UserError("its VAE is another one there", spec.path, f"{EVERYWHERE}, and a commit as backbone.revision")
    if encoding.device == "cuda" and not torch.cuda.is_available():
        fix = "install torch for its CUDA version there, or set it to cpu"
        raise UserError("Ray gave it a GPU, and torch finds none", "trainer.accelerator", fix)
    take(encoding)


def _send(part: SegmentPlan) -> CachedFile | bytes:
    """Encode a segment; what its file at the URL is, or its bytes where the cache is a folder."""
    from safetensors.torch import save

    encoding, vae = own()
    files = encoding.files
    data = save(stored(encoding.encoded(part, vae), encoding.recipe.backbone.dtype))
    if not files.far:
        return data
    remote.put_bytes(data, files.folder / part.file)
    return CachedFile(part.file, len(data), hashlib.sha256(data).hexdigest())
