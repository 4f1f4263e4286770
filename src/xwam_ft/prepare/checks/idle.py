"""Where a robot stands still: a start that lasts longer than a chunk teaches a policy to stand there for ever.

It answers the first observation with a chunk of standing still, and sees the same observation again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.quantiles import Motion

MOVES = 0.02  # of a number's range over the recordings, at least
LEAST = {"m": 0.002, "rad": 0.002}  # which a still arm's encoders do not leave
LEAST_ELSE = 0.02
TURNS = 0.01  # of a quaternion's numbers: about a degree
OFTEN = 0.3  # of the episodes, from which it is what a policy learns of a start


def check_idle_starts(contract: Contract, motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Episodes that stand still for longer than a chunk of actions before anything moves, where they are many."""
    timing, bounds = contract.timing, stillness(contract)
    chunk = timing.action_steps * timing.action_skip
    waits: dict[int, int] = {}
    for number, motion in motions.items():
        moved = bounds.left(motion.state, motion.command)
        first = int(moved.argmax())
        if moved.any() and first >= chunk:  # one that never moves is told elsewhere
            waits[number] = first
    if len(waits) < OFTEN * len(motions):
        return {}
    seconds = chunk / timing.fps
    return {
        number: [
            Finding(
                "idle-start",
                "warning",
                f"nothing moves for the first {frames / timing.fps:.1f} s, and a chunk of actions lasts {seconds:.2g} "
                "s: a policy answers such a start with standing still, and sees it again",
                frame=0,
            )
        ]
        for number, frames in waits.items()
    }


class Stillness:
    """How far each number may go while the robot stands still; `inf` where it says nothing.

    Args:
        state, command: [P] and [Q].
    """

    def __init__(self, state: Float[ndarray, " p"], command: Float[ndarray, " q"]) -> None:
        self.state, self.command = state, command

    def left(self, state: Float[ndarray, "f p"], command: Float[ndarray, "f q"]) -> Bool[ndarray, " f"]:
        """In which frames state or command is not where it was in the first."""
        moved = (np.abs(state - state[0]) > self.state).any(axis=1)
        return np.asarray(moved | (np.abs(command - command[0]) > self.command).any(axis=1))


def stillness(contract: Contract) -> Stillness:
    """The bounds of a contract: of commanded slots that the robot has, by the ranges of its recordings."""
    scale = contract.quantiles
    states, commands = conventions.state_slices(contract), conventions.command_slices(contract)
    state, command = np.full(contract.state_dim, np.inf), np.full(contract.command_dim, np.inf)
    for slot in contract.slots:
        if not slot.present or not slot.commanded:
            continue
        at = states[slot.name]
        ranges = np.array(scale.proprio_high[at]) - np.array(scale.proprio_low[at])
        state[at] = _bounds(slot, ranges, slot.units)
        own = commands[slot.name]
        if not slot.for_controller and slot.command_units in (None, slot.units):
            command[own] = state[at]
        elif slot.convention == "absolute":  # another quantity, an effort say
            at = conventions.action_slices(contract)[slot.name]
            ranges = np.array(scale.action_high[at]) - np.array(scale.action_low[at])
            command[own] = _bounds(slot, ranges, slot.command_units or slot.units)
    return Stillness(state, command)


def _bounds(slot: Slot, ranges: Float[ndarray, " n"], units: tuple[str, ...]) -> Float[ndarray, " n"]:
    found = np.maximum(MOVES * ranges, [LEAST.get(unit, LEAST_ELSE) for unit in units])
    if slot.kind == "pose":
        found[3:] = TURNS
    return found
