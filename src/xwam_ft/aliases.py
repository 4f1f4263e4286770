"""A robot's own names and units of what it observes, as its recordings have them, and how they become ours.

Beside the contract's own form (observation.py) an observation may come as LeRobot's robots give it (`front`,
`shoulder_pan.pos`, `task`), as its data sets name it (`observation.images.front`, `observation.state`), or as openpi's
clients send it (`observation/state`, `prompt`): `/` and `.` are the same. Numbers are then in the recordings' units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft.alias_table import PROMPTS, Aliases
from xwam_ft.errors import UserError, did_you_mean, listed

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.alias_table import Reported
    from xwam_ft.contract import Contract

OWN = ("images", "state", "prompt", "options")
WHERE = "observation"


def resolved(contract: Contract, observation: Mapping[str, Any]) -> Mapping[str, Any]:
    """An observation in the contract's own form; one that has no other keys is given back as it is.

    Raises:
        UserError: a key that nobody knows, two keys for one thing, a vector of another length, or something missing.
    """
    strange = [key for key in observation if key not in OWN]
    if not strange:
        return observation
    aliases = contract.aliases or Aliases()
    found = _Found(contract, aliases)
    for key in ("images", "state"):
        if isinstance(given := observation.get(key), Mapping):
            for name, value in given.items():
                found.put((key, name), f"{key}.{name}", value)
        elif key in observation:
            return observation  # whose form the contract refuses in its own words
    for key in strange if "prompt" not in observation else [*strange, "prompt"]:
        found.take(str(key), observation[key])
    options = {"options": observation["options"]} if "options" in observation else {}
    return {**found.complete(), **options}


def robot_command(contract: Contract, row: Float[ndarray, " d"] | Sequence[float]) -> dict[str, float]:
    """One row of `actions` (contract's columns, SI) -> the robot's own names and units.

    Raises:
        UserError: recordings that did not name the numbers, or commands in another unit than the state's.
    """
    names = {(number.slot, number.column): name for name, number in (contract.aliases or Aliases()).numbers.items()}
    told: dict[str, float] = {}
    values = iter(row)
    for slot in contract.slots:
        if not (slot.commanded and slot.present):
            continue
        own = slot.command_units is not None and slot.command_units != slot.units
        if own or slot.for_controller:
            raise UserError(
                f"slot {slot.name!r} is commanded in another unit than it reports",
                "contract.json",
                "convert it by hand",
            )
        for column, plain in enumerate(slot.columns):
            if (name := names.get((slot.name, column))) is None:
                raise UserError(
                    f"does not say what the robot calls {slot.name}.{plain}, and in which unit",
                    "contract.json",
                    "prepare the recordings again with this version",
                )
            number = (contract.aliases or Aliases()).numbers[name]
            told[name] = (float(next(values)) - number.offset) / number.scale
    return told


class _Found:
    """What of an observation was found so far, and by which key."""

    def __init__(self, contract: Contract, aliases: Aliases) -> None:
        self.contract, self.aliases = contract, aliases
        self.keys: dict[tuple[Any, ...], str] = {}
        self.values: dict[tuple[Any, ...], Any] = {}
        self.images = {**{name: name for name in contract.camera_names}, **_dotted(aliases.images)}
        self.numbers, self.vectors = _dotted(aliases.numbers), _dotted(aliases.vectors)
        self.unused = {_dots(key) for key in aliases.unused}

    def put(self, place: tuple[Any, ...], key: str, value: Any) -> None:
        if place in self.keys:
            said = f"{self.keys[place]!r} and {key!r} both give {' '.join(map(str, place))}"
            raise UserError(said, WHERE, "give one of them")
        self.keys[place], self.values[place] = key, value

    def take(self, key: str, value: Any) -> None:
        name = _dots(key)
        if name in self.images:
            self.put(("images", self.images[name]), key, value)
        elif name in (*map(_dots, self.aliases.prompts), *PROMPTS):
            self.put(("prompt",), key, value)
        elif name in self.numbers:
            self._number(self.numbers[name], key, _floats(key, value, 1)[0])
        elif name in self.vectors:
            names = self.vectors[name]
            for one, number in zip(names, _floats(key, value, len(names), names), strict=True):
                if one in self.aliases.numbers:
                    self._number(self.aliases.numbers[one], key, number)
        elif name not in self.unused and name not in {_dots(one) for row in self.vectors.values() for one in row}:
            known = [*self.aliases.images, *self.aliases.vectors, *self.aliases.numbers, *PROMPTS]
            fix = f"give images, state and prompt, or by this robot's own names {listed(known, 20)}"
            raise UserError(f"unknown key {key!r:.60}{did_you_mean(key, [*OWN, *known])}", WHERE, fix)

    def complete(self) -> dict[str, Any]:
        """The contract's own form; a `UserError` names what is missing and the keys that would bring it."""
        images, state = self._mapping("images"), self._mapping("state")
        for camera in self.contract.camera_names:
            if camera not in images:
                keys = [key for key, name in self.aliases.images.items() if name == camera] or [f"images.{camera}"]
                raise UserError(f"camera {camera!r} is missing", WHERE, f"give it as {' or '.join(map(repr, keys))}")
        for slot in self.contract.slots:
            if not slot.present or slot.name in state:
                continue
            rows = [self.values.get(("number", slot.name, column)) for column in range(len(slot.columns))]
            absent = [name for name, value in zip(slot.columns, rows, strict=True) if value is None]
            if absent:
                raise UserError(f"slot {slot.name!r} lacks {listed(absent)}", WHERE, f"give {self._ways(slot.name)}")
            state[slot.name] = np.array(rows, dtype=np.float64)
        if ("prompt",) not in self.values:
            raise UserError("has no prompt", WHERE, f"give the task in words as {' or '.join(map(repr, PROMPTS))}")
        return {"images": images, "state": state, "prompt": self.values["prompt",]}

    def _number(self, number: Reported, key: str, value: float) -> None:
        if ("state", number.slot) in self.keys:
            self.put(("state", number.slot), key, None)
        self.put(("number", number.slot, number.column), key, number.scale * value + number.offset)

    def _mapping(self, kind: str) -> dict[str, Any]:
        return {place[1]: value for place, value in self.values.items() if place[0] == kind}

    def _ways(self, slot: str) -> str:
        """The keys by which a slot's numbers come."""
        names = [name for name, number in self.aliases.numbers.items() if number.slot == slot]
        vectors = [repr(key) for key, row in self.aliases.vectors.items() if set(names) & set(row)]
        return " or ".join([f"state.{slot}", *vectors, *([f"each of {listed(names)}"] if names else [])])


def _floats(key: str, value: Any, count: int, names: Sequence[str] = ()) -> np.ndarray:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"is not numbers ({value!r:.60})", f"{WHERE}.{key}", f"give {count} numbers") from None
    if count == 1 and numbers.size == 1:
        return numbers.reshape(1)
    if numbers.shape != (count,):
        fix = f"give the {count} numbers that were recorded: {listed(names, 40)}" if names else "give one number"
        raise UserError(f"has shape {list(numbers.shape)}", f"{WHERE}.{key}", fix)
    return numbers


def _dots(key: str) -> str:
    return key.replace("/", ".")


def _dotted(names: Mapping[str, Any]) -> dict[str, Any]:
    return {_dots(key): value for key, value in names.items()}
