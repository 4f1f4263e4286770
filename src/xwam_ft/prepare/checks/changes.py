"""Commands that are read as changes, against how far the states went.

Over half a second the changes that were told, summed, are about how far the state goes: a controller that lags or gives
way leaves some of them, and none doubles them. A unit, a scale of controller inputs, a speed in place of a step, an
inverted or exchanged axis and a wrong frame do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import poses
from xwam_ft.conventions import slot_columns
from xwam_ft.errors import listed
from xwam_ft.prepare.action_semantics import guess_actions
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.quantiles import Motion

SECONDS, LEAST = 0.5, 5  # what is summed, at least so many frames of it
ENOUGH = 50  # such sums, below which nothing is told
MOVES = {"m": 0.01, "rad": 0.05}  # spread of how far a number goes in that time, below which it is noise
GOES = (0.12, 2.5)  # of what is told: a soft controller does less by far, none does more
NEVER = 30.0  # nor any controller a thirtieth
WITH, ELSEWHERE = 0.6, 0.8  # correlation of what belongs together, and of what goes by another's changes
POSITION, TURN = ("x", "y", "z"), ("rx", "ry", "rz")


def check_changes(plans: Sequence[SlotPlan], motions: Mapping[int, Motion], fps: float) -> dict[int, list[Finding]]:
    """Findings about slots whose recorded commands are changes; each is true of all episodes."""
    found: dict[int, list[Finding]] = {}
    for plan, (state, command) in zip(plans, slot_columns([plan.slot for plan in plans]), strict=True):
        slot = plan.slot
        if plan.delta is None or not slot.present or slot.kind not in ("pose", "joints"):
            continue
        pairs = [(motion.state[:, state], motion.command[:, command]) for motion in motions.values()]
        along = plan.delta.to == "command"
        if (wrong := _judge(slot, pairs, along=along, window=max(LEAST, round(SECONDS * fps)))) is not None:
            certain, said = wrong
            text = f"the recorded changes of {slot.name!r} are not how its state goes: {said}"
            finding = Finding("wrong-changes", "error" if certain else "warning", text, slot.name)
            for number in motions:
                found.setdefault(number, []).append(finding)
    return found


def _judge(
    slot: Slot, pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, along: bool, window: int
) -> tuple[bool, str] | None:
    """Whether it is certain, and what is wrong in words; None where nothing is."""
    told: list[np.ndarray] = []
    went: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    for state, command in pairs:
        before = np.concatenate([state[:1], command[:-1]]) if along else state
        change = _difference(slot, command, before)
        steps.append(change)
        if len(state) > window:
            sums = np.concatenate([np.zeros((1, change.shape[1])), np.cumsum(change, axis=0)])
            told.append((sums[window:] - sums[:-window])[: len(state) - window])
            went.append(_difference(slot, state[window:], state[:-window]))
    if sum(len(part) for part in told) < ENOUGH:
        return None
    width = 3 if slot.kind == "pose" else slot.state_width
    guess = guess_actions([state[:, :width] for state, _ in pairs], [change[:, :width] for change in steps])
    if guess.kind in ("target", "next_state", "copy") and guess.sure == "sure":
        return True, f"they are targets, as `command: recorded` takes them ({guess.why})"
    names = [*POSITION, *TURN] if slot.kind == "pose" else list(slot.elements)
    units = ["m"] * 3 + ["rad"] * 3 if slot.kind == "pose" else list(slot.units)
    parts = [slice(0, 3), slice(3, 6)] if slot.kind == "pose" else [slice(0, len(names))]
    x, y = np.concatenate(told), np.concatenate(went)
    wrong = [_part(x[:, part], y[:, part], names[part], units[part]) for part in parts]
    said = [one for one in wrong if one is not None]
    return (any(certain for certain, _ in said), "; ".join(text for _, text in said)) if said else None


def _difference(slot: Slot, later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return poses.pose_difference(later, earlier) if slot.kind == "pose" else later - earlier


def _part(
    told: Float[ndarray, "n c"], went: Float[ndarray, "n c"], names: Sequence[str], units: Sequence[str]
) -> tuple[bool, str] | None:
    """The same of numbers that go together: one factor, and each by its own changes."""
    least = np.array([MOVES.get(unit, np.inf) for unit in units])
    moves = np.flatnonzero((went.std(axis=0) > least) & (told.std(axis=0) > 1e-9))
    if not len(moves):
        return None
    told, went, names = told[:, moves], went[:, moves], [names[i] for i in moves.tolist()]
    together = np.atleast_2d(np.corrcoef(told.T, went.T)[: len(moves), len(moves) :])
    own = np.diagonal(together)
    inverted = [names[i] for i in range(len(moves)) if own[i] < -WITH]
    if inverted:
        return False, f"{listed(inverted)} {'goes' if len(inverted) == 1 else 'go'} the other way"
    other = [int(np.abs(column).argmax()) for column in together.T]  # whose changes each state follows most
    moved = [
        f"{names[i]} goes by the changes of {names[other[i]]}"
        for i in range(len(moves))
        if other[i] != i and abs(own[i]) < WITH and abs(together[other[i], i]) > ELSEWHERE
    ]
    if moved:
        return False, listed(moved, 3)
    sound = own > WITH
    if sound.any():
        factor = float((told * went)[:, sound].sum() / (told**2)[:, sound].sum())
    else:  # turns of degrees read as radians go around several times, and follow nothing
        factor = float(np.median(went.std(axis=0) / told.std(axis=0)))
        factor = min(factor, 1.0)
    if GOES[0] < factor < GOES[1]:
        return None
    return not 1 / NEVER < factor < NEVER, f"{listed(list(names), 7)} go {factor:.2g} times as far as they say"
