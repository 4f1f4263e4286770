"""The latent cache: everything training reads, so that neither the VAE nor the text encoder is loaded for it.

It lies in the shard set, `SHARDS/latents-<fingerprint>/`, or in `data.cache_dir`:

    segments/<key>.safetensors   the clips of one segment that start on the stride, stacked along N; the augmented
                                 copies of a clip one after another
    prompts.safetensors          embeddings [N, S, Dt] of every instruction and of the empty one
    index.json                   written last: sizes and SHA-256 of these files, the clips and instructions in order

The fingerprint covers all that the numbers depend on: backbone, contract, shards, stride, augmentation, dtype,
depth or not, library versions. The causal VAE treats a clip's first frame apart, so latents are encoded per clip;
slicing a segment's would be wrong.

Legend (of one clip): C channels, Tl latent frames, V views, h x w latent grid, Ta actions of Da, Tp states of Dp.
    rgb, depth [C, Tl, V, h, w]; depth_mask [Tl, V, h, w]; video_mask [Tl]; action, action_mask [Ta, Da];
    proprio, proprio_mask [Tp, Dp]; all normalised, masks 0 or 1.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xwam_ft.copies import LOCAL_GB, Copies
from xwam_ft.encode.cache_files import CachedFile, FarTensors
from xwam_ft.errors import UserError, listed
from xwam_ft.files import json_bytes, sha256
from xwam_ft.machine import installed_versions
from xwam_ft.remote import is_file, load_json, size_of, sizes, url_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from xwam_ft.encode.batch import Batch, PictureBatch
    from xwam_ft.progress import Advance
    from xwam_ft.recipe import DataSpec
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import ShardSet

SCHEMA_VERSION = 3
EMPTY_PROMPT = ""
"""Its embedding stands for "no text" in text dropout and guidance."""

CLIP_TENSORS = ("rgb", "video_mask", "action", "action_mask", "proprio", "proprio_mask")
DEPTH_TENSORS = ("depth", "depth_mask")
PROMPTS_FILE = "prompts.safetensors"
MAPPED_FILES = 1 << 14  # of a process; Linux lets it map 65,530
INDEX_FILE = "index.json"


@dataclass(frozen=True)
class CacheIdentity:
    """What the cached numbers are a function of."""

    backbone: str  # fingerprint of transformer family, VAE and text encoder
    contract: str  # SHA-256 of contract.json; covers crop and resolution
    shards: str  # SHA-256 of the shard set's index.json
    clip_stride: int
    dtype: str
    with_depth: bool
    augment: str  # "none", or the recipe's data.augment as JSON
    libraries: str  # what computed them, major.minor; see `libraries`
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json_bytes(asdict(self))).hexdigest()[:16]

    def folder(self, place: Path) -> Path:
        """Where the cache lies in a place (`cache_place`)."""
        return place / f"latents-{self.fingerprint}"


def cache_place(data: DataSpec, shards: Path) -> Path:
    """Where the latent caches of a shard set lie: in it, or where the recipe says (`data.cache_dir`)."""
    return shards if data.cache_dir is None else Path(data.cache_dir)


@dataclass(frozen=True, slots=True)
class CachedClip:
    """One clip's place: its `copies` rows from `row` on in a segment's file, and which instruction it follows."""

    key: str
    file: str
    row: int
    split: Split
    instruction: str
    copies: int = 1
    wordings: tuple[str, ...] = ()  # of the instruction, `instruction` first, where there are several


@dataclass(frozen=True)
class ClipTensors:
    """One clip as cached; shapes in the module's legend."""

    rgb: Float[Tensor, "c tl v h w"]
    video_mask: Float[Tensor, " tl"]
    action: Float[Tensor, "ta da"]
    action_mask: Float[Tensor, "ta da"]
    proprio: Float[Tensor, "tp dp"]
    proprio_mask: Float[Tensor, "tp dp"]
    depth: Float[Tensor, "c tl v h w"] | None = None
    depth_mask: Bool[Tensor, "tl v h w"] | None = None


