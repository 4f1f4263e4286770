"""What goes into a policy call beside the observation, and what comes out. No torch: a robot's side needs both.

A request is an observation (observation.py) that may bring `options`:
    {"images": ..., "state": ..., "prompt": ..., "options": {"seed": 3, "action_steps": 5, "guidance": 1.5, "chunk": 8}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, observation
from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.poses import canonical_quaternion, turned_from

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.observation import Commands, EncodedObservation

KEYS = ("images", "state", "prompt", "options")
OPTIONS = ("seed", "action_steps", "guidance", "chunk", "prefix", "future")
WHERE = "observation.options"
MAX_STEPS = 1000
ASPECT = 0.02  # by which a picture's width to height may differ from the recordings'
FAR = 3.0
"""A state this far out on the scale where 1 % and 99 % of the recordings lie at -1 and 1 gets a warning."""
TURNED = np.deg2rad(45)
"""A pose turned so much farther than any recorded one gets a warning."""


@dataclass(frozen=True)
class Options:
    """How one request is sampled; None: as the policy's settings say.

    Args:
        seed: of the noise.
        action_steps: denoising steps.
        guidance: of text; 0 = none.
        chunk: commands wanted, from the first on; None: all the model predicts.
        prefix: commands the robot is still going to execute [n, D], in the columns of `actions`, first the one due at
            the time of the observation; the chunk begins with them and goes on smoothly.
        future: of a policy whose future is optional: True denoises the actions together with the imagined frames,
            False leaves these out.
    """

    seed: int | None = None
    action_steps: int | None = None
    guidance: float | None = None
    chunk: int | None = None
    prefix: Float[ndarray, "n d"] | None = None
    future: bool | None = None


@dataclass(frozen=True)
class PolicyOutput:
    """A chunk of commands, `contract.timing.action_period` seconds a step.

    `commands` is what the robot takes; `action` is what the model said, normalised; `seconds` where the time went;
    `warnings` what about the observation looks unlike the recordings; `novelty` how unlike them each camera's picture
    is (novelty.py), where that is known; `seen` the observation in the model's terms.
    """

    commands: Commands
    action: Float[ndarray, "ta da"]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = field(default=())
    novelty: Mapping[str, float] = field(default_factory=dict[str, float])
    seen: EncodedObservation | None = None


def read_options(request: Mapping[str, Any], contract: Contract) -> Options:
    """The options of a request, every one checked.

    Raises:
        UserError: a key that is neither an observation's nor an option's, or a value out of range.
    """
    for key in request:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            raise UserError(f"unknown key {key!r:.60}{hint}", observation.WHERE, f"give only: {listed(KEYS)}")
    given: object = request.get("options")
    if given is None:
        return Options()
    if not isinstance(given, Mapping):
        raise UserError(f"is a {type(given).__name__}", WHERE, "give a dict")
    for key in given:
        if key not in OPTIONS:
            hint = did_you_mean(str(key), OPTIONS)
            raise UserError(f"unknown option {key!r:.60}{hint}", WHERE, f"give some of: {listed(OPTIONS)}")
    guidance: Any = given.get("guidance")
    if guidance is not None and not (_number(guidance) and 0 <= float(guidance) <= 100):
        raise UserError(f"is {guidance!r:.60}", f"{WHERE}.guidance", "give a number from 0 to 100")
    future: Any = given.get("future")
    if future is not None and not isinstance(future, bool | np.bool_):
        raise UserError(f"is {future!r:.60}", f"{WHERE}.future", "give true or false")
    return Options(
        seed=_whole(given, "seed", 0, 2**63 - 1),
        action_steps=_whole(given, "action_steps", 1, MAX_STEPS),
        guidance=None if guidance is None else float(guidance),
        chunk=_whole(given, "chunk", 1, contract.timing.action_steps),
        prefix=_prefix(given.get("prefix"), contract),
        future=None if future is None else bool(future),
    )


def implausible(
    contract: Contract,
    inputs: EncodedObservation,
    images: Mapping[str, Any] | None = None,
    reported: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """What about an observation is unlike anything recorded: degrees, millimetres, another order of a quaternion's
    numbers, a dead camera, another aspect, one camera's picture under two names.

    Args:
        images: the pictures as they came, before they were turned and resized.
        reported: the state as it came, of which joints are looked at that a pose is computed from.
    """
    found: list[str] = []
    for camera in contract.cameras:
        sides = contract.image.height, contract.image.width
        if images is None or np.asarray(images[camera.name]).shape[:2] == sides:
            continue  # brought to the model's size already
        height, width = np.asarray(images[camera.name]).shape[:2]
        if camera.rotate % 180:
            height, width = width, height
        recorded = camera.source_width, camera.source_height
        if abs(np.log((width / height) / (recorded[0] / recorded[1]))) > ASPECT:
            found.append(
                f"camera {camera.name!r} gives {width}x{height}; recordings were {recorded[0]}x{recorded[1]}, so what "
                "it shows is stretched otherwise: is it in the same mode, and turned as it was?"
            )
    for name, picture in zip(contract.camera_names, inputs.pictures, strict=True):
        if picture.min() == picture.max():
            found.append(f"camera {name!r} shows one colour only: is it covered, or not started?")
    found += _same_pictures(contract, inputs)
    low, high = (conventions.denormalise_proprio(contract, np.full(contract.state_dim, end)) for end in (-1.0, 1.0))
    for slot, place in zip(contract.slots, conventions.state_slices(contract).values(), strict=True):
        if not slot.present:
            continue
        numbers = range(place.start, place.start + 3 if slot.kind == "pose" else place.stop)
        for index in numbers:
            if abs(inputs.proprio[index]) > FAR:
                unit = slot.units[index - place.start]
                asked = "is it on that scale?" if unit == "1" else f"{unit}: is it in that unit?"
                found.append(
                    f"{slot.name}.{slot.elements[index - place.start]} is {inputs.state[index]:.4g}; recordings held "
                    f"{low[index]:.4g} to {high[index]:.4g}{': ' if unit == '1' else ' '}{asked}"
                )
        if reported is not None:
            found += _far_joints(contract, slot, np.asarray(reported[slot.name], dtype=np.float64))
        if slot.kind == "pose" and (said := _turned(contract, slot, inputs.state[place][3:])):
            found.append(said)
    return tuple(found)


def _far_joints(contract: Contract, slot: Slot, joints: Float[ndarray, " j"]) -> list[str]:
    """Of joints that a pose is computed from, those far out; as far as numbers of a state may be."""
    known = contract.recorded.limits.get(slot.name) if contract.recorded else None
    if slot.chain is None or known is None or known.joints is None or known.joints.low is None:
        return []
    low, high = np.array(known.joints.low), np.array(known.joints.high)
    far = np.abs(joints - (low + high) / 2) > FAR * (high - low) / 2
    return [
        f"{slot.name}: joint {slot.columns[index]} is {joints[index]:.4g}; recordings held {low[index]:.4g} to "
        f"{high[index]:.4g} rad: is it in that unit?"
        for index in np.flatnonzero(far)
    ]


def _same_pictures(contract: Contract, inputs: EncodedObservation) -> list[str]:
    """Two cameras never see the same to the last bit, unless they show one colour."""
    names, pictures = contract.camera_names, inputs.pictures
    return [
        f"cameras {names[one]!r} and {names[other]!r} give the very same picture: is one of them sent twice?"
        for one in range(len(names))
        for other in range(one + 1, len(names))
        if pictures[one].min() < pictures[one].max() and np.array_equal(pictures[one], pictures[other])
    ]


def _turned(contract: Contract, slot: Slot, quaternion: Float[ndarray, " 4"]) -> str | None:
    """What to say of an orientation far from all recorded ones, and how it would not be."""
    known = (contract.recorded.turns or {}).get(slot.name) if contract.recorded else None
    if known is None or (angle := float(turned_from(quaternion, known.around))) <= known.most + TURNED:
        return None
    asked = "is its quaternion w x y z, and of the recordings' base and tool frame?"
    if slot.transform == "identity" and turned_from(np.roll(quaternion, 1), known.around) <= known.most:
        asked = "read as x y z w it would be among them: send w x y z"
    elif slot.transform == "forward_kinematics":
        asked = "are its joints in order, with the recordings' signs and zeros?"
    return (
        f"{slot.name} is turned {np.rad2deg(angle):.0f} degrees from what the recordings are around, which went to "
        f"{np.rad2deg(known.most):.0f}: {asked}"
    )


def command_columns(contract: Contract) -> list[str]:
    """Names of the numbers of `actions`, "slot.number", in its order."""
    return [f"{slot.name}.{name}" for slot in _commanded(contract) for name in _command_names(slot)]


def command_units(contract: Contract) -> list[str]:
    """The units of `command_columns`: m, rad, 1 (none), or a controller's own."""
    return [unit for slot in _commanded(contract) for unit in units_of_commands(slot)]


