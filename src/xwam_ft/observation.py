"""The robot's side of the contract: what a robot reports -> model inputs, model actions -> what a robot is told.

An observation is a plain dict:
    {"images": {camera: uint8 [H, W, 3] RGB}, "state": {slot: numbers in the slot's `columns` order}, "prompt": str}
Slots computed from joints (`forward_kinematics`) or from several columns (`mean`, `max`, `norm`) take those columns and
are transformed here by the code that `prepare` uses. SI units: metres, radians. The robot's own names and units are
taken as well (aliases.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, poses
from xwam_ft.aliases import resolved
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.limits import clamp
from xwam_ft.pictures import resize_pictures, turn_pictures

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot

WHERE = "observation"
QUATERNION_SLACK = 0.05  # what a driver's rounding may do to a unit quaternion


@dataclass(frozen=True)
class EncodedObservation:
    """An observation in the model's terms, before the VAE."""

    pictures: UInt8[ndarray, "v h w 3"]  # resized to the contract's image, not yet cropped
    state: Float[ndarray, " p"]  # absolute, SI
    proprio: Float[ndarray, " p"]  # normalised
    prompt: str


@dataclass(frozen=True)
class Commands:
    """A chunk of robot commands, Ta steps `timing.action_period` seconds apart."""

    table: Float[ndarray, "ta q"]  # absolute commands in the contract's layout
    slots: dict[str, Float[ndarray, "ta n"]]  # what the robot takes: joints for a kinematic slot, else the command
    residual: dict[str, Float[ndarray, "ta 2"]] = field(default_factory=dict[str, Any])  # IK: metres, radians
    clamped: dict[str, int] = field(default_factory=dict[str, int])  # numbers brought inside the limits


def slot_state(slot: Slot, columns: Float[ndarray, "f n"]) -> Float[ndarray, "f w"]:
    """Reported columns of one slot -> its state: as is, by forward kinematics, or reduced to one number."""
    if slot.transform == "forward_kinematics":
        assert slot.chain is not None
        return poses.matrix_pose(slot.chain.forward(columns))
    if slot.transform == "mean":
        return columns.mean(axis=-1, keepdims=True)
    if slot.transform == "max":
        return columns.max(axis=-1, keepdims=True)
    if slot.transform == "norm":
        return np.linalg.norm(columns, axis=-1, keepdims=True)
    if slot.kind == "pose":
        quaternion = poses.canonical_quaternion(columns[..., 3:])
        return np.concatenate([columns[..., :3], quaternion], axis=-1)
    return columns


IMPOSSIBLE = 1e6
"""Of the normalised range -1..1: a state beyond it is refused. What is merely unlike the recordings is a warning."""


