"""Commands <-> the actions a model learns, and numbers <-> normalised numbers; one function each way.

Conventions (names as in the contract). Action i of a chunk that starts at t:
    relative_to_chunk_start   command at t+i relative to the state at t
    step_delta                command at t+i relative to the command before it (the first: to the state at t)
    delta_to_state            command at t+i relative to the *state at t+i*; decoding needs the measured states
    absolute                  the command itself
    xwam_robocasa_raw         the controller's input as recorded (its own units, never metres), the gripper negated;
                              only that controller can follow what is decoded
"Relative" for a pose: position difference in the base frame, and the rotation vector of R_command * R_reference^T
(base frame, X-WAM's form). For everything else: the difference. Quaternions are w x y z with w >= 0, but for those the
model is shown (`in_hemispheres`).

Arrays are numpy float64 inside; leading dimension Ta is time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.poses import canonical_quaternion, pose_apply, pose_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot

    Bound = tuple[float, ...] | ndarray


def state_slices(contract: Contract) -> dict[str, slice]:
    """Where each slot stands in a state vector [P]."""
    return _slices([(slot.name, slot.state_width) for slot in contract.slots])


def command_slices(contract: Contract) -> dict[str, slice]:
    """Where each commanded slot stands in a command vector [Q]."""
    return _slices([(slot.name, slot.command_width) for slot in contract.slots if slot.commanded])


def slot_columns(slots: Sequence[Slot]) -> list[tuple[slice, slice]]:
    """Of each slot its columns among the recorded states [F, p], and among the recorded commands [F, q]."""
    states = _slices([(slot.name, slot.state_width) for slot in slots])
    commands = _slices([(slot.name, slot.command_width) for slot in slots])
    return [(states[slot.name], commands[slot.name]) for slot in slots]


def action_slices(contract: Contract) -> dict[str, slice]:
    """Where each commanded slot stands in an action vector [Da]."""
    return _slices([(slot.name, slot.action_width) for slot in contract.slots if slot.commanded])


def encode_actions(
    contract: Contract,
    commands: Float[ndarray, "*c ta q"],
    state: Float[ndarray, "*c p"],
    states: Float[ndarray, "*c ta p"] | None = None,
) -> Float[ndarray, "*c ta da"]:
    """Absolute commands of a chunk -> actions in SI units (not normalised); or of many chunks at once.

    Args:
        commands: absolute commands at t + i * action_skip.
        state: the state at t.
        states: the states at t + i * action_skip; needed by `delta_to_state` alone.
    """
    return _convert(contract, commands, state, states, encode=True)


def decode_actions(
    contract: Contract,
    actions: Float[ndarray, "ta da"],
    state: Float[ndarray, " p"],
    states: Float[ndarray, "ta p"] | None = None,
) -> Float[ndarray, "ta q"]:
    """Actions in SI units -> absolute commands; the inverse of `encode_actions` given the same states.

    Raises:
        ValueError: a slot's convention is `delta_to_state` and `states` is None. Accumulating such actions instead
            would be wrong wherever a command is not the next state.
    """
    return _convert(contract, actions, state, states, encode=False)


def normalise_proprio(contract: Contract, state: Float[ndarray, "*n p"]) -> Float[ndarray, "*n p"]:
    """2 (x - q01) / (q99 - q01) - 1, without clipping; a quaternion is not scaled (its quantiles are -1 and 1), and has
    the sign that is nearest to its slot's hemisphere."""
    return _normalise(in_hemispheres(contract, state), contract.quantiles.proprio_low, contract.quantiles.proprio_high)


def normalise_action(contract: Contract, action: Float[ndarray, "*n da"]) -> Float[ndarray, "*n da"]:
    """2 (x - low) / (high - low) - 1, without clipping.

    Args:
        action: where the contract scales each step of a chunk, [.., k, Da]: the first k steps of chunks.
    """
    return _normalise(action, *_action_bounds(contract, action.shape))


def denormalise_action(contract: Contract, action: Float[ndarray, "*n da"]) -> Float[ndarray, "*n da"]:
    """Inverse of `normalise_action`."""
    return _denormalise(action, *_action_bounds(contract, np.shape(action)))


def _action_bounds(
    contract: Contract, shape: tuple[int, ...]
) -> tuple[Float[ndarray, "*k da"], Float[ndarray, "*k da"]]:
    known = contract.quantiles
    if contract.action_scaling == "chunk":
        return np.asarray(known.action_low), np.asarray(known.action_high)
    low, high = np.asarray(known.action_step_low), np.asarray(known.action_step_high)
    if len(shape) < 2 or shape[-2] > len(low):
        raise ValueError(
            f"actions of shape {shape} are not steps of a chunk of {len(low)}, and each step has its scale"
        )
    return low[: shape[-2]], high[: shape[-2]]


def denormalise_proprio(contract: Contract, proprio: Float[ndarray, "*n p"]) -> Float[ndarray, "*n p"]:
    """Back to SI; predicted quaternions are brought to unit length and w >= 0."""
    state = _denormalise(proprio, contract.quantiles.proprio_low, contract.quantiles.proprio_high)
    for slot, place in zip(contract.slots, state_slices(contract).values(), strict=True):
        if slot.kind == "pose" and slot.present:
            quaternion = slice(place.start + 3, place.stop)
            state[..., quaternion] = canonical_quaternion(state[..., quaternion])
    return state


