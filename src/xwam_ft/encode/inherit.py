"""The quantiles of a run that starts from another: those the weights know, where the new recordings fit into them.

A network knows numbers as its contract normalises them, so a run that starts from it keeps the old range of a slot
where the new recordings go at most `REACH` times as far from its middle; otherwise the slot gets the new one, and what
was learned of it is a start that training must move. `init_quantiles` keeps or refits all. The half of all quaternions
that a pose is shown in goes with them: q and -q must not change places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xwam_ft.contract import Contract
from xwam_ft.conventions import action_slices, state_slices
from xwam_ft.limits import Recorded

if TYPE_CHECKING:
    from numpy import ndarray

    from xwam_ft.contract import Slot

Choice = Literal["auto", "keep", "refit"]
Stream = Literal["proprio", "action"]
REACH = 1.5
"""How far from an old range's middle new numbers may go, in halves of that range."""
ALIKE = 0.7
"""|cosine| of two quaternions that recordings are around, from which on they are the same one, up to its sign."""


@dataclass(frozen=True)
class SlotRange:
    """What became of one slot's quantiles.

    Args:
        number: the one that goes farthest; its old and new range in SI units.
        reach: how far it goes under the old range; 1 is that range itself.
        kept: the slot is normalised by its old range.
    """

    slot: str
    stream: Stream
    number: str
    old: tuple[float, float]
    new: tuple[float, float]
    reach: float
    kept: bool


def inherit(new: Contract, old: Contract, choice: Choice) -> tuple[Contract, list[SlotRange], list[str]]:
    """The contract of recordings whose network starts from one under `old`.

    Returns:
        `new` with the quantiles (and signs of quaternions) that were decided on; what became of every slot that both
        know in the same meaning; sentences.
    """
    values: dict[str, Any] = {}
    rows: list[SlotRange] = []
    for stream in ("proprio", "action"):
        ends = _ends(new, stream)
        before = _ends(old, stream)
        places, known = _places(new, stream), _places(old, stream)
        for slot in new.slots:
            there = next((one for one in old.slots if one.name == slot.name), None)
            if slot.name not in places or not slot.present or there is None or not _same(slot, there, stream, new, old):
                continue
            ours, theirs = places[slot.name], known[slot.name]
            row = _row(slot, stream, [end[..., ours] for end in ends], [end[..., theirs] for end in before], choice)
            rows.append(row)
            if row.kept:
                for end, kept in zip(ends, before, strict=True):
                    end[..., ours] = kept[..., theirs]
        values |= dict(zip(_names(new, stream), (_tuples(end) for end in ends), strict=True))
    quantiles = new.quantiles.model_copy(update=values)
    recorded, said = _recorded(new, old, choice)
    return new.model_copy(update={"quantiles": quantiles, "recorded": recorded}), rows, said


def sentences(rows: list[SlotRange], choice: Choice) -> list[str]:
    """What was decided, slot by slot."""
    why = {"auto": f"within {REACH:g} times their old range", "keep": "as init_quantiles says"}.get(choice, "")
    told: list[str] = []
    if kept := [f"{row.slot} ({row.stream})" for row in rows if row.kept]:
        told.append(f"quantiles kept, {why}: {', '.join(kept)}")
    for row in rows:
        if not row.kept:
            told.append(
                f"quantiles refitted: {row.slot} ({row.stream}), whose {row.number} was {_range(row.old)} and is "
                f"{_range(row.new)} now; what was learned of it is a start"
            )
    return told


def _row(slot: Slot, stream: Stream, new: list[ndarray], old: list[ndarray], choice: Choice) -> SlotRange:
    (low, high), (below, above) = new, old
    middle, half = (below + above) / 2, (above - below) / 2
    reach = np.maximum(np.abs(low - middle), np.abs(high - middle)) / half
    far = np.unravel_index(int(reach.argmax()), reach.shape)
    elements = slot.elements if stream == "proprio" else slot.action_elements
    return SlotRange(
        slot=slot.name,
        stream=stream,
        number=elements[int(far[-1])],
        old=(float(below[far]), float(above[far])),
        new=(float(low[far]), float(high[far])),
        reach=float(reach[far]),
        kept=choice == "keep" or (choice == "auto" and float(reach[far]) <= REACH),
    )


def _same(slot: Slot, there: Slot, stream: Stream, new: Contract, old: Contract) -> bool:
    """Whether a slot's numbers mean the same in both."""
    if (slot.elements, slot.units, there.present) != (there.elements, there.units, True):
        return False
    if stream == "proprio":
        return True
    steps = [(one.action_scaling, one.action_scaling == "step" and one.timing.action_steps) for one in (new, old)]
    meaning = [(one.convention, one.command_units, one.action_elements) for one in (slot, there)]
    return steps[0] == steps[1] and meaning[0] == meaning[1]


def _names(contract: Contract, stream: Stream) -> tuple[str, ...]:
    by_step = stream == "action" and contract.action_scaling == "step"
    names = [stream, *(["action_step"] if by_step else [])]
    return tuple(f"{name}_{end}" for name in names[-1:] for end in ("low", "high"))


def _ends(contract: Contract, stream: Stream) -> tuple[ndarray, ...]:
    """Lower and upper ends, of each step where each has its scale."""
    return tuple(np.array(getattr(contract.quantiles, name)) for name in _names(contract, stream))


def _places(contract: Contract, stream: Stream) -> dict[str, slice]:
    return state_slices(contract) if stream == "proprio" else action_slices(contract)


def _tuples(ends: ndarray) -> tuple[Any, ...]:
    return tuple(map(tuple, ends.tolist())) if ends.ndim == 2 else tuple(ends.tolist())


def _recorded(new: Contract, old: Contract, choice: Choice) -> tuple[Recorded | None, list[str]]:
    """What the new recordings say, with the old halves of quaternions where they are of the same orientation."""
    if choice == "refit" or old.recorded is None:
        return new.recorded, []
    shown = dict(new.recorded.hemispheres) if new.recorded else {}
    said: list[str] = []
    for slot in (slot.name for slot in new.slots if slot.kind == "pose" and slot.present):
        was, now = old.recorded.hemispheres.get(slot), shown.get(slot)
        if was == now or not any(one.name == slot and one.present for one in old.slots):
            continue
        alike = was is not None and (now is None or abs(float(np.dot(was, now))) >= ALIKE)
        if was is not None and (alike or choice == "keep"):
            shown[slot] = was
        elif was is None and choice == "keep":
            del shown[slot]
        else:
            said.append(f"quaternions of {slot}: shown with another sign than the weights know; a start")
    found = new.recorded or Recorded()
    return found.model_copy(update={"hemispheres": shown}), said


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3g}..{ends[1]:.3g}"
