"""Where a run's clips come from: a latent cache (cache.py), pixels (pixels.py), or several of either as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from xwam_ft.encode.data_sets import clip_weights, episode_weights
from xwam_ft.encode.still import still_clips
from xwam_ft.encode.texts import JoinedRows
from xwam_ft.files import json_bytes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray
    from torch import Tensor

    from xwam_ft.encode.batch import Batch, PictureBatch
    from xwam_ft.encode.cache import CachedClip, CacheIdentity, ClipTensors
    from xwam_ft.encode.clip_tensors import ClipPictures
    from xwam_ft.encode.data_sets import DataSets
    from xwam_ft.encode.texts import TextRows
    from xwam_ft.model.backbone import Backbone
    from xwam_ft.recipe import DataSpec
    from xwam_ft.shard_index import Split


class ClipSource(Protocol):
    """What training asks of its data."""

    @property
    def identity(self) -> CacheIdentity:
        """What the numbers depend on; of several sets, `shards` stands for all."""
        ...

    @property
    def clips(self) -> Sequence[CachedClip]: ...

    @property
    def prompts(self) -> Sequence[str]: ...

    @property
    def prompt_embeddings(self) -> TextRows:
        """In the order of `prompts`."""
        ...

    @property
    def prompt_index(self) -> dict[str, int]: ...

    @property
    def with_depth(self) -> bool: ...

    @property
    def codec(self) -> Backbone | None:
        """The VAE, where it is loaded."""
        ...

    @property
    def weights(self) -> Float[ndarray, " n"] | None:
        """How often each training clip is shown, relative to the others; None: all equally often."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[C, Tl, V, h, w] of a clip."""
        ...

    def of_split(self, split: Split) -> list[CachedClip]: ...

    def read(self, clip: CachedClip, copy: int = 0) -> ClipTensors | ClipPictures:
        """One copy of a clip; of one source always the same of the two."""
        ...

    def masks(self, clip: CachedClip, copy: int = 0) -> dict[str, Tensor]:
        """The masks of one copy of a clip, by name: what the losses count."""
        ...

    def finish(self, batch: Batch | PictureBatch) -> Batch:
        """Latents of a batch of pictures, on its device; a batch of latents as it is."""
        ...


class ClipPool:
    """Several sources as one: clips one after another, their keys beginning with the set's name.

    Args:
        sources: of one contract, backbone and kind.
        sets: the shard sets they are of.
        data: for the weights of sets and episodes.
    """

    def __init__(self, sources: Sequence[ClipSource], sets: DataSets, data: DataSpec) -> None:
        self._sources, self._sets, self._data = list(sources), sets, data
        self._homes: dict[str, tuple[ClipSource, CachedClip]] = {}
        self.clips: list[CachedClip] = []
        for number, source in enumerate(self._sources):
            for clip in source.clips:
                named = replace(clip, key=sets.prefix(number) + clip.key)
                self.clips.append(named)
                self._homes[named.key] = source, clip
        weighted = data.episode_weights or sets.shares is not None or data.still_weight < 1
        self.still = self._still() if data.still_weight < 1 else None
        self.weights = self._weights() if weighted else None
        self.prompts = tuple(sorted({prompt for source in self._sources for prompt in source.prompts}))
        self.prompt_index = {prompt: place for place, prompt in enumerate(self.prompts)}
        rows: dict[str, Tensor] = {}
        for source in self._sources:
            rows |= dict(zip(source.prompts, source.prompt_embeddings, strict=True))
        one = self._sources[0]
        self.prompt_embeddings: TextRows = (  # where they are: thousands of wordings are tens of GB
            one.prompt_embeddings
            if tuple(one.prompts) == self.prompts
            else JoinedRows([rows[prompt] for prompt in self.prompts])
        )
        self.identity = joint_identity([source.identity for source in self._sources])

    @property
    def with_depth(self) -> bool:
        return self._sources[0].with_depth

    @property
    def codec(self) -> Backbone | None:
        return self._sources[0].codec

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self._sources[0].latent_shape

    def of_split(self, split: Split) -> list[CachedClip]:
        return [clip for clip in self.clips if clip.split == split]

    def read(self, clip: CachedClip, copy: int = 0) -> ClipTensors | ClipPictures:
        source, own = self._homes[clip.key]
        return source.read(own, copy)

    def masks(self, clip: CachedClip, copy: int = 0) -> dict[str, Tensor]:
        source, own = self._homes[clip.key]
        return source.masks(own, copy)

    def finish(self, batch: Batch | PictureBatch) -> Batch:
        return self._sources[0].finish(batch)

    def shares(self) -> list[tuple[str, int, float]]:
        """Of each set: its name, its training clips, and its share of what is shown."""
        counts = [len(source.of_split("train")) for source in self._sources]
        weights = np.ones(sum(counts)) if self.weights is None else self.weights
        parts = np.split(weights / weights.sum(), np.cumsum(counts)[:-1])
        return [(name, n, float(part.sum())) for name, n, part in zip(self._sets.names, counts, parts, strict=True)]

    def _weights(self) -> Float[ndarray, " n"]:
        episodes: list[list[int]] = []
        for source, one in zip(self._sources, self._sets.sets, strict=True):
            home = {entry.key: entry.episode for entry in one.index.segments}
            # A clip's key is its segment's and its start's.
            episodes.append([home[clip.key.rpartition("-")[0]] for clip in source.of_split("train")])
        factors = None
        if self.still is not None:
            factors = [np.where(still, self._data.still_weight, 1.0) for still in self.still]
        of_episode = episode_weights(self._data, self._sets)
        return clip_weights(self._sets, of_episode, episodes, self._data.where, factors)

    def _still(self) -> list[Bool[ndarray, " n"]]:
        """Of each source, in which of its training clips nothing moves."""
        pairs = zip(self._sources, self._sets.sets, strict=True)
        return [still_clips(one, source.of_split("train")) for source, one in pairs]


def joint_identity(parts: Sequence[CacheIdentity]) -> CacheIdentity:
    """Of several sources as one: `shards` stands for all of them."""
    if len(parts) == 1:
        return parts[0]
    prints = [identity.shards for identity in parts]
    return replace(parts[0], shards=hashlib.sha256(json_bytes(prints)).hexdigest())
