"""What the masked losses divide by: the valid numbers of a whole optimizer step, over micro-batches and ranks.

Dividing each micro-batch by its own count would weigh samples by their company: with half the samples' actions
given clean, micro-batches of one would halve the action loss. The counts need no forward pass: masks are known of every
clip, and which actions are given clean follows from (seed, position).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xwam_ft.encode.clips import StepGeometry, Stream
from xwam_ft.encode.dataset import ClipDataset
from xwam_ft.learn.draws import action_is_clean, action_prefixes
from xwam_ft.model.losses import LossMasks, loss_counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xwam_ft.encode.clip_source import ClipSource
    from xwam_ft.recipe import NoiseSpec


class StepCounts:
    """Valid numbers of each loss term in any optimizer step."""

    def __init__(self, source: ClipSource, noise: NoiseSpec, seed: int, geometry: StepGeometry) -> None:
        self._dataset = ClipDataset(source, source.of_split("train"), seed)
        self._latent_shape = (1, *source.latent_shape)
        self._noise, self._seed, self._geometry = noise, seed, geometry
        self._known: tuple[int, dict[str, float]] = (-1, {})

    def of_step(self, step: int) -> dict[str, float]:
        """Counts by loss term; at least 1, so that a term without valid numbers is 0."""
        if self._known[0] != step:
            self._known = (step, self._count(self._geometry.positions(step)))
        return self._known[1]

    def _count(self, positions: Sequence[int]) -> dict[str, float]:
        rows = self._dataset.masks(positions)
        masks = LossMasks(
            video=rows["video_mask"],
            action=rows["action_mask"],
            proprio=rows["proprio_mask"],
            action_is_clean=action_is_clean(positions, self._noise, self._seed, Stream.NOISE),
            depth=rows.get("depth_mask"),
            action_prefix=action_prefixes(positions, self._noise, self._seed),
        )
        return {name: max(float(count), 1.0) for name, count in loss_counts(masks, self._latent_shape).items()}
