"""The shard sets of a run: opened, compared with each other, and seen as one.

Sets that were prepared apart have quantiles of their own. Trained together they share one contract, whose quantiles
are those of all training episodes at once, as if all recordings had been prepared in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import quantiles
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.recorded import recorded_together
from xwam_ft.progress import progress_bar
from xwam_ft.prompts import plain
from xwam_ft.remote import absolute, is_file
from xwam_ft.sets.stored import StoredMotions
from xwam_ft.shard_files import INDEX_FILE
from xwam_ft.shards import CONTRACT_FILE, ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from rich.console import Console

    from xwam_ft.recipe import DataSpec
    from xwam_ft.shard_index import ShardEntry

    Damages = Callable[[ShardSet], Iterable[tuple[ShardEntry, str | None]]]
    """What is wrong with each shard of a set."""


@dataclass(frozen=True)
class DataSets:
    """What `data.shards` names.

    Args:
        sets: each under the contract they share; damaged shards left out where the recipe says skip.
        names: one of each, for keys and tables.
        shares: of the clips that are shown, of each set; None: each clip is shown equally often.
    """

    sets: tuple[ShardSet, ...]
    names: tuple[str, ...]
    shares: tuple[float, ...] | None

    @property
    def contract(self) -> Contract:
        return self.sets[0].contract

    @cached_property
    def joined(self) -> ShardSet:
        """All sets as one, for what reads clips and asks no more; of several, its folder is the first's."""
        return self.sets[0] if len(self.sets) == 1 else _joined(self.sets, self.names)

    def under(self, contract: Contract) -> DataSets:
        """The same sets under another contract of their embodiment."""
        return replace(self, sets=tuple(replace(one, contract=contract) for one in self.sets))

    def prefix(self, number: int) -> str:
        """What the keys of a set's clips begin with: nothing where it is the only one."""
        return "" if len(self.sets) == 1 else f"{self.names[number]}/"


def open_sets(data: DataSpec, console: Console | None = None, under: tuple[Contract, Path] | None = None) -> DataSets:
    """Open the shard sets of a recipe.

    Args:
        console: where damaged shards that are left out are named.
        under: the contract of a run, whose quantiles they are read under, and where it lies; default their own.

    Raises:
        UserError: a set is unfinished or of another version; shards are damaged and the recipe does not say skip; the
            sets' contracts differ in more than quantiles and prompts (names the field), or one is listed twice.
    """
    folders = [Path(source.path) for source in data.sources]
    for number, folder in enumerate(folders):
        if any(absolute(folder) == absolute(other) for other in folders[:number]):
            raise UserError("is listed twice", folder, "name it once in data.shards, with a weight")
    opened = [ShardSet.open(folder, sizes=False, local_gb=data.local_gb) for folder in folders]
    if data.on_corrupt == "skip":
        opened = [_sound(one, console) for one in opened]
    for one in opened:
        for shard in one.index.shards:
            if (found := one.files.missing_or_cut(shard)) is not None:
                raise corrupt(found, one, shard.name)
    if under is None:
        contract = shared_contract(opened)
    else:
        contract, place = under
        for one in opened:
            one.under(contract, place)
    weights = [source.weight for source in data.sources if source.weight is not None]
    shares = tuple(weight / sum(weights) for weight in weights) or None
    return DataSets(tuple(replace(one, contract=contract) for one in opened), tuple(_names(folders)), shares)


def require_sound(shard_set: ShardSet, console: Console, damages: Damages | None = None) -> None:
    """Check every shard's SHA-256, before its pictures become numbers that no one can see.

    Args:
        damages: who looks; None: this process.

    Raises:
        UserError: names the first that is damaged.
    """
    shards = shard_set.index.shards
    with progress_bar(console, "check shards", "bytes", sum(shard.bytes for shard in shards)) as advance:
        looked = ((shard, shard_set.files.damage(shard)) for shard in shards)
        for shard, found in looked if damages is None else damages(shard_set):
            if found is not None:
                raise corrupt(found, shard_set, shard.name)
            advance(shard.bytes)