@dataclass(frozen=True)
class LatentCache:
    """A complete cache on disk. Reading is by row, so a training process holds no more than its batch."""

    folder: Path
    identity: CacheIdentity
    clips: tuple[CachedClip, ...]
    prompts: tuple[str, ...]
    files: tuple[CachedFile, ...]
    local_gb: float = LOCAL_GB  # of copies on this machine, of a cache at a URL
    _open: dict[str, FarTensors | dict[str, Tensor]] = field(
        default_factory=dict[str, "FarTensors | dict[str, Tensor]"], repr=False, compare=False
    )

    @classmethod
    def open(
        cls, folder: Path, advance: Advance | None = None, *, verify: bool = True, local_gb: float = LOCAL_GB
    ) -> LatentCache:
        """Read the index and check every file against its size and SHA-256; of a URL now its size alone.

        Args:
            local_gb: as `data.local_gb`.
            verify: False leaves the check out (another process does it).
            advance: told the bytes of each file once it is checked.

        Raises:
            UserError: the cache is absent or incomplete, or a file is missing, cut off or changed.
        """
        if not is_file(folder / INDEX_FILE):
            raise UserError("the latent cache is not complete", folder, "run `xwam-ft encode` again; it goes on there")
        tree = load_json(folder / INDEX_FILE)
        cache = cls(
            folder=folder,
            identity=CacheIdentity(**tree["identity"]),
            clips=tuple(_clip(clip) for clip in tree["clips"]),
            prompts=tuple(tree["prompts"]),
            files=tuple(CachedFile(**entry) for entry in tree["files"]),
            local_gb=local_gb,
        )
        there = sizes(folder, [entry.path for entry in cache.files]) if verify and url_of(folder) else None
        for entry in cache.files if verify else ():
            require_intact(folder, entry, there)
            if advance is not None:
                advance(entry.size)
        return cache

    @property
    def with_depth(self) -> bool:
        return self.identity.with_depth

    @property
    def codec(self) -> None:
        """No VAE is loaded."""
        return None

    @property
    def weights(self) -> None:
        """Its training clips are shown equally often."""
        return None

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[C, Tl, V, h, w]"""
        handle = self._handle(self.clips[0].file)
        return tuple(handle.shape("rgb") if isinstance(handle, FarTensors) else handle["rgb"].shape)[1:]

    def of_split(self, split: Split) -> list[CachedClip]:
        return [clip for clip in self.clips if clip.split == split]

    @property
    def prompt_embeddings(self) -> Float[Tensor, "n s dt"]:
        """Embeddings in the order of `prompts`."""
        return self._embeddings

    @property
    def prompt_index(self) -> dict[str, int]:
        return self._places

    @cached_property
    def _embeddings(self) -> Tensor:
        from safetensors.torch import load_file

        path = self.folder / PROMPTS_FILE
        if url_of(path):
            file = next(file for file in self.files if file.path == PROMPTS_FILE)
            path = FarTensors(self.folder, file, True, self.local_gb).copy()
        return load_file(path)["embeddings"]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {prompt: index for index, prompt in enumerate(self.prompts)}

    def read(self, clip: CachedClip, copy: int = 0) -> ClipTensors:
        """The tensors of one copy of a clip, in the dtype they are stored in."""
        assert 0 <= copy < clip.copies, f"clip {clip.key} has no copy {copy}"
        names = CLIP_TENSORS + (DEPTH_TENSORS if self.with_depth else ())
        rows: dict[str, Any] = self._rows(clip.file, names, clip.row + copy)
        return ClipTensors(**rows)

    def masks(self, clip: CachedClip, copy: int = 0) -> dict[str, Tensor]:
        """The masks of one copy of a clip: what the losses count."""
        names = CLIP_TENSORS + (DEPTH_TENSORS if self.with_depth else ())
        return self._rows(clip.file, [name for name in names if name.endswith("_mask")], clip.row + copy)

    def finish(self, batch: Batch | PictureBatch) -> Batch:
        """Nothing is left to do: see ClipSource."""
        return cast("Batch", batch)

    def _rows(self, file: str, names: Sequence[str], row: int) -> dict[str, Tensor]:
        handle = self._handle(file)
        if isinstance(handle, FarTensors):
            return handle.rows(names, row)
        return {name: handle[name][row] for name in names}

    @cached_property
    def _by_path(self) -> dict[str, CachedFile]:
        return {file.path: file for file in self.files}

    @cached_property
    def _fits(self) -> bool:
        """Whether copies of all of it fit on this machine."""
        return sum(file.size for file in self.files) <= Copies(self.local_gb).limit

    def _handle(self, file: str) -> FarTensors | dict[str, Tensor]:
        """A file's tensors: opened per process and kept. They are mapped, so that they cost no memory."""
        if file not in self._open:
            if len(self._open) >= MAPPED_FILES:
                self._open.pop(next(iter(self._open)))
            if url_of(self.folder):
                self._open[file] = FarTensors(self.folder, self._by_path[file], self._fits, self.local_gb)
            else:
                from safetensors import safe_open

                with safe_open(self.folder / file, framework="pt") as stored:
                    self._open[file] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        # A DataLoader worker opens its own handles, and reads no text.
        return {name: value for name, value in self.__dict__.items() if name != "_embeddings"} | {"_open": {}}


