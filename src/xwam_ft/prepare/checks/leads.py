"""Commands against the states that follow them, in time and in place.

A state follows its command some frames later. The lead is told by the shift, of up to `LEADS` frames either way, at
which the two differ least once a constant is taken out; below 0 the commands come after the states, as in recordings
that stored what was reached, or whose rows were shifted. The constant is what the robot would move by at every command.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from xwam_ft.conventions import slot_columns
from xwam_ft.errors import listed
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.quantiles import Motion

LEADS = 15
FRAMES = 3 * LEADS  # of an episode, below which little is left to compare
MOVES = 0.05  # m or rad: what covers less has no lead
FITS = 0.2  # of a state's variance: what commands may differ by at their lead
CLEARLY = 0.5  # of what commands differ by at any lead from 0 on
BESIDE = {"rad": 0.2, "m": 0.08}  # more than an arm sags, or a controller lags
STEADY = 0.25  # of it, by which it may vary
TURNED = 0.5  # rad, of a pose
FULL = 0.3  # rad around a full turn


def check_leads(plans: Sequence[SlotPlan], motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Episodes whose recorded targets come after the states, or stand beside them; arms alone, in the state's unit."""
    found: dict[int, list[Finding]] = {}
    for plan, (state, command) in zip(plans, slot_columns([plan.slot for plan in plans]), strict=True):
        slot = plan.slot
        recorded = slot.present and slot.commanded and slot.command_from == "recorded" and plan.delta is None
        if not recorded or slot.kind not in ("pose", "joints") or slot.state_width != slot.command_width:
            continue
        if slot.command_units not in (None, slot.units):
            continue
        for number, motion in motions.items():
            pair = _pair(slot, motion.state[:, state], motion.command[:, command])
            if pair is None:
                continue
            if pair.lead < 0:
                text = (
                    f"the commands of {slot.name!r} come {-pair.lead} frame{'s' if pair.lead < -1 else ''} after its "
                    "states: they say where it was, not where it shall go"
                )
                found.setdefault(number, []).append(Finding("late-commands", "warning", text, slot.name))
            if beside := _beside(slot, pair):
                text = f"the commands of {slot.name!r} stand beside the states that follow them: {beside}"
                found.setdefault(number, []).append(Finding("offset-commands", "warning", text, slot.name))
    return found


@dataclass(frozen=True)
class _Pair:
    """States and commands [F, n] that belong together, how many frames commands are ahead, and which numbers follow."""

    state: Float[ndarray, "f n"]
    command: Float[ndarray, "f n"]
    lead: int
    follows: ndarray  # [w] booleans


def _pair(slot: Slot, state: np.ndarray, command: np.ndarray) -> _Pair | None:
    """None where nothing moves, or nothing follows."""
    width = 3 if slot.kind == "pose" else slot.state_width
    s, c = state[:, :width], command[:, :width]
    moves = np.minimum(np.ptp(s, axis=0), np.ptp(c, axis=0)) > MOVES
    if len(s) < FRAMES or not moves.any():
        return None
    leads = range(-LEADS, LEADS + 1)
    apart = np.array([_apart(*_aligned(s, c, lead)) for lead in leads]) / np.maximum(s.var(axis=0), 1e-12)
    whole = apart[:, moves].mean(axis=1)
    lead = int(whole.argmin()) - LEADS
    if lead < 0 and whole.min() > CLEARLY * whole[LEADS:].min():
        lead = int(whole[LEADS:].argmin())
    if whole[lead + LEADS] > FITS:
        return None
    return _Pair(*_aligned(state, command, lead), lead, moves & (apart[lead + LEADS] < FITS))


def _aligned(state: np.ndarray, command: np.ndarray, lead: int) -> tuple[np.ndarray, np.ndarray]:
    """States, and the commands of `lead` frames before."""
    if lead >= 0:
        return state[lead:], command[: len(command) - lead]
    return state[:lead], command[-lead:]


def _apart(state: np.ndarray, command: np.ndarray) -> np.ndarray:
    off = command - state
    return np.mean((off - np.median(off, axis=0)) ** 2, axis=0)


def _beside(slot: Slot, pair: _Pair) -> str:
    """How far commands stand beside what follows them, in words; "" where they do not."""
    width = len(pair.follows)
    off = pair.command[:, :width] - pair.state[:, :width]
    usual = np.median(off, axis=0)
    around = np.median(np.abs(off - usual), axis=0)
    if slot.kind == "pose":
        said: list[str] = []
        size = float(np.linalg.norm(usual))
        if pair.follows.any() and size > BESIDE["m"] and float(np.linalg.norm(around)) < STEADY * size:
            said.append(f"by {size:.2g} m")
        turns = Rotation.from_quat(pair.state[:, 3:], scalar_first=True).inv() * Rotation.from_quat(
            pair.command[:, 3:], scalar_first=True
        )
        mean = turns.mean()
        if mean.magnitude() > TURNED and float(np.median((mean.inv() * turns).magnitude())) < STEADY * mean.magnitude():
            said.append(f"turned by {np.degrees(mean.magnitude()):.0f} degrees")
        return " and ".join(said)
    least = np.array([BESIDE.get(unit, np.inf) for unit in slot.units])
    beside = pair.follows & (np.abs(usual) > least) & (around < STEADY * np.abs(usual))
    turn = np.array([unit == "rad" for unit in slot.units]) & (np.abs(np.abs(usual) - 2 * np.pi) < FULL)
    said = [
        f"{slot.elements[i]} by {'a full turn' if turn[i] else f'{usual[i]:.2g} {slot.units[i]}'}"
        for i in np.flatnonzero(beside | turn)
    ]
    return listed(said, 4) if said else ""
