"""The contract of chosen episodes: ranges, signs, limits and prompts counted anew, as `prepare` counts them.

All of it comes from the numbers the sets hold, so it is what `prepare` of these recordings with this split would say.
One thing is not stored: the joints of a pose that was computed from joints. Their limits are the widest of those the
sets knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwam_ft import quantiles
from xwam_ft.errors import UserError
from xwam_ft.prepare.recorded import recorded
from xwam_ft.prompts import canonical, clean_prompt
from xwam_ft.sets.stored import StoredMotions

if TYPE_CHECKING:
    from xwam_ft.alias_table import Aliases
    from xwam_ft.contract import Contract
    from xwam_ft.limits import Recorded
    from xwam_ft.sets.opened import OpenedSet
    from xwam_ft.shard_index import EpisodeEntry, Split


@dataclass(frozen=True)
class Pick:
    """An episode of a set that goes into a new one."""

    source: OpenedSet
    episode: EpisodeEntry
    number: int  # in the new set
    split: Split


def wordings(picks: Sequence[Pick]) -> list[list[str]]:
    """Of each episode what it was told; those that are the same in the one wording that is most usual."""
    told = [list(pick.episode.instructions or filter(None, [pick.episode.instruction])) for pick in picks]
    usual = canonical(text for texts in told for text in texts)
    return [list(dict.fromkeys(usual[clean_prompt(text)] for text in texts)) for texts in told]


def recounted(picks: Sequence[Pick]) -> Contract:
    """The contract of these episodes.

    Raises:
        UserError: there are several sets, and no training episode whose numbers could be counted.
    """
    sets = list({id(pick.source): pick.source for pick in picks}.values())
    first = sets[0].shards.contract
    prompts = sorted({text for texts in wordings(picks) for text in texts} - {""})
    names = _aliases([one.shards.contract for one in sets])
    draft = first.model_copy(update={"prompts": tuple(prompts), "prompt_form": "plain", "aliases": names})
    train = StoredMotions([(pick.source.shards, pick.episode) for pick in picks if pick.split == "train"])
    if not train:
        if len(sets) > 1:
            what = "no training episode is among them, so their numbers have no ranges"
            raise UserError(what, sets[0].folder, "add one, or choose the held-out ones anew with --held-out SHARE")
        return draft  # counted in the set they come from, whose training episodes they are to be compared with
    slots: dict[str, Any] = sets[0].record.get("embodiment", {}).get("slots", {})
    keep = [name for name, slot in slots.items() if slot.get("quaternion") == "w_positive"]
    known = _with_joints(recorded(draft, train, keep=keep), [each.shards.contract.recorded for each in sets])
    return draft.model_copy(update={"quantiles": quantiles.quantiles(draft, train), "recorded": known})


def _aliases(contracts: Sequence[Contract]) -> Aliases | None:
    """The robot's own names, where all sets have the same; what one recorded and nobody looks at tells nothing."""
    own = [contract.aliases for contract in contracts]
    plain = [names and names.model_copy(update={"unused": ()}) for names in own]
    return own[0] if all(names == plain[0] for names in plain) else None


def _with_joints(found: Recorded, before: Sequence[Recorded | None]) -> Recorded:
    """Limits of joints are the widest of what the sets knew; none where one of them knew none."""
    limits = dict(found.limits)
    for name, own in found.limits.items():
        parts = [known.limits[name].joints if known and name in known.limits else None for known in before]
        widest = parts[0]
        for part in parts[1:]:
            widest = None if widest is None or part is None else widest.widened(part)
        if widest is not None:
            limits[name] = own.model_copy(update={"joints": widest})
    return found.model_copy(update={"limits": limits})
