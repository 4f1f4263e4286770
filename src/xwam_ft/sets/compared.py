"""Several shard sets against each other, as `prepare` compares several datasets: from what the sets hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xwam_ft.prepare.checks.datasets import SAMPLED, SampledDataset, check_datasets, spread_evenly
from xwam_ft.prepare.checks.pictures import signature
from xwam_ft.sets.stored import Place, SegmentsByKey, StoredMotions
from xwam_ft.shards import ClipRef

if TYPE_CHECKING:
    from xwam_ft.prepare.findings import Finding

LOOKED = 8
"""Episodes of a set, spread over all, of which a picture is decoded."""


def compare_sets(sets: Mapping[str, Sequence[Place]]) -> list[Finding]:
    """Findings between sets of one embodiment.

    Args:
        sets: the episodes of each, by the name it has for people.

    Raises:
        UserError: a shard that cannot be read.
    """
    names = [name for name, places in sets.items() if places]
    if len(names) < 2:
        return []
    slots = sets[names[0]][0][0].contract.slots
    return [finding for _, finding in check_datasets(slots, [_sampled(name, sets[name]) for name in names])]


def _sampled(name: str, places: Sequence[Place]) -> SampledDataset:
    cameras = places[0][0].contract.camera_names
    pictures: dict[str, list[list[float]]] = {camera: [] for camera in cameras}
    for shards, episode in spread_evenly(places, LOOKED):
        segments = SegmentsByKey(shards)[episode]
        middle = segments[len(segments) // 2]
        clip = shards.read_clip(ClipRef(middle, middle.first_start + middle.num_starts // 2), "rgb")
        for camera, seen in zip(cameras, clip.rgb, strict=True):
            pictures[camera].append(signature(seen))
    states = [motion.state for motion in StoredMotions(spread_evenly(places, SAMPLED))]
    return SampledDataset(name, states, pictures)
