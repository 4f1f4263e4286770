"""Policies whose answers are known, for tests: those of the recordings, or any function of the observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xwam_ft import conventions
from xwam_ft.observation import EncodedObservation
from xwam_ft.pictures import centre_crop, centre_crop_nearest
from xwam_ft.policy.policy import Imagined, Settings, clip_observation
from xwam_ft.shards import Clip, ShardSet, cut_clip


class FakePolicy:
    """Answers like a Policy; remembers what it was asked."""

    def __init__(
        self,
        shards: ShardSet,
        act: Callable[[Clip], np.ndarray] | None = None,
        dream: Callable[[Clip], Imagined] | None = None,
        trained: bool = True,
    ) -> None:
        self.contract, self.settings, self.trained = shards.contract, Settings(seed=100), trained
        self.action_prefix, self.novelty, self.acts_with_future = 0, None, True
        self.seen: frozenset[str] = frozenset()
        self.act, self.dream = act or self.recorded_action, dream or self.recorded_future
        segments = {entry.key: shards.read(entry) for entry in shards.segments()}
        timing = self.contract.timing
        clips = [cut_clip(segments[ref.entry.key], ref.start, timing) for ref in shards.clips(None, 1)]
        self.clips = {clip_observation(self.contract, clip).pictures.tobytes(): clip for clip in clips}
        assert len(self.clips) == len(clips), "two clips of the fixture start alike"
        self.seeds: list[int] = []

    def infer_batch(
        self, inputs: Sequence[EncodedObservation], seeds: Sequence[int], settings: Settings | None = None
    ) -> np.ndarray:
        assert len(inputs) == len(seeds)
        self.seeds += seeds
        return np.stack([self.act(self.clips[item.pictures.tobytes()]) for item in inputs])

    def imagine(self, inputs: EncodedObservation, seed: int) -> Imagined:
        self.seeds.append(seed)
        return self.dream(self.clips[inputs.pictures.tobytes()])

    def imagine_batch(
        self,
        inputs: Sequence[EncodedObservation],
        seeds: Sequence[int],
        given: Sequence[np.ndarray | None],
        depths: int,
    ) -> list[Imagined]:
        """Whatever is given; a test that needs an answer to it overrides `under`."""
        self.seeds += seeds
        clips = [self.clips[item.pictures.tobytes()] for item in inputs]
        return [self.under(*row) for row in zip(clips, seeds, given, strict=True)]

    def under(self, clip: Clip, seed: int, given: np.ndarray | None) -> Imagined:
        return self.dream(clip)

    def recorded_action(self, clip: Clip) -> np.ndarray:
        actions = conventions.encode_actions(self.contract, clip.action, clip.proprio[0], clip.action_states)
        return conventions.normalise_action(self.contract, actions)

    def recorded_future(self, clip: Clip, **changes: Any) -> Imagined:
        crop = self.contract.image.crop
        depth = None if clip.depth is None else np.stack([centre_crop_nearest(view, crop) for view in clip.depth])
        fields: dict[str, Any] = {
            "rgb": np.stack([centre_crop(view, crop) for view in clip.rgb]),
            "depth": depth,
            "states": clip.proprio.copy(),
            "action": self.recorded_action(clip),
        }
        return Imagined(**fields | changes)