def units_of_commands(slot: Slot) -> tuple[str, ...]:
    """Of what a robot is told of a slot, one a number."""
    if slot.chain is not None:
        kinds = {joint.name: "m" if joint.type == "prismatic" else "rad" for joint in slot.chain.joints}
        return tuple(kinds[name] for name in slot.chain.order)
    units = slot.command_units or slot.units
    return units * len(slot.columns) if slot.reduced else units


def command_table(contract: Contract, slots: Mapping[str, np.ndarray]) -> Float[ndarray, "ta d"]:
    """What the robot takes as one table, columns as `command_columns` names them."""
    return np.concatenate([slots[slot.name] for slot in _commanded(contract)], axis=1)


def command_rows(contract: Contract, table: Float[ndarray, "n d"]) -> Float[ndarray, "n q"]:
    """The inverse of `command_table`: what the robot takes -> absolute commands in the contract's layout."""
    parts: list[np.ndarray] = []
    at = 0
    for slot in contract.slots:
        if not slot.commanded:
            continue
        if not slot.present:
            parts.append(np.zeros((len(table), slot.command_width)))
            continue
        columns = table[:, at : (at := at + len(_command_names(slot)))]
        parts.append(columns if slot.for_controller else observation.slot_state(slot, columns))
    return np.concatenate(parts, axis=1)