def in_hemispheres(contract: Contract, state: Float[ndarray, "*n p"]) -> Float[ndarray, "*n p"]:
    """The state with every quaternion as the model is shown it: the one of q and -q nearer to what the recordings are
    around (`contract.recorded`), so that a path through w = 0 is continuous; w >= 0 where there is no such."""
    if contract.recorded is None or not contract.recorded.hemispheres:
        return state
    shown, places = np.array(state, dtype=np.float64), state_slices(contract)
    for name, around in contract.recorded.hemispheres.items():
        part = shown[..., places[name].start + 3 : places[name].stop]
        part *= np.where(part @ np.asarray(around) < 0, -1.0, 1.0)[..., None]
    return shown


def state_mask(contract: Contract) -> Float[ndarray, " p"]:
    """1 where a slot is present on this robot."""
    return np.concatenate([np.full(slot.state_width, float(slot.present)) for slot in contract.slots])


def action_mask(contract: Contract) -> Float[ndarray, " da"]:
    return np.concatenate([np.full(slot.action_width, float(slot.present)) for slot in contract.slots])


def command_to_action_mask(contract: Contract, mask: Float[ndarray, "*ta q"]) -> Float[ndarray, "*ta da"]:
    """A mask over command numbers -> one over action numbers (a pose counts when all its seven numbers do)."""
    columns: list[np.ndarray] = []
    places = command_slices(contract)
    for slot in contract.slots:
        if slot.commanded:
            part = mask[..., places[slot.name]]
            whole = slot.kind == "pose" and not slot.for_controller
            columns.append(np.repeat(part.min(axis=-1, keepdims=True), 6, axis=-1) if whole else part)
    return np.concatenate(columns, axis=-1) * action_mask(contract)


def _convert(
    contract: Contract, values: np.ndarray, state: np.ndarray, states: np.ndarray | None, *, encode: bool
) -> np.ndarray:
    source = command_slices(contract) if encode else action_slices(contract)
    state_at = state_slices(contract)
    parts: list[np.ndarray] = []
    for slot in contract.slots:
        if not slot.commanded:
            continue
        if not slot.present:
            parts.append(np.zeros((*values.shape[:-1], slot.action_width if encode else slot.command_width)))
            continue
        start = np.asarray(state[..., state_at[slot.name]], dtype=np.float64)
        along = None if states is None else np.asarray(states[..., state_at[slot.name]], dtype=np.float64)
        value = np.asarray(values[..., source[slot.name]], dtype=np.float64)
        parts.append(_encode_slot(slot, value, start, along) if encode else _decode_slot(slot, value, start, along))
    return np.concatenate(parts, axis=-1)


def _encode_slot(slot: Slot, commands: np.ndarray, start: np.ndarray, along: np.ndarray | None) -> np.ndarray:
    if slot.convention == "absolute":
        return commands
    if slot.for_controller:
        return _controller(slot, commands)
    if slot.convention == "step_delta":
        reference = np.concatenate([start[..., None, :], commands[..., :-1, :]], axis=-2)
    elif slot.convention == "delta_to_state":
        reference = _needed(slot, along)
    else:
        reference = np.broadcast_to(start[..., None, :], commands.shape)
    if slot.kind != "pose":
        return commands - reference
    flat = pose_difference(commands.reshape(-1, 7), reference.reshape(-1, 7))
    return flat.reshape(*commands.shape[:-1], 6)


def _decode_slot(slot: Slot, actions: np.ndarray, start: np.ndarray, along: np.ndarray | None) -> np.ndarray:
    if slot.convention == "absolute":
        return actions
    if slot.for_controller:
        return _controller(slot, actions)
    if slot.convention == "step_delta":
        if slot.kind != "pose":
            return start + np.cumsum(actions, axis=0)
        commands, reference = [], start[None]
        for action in actions:
            reference = pose_apply(action[None], reference)
            commands.append(reference[0])
        return np.stack(commands)
    width = slot.command_width
    reference = (
        _needed(slot, along) if slot.convention == "delta_to_state" else np.broadcast_to(start, (len(actions), width))
    )
    return pose_apply(actions, reference) if slot.kind == "pose" else reference + actions


def _controller(slot: Slot, values: np.ndarray) -> np.ndarray:
    """Both ways alike: RoboCasa's controller opens a gripper at -1, X-WAM's actions at 1."""
    return -values if slot.kind == "gripper" else values


def _needed(slot: Slot, along: np.ndarray | None) -> np.ndarray:
    if along is None:
        raise ValueError(f"slot {slot.name!r} uses delta_to_state, which needs the measured state at every step")
    return along


def _normalise(value: np.ndarray, low: Bound, high: Bound) -> np.ndarray:
    bottom, top = np.asarray(low), np.asarray(high)
    return 2.0 * (value - bottom) / (top - bottom) - 1.0


def _denormalise(value: np.ndarray, low: Bound, high: Bound) -> np.ndarray:
    bottom, top = np.asarray(low), np.asarray(high)
    return (np.asarray(value, dtype=np.float64) + 1.0) / 2.0 * (top - bottom) + bottom


def _slices(widths: list[tuple[str, int]]) -> dict[str, slice]:
    places: dict[str, slice] = {}
    at = 0
    for name, width in widths:
        places[name] = slice(at, at + width)
        at += width
    return places
