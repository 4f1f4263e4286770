"""What recorded actions are, told from the numbers: targets ahead of the state, the next state, changes, or a copy.

For each column c of the action and s of the state, over leads k of up to half a second:
    as a target    1 - sum (c[t] - s[t+k])^2 / sum (c - mean c)^2         near 1 where c is where the robot goes
    as a change    correlation^2 of c[t] and s[t+k] - s[t]                near 1 where c is how far it goes
Positions say little about changes and changes little about positions, so that the two tell each other apart. The median
over the columns that move decides; it is not sure where one of them says otherwise, or where only one moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray

Sure = Literal["sure", "likely", "unsure"]
LEAST = 50  # pairs below which nothing is sure
LEADS = 15
EXACT = 0.03  # of a step: what rounding leaves


@dataclass(frozen=True)
class ActionGuess:
    """`kind`: `target` (a commanded position), `next_state`, `copy` (of the present state), `delta`, or `unknown`."""

    kind: Literal["target", "next_state", "copy", "delta", "unknown"]
    sure: Sure
    lead: int  # frames by which the command is ahead of the state
    as_target: float
    as_change: float
    others: int = 0  # columns that say otherwise

    @property
    def why(self) -> str:
        but = f"; {self.others} column{'s say' if self.others > 1 else ' says'} otherwise" if self.others else ""
        return (
            f"as a target it explains {max(0.0, self.as_target):.0%} of itself, as a change {self.as_change:.0%}{but}"
        )


def guess_actions(states: Sequence[Float[ndarray, "f n"]], commands: Sequence[Float[ndarray, "f n"]]) -> ActionGuess:
    """What the columns of `commands` are to those of `states`, one array an episode, in the same units."""
    pairs = [(s, c) for s, c in zip(states, commands, strict=True) if len(s) > 3]
    alive = _alive(pairs)
    if not pairs or not alive.any():
        return ActionGuess("unknown", "unsure", 0, 0.0, 0.0)
    pairs = [(s[:, alive], c[:, alive]) for s, c in pairs]
    leads = range(min(LEADS, min(len(s) for s, _ in pairs) - 2) + 1)
    targets = [_as_target(pairs, k) for k in leads]
    changes = [_as_change(pairs, k) for k in leads if k > 0]
    target = [float(np.median(each)) for each in targets]
    change = [float(np.median(each)) for each in changes]
    lead = int(np.argmax(target))
    best, moved = float(target[lead]), float(max(change, default=0.0))
    step = _rms([s[1:] - s[:-1] for s, _ in pairs])
    copied = float(np.median(_rms([c - s for s, c in pairs]) / step)) < EXACT
    following = float(np.median(_rms([c[:-1] - s[1:] for s, c in pairs]) / step)) < EXACT
    count = sum(len(s) for s, _ in pairs)
    others = int(np.count_nonzero(targets[lead] < 0.5))  # columns that are no targets
    if copied or following:
        clear = others == 0 and alive.sum() > 1
        return ActionGuess(
            "copy" if copied else "next_state", _sure(count, clear), 0 if copied else 1, best, moved, others
        )
    if best > 0.5 and best >= moved - 0.1:
        return ActionGuess(
            "target", _sure(count, best > 0.9 and not others and alive.sum() > 1), lead, best, moved, others
        )
    if moved > 0.3 and best < 0.2:
        return ActionGuess("delta", _sure(count, moved > 0.5), 0, best, moved)
    return ActionGuess("unknown", "unsure", lead, best, moved)


def _sure(count: int, clear: bool) -> Sure:
    return "unsure" if count < LEAST else "sure" if clear else "likely"


def _alive(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Columns in which both the state and the command move."""
    if not pairs:
        return np.zeros(0, dtype=bool)
    states, commands = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return (states.std(axis=0) > 1e-5) & (commands.std(axis=0) > 1e-5)


def _as_target(pairs: list[tuple[np.ndarray, np.ndarray]], lead: int) -> np.ndarray:
    """By column, as in the module's head."""
    told = np.concatenate([c[: len(c) - lead] for _, c in pairs])
    reached = np.concatenate([s[lead:] for s, _ in pairs])
    total = ((told - told.mean(axis=0)) ** 2).sum(axis=0)
    return 1 - ((told - reached) ** 2).sum(axis=0) / np.maximum(total, 1e-18)


def _as_change(pairs: list[tuple[np.ndarray, np.ndarray]], lead: int) -> np.ndarray:
    told = np.concatenate([c[: len(c) - lead] for _, c in pairs])
    moved = np.concatenate([s[lead:] - s[: len(s) - lead] for s, _ in pairs])
    told, moved = told - told.mean(axis=0), moved - moved.mean(axis=0)
    scale = np.sqrt((told**2).sum(axis=0) * (moved**2).sum(axis=0))
    correlation = (told * moved).sum(axis=0) / np.maximum(scale, 1e-18)
    return np.maximum(correlation, 0.0) ** 2


def _rms(parts: list[np.ndarray]) -> np.ndarray:
    return np.sqrt(np.mean(np.concatenate(parts) ** 2, axis=0)) + 1e-12