def cache_identity(backbone: str, shard_set: ShardSet, data: DataSpec, dtype: str, with_depth: bool) -> CacheIdentity:
    told = data.augment.model_dump(mode="json")
    for later in ("zoom", "codec"):  # caches made before there were these hold for recipes without them
        if not told[later]:
            told.pop(later)
    augment = json_bytes(told).decode() if data.augment.active else "none"
    contract, shards = shard_set.contract.sha256, shard_set.fingerprint
    return CacheIdentity(backbone, contract, shards, data.clip_stride, dtype, with_depth, augment, libraries())


def libraries() -> str:
    """The libraries that latents and embeddings are computed with.

    A cache of other versions is made anew (with `data.cache: require` it is refused), not merely warned of: a version
    of transformers once left every instruction's embedding alike, and no other look at a cache would notice. The old
    one stays where it is, so that going back costs nothing.
    """
    versions = installed_versions(("diffusers", "torch", "transformers"))
    return ", ".join(f"{name} {'.'.join(found.split('.')[:2])}" for name, found in versions.items())


MEANING = {
    "backbone": "VAE or text encoder",
    "contract": "contract.json",
    "shards": "index.json",
    "clip_stride": "data.clip_stride",
    "dtype": "backbone.dtype",
    "with_depth": "depth",
    "augment": "data.augment",
    "libraries": "the libraries",
    "schema_version": "version of the cache",
}


def stale_caches(place: Path, wanted: CacheIdentity) -> list[str]:
    """A phrase for each finished cache of other numbers: its name and what it was made with that is another now."""
    said: list[str] = []
    for index in _indexes(place):
        there, now = load_json(index)["identity"], asdict(wanted)
        changed = [
            f"{MEANING[name]} {_short(there.get(name))}, now {_short(value)}"
            for name, value in now.items()
            if there.get(name) != value
        ]
        said.append(f"{index.parent.name} was made with {listed(changed)}")
    return said


def _indexes(place: Path) -> list[Path]:
    url = url_of(place)
    if url is None:
        return sorted(place.glob(f"latents-*/{INDEX_FILE}"))
    if url.startswith("http"):
        return []
    return [place / name for name in sorted(sizes(place)) if fnmatchcase(name, f"latents-*/{INDEX_FILE}")]


def _clip(tree: dict[str, Any]) -> CachedClip:
    # A million clips are a few hundred instructions: each text is held once.
    texts = {name: sys.intern(tree[name]) for name in ("file", "split", "instruction")}
    given: dict[str, Any] = {**tree, **texts, "wordings": tuple(map(sys.intern, tree.get("wordings", ())))}
    return CachedClip(**given)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 or text.startswith("{") else f"{text[:12]}..."


def require_intact(folder: Path, entry: CachedFile, there: Mapping[str, int] | None = None) -> None:
    """Raise a `UserError` unless the file is there with the size and hash it was written with.

    Args:
        there: sizes of what lies at a URL; hashes are compared when files come from there.
    """
    path = folder / entry.path
    fix = "delete it and run `xwam-ft encode` again; only this file is made anew"
    size = size_of(path) if there is None else there.get(entry.path)
    if size is None:
        raise UserError("the cached file is missing", path, "run `xwam-ft encode` again; only this file is made anew")
    if size != entry.size:
        raise UserError(f"has {size} bytes, not the {entry.size} that were written", path, fix)
    if there is None and sha256(path) != entry.sha256:
        raise UserError("has changed since it was written (its SHA-256 is another)", path, fix)
