"""Answers that take time: what a robot does from the moment it looks until the chunk it asked for is there.

It may hold still at its last command; or go on with the chunk under way, and switch to the new one at the command that
is due by then, whether that fits or not; or tell the policy which commands it goes on with, so that the new chunk
begins with them (a prefix, real-time chunking). Time is counted in commands, as a simulator steps; a robot's delay is
the seconds of an answer over `contract.timing.action_period`, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import UserError, listed

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.observation import Commands
    from xwam_ft.policy.policy import Policy

Meanwhile: TypeAlias = Literal["hold", "switch", "prefix"]
MEANWHILE: tuple[Meanwhile, ...] = ("hold", "switch", "prefix")


@dataclass(frozen=True)
class LateAnswers:
    """`delay` commands pass until an answer is there; `meanwhile` is what the robot does until then."""

    delay: int = 0
    meanwhile: Meanwhile = "hold"

    @property
    def holds(self) -> bool:
        return self.delay > 0 and self.meanwhile == "hold"

    @property
    def overlaps(self) -> bool:
        """Whether chunks overlap: the last commands of one are executed while the next is computed."""
        return self.delay > 0 and self.meanwhile != "hold"

    @property
    def tells(self) -> bool:
        """Whether the policy is told of them."""
        return self.delay > 0 and self.meanwhile == "prefix"


AT_ONCE = LateAnswers()


def read_late(delay: int, meanwhile: str | None, policy: Policy, execute: int) -> LateAnswers:
    """What `--answer-delay` and `--meanwhile` ask for.

    Args:
        execute: commands between two looks, the delay apart where the robot holds still.

    Raises:
        UserError: an unknown way, or one that this policy or these chunks do not allow.
    """
    steps = policy.contract.timing.action_steps
    if meanwhile is not None and meanwhile not in MEANWHILE:
        raise UserError(f"is {meanwhile!r}", "--meanwhile", f"give {listed(MEANWHILE)}")
    if meanwhile is not None and delay == 0:
        raise UserError("changes nothing: answers come at once", "--meanwhile", "give --answer-delay too")
    late = LateAnswers(delay, meanwhile or "hold")  # pyright: ignore[reportArgumentType]
    if late.overlaps and not delay <= execute <= steps - delay:
        raise UserError(
            f"is {delay}, and of chunks of {steps} commands {execute} are executed before the next look",
            "--answer-delay",
            f"give a smaller one, or --execute from {delay} to {steps - delay}"
            if 2 * delay <= steps
            else f"give at most {steps // 2}, half a chunk",
        )
    if late.tells and policy.action_prefix < delay:
        trained = f"up to {policy.action_prefix}" if policy.action_prefix else "none"
        raise UserError(
            f"asks for chunks that go on from {delay} commands, and this bundle was trained with {trained}",
            "--meanwhile prefix",
            "train with noise.action_prefix.max as large as the delay, or give hold or switch",
        )
    if late.tells and any(slot.convention == "delta_to_state" and slot.present for slot in policy.contract.slots):
        raise UserError(
            "gives commands ahead, and this bundle's are changes of states still to be measured",
            "--meanwhile prefix",
            "give hold or switch",
        )
    return late


def under_way(before: Commands, execute: int, delay: int) -> Float[ndarray, "k q"]:
    """The commands of a chunk that are still executed while the next is computed."""
    return before.table[execute : execute + delay]


def as_prefix(contract: Contract, table: Float[ndarray, "k q"], state: Float[ndarray, " p"]) -> Float[ndarray, "k da"]:
    """Absolute commands as the normalised actions they are, seen from the state observed now."""
    return conventions.normalise_action(contract, conventions.encode_actions(contract, table, state))


def joined(before: Commands, after: Commands, execute: int, delay: int) -> Commands:
    """What the robot is told from its look on: `delay` commands of the chunk before, then those of the new one.

    Only `table` and `slots` are of both.
    """

    def both(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.concatenate([old[execute : execute + delay], new[delay:]])

    slots = {name: both(before.slots[name], table) for name, table in after.slots.items()}
    return replace(after, table=both(before.table, after.table), slots=slots)
