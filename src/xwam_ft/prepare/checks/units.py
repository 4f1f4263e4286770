"""Stated units against the recorded numbers, in every episode by itself, and the ranges of episodes against each other.

What speaks against a unit is said once, in unit_guess.py, which `inspect` proposes units by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import listed
from xwam_ft.prepare.findings import Finding
from xwam_ft.prepare.unit_guess import doubt_units

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.embodiment.reading import Reading
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.prepare.episode import Table
    from xwam_ft.quantiles import Motion

FASTEST = {"m": 20.0, "rad": 100.0}  # a second: recorded changes beyond it are in another unit
FACTORS = {  # between two units, the least range in the larger one that is a motion, and what they are
    180 / np.pi: (0.02, "degrees beside radians"),
    1000.0: (0.01, "millimetres beside metres"),
    100.0: (0.5, "percent beside shares"),
}
LIKE = 2.2  # by how much a ratio of ranges may miss a factor: no two episodes are alike
MOST = 0.7  # of a slot's numbers, whose ratios must agree
CLOSE = 1.0  # rad, within which a joint usually is in most episodes, but for full turns
TURNED_BACK = "one posture has two numbers: add or subtract 2 pi in these episodes, in states and commands"
UNWRITTEN = "leave these episodes out, or record them again: nobody wrote these numbers"
FEW = 3  # numbers below which a ratio alone is a suspicion


def check_units(table: Table, plans: Sequence[SlotPlan], fps: float) -> list[Finding]:
    """Findings about the units of one episode's states and commands."""
    found: list[Finding] = []
    for plan in plans:
        for reading, whose in ((plan.state, "state"), (plan.command, "command")):
            if reading is None or plan.slot.kind not in ("pose", "joints"):
                continue
            if whose == "command" and plan.delta is not None:
                found += _changes(plan.slot, reading, table, fps)
            else:
                found += _positions(plan.slot, reading, table, whose)
    return found


def _positions(slot: Slot, reading: Reading, table: Table, whose: str) -> list[Finding]:
    found: list[Finding] = []
    values = np.stack([table.columns[name] for name in reading.columns], axis=1)
    recorded_pose = reading.rotation is not None
    for unit in dict.fromkeys(reading.units):
        at = [i for i, own in enumerate(reading.units) if own == unit]
        if unit == "1":
            continue
        kind = "joints" if not recorded_pose else "position" if unit in ("m", "mm") else "angles"
        if kind == "joints" and unit in ("m", "mm"):  # a lift, or a carriage on rails of any length
            continue
        doubt = doubt_units(kind, unit, values[:, at])
        if doubt is not None:
            key = "rotation_units" if kind == "angles" else "units"
            key = f"command_{key}" if whose == "command" else key
            text = f"the {whose} of {slot.name!r} is stated in {unit} (`{key}`), and its {doubt.why}"
            severity = "error" if doubt.certain else "warning"
            found.append(Finding("wrong-unit", severity, text, f"{slot.name} {whose} {kind}"))
    return found


def _changes(slot: Slot, reading: Reading, table: Table, fps: float) -> list[Finding]:
    """Recorded changes have no place to look wrong at, but a speed."""
    values = np.abs(np.stack([table.columns[name] for name in reading.columns], axis=1) * np.array(reading.scale))
    for unit, factor in (("m", 1e-3), ("rad", np.pi / 180)):
        si = {"m": ("m", "mm"), "rad": ("rad", "deg")}[unit]
        at = [i for i, own in enumerate(reading.units) if own in si]
        if not at:
            continue
        speed = float(np.quantile(values[:, at].max(axis=1), 0.95)) * fps
        if speed > FASTEST[unit]:
            text = (
                f"the recorded changes of {slot.name!r} are stated in {reading.units[at[0]]}, which makes {speed:.3g} "
                f"{unit}/s of them; divided by {1 / factor:.4g} they were {speed * factor:.2g}: they look like {si[1]}"
            )
            return [Finding("wrong-unit", "error", text, f"{slot.name} command")]
    return []