def require_same_shards(shard_set: ShardSet, fingerprint: str) -> None:
    """Raise a `UserError` where this node of a cluster sees no shard set, or another one."""
    folder = shard_set.folder
    there = is_file(folder / INDEX_FILE)
    if not there or shard_set.fingerprint != fingerprint:
        fix = "let the shard set lie on storage that every node mounts at the same path, or at a URL"
        raise UserError("is another shard set there" if there else "is no shard set there", folder, fix)


def corrupt(what: str, shard_set: ShardSet, shard: str) -> UserError:
    """The error for a damaged shard."""
    fix = "copy the shard again, run `xwam-ft prepare` again, or set data.on_corrupt: skip to train without it"
    return UserError(what, shard_set.files.place(shard), fix)


def shared_contract(sets: Sequence[ShardSet]) -> Contract:
    """The first set's contract, where all are equal; otherwise with what the recordings of all say.

    Raises:
        UserError: they differ in anything else.
    """
    first, *others = sets
    for other in others:
        other.under(first.contract, first.folder / CONTRACT_FILE)
    if all(other.contract == first.contract for other in others):
        return first.contract
    prompts = tuple(sorted({prompt for one in sets for prompt in one.contract.prompts}))
    own = [one.contract.aliases for one in sets]
    alike = len({plain(prompt) for prompt in prompts}) < len(prompts)  # sets prepared apart may write one in two ways
    draft = first.contract.model_copy(
        update={
            "prompts": prompts,
            "prompt_form": "recorded" if alike else first.contract.prompt_form,
            "aliases": own[0] if all(names == own[0] for names in own) else None,
        }
    )
    train = [(one, episode) for one in sets for episode in one.index.episodes if episode.split == "train"]
    motions = StoredMotions(train)
    known = recorded_together(draft, [one.contract.recorded for one in sets], motions)
    return draft.model_copy(update={"quantiles": quantiles.quantiles(draft, motions), "recorded": known})


def episode_weights(data: DataSpec, sets: DataSets) -> list[dict[int, float]]:
    """Of each set, the weight of every training episode by its number.

    Raises:
        UserError: a rule that fits no training episode, or no clip that is ever shown.
    """
    found: list[dict[int, float]] = []
    fits = [0] * len(data.episode_weights)
    for one in sets.sets:
        weights: dict[int, float] = {}
        for episode in one.index.episodes:
            weight = 1.0
            for number, rule in enumerate(data.episode_weights):
                texts = episode.instructions or (episode.instruction,)
                named = any(fnmatchcase(plain(text), plain(rule.instruction)) for text in texts)
                if named and fnmatchcase(episode.source, rule.source) and rule.success in (None, episode.success):
                    weight *= rule.weight
                    fits[number] += episode.split == "train"
            weights[episode.index] = weight
        found.append(weights)
    for number, rule in enumerate(data.episode_weights):
        if not fits[number]:
            raise UserError(
                f"fits no training episode of {data.where}: {rule.model_dump(exclude_defaults=True)}",
                f"data.episode_weights.{number}",
                "see instruction, source and success of the episodes in index.json",
            )
    return found


def clip_weights(
    sets: DataSets,
    of_episode: Sequence[dict[int, float]],
    episodes: Sequence[Sequence[int]],
    where: str,
    factors: Sequence[Float[ndarray, " n"]] | None = None,
) -> Float[ndarray, " n"]:
    """How often each training clip is shown, relative to the others; the sets' clips one after another.

    Args:
        of_episode: of each set, what `episode_weights` gave.
        episodes: of each set, the episode of each of its training clips.
        factors: of each set, by which each of them counts more or less.

    Raises:
        UserError: a set of which no clip would be shown.
    """
    fix = (
        "change data.episode_weights" if factors is None else "change data.episode_weights, or raise data.still_weight"
    )
    tables = [np.array([table[n] for n in numbers]) for table, numbers in zip(of_episode, episodes, strict=True)]
    if factors is not None:
        tables = [table * factor for table, factor in zip(tables, factors, strict=True)]
    for name, table in zip(sets.names, tables, strict=True):
        if not np.any(table > 0) and (sets.shares is not None or not any(np.any(other > 0) for other in tables)):
            raise UserError(f"no clip of {name} would ever be shown: all weigh 0", where, fix)
    if sets.shares is not None:
        tables = [share * table / table.sum() for share, table in zip(sets.shares, tables, strict=True)]
    return np.concatenate(tables)


