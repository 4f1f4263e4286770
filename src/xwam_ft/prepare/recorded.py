"""What the contract takes from the recordings beside quantiles: the signs of quaternions, and limits nobody stated.

quaternion  q and -q are one orientation. Where w of a pose comes near 0, w >= 0 makes the numbers jump though the
            tool hardly moves. There the sign is told by the orientation the recordings are around: the first
            principal axis of all quaternions. Elsewhere X-WAM's form, w >= 0, stays.
limits      0.1 % and 99.9 % quantiles of commands and states, widened by `MARGIN` of what is between them (by
            `FLOOR` at least); the 99.9 % quantile of how far a command is from the one before it and from the state
            it is given in, an action period each, times `FASTER`.
turns       the first principal axis of all quaternions, and the 99.9 % quantile of the angles of states from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions, poses
from xwam_ft.contract import Contract
from xwam_ft.errors import listed
from xwam_ft.limits import Limits, Recorded, Turns
from xwam_ft.quantiles import MAX_STATES, Motion

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from rich.console import Console

    from xwam_ft.contract import Slot

CLEAR = 0.1  # of w: 12 degrees away from where its sign turns
EXTREMES = (0.001, 0.999)
MARGIN = 0.1
FLOOR = {"m": 0.02, "rad": 0.05}
FLOOR_ELSE = 0.01
FASTER = 1.5
SLOWEST = {"m": 0.02, "rad": 0.1}  # a second
SLOWEST_ELSE = 0.05

Signs = dict[str, tuple[float, ...]]
Joints = Mapping[str, tuple[np.ndarray, np.ndarray]]  # of kinematic slots: joint states and commands, [F, J] each


def hemispheres(contract: Contract, episodes: Sequence[Motion], keep: Sequence[str] = ()) -> Signs:
    """By pose slot, the quaternion whose half of all the model is shown, where that is not w >= 0.

    Args:
        keep: slots that keep w >= 0 in any case.
    """
    found: Signs = {}
    for slot, place in zip(contract.slots, conventions.state_slices(contract).values(), strict=True):
        if slot.kind != "pose" or not slot.present or slot.name in keep:
            continue
        least, outer = 1.0, np.zeros((4, 4))
        for episode in episodes:
            turns = episode.state[:, place][:, 3:]
            least, outer = min(least, float(np.abs(turns[:, 0]).min(initial=1.0))), outer + turns.T @ turns
        if least >= CLEAR:
            continue
        found[slot.name] = _axis(outer)
    return found


def _axis(outer: Float[ndarray, "4 4"]) -> tuple[float, ...]:
    """The quaternion, of either sign, that those are around whose outer products were summed."""
    around = np.linalg.eigh(outer)[1][:, -1]
    around = np.round(around / np.linalg.norm(around), 3) + 0.0  # so that it is the same on every machine
    first = np.flatnonzero(around)[0]
    return tuple((around * np.sign(around[first])).tolist())


def turns(contract: Contract, episodes: Sequence[Motion]) -> dict[str, Turns]:
    """By pose slot, what orientations the states have."""
    found: dict[str, Turns] = {}
    for slot, place in zip(contract.slots, conventions.state_slices(contract).values(), strict=True):
        if slot.kind != "pose" or not slot.present or not episodes:
            continue
        states = np.concatenate([episode.state[:, place][:, 3:] for episode in episodes])
        around = _axis(states.T @ states)
        angles = poses.turned_from(states, around)
        most = float(np.quantile(angles, EXTREMES[1]))
        found[slot.name] = Turns(around=around, most=min(np.pi, float(f"{most:.3g}")))
    return found


def proposed_limits(
    contract: Contract, episodes: Sequence[Motion], joints: Callable[[int], Joints] | None = None
) -> dict[str, Limits]:
    """By commanded slot, how far and how fast its recorded commands go, and a margin.

    Args:
        joints: of the episode at a place in `episodes`, the joints of its kinematic slots.
    """
    stride = max(1, -(-sum(len(episode.state) for episode in episodes) // MAX_STATES))
    gathered: dict[str, list[_Part]] = {}
    state_at, command_at = conventions.state_slices(contract), conventions.command_slices(contract)
    for number, episode in enumerate(episodes):
        of_joints = joints(number) if joints is not None else {}
        for slot in contract.slots:
            if not slot.present or not slot.commanded or slot.for_controller:
                continue
            told = command_at[slot.name]
            known = np.asarray((episode.command_mask[:, told] > 0).all(axis=1))
            state, command = episode.state[:, state_at[slot.name]], episode.command[:, told]
            gathered.setdefault(slot.name, []).append(_part(slot, state, command, known, contract, stride))
            if slot.name in of_joints:
                of_state, of_command = of_joints[slot.name]
                part = _part_of_numbers(of_state, of_command, known, contract, stride)
                gathered.setdefault(f"{slot.name} joints", []).append(part)
    found: dict[str, Limits] = {}
    for slot in contract.slots:
        parts = gathered.get(slot.name)
        if parts is None:
            continue
        pose = slot.kind == "pose"
        units = ("m",) * 3 if pose else slot.command_units or slot.units
        own = slot.command_units is not None and slot.command_units != slot.units
        limits = _limits(parts, units, None if own else ("m", "rad") if pose else slot.units, contract)
        if f"{slot.name} joints" in gathered and slot.chain is not None:
            kinds = {joint.name: "m" if joint.type == "prismatic" else "rad" for joint in slot.chain.joints}
            units = tuple(kinds[name] for name in slot.chain.order)
            inner = _limits(gathered[f"{slot.name} joints"], units, units, contract)
            limits = limits.model_copy(update={"joints": inner})
        found[slot.name] = limits
    return found


_Part = tuple[np.ndarray, np.ndarray]  # values that are bounded, and steps of a period


def _part(
    slot: Slot, state: np.ndarray, command: np.ndarray, known: np.ndarray, contract: Contract, stride: int
) -> _Part:
    if slot.kind != "pose":
        same = slot.command_units in (None, slot.units)
        part = _part_of_numbers(state if same else None, command, known, contract, stride)
        # A gripper's commands may be an effort, and its states none that could be commanded.
        return part if slot.kind != "gripper" else (command[known][::stride], part[1])
    skip = contract.timing.action_skip
    steps: list[np.ndarray] = []
    for later, earlier in (
        (command[skip:][known[skip:]], command[:-skip][known[skip:]]),
        (command[known], state[known]),
    ):
        off = poses.pose_difference(later, earlier) if len(later) else np.zeros((0, 6))
        steps.append(np.stack([np.linalg.norm(off[:, :3], axis=1), np.linalg.norm(off[:, 3:], axis=1)], axis=1))
    values = np.concatenate([state[:, :3], command[known, :3]])
    return values[::stride], np.concatenate(steps)[::stride]


def _part_of_numbers(
    state: np.ndarray | None, command: np.ndarray, known: np.ndarray, contract: Contract, stride: int
) -> _Part:
    """`state`: None where commands are in other units."""
    skip = contract.timing.action_skip
    steps = [np.abs(command[skip:] - command[:-skip])[known[skip:]]]
    values = [command[known]]
    if state is not None:
        steps.append(np.abs(command - state)[known])
        values.append(state)
    return np.concatenate(values)[::stride], np.concatenate(steps)[::stride]


def _limits(parts: Sequence[_Part], units: Sequence[str], speeds: Sequence[str] | None, contract: Contract) -> Limits:
    """`speeds`: units of the steps; None: no bound of speed."""
    values, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
    low, high = np.quantile(values, EXTREMES, axis=0)
    room = np.maximum(MARGIN * (high - low), [FLOOR.get(unit, FLOOR_ELSE) for unit in units])
    speed = None
    if speeds is not None and len(steps):
        fastest = FASTER * np.quantile(steps, EXTREMES[1], axis=0) / contract.timing.action_period
        speed = _rounded(np.maximum(fastest, [SLOWEST.get(unit, SLOWEST_ELSE) for unit in speeds]))
    return Limits(low=_rounded(low - room), high=_rounded(high + room), speed=speed)


def _rounded(values: Float[ndarray, " n"]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def say_limits(contract: Contract, console: Console) -> None:
    """One line about the slots whose limits nobody stated."""
    known = contract.recorded.limits if contract.recorded else {}
    slots = [slot for slot in contract.slots if slot.name in known]
    taken = [slot.name for slot in slots if slot.limits is None or slot.limits != contract.limits(slot.name)]
    if taken:
        console.print(
            f"limits: commands of {listed(taken)} will be held in what was recorded, {MARGIN:.0%} wider and {FASTER:g} "
            "times as fast (report.html); state `limits` in the embodiment file for others",
            markup=False,
            soft_wrap=True,
        )


def recorded(
    contract: Contract,
    episodes: Sequence[Motion],
    joints: Callable[[int], Joints] | None = None,
    keep: Sequence[str] = (),
) -> Recorded:
    """What `episodes` (of the training split) say."""
    return Recorded(
        hemispheres=hemispheres(contract, episodes, keep),
        limits=proposed_limits(contract, episodes, joints),
        turns=turns(contract, episodes),
    )


def recorded_together(
    contract: Contract, parts: Sequence[Recorded | None], episodes: Sequence[Motion]
) -> Recorded | None:
    """Of several preparations of one robot: the widest limits, and signs of quaternions of all their episodes."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None  # one was prepared before there was any of this, and says nothing of where it went
    limits = known[0].limits
    for other in known[1:]:
        limits = {name: own.widened(other.limits[name]) for name, own in limits.items() if name in other.limits}
    turned = None if any(part.turns is None for part in known) else turns(contract, episodes)
    return Recorded(hemispheres=_together(contract, known, episodes), limits=limits, turns=turned)


def _together(contract: Contract, known: Sequence[Recorded], episodes: Sequence[Motion]) -> Signs:
    first = known[0].hemispheres
    if all(part.hemispheres == first for part in known):
        return first
    named = {name for part in known for name in part.hemispheres}
    poses = [slot.name for slot in contract.slots if slot.kind == "pose"]
    return hemispheres(contract, episodes, [name for name in poses if name not in named])
