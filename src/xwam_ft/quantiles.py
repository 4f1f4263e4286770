"""The contract's quantiles: 1 % and 99 % of what is learned from, over the training episodes.

Rules (X-WAM's, where it has them):
    proprio     per number; quaternions are not normalised (-1, 1); single-number grippers in one unit share a range
    action      `absolute`: per number, single-number grippers pooled as above
                relative: symmetric, [-M, M] with M = max(|q01|, |q99|) per number; for grippers only steps that move
                (|change| >= 1 % of half the gripper's range) are counted
    floor       ranges narrower than 1e-3 m, 1e-3 rad or 1e-2 of anything else are widened to that around their
                middle, so that what never moves does not explode
    absent      slots the robot lacks: (-1, 1)
    by step     where the contract scales each step of a chunk (`action_scaling: step`): mean - std and mean + std of
                every number at every step, pooled and widened as above: mean 0 and spread 1
Actions are encoded chunks from every start of a clip with two real pictures, valid steps only; beyond `MAX_STARTS`
starts an even subset is taken, and so of states beyond `MAX_STATES`: what is held does not grow with the recordings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.contract import POSE_ACTION_ELEMENTS, Contract, Quantiles

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot, Timing

Ranges = tuple[tuple[float, ...], ...]

FLOOR = {"m": 1e-3, "rad": 1e-3}
FLOOR_ELSE = 1e-2
MOVES = 0.01
MAX_STARTS = 20_000
MAX_STATES = 1_000_000


@dataclass(frozen=True)
class Motion:
    """One episode's numbers: state [F, P], absolute command [F, Q] and its mask."""

    state: Float[ndarray, "f p"]
    command: Float[ndarray, "f q"]
    command_mask: Float[ndarray, "f q"]


def placeholder(contract_without: dict[str, object]) -> Contract:
    """A contract whose quantiles are all (-1, 1), to encode actions with before the quantiles are known."""
    draft = {**contract_without}
    slots: tuple[Slot, ...] = draft["slots"]  # pyright: ignore[reportAssignmentType]
    proprio = sum(slot.state_width for slot in slots)
    action = sum(slot.action_width for slot in slots)
    timing: Timing = draft["timing"]  # pyright: ignore[reportAssignmentType]
    by_step = draft.get("action_scaling") == "step"
    draft["quantiles"] = Quantiles(
        action_step_low=((-1.0,) * action,) * timing.action_steps if by_step else None,
        action_step_high=((1.0,) * action,) * timing.action_steps if by_step else None,
        proprio_low=(-1.0,) * proprio,
        proprio_high=(1.0,) * proprio,
        action_low=(-1.0,) * action,
        action_high=(1.0,) * action,
    )
    return Contract.model_validate(draft)