def _sound(shard_set: ShardSet, console: Console | None) -> ShardSet:
    """The set without its damaged shards, each of which is named."""
    from rich.console import Console

    damaged: dict[str, str] = {}
    total = sum(shard.bytes for shard in shard_set.index.shards)
    with progress_bar(console or Console(quiet=True), "check shards", "bytes", total) as advance:
        for shard in shard_set.index.shards:
            if (what := shard_set.files.damage(shard)) is not None:
                damaged[shard.name] = what
            advance(shard.bytes)
    if len(damaged) == len(shard_set.index.shards):
        raise UserError("every shard is damaged", shard_set.folder, "copy the folder again")
    if damaged and console is not None:
        segments = [entry for entry in shard_set.index.segments if entry.shard in damaged]
        console.print(
            f"{shard_set.folder}: {len(damaged)} of {len(shard_set.index.shards)} shards are left out, and with them "
            f"{len(segments)} of {len(shard_set.index.segments)} segments: "
            f"{listed(f'{name} {what}' for name, what in damaged.items())}",
            style="yellow",
            soft_wrap=True,
        )
    return _without(shard_set, tuple(damaged)) if damaged else shard_set


def _without(shard_set: ShardSet, damaged: tuple[str, ...]) -> ShardSet:
    """The set without some shards, their segments, and episodes that had no others."""
    index = shard_set.index
    segments = tuple(segment for segment in index.segments if segment.shard not in damaged)
    kept = {segment.key for segment in segments}
    episodes = [
        episode.model_copy(update={"segments": tuple(key for key in episode.segments if key in kept)})
        for episode in index.episodes
    ]
    parts = {
        "shards": tuple(shard for shard in index.shards if shard.name not in damaged),
        "segments": segments,
        "episodes": tuple(episode for episode in episodes if episode.segments),
    }
    return replace(shard_set, index=index.model_copy(update=parts), left_out=damaged)


def _joined(sets: Sequence[ShardSet], names: Sequence[str]) -> ShardSet:
    """One index over all: keys begin with the set's name, episodes are numbered on, shards stand by absolute path."""
    shards, episodes, segments, first = [], [], [], 0
    for one, name in zip(sets, names, strict=True):
        folder = absolute(one.folder)
        shards += [s.model_copy(update={"name": str(folder / s.name)}) for s in one.index.shards]
        for episode in one.index.episodes:
            keys = tuple(f"{name}/{key}" for key in episode.segments)
            number, key = first + episode.index, f"{name}/{episode.key}"
            episodes.append(episode.model_copy(update={"index": number, "key": key, "segments": keys}))
        for segment in one.index.segments:
            moved = {
                "key": f"{name}/{segment.key}",
                "episode": first + segment.episode,
                "shard": str(folder / segment.shard),
            }
            segments.append(segment.model_copy(update=moved))
        first = 1 + max(episode.index for episode in episodes)
    parts = {"shards": tuple(shards), "episodes": tuple(episodes), "segments": tuple(segments)}
    return replace(sets[0], index=sets[0].index.model_copy(update=parts))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many folders above them as tell them apart."""
    parts = [absolute(folder).parts for folder in folders]
    depth = 1
    while len({found[-depth:] for found in parts}) < len(parts):
        depth += 1
    return ["-".join(found[-depth:]).strip("/") for found in parts]
