"""What is wrong between the sets of a run, and between its held-out episodes and all that it has been trained on.

Held-out numbers choose the checkpoint and say when to stop. An episode that another set trains on, or that the run
starts from a network which was trained on it, makes them good for nothing, and nothing in them shows it.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError, listed
from xwam_ft.policy.seen import digests
from xwam_ft.prepare.findings import numbers_text
from xwam_ft.runs.origin import seen_before, seen_by
from xwam_ft.sets.compared import compare_sets

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from xwam_ft.recipe import Recipe
    from xwam_ft.shard_index import EpisodeEntry
    from xwam_ft.shards import ShardSet


def said_of_data(recipe: Recipe, shard_set: ShardSet, run: Path | None = None) -> list[str]:
    """Sentences about several sets that contradict each other, and about held-out episodes that are trained on.

    Args:
        shard_set: all sets of the recipe as one.
        run: that goes on, where one does: it knows what it started from, which may be gone.

    Raises:
        UserError: a shard that cannot be read.
    """
    return [*_of_sets(recipe, shard_set), *_of_origin(recipe, shard_set, run)]


def _of_sets(recipe: Recipe, shard_set: ShardSet) -> list[str]:
    sets: dict[str, list[EpisodeEntry]] = {}
    for episode in shard_set.index.episodes:
        sets.setdefault(_home(episode)[0], []).append(episode)
    if len(sets) < 2:
        return []
    places = {name: [(shard_set, episode) for episode in episodes] for name, episodes in sets.items()}
    said = [finding.sentence for finding in compare_sets(places)]
    trained = set(digests(shard_set, "train").values())
    known = [number for number, digest in digests(shard_set, "held_out").items() if digest in trained]
    if known:
        folders = " ".join(quote(source.path) for source in recipe.data.sources)
        said.append(
            f"{len(known)} held-out episodes are trained on in another set ({_told(shard_set, known)}), so held-out "
            "numbers say nothing of new recordings; leave them out where they are there twice: "
            f"xwam-ft shards merge {folders} OUT --duplicates skip, and train on OUT"
        )
    return said


def _of_origin(recipe: Recipe, shard_set: ShardSet, run: Path | None) -> list[str]:
    """A sentence where held-out episodes were trained on by what the recipe starts from; nothing where none was, or
    where nobody knows."""
    if recipe.init_from is None:
        return []
    try:
        seen = (seen_before(run) if run is not None else frozenset()) or seen_by(recipe.init_from)
    except UserError:  # gone, of a run that does not know; whoever begins one is refused before
        return []
    held = digests(shard_set, "held_out")
    known = [number for number, digest in held.items() if digest in seen]
    if not known:
        return []
    trained = digests(shard_set, "train")
    new = [number for number, digest in (held | trained).items() if digest not in seen]
    sentence = (
        f"{len(known)} of {len(held)} held-out episodes are among those that {recipe.init_from} was trained on "
        f"({_told(shard_set, known)}), so held-out numbers say nothing of new recordings"
    )
    sources = recipe.data.sources
    if len(sources) != 1:
        return [f"{sentence}; hold out episodes that are new to it in each set (xwam-ft shards resplit)"]
    if not new or not set(trained) - set(new[: len(held)]):
        return [f"{sentence}; no episode here is new to it: judge it by recordings of another day"]
    fix = (
        f"xwam-ft shards resplit {quote(sources[0].path)} OUT --episodes {','.join(map(str, sorted(new[: len(held)])))}"
    )
    return [f"{sentence}; hold out what is new to it: {fix}, and train on OUT"]


def _home(episode: EpisodeEntry) -> tuple[str, int]:
    """The set that an episode of several joined ones is of, and its number in it."""
    name, _, key = episode.key.rpartition("/")
    return name, int(key.rpartition("-")[2])


def _told(shard_set: ShardSet, numbers: Iterable[int]) -> str:
    """ "episodes 1-3", or "monday 0, 2; friday 1"."""
    of: dict[str, list[int]] = {}
    for number in sorted(numbers):
        name, own = _home(shard_set.episode(number))
        of.setdefault(name, []).append(own)
    return listed([f"{name or 'episodes'} {numbers_text(own)}" for name, own in of.items()])