def encode(contract: Contract, observation: Mapping[str, Any]) -> EncodedObservation:
    """Check an observation against the contract and bring it into the model's form.

    Raises:
        UserError: a camera, slot or prompt is missing or unknown, or has another shape or type; each names the
            field, what came and what is expected.
    """
    observation = resolved(contract, observation)
    for key in ("images", "state", "prompt"):
        if key not in observation:
            raise UserError(f"has no {key!r}", WHERE, "give images, state and prompt")
    images, state = _mapping(observation, "images"), _mapping(observation, "state")
    prompt = observation["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"prompt is {prompt!r}, not an instruction", f"{WHERE}.prompt", "give the task in words")
    cameras = contract.camera_names
    _same_names("camera", images, cameras, f"{WHERE}.images")
    present = [slot for slot in contract.slots if slot.present]
    _same_names("slot", state, [slot.name for slot in present], f"{WHERE}.state")
    pictures = [
        turn_pictures(_picture(camera.name, images[camera.name]), camera.rotate, mirror=camera.mirror)
        for camera in contract.cameras
    ]
    resized = [resize_pictures(p[None], contract.image.height, contract.image.width)[0] for p in pictures]
    parts = [_state(slot, state[slot.name]) if slot.present else np.zeros(slot.state_width) for slot in contract.slots]
    vector = np.concatenate(parts)
    normalised = conventions.normalise_proprio(contract, vector)
    _require_possible(contract, vector, normalised)
    return EncodedObservation(np.stack(resized), vector, normalised, prompt.strip())


def _require_possible(contract: Contract, state: np.ndarray, normalised: np.ndarray) -> None:
    """Refuse numbers that no robot reports, before a network makes something that is not a number of them."""
    for name, place in conventions.state_slices(contract).items():
        slot = contract.slot(name)
        far = np.flatnonzero(np.abs(normalised[place]) > IMPOSSIBLE)
        if slot.present and len(far):
            number = int(far[0])
            raise UserError(
                f"{slot.elements[number]} is {state[place][number]:.4g}, {IMPOSSIBLE:g} times beyond what was recorded",
                f"{WHERE}.state.{name}",
                "send what the robot reports, in the contract's units",
            )


def decode(
    contract: Contract,
    action: Float[ndarray, "ta da"],
    state: Float[ndarray, " p"],
    observation: Mapping[str, Any] | None = None,
    states: Float[ndarray, "ta p"] | None = None,
    underway: int = 0,
) -> Commands:
    """Normalised actions -> commands, clamped to the contract's limits; every clamped number is counted.

    Speeds are bounded from one command to the next, an action period each, the first from the observed state. So a
    robot that stands outside its workspace is led back into it no faster than its speed allows. Joints of a kinematic
    slot are held in limits of their own after inverse kinematics; its residual says by how much the pose is missed.

    Args:
        action: the model's output, normalised.
        state: the absolute state the chunk starts from.
        observation: as reported; its joints seed the inverse kinematics of `forward_kinematics` slots.
        states: measured states along the chunk, needed by `delta_to_state`.
        underway: first commands that the robot executes already; speed is bounded from the last of them on.

    Raises:
        UserError: the action is not finite; nothing that could reach a robot comes out of it.
    """
    if not np.all(np.isfinite(action)):
        raise UserError("holds numbers that are not finite", "action", "do not run this model; evaluate it first")
    raw = conventions.denormalise_action(contract, np.asarray(action, dtype=np.float64))
    table = conventions.decode_actions(contract, raw, state, states)
    clamped = _clamp(contract, table, state, underway)
    slots: dict[str, np.ndarray] = {}
    residual: dict[str, np.ndarray] = {}
    for name, place in conventions.command_slices(contract).items():
        slot = contract.slot(name)
        if not slot.present:
            continue
        command = table[:, place]
        if slot.transform == "forward_kinematics" and observation is not None:
            assert slot.chain is not None
            seed = np.asarray(_mapping(observation, "state")[name], dtype=np.float64)
            targets = poses.pose_matrix(command)
            joints, residual[name] = slot.chain.inverse_path(targets, seed)
            limits = contract.limits(name)
            if limits is not None and limits.joints is not None:
                period = contract.timing.action_period
                bounded = clamp(joints, seed, limits.joints, period, pose=False, underway=underway)
                if moved := int(np.count_nonzero(bounded != joints)):
                    clamped[name] = clamped.get(name, 0) + moved
                    joints, residual[name] = bounded, _miss(slot.chain.forward(bounded), targets)
            slots[name] = joints
        elif slot.reduced:  # `expand: equal`
            count = len(slot.columns)
            slots[name] = np.repeat(command / (np.sqrt(count) if slot.transform == "norm" else 1.0), count, axis=1)
        else:
            slots[name] = command
    return Commands(table, slots, residual, clamped)


def _miss(reached: Float[ndarray, "ta 4 4"], targets: Float[ndarray, "ta 4 4"]) -> Float[ndarray, "ta 2"]:
    """Metres and radians between poses."""
    there, wanted = poses.matrix_pose(reached), poses.matrix_pose(targets)
    off = poses.pose_difference(wanted, there)
    return np.stack([np.linalg.norm(off[:, :3], axis=1), np.linalg.norm(off[:, 3:], axis=1)], axis=1)


def _clamp(contract: Contract, table: np.ndarray, state: np.ndarray, underway: int) -> dict[str, int]:
    """Bring `table` inside the limits in place; return how many numbers of each slot were moved."""
    counts: dict[str, int] = {}
    state_at = conventions.state_slices(contract)
    for name, place in conventions.command_slices(contract).items():
        slot = contract.slot(name)
        if (found := contract.limits(name)) is None:
            continue
        if not slot.present and found.low is None:
            continue
        start = np.asarray(state[state_at[name]], dtype=np.float64)
        used = found if slot.present else found.model_copy(update={"speed": None})
        period = contract.timing.action_period
        bounded = clamp(table[:, place], start, used, period, pose=slot.kind == "pose", underway=underway)
        if moved := int(np.count_nonzero(bounded != table[:, place])):
            counts[name] = moved
        table[:, place] = bounded
    return counts


def _mapping(observation: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value: object = observation[key]
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is a {type(value).__name__}", f"{WHERE}.{key}", "give a dict from name to array")
    return value  # pyright: ignore[reportUnknownVariableType]


def _same_names(what: str, given: Mapping[str, Any], expected: list[str], where: str) -> None:
    for name in expected:
        if name not in given:
            raise UserError(f"{what} {name!r} is missing (given: {listed(given)})", where, f"add {name!r}")
    for name in given:
        if name not in expected:
            hint = did_you_mean(str(name), expected)
            raise UserError(f"unknown {what} {name!r}{hint}", where, f"give exactly: {listed(expected, 50)}")


def _picture(name: str, value: Any) -> np.ndarray:
    try:
        picture = np.asarray(value)
    except (TypeError, ValueError):
        picture = np.empty(0, dtype=object)  # lists of unlike lengths
    if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise UserError(
            f"has shape {list(picture.shape)} and type {picture.dtype}", f"{WHERE}.images.{name}", _as_wanted(picture)
        )
    return picture


def _as_wanted(picture: np.ndarray) -> str:
    """How something that is no picture of ours becomes one, where that can be seen of it."""
    form = "give RGB pixels as uint8 [height, width, 3]"
    if picture.dtype.kind in "SUO":
        return f"{form}, decoded: of a JPEG or PNG, np.asarray(PIL.Image.open(file).convert('RGB'))"
    if 0 in picture.shape:
        return form
    if picture.ndim == 4 and len(picture) == 1:
        return f"{form}: one picture, without the dimension of a batch"
    if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 1):
        return f"{form}: a grey picture is another camera than the recordings' unless they were grey"
    if picture.ndim == 3 and picture.shape[-1] == 4:
        return f"{form}: without the fourth channel, and red first"
    if picture.ndim == 3 and picture.shape[0] == 3 and picture.shape[-1] != 3:
        form += ": channels last, picture.transpose(1, 2, 0)"
    if picture.dtype.kind == "f":
        least, most = float(picture.min()), float(picture.max())  # not a number is no range, and so told last
        if least >= 0 and most <= 1:
            return f"{form}; from 0 to 1 as here: (picture * 255).round().astype(np.uint8)"
        if least >= 0 and most <= 255:
            return f"{form}; from 0 to 255 as here: picture.round().astype(np.uint8)"
        return f"{form}; not scaled or normalised (here {least:.3g} to {most:.3g})"
    return form


def _state(slot: Slot, value: Any) -> np.ndarray:
    where = f"{WHERE}.state.{slot.name}"
    count = len(slot.columns)
    expected = f"give {count} number{'s' if count > 1 else ''}: {listed(slot.columns, 40)}"
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"is not numbers ({value!r:.60})", where, expected) from None
    if numbers.shape == () and len(slot.columns) == 1:
        numbers = numbers[None]
    if numbers.shape != (len(slot.columns),):
        raise UserError(f"has shape {list(numbers.shape)}", where, expected)
    if not np.all(np.isfinite(numbers)):
        raise UserError(f"holds {numbers[~np.isfinite(numbers)][0]}", where, "send finite numbers only")
    if slot.kind == "pose" and slot.transform == "identity":
        length = float(np.linalg.norm(numbers[3:]))
        if abs(length - 1.0) > QUATERNION_SLACK:
            raise UserError(f"has a quaternion of length {length:.3g}", where, "send a unit quaternion, w x y z")
    return slot_state(slot, numbers[None])[0]