def chunk_actions(
    contract: Contract, episodes: Sequence[Motion], *, stride: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encoded actions [N, Da] of all clip starts, chunk after chunk, and their mask.

    Args:
        stride: between starts; None: such that there are at most about `MAX_STARTS`.
    """
    nothing = np.zeros((0, contract.action_dim))
    values, masks = [nothing], [nothing]
    for encoded, mask in encoded_chunks(contract, episodes, stride=stride):
        values.append(encoded.reshape(-1, contract.action_dim))
        masks.append(mask.reshape(-1, contract.action_dim))
    return np.concatenate(values), np.concatenate(masks)


def encoded_chunks(
    contract: Contract, episodes: Sequence[Motion], *, stride: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same as chunks: actions and mask [n, k, Da] of some starts of an episode, their first k steps."""
    timing = contract.timing
    stride = starts_stride(episodes) if stride is None else stride
    ahead = np.arange(timing.action_steps) * timing.action_skip
    for episode in episodes:
        frames = len(episode.state)
        starts = np.arange(0, max(1, frames - timing.frame_skip), stride)
        rows = np.minimum(starts[:, None] + ahead, frames - 1)
        # All at once, with steps past the episode's end that are cut off again: calls for each length took longer.
        encoded = conventions.encode_actions(
            contract, episode.command[rows], episode.state[starts], episode.state[rows]
        )
        mask = conventions.command_to_action_mask(contract, episode.command_mask[rows])
        steps = np.searchsorted(ahead, frames - starts)  # of a chunk, those before the episode's end
        for count in np.unique(steps)[::-1]:  # only the last few are shorter
            yield encoded[steps == count, :count], mask[steps == count, :count]


def starts_stride(episodes: Sequence[Motion]) -> int:
    """Which clip starts are taken: every n-th, for about `MAX_STARTS` of them."""
    return max(1, -(-sum(len(episode.state) for episode in episodes) // MAX_STARTS))


def quantiles(contract: Contract, episodes: Sequence[Motion]) -> Quantiles:
    """The quantiles of `episodes` (the training split), by the rules at the head of this file."""
    states = all_states(episodes)
    actions, masks = chunk_actions(contract, episodes)
    proprio_low, proprio_high = np.full(contract.state_dim, -1.0), np.full(contract.state_dim, 1.0)
    action_low, action_high = np.full(contract.action_dim, -1.0), np.full(contract.action_dim, 1.0)
    state_at, action_at = conventions.state_slices(contract), conventions.action_slices(contract)
    pools = gripper_pools(contract)
    for slot in contract.slots:
        if not slot.present:
            continue
        place = state_at[slot.name]
        for i, unit in enumerate(slot.units):
            if slot.kind == "pose" and i >= 3:
                continue
            column = states[:, place.start + i]
            if slot.name in pools:
                column = np.concatenate([states[:, state_at[name].start] for name in pools[slot.name]])
            proprio_low[place.start + i], proprio_high[place.start + i] = widen(*_q(column), unit)
    for slot in contract.slots:
        if not slot.present or not slot.commanded:
            continue
        place = action_at[slot.name]
        units = ("m",) * 3 + ("rad",) * 3 if slot.kind == "pose" else slot.command_units or slot.units
        for i, unit in enumerate(units):
            at = place.start + i
            used = pools.get(slot.name, [slot.name])
            used = [name for name in used if contract.slot(name).convention == slot.convention]
            columns = [
                actions[masks[:, action_at[name].start + i] > 0, action_at[name].start + i]
                for name in (used if slot.name in pools else [slot.name])
            ]
            values = np.concatenate(columns)
            if slot.convention == "absolute":
                low, high = _q(values)
            else:
                if slot.kind == "gripper":
                    half = (proprio_high - proprio_low)[state_at[slot.name].start + i] / 2.0
                    values = values[np.abs(values) / half >= MOVES]
                bound = max(abs(value) for value in _q(values))
                low, high = -bound, bound
            action_low[at], action_high[at] = widen(low, high, unit)
    of_steps: dict[str, tuple[tuple[float, ...], ...]] = {}
    if contract.action_scaling == "step":
        low, high = step_ranges(contract, episodes)
        of_steps = {"action_step_low": low, "action_step_high": high}
    return Quantiles(
        **of_steps,
        proprio_low=tuple(proprio_low.tolist()),
        proprio_high=tuple(proprio_high.tolist()),
        action_low=tuple(action_low.tolist()),
        action_high=tuple(action_high.tolist()),
    )


def all_states(episodes: Sequence[Motion]) -> np.ndarray:
    """All states [N, P]; of more than `MAX_STATES` every n-th, counted on from one episode to the next."""
    stride = max(1, -(-sum(len(episode.state) for episode in episodes) // MAX_STATES))
    found: list[np.ndarray] = []
    seen = 0
    for episode in episodes:
        found.append(episode.state[-seen % stride :: stride])
        seen += len(episode.state)
    return np.concatenate(found)


def widen(low: float, high: float, unit: str) -> tuple[float, float]:
    """At least the unit's floor wide, around the same middle."""
    floor = FLOOR.get(unit, FLOOR_ELSE)
    if high - low >= floor:
        return low, high
    middle = (low + high) / 2.0
    return middle - floor / 2.0, middle + floor / 2.0


def gripper_pools(contract: Contract) -> dict[str, list[str]]:
    """Single-number grippers by name -> all those in the same units, in order; they share their ranges."""
    grippers = [slot for slot in contract.slots if slot.kind == "gripper" and slot.present and slot.state_width == 1]
    return {
        slot.name: [
            other.name
            for other in grippers
            if (other.units, other.command_units, other.convention) == (slot.units, slot.command_units, slot.convention)
        ]
        for slot in grippers
    }


def _q(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return 0.0, 0.0
    low, high = np.quantile(values, [0.01, 0.99])
    return float(low), float(high)


def step_ranges(contract: Contract, episodes: Sequence[Motion]) -> tuple[Ranges, Ranges]:
    """A scale for every number of the action at every step of a chunk, mean - std and mean + std [Ta, Da].

    Valid actions only; absent slots and steps never recorded: -1 and 1.

    Actions relative to the chunk's start grow along it, so that under one range a number the first steps hardly differ
    from 0 and noise covers them; scaled by step, every number of every step has mean 0 and spread 1.
    """
    shape = (contract.timing.action_steps, contract.action_dim)
    count, total, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for encoded, mask in encoded_chunks(contract, episodes):
        steps = slice(0, encoded.shape[1])
        valid = mask > 0
        seen = np.where(valid, encoded, 0.0)
        count[steps] += valid.sum(axis=0)
        total[steps] += seen.sum(axis=0)
        squares[steps] += np.square(seen).sum(axis=0)
    low, high = np.full(shape, -1.0), np.full(shape, 1.0)
    places, pools = conventions.action_slices(contract), gripper_pools(contract)
    for slot in contract.slots:
        if not slot.present or not slot.commanded:
            continue
        units = ("m",) * 3 + ("rad",) * 3 if slot.kind == "pose" else slot.command_units or slot.units
        if slot.kind == "pose" and slot.for_controller:
            units = (slot.command_units or ("1",))[:1] * len(POSE_ACTION_ELEMENTS)
        for number, unit in enumerate(units):
            columns = [places[name].start + number for name in pools.get(slot.name, [slot.name])]
            for step in range(shape[0]):
                seen = count[step, columns].sum()
                if seen == 0:
                    continue
                mean = total[step, columns].sum() / seen
                spread = np.sqrt(max(squares[step, columns].sum() / seen - mean**2, 0.0))
                at = step, places[slot.name].start + number
                low[at], high[at] = widen(mean - spread, mean + spread, unit)
    return tuple(map(tuple, low.tolist())), tuple(map(tuple, high.tolist()))
