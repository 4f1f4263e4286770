"""Statistics of the training pictures, and how unlike them those of the evaluated clips are (policy/novelty.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.errors import listed
from xwam_ft.evaluate.open_loop import BATCH, spread
from xwam_ft.policy.novelty import Novelty, features, fit
from xwam_ft.policy.seen import digests
from xwam_ft.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from rich.console import Console
    from torch import Tensor

    from xwam_ft.policy.policy import Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import ClipRef, ShardSet

PICTURES = 192  # of the training split that statistics are made of


def training_novelty(policy: Policy, shards: ShardSet, console: Console) -> Novelty | None:
    """Statistics of pictures spread over the training split; None where it has fewer than two."""
    refs = shards.clips("train", 1)
    places = np.unique(np.linspace(0, len(refs) - 1, min(PICTURES, len(refs))).round().astype(int)) if refs else []
    chosen = [refs[place] for place in places]
    if len(chosen) < 2:
        return None
    with progress_bar(console, "training pictures", "pictures", len(chosen)) as advance:
        rows = [features(latents) for latents in _first_latents(policy, shards, chosen, advance)]
    return fit(np.concatenate(rows), [ref.entry.episode for ref in chosen], policy.contract.camera_names)


def novelty_table(policy: Policy, shards: ShardSet, *, split: Split, clips: int) -> dict[str, Any] | None:
    """{"clips", "cameras": {camera: {"median", "percentile_95", "most", "above_one": share of clips}}}, of the pictures
    that clips spread over a split start from; None where the policy holds no statistics."""
    if policy.novelty is None:
        return None
    refs = spread(shards.clips(split, 1), clips)
    scores = np.concatenate([policy.novelty.scores(latents) for latents in _first_latents(policy, shards, refs)])
    return {
        "clips": len(refs),
        "cameras": {
            name: {
                "median": float(np.median(column)),
                "percentile_95": float(np.percentile(column, 95)),
                "most": float(column.max()),
                "above_one": float(np.mean(column > 1)),
            }
            for name, column in zip(policy.novelty.cameras, scores.T, strict=True)
        },
    }


def trained_on(policy: Policy, shards: ShardSet, episodes: Collection[int]) -> dict[str, Any]:
    """{"episodes": those of a held-out split that the policy was trained on, "of": how many were looked at}; empty
    where there are none, or nobody knows."""
    if not policy.seen:
        return {}
    found = digests(shards, "held_out", set(episodes))
    known = sorted(episode for episode, digest in found.items() if digest in policy.seen)
    return {"episodes": known, "of": len(found)} if known else {}


def said_of_trained(metrics: Mapping[str, Any]) -> list[str]:
    """What it means that held-out episodes are not new to the policy, in a sentence."""
    if (table := metrics.get("trained_on")) is None:
        return []
    count, of = len(table["episodes"]), table["of"]
    return [
        f"{count} of the {of} held-out episodes are among those this policy was trained on "
        f"({listed(table['episodes'], 8)}): the errors above say little of new ones. Evaluate it on the split it was "
        "trained by, or on new recordings"
    ]


def _first_latents(
    policy: Policy, shards: ShardSet, refs: Sequence[ClipRef], advance: Advance = lambda done: None
) -> Iterator[Float[Tensor, "n c v h w"]]:
    """Of the pictures that clips start from, a batch at a time."""
    for first in range(0, len(refs), BATCH):
        batch = refs[first : first + BATCH]
        yield policy.condition(np.stack([shards.read_clip(ref, "rgb").rgb[:, 0] for ref in batch]))
        advance(len(batch))


def novelty_rows(table: dict[str, Any]) -> list[list[str]]:
    """A line a camera, under a header."""
    rows = [["camera", "median", "95 % below", "most", "clips above 1 [%]"]]
    for name, cell in table["cameras"].items():
        figures = [f"{cell[key]:.2f}" for key in ("median", "percentile_95", "most")]
        rows.append([name, *figures, f"{100 * cell['above_one']:.0f}"])
    return rows


NOVELTY_SAYS = (
    "How unlike the training pictures these are: 1 is as far as the farthest of a hundred training pictures whose "
    "episode was held back. Worry where most clips lie above it: another scene, light or camera place, and errors here "
    "say little of the robot. `serve` answers with the same number."
)
