"""Quantiles against extremes: numbers that hardly move, and numbers that reach far beyond their normal range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions, quantiles
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xwam_ft.contract import Contract
    from xwam_ft.quantiles import Motion

SMALL = 10.0  # of the smallest range allowed (quantiles.FLOOR): an episode that covers less may hold noise alone
FAR = 4.0  # of the normalised range -1..1: how far a number may reach beyond the 1 % and 99 % quantiles
TURNS = ("dx", "dy", "dz", "rx", "ry", "rz")


def check_ranges(contract: Contract, train: Sequence[Motion]) -> list[Finding]:
    """Findings about the training episodes' proprio and actions, per number."""
    if not train:
        return []
    # As many numbers as the quantiles were made of, so that what is held does not grow with the recordings.
    stride = quantiles.starts_stride(train)
    states = [motion.state[::stride] for motion in train]
    chunks = [quantiles.chunk_actions(contract, [motion], stride=stride) for motion in train]
    scale = contract.quantiles
    found: list[Finding] = []
    for slot in contract.slots:
        if not slot.present:
            continue
        at = conventions.state_slices(contract)[slot.name]
        used = [i for i in range(slot.state_width) if slot.kind != "pose" or i < 3]
        names = [slot.elements[i] for i in used]
        columns = [[state[:, at.start + i] for state in states] for i in used]
        low, high = scale.proprio_low[at], scale.proprio_high[at]
        units = [slot.units[i] for i in used]
        found += _judge(slot.name, "state", names, columns, low, high, units)
        if slot.commanded:
            at = conventions.action_slices(contract)[slot.name]
            own = slot.command_units is not None and slot.action_width == 1  # another quantity than the state
            names = list(TURNS) if slot.kind == "pose" else ["command"] if own else list(slot.elements)
            units = ["m"] * 3 + ["rad"] * 3 if slot.kind == "pose" else list(slot.command_units or slot.units)
            columns = [[acts[mask[:, i] > 0, i] for acts, mask in chunks] for i in range(at.start, at.stop)]
            low, high = scale.action_low[at], scale.action_high[at]
            found += _judge(slot.name, "action", names, columns, low, high, units)
    return found


def _judge(
    slot: str,
    what: str,
    names: Sequence[str],
    columns: Sequence[Sequence[np.ndarray]],
    low: Sequence[float],
    high: Sequence[float],
    units: Sequence[str],
) -> list[Finding]:
    """Findings about one slot's states or actions; `columns` holds each number's values, an array an episode."""
    flat: list[str] = []
    small: list[str] = []
    far: list[str] = []
    for name, episodes, bottom, top, unit in zip(names, columns, low, high, units, strict=False):
        column = np.concatenate(episodes)
        if not len(column):
            continue
        covered = float(np.median([np.ptp(values) for values in episodes if len(values)]))
        floor = quantiles.FLOOR.get(unit, quantiles.FLOOR_ELSE)
        reach = float(np.abs(2 * (column - bottom) / (top - bottom) - 1).max())
        if top - bottom <= floor * (1 + 1e-9):
            flat.append(name)
        elif unit in quantiles.FLOOR and covered < SMALL * floor:
            small.append(f"{name} ({covered:.2g} {unit})")
        if reach > FAR:
            extreme = column[np.abs(column - (top + bottom) / 2).argmax()]
            far.append(f"{name} reaches {extreme:.3g} {unit if unit != '1' else ''}".strip() + f" ({reach:.0f})")
    found: list[Finding] = []
    if flat:
        text = f"the {what} of {slot!r} hardly moves in {', '.join(flat)}; its range is widened to the smallest allowed"
        found.append(Finding("near-constant", "note", text, f"{slot} {what}"))
    if len(small) > len(names) / 2:  # of most of its numbers: the slot as a whole holds still
        text = (
            f"the {what} of {slot!r} covers almost nothing in an episode, and normalising stretches its noise: "
            f"{', '.join(small)}"
        )
        found.append(Finding("near-constant", "warning", text, f"{slot} {what}"))
    if far:
        text = f"the {what} of {slot!r} reaches far beyond its 1 % and 99 % quantiles (-1 and 1): {', '.join(far)}"
        found.append(Finding("heavy-tails", "warning", text, f"{slot} {what}"))
    return found