def prefix_actions(
    contract: Contract, rows: Float[ndarray, "k d"] | None, inputs: EncodedObservation, longest: int
) -> Float[ndarray, "1 k da"] | None:
    """Commands still to be executed -> the normalised actions they are, seen from the state observed now; None: none.

    Args:
        longest: of the prefixes that the policy was trained with; 0: it was trained without.

    Raises:
        UserError: more than that, or commands that are no continuation of this state.
    """
    if rows is None or len(rows) == 0:
        return None
    where = f"{WHERE}.prefix"
    if not longest:
        raise UserError(
            "was given, and this bundle was trained without action prefixes",
            where,
            "leave it out and execute chunks one after the other, or train with noise.action_prefix",
        )
    if len(rows) > longest:
        what = f"has {len(rows)} commands, and this bundle was trained with up to {longest}"
        raise UserError(what, where, "ask earlier, or with fewer commands left")
    actions = conventions.encode_actions(contract, command_rows(contract, rows), inputs.state)
    normalised = conventions.normalise_action(contract, actions)
    reach = float(np.abs(normalised).max(initial=0.0))
    if reach > FAR:
        what = f"asks for {reach:.3g} times the largest recorded change from the state observed now"
        raise UserError(what, where, "give the commands of the chunk under way, in its units and layout")
    return normalised[None]


def example_observation(contract: Contract, prompt: str) -> dict[str, Any]:
    """An observation that fits the contract and looks like none recorded: ramps for pictures, mid-range states."""
    image = contract.image
    ramp = np.broadcast_to(np.linspace(0, 255, image.width).astype(np.uint8)[:, None], (image.height, image.width, 3))
    # No two cameras see the same.
    ramps = [
        np.roll(ramp, index * image.width // len(contract.cameras), axis=1) for index in range(len(contract.cameras))
    ]
    middle = (np.array(contract.quantiles.proprio_low) + np.array(contract.quantiles.proprio_high)) / 2
    places = conventions.state_slices(contract)
    return {
        "images": dict(zip(contract.camera_names, ramps, strict=True)),
        "state": {
            slot.name: _reported(contract, slot, middle[places[slot.name]]) for slot in contract.slots if slot.present
        },
        "prompt": prompt,
    }


def _reported(contract: Contract, slot: Slot, state: np.ndarray) -> np.ndarray:
    """What a robot in that state would report, roughly."""
    if slot.chain is not None:
        joints = {joint.name: joint for joint in slot.chain.joints}
        ends = [(joints[name].lower, joints[name].upper) for name in slot.chain.order]
        return np.array([0.0 if low is None or high is None else (low + high) / 2 for low, high in ends])
    if slot.reduced:
        count = len(slot.columns)
        return np.full(count, state[0] / (np.sqrt(count) if slot.transform == "norm" else 1.0))
    if slot.kind == "pose":
        known = (contract.recorded.turns or {}).get(slot.name) if contract.recorded else None
        return np.concatenate(
            [state[:3], [1.0, 0.0, 0.0, 0.0] if known is None else canonical_quaternion(np.array(known.around))]
        )
    return state


def _commanded(contract: Contract) -> list[Slot]:
    return [slot for slot in contract.slots if slot.commanded and slot.present]


def _command_names(slot: Slot) -> tuple[str, ...]:
    if slot.transform == "forward_kinematics" or slot.reduced:
        return slot.columns
    return slot.action_elements if slot.for_controller else slot.elements


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value: Any = given.get(name)
    if value is None:
        return None
    if not _number(value) or not least <= value <= most or int(value) != value:
        raise UserError(f"is {value!r:.60}", f"{WHERE}.{name}", f"give a whole number from {least} to {most}")
    return int(value)


def _prefix(value: Any, contract: Contract) -> np.ndarray | None:
    if value is None:
        return None
    width, most = len(command_columns(contract)), contract.timing.action_steps
    where, fix = f"{WHERE}.prefix", f"give up to {most} rows of {width} numbers, the columns of `actions`"
    try:
        rows = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"is not numbers ({value!r:.60})", where, fix) from None
    if rows.ndim != 2 or rows.shape[1] != width or len(rows) > most:
        raise UserError(f"has shape {list(rows.shape)}", where, fix)
    if not np.all(np.isfinite(rows)):
        raise UserError("holds numbers that are not finite", where, fix)
    return rows