def check_episode_ranges(slots: Sequence[Slot], motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Episodes of which a slot's numbers are another multiple of what they are in the other episodes.

    A slot is told by where its numbers are and by how far they reach, both times the same factor: what an arm does in
    one episode and not in another changes the one or the other, and not all joints alike.
    """
    found: dict[int, list[Finding]] = {}
    if len(motions) < 2:
        return found
    numbers = list(motions)
    levels, spans = levels_and_spans([motions[n].state for n in numbers])
    at = 0
    for slot in slots:
        width = 3 if slot.kind == "pose" else slot.state_width
        columns = slice(at, at + width)
        at += slot.state_width
        if slot.present and slot.kind == "joints":
            _joints_apart(slot, {n: motion.state[:, at - width : at] for n, motion in motions.items()}, found)
        told: dict[int, Finding] = {}
        for row, number in enumerate(numbers if slot.present else []):
            others = np.arange(len(numbers)) != row
            usual = [np.median(part[others, columns], axis=0) for part in (levels, spans)]
            told_by = unit_factor((levels[row, columns], spans[row, columns]), (usual[0], usual[1]))
            if told_by is not None:
                many, what = told_by
                text = f"the state of {slot.name!r} is {many} what it is in the other episodes: {what}?"
                told[number] = Finding("other-range", "warning", text, slot.name)
        if len(told) * 2 < len(numbers) and width >= FEW:
            told = {n: Finding(f.check, "error", f.text, f.subject) for n, f in told.items()}
        for number, finding in told.items():
            found.setdefault(number, []).append(finding)
    return found


def _joints_apart(slot: Slot, states: Mapping[int, Float[ndarray, "f w"]], found: dict[int, list[Finding]]) -> None:
    """Joints that are a full turn beside what they are in the other episodes, or that nobody wrote, into `found`."""
    usual = np.array([np.median(state, axis=0) for state in states.values()])
    zero = np.array([(state == 0).all(axis=0) for state in states.values()])
    never = np.array([(state != 0).mean(axis=0) > MOST for state in states.values()])
    turns = np.round((usual - usual[0]) / (2 * np.pi))
    left = np.quantile(np.abs(usual - usual[0] - turns * 2 * np.pi), 0.9, axis=0)
    often = np.array([[np.sum(column == turn) for turn in column] for column in turns.T]).T  # [n, w]
    most = turns[often.argmax(axis=0), np.arange(len(left))]
    angles = (left < CLOSE) & np.array([unit == "rad" for unit in slot.units])
    for row, number in enumerate(states if len(states) >= FEW else []):
        for column in np.flatnonzero(angles & (turns[row] != most)):
            text = f"{slot.elements[column]!r} of {slot.name!r} is a full turn beside what it is in other episodes"
            found.setdefault(number, []).append(Finding("angle-wrap", "warning", text, slot.name, fix=TURNED_BACK))
        unread = [slot.elements[i] for i in np.flatnonzero(zero[row] & (never.mean(axis=0) > MOST - 0.2))]
        if unread:
            text = f"{listed(unread, 4)} of {slot.name!r}: exactly 0 throughout, and not in the other episodes"
            found.setdefault(number, []).append(Finding("failed-reads", "warning", text, slot.name, fix=UNWRITTEN))


def levels_and_spans(states: Iterable[Float[ndarray, "f p"]]) -> tuple[Float[ndarray, "n p"], Float[ndarray, "n p"]]:
    """Of each episode, where every number usually is at most, from 0, and how far it reaches."""
    both = [(np.quantile(np.abs(s), 0.9, axis=0), np.ptp(np.quantile(s, [0.05, 0.95], axis=0), axis=0)) for s in states]
    return np.array([level for level, _ in both]), np.array([span for _, span in both])


def unit_factor(
    one: tuple[Float[ndarray, " c"], Float[ndarray, " c"]], others: tuple[Float[ndarray, " c"], Float[ndarray, " c"]]
) -> tuple[str, str] | None:
    """In words, the factor between two units by which levels and spans differ from the others' ("about 57.3 times"),
    and what it says ("degrees beside radians"); None where there is none."""
    ratios = np.log(np.maximum(np.stack(one), 1e-12)) - np.log(np.maximum(np.stack(others), 1e-12))
    best: tuple[float, str, str] | None = None
    for factor, (least, what) in FACTORS.items():
        moving = np.minimum(one[1], others[1]) > least
        if moving.sum() < max(1, MOST * len(moving)):
            continue
        for sign, many in ((1, f"about {factor:.3g} times"), (-1, f"about 1/{factor:.3g} of")):
            off = np.abs(ratios[:, moving] - sign * np.log(factor))
            if np.mean((off < np.log(LIKE)).all(axis=0)) >= MOST and (best is None or off.mean() < best[0]):
                best = float(off.mean()), many, what
    return None if best is None else best[1:]
