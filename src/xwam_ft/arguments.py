"""Arguments of the Python door against their annotations: what cannot be meant is one sentence that names it.

`@checked(episodes=1)` looks at every argument before the function runs; the numbers are the least that one may be. Text
given for a sequence is one of its things and not its letters; whole numbers of numpy become Python's.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from xwam_ft.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

NOTHING = object()  # no answer: not what this kind asks for
WORDS = {
    "str": "a text",
    "Path": "a path",
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "None": "None",
    "Console": "a rich Console",
    "Recipe": "a Recipe",
    "Split": "held_out or train",
}
MADE = ("Made", "Run", "Bundle", "Evaluation")


def checked(**least: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function whose arguments are looked at first.

    Args:
        least: by argument, the smallest number it may be.

    Raises:
        UserError: of the function made, for an argument that its annotation does not allow.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        kinds = {
            name: str(parameter.annotation)
            for name, parameter in signature.parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.annotation is not parameter.empty
        }

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            bound = signature.bind(*args, **options)
            for name in bound.arguments.keys() & kinds.keys():
                value = fitting(bound.arguments[name], kinds[name])
                what = f"is {_shown(bound.arguments[name])}"
                if value is NOTHING:
                    fix = f"give {' or '.join(dict.fromkeys(map(_word, _alternatives(kinds[name]))))}"
                    raise UserError(what, f"{name} of {function.__qualname__}", fix)
                if name in least and value is not None and value < least[name]:
                    raise UserError(what, f"{name} of {function.__qualname__}", f"give {least[name]} or more")
                bound.arguments[name] = value
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def plain(value: object) -> object:
    """A value of a recipe or an embodiment as its file would have it: paths, and what lies at one, are texts."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    place = value if isinstance(value, os.PathLike) else getattr(value, "path", None)
    return os.fspath(place) if isinstance(place, os.PathLike) else value


def place_of(given: Any) -> Path:
    """Where something lies that is named by its path, or by what made it.

    Raises:
        UserError: it is neither.
    """
    place = given if isinstance(given, str | Path) else getattr(given, "path", None)
    if not isinstance(place, str | Path):
        raise UserError(f"is {_shown(given)}", "a path", "give a text or a Path, or what another function made")
    return Path(place)


def fitting(value: Any, kind: str) -> Any:
    """The value as its annotation asks for it; `NOTHING` where it is something else. Unknown kinds take anything."""
    answers = (_one(value, each) for each in _alternatives(kind))
    return next((answer for answer in answers if answer is not NOTHING), NOTHING)


def _one(value: Any, kind: str) -> Any:
    head, _, inner = kind.partition("[")
    if head == "Sequence":
        if isinstance(value, str | os.PathLike):
            value = (value,)
        if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
            return NOTHING
        parts = [fitting(part, inner[:-1]) for part in value]
        return NOTHING if any(part is NOTHING for part in parts) else parts
    if head == "tuple":
        return value if isinstance(value, list | tuple) and len(value) == len(_split(inner[:-1], ",")) else NOTHING
    number = not isinstance(value, bool)
    rules: dict[str, Callable[[], bool]] = {
        "str": lambda: isinstance(value, str),
        "Split": lambda: isinstance(value, str),
        "Path": lambda: isinstance(value, os.PathLike),
        "int": lambda: number and isinstance(value, Integral),
        "float": lambda: number and isinstance(value, Real),
        "bool": lambda: isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"),
        "None": lambda: value is None,
        "Console": lambda: hasattr(value, "print"),
        "Recipe": lambda: hasattr(value, "model_dump"),
        **dict.fromkeys(MADE, lambda: isinstance(getattr(value, "path", None), Path)),
    }
    if head in rules and not rules[head]():
        return NOTHING
    return int(value) if head == "int" else bool(value) if head == "bool" else value


def _alternatives(kind: str) -> list[str]:
    return _split(kind, "|")


def _split(text: str, mark: str) -> list[str]:
    """Parts of an annotation, brackets kept whole."""
    found, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == mark and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


def _word(kind: str) -> str:
    head, _, inner = kind.partition("[")
    if head in ("Sequence", "tuple"):
        each = " or ".join(dict.fromkeys(map(_word, _alternatives(_split(inner[:-1], ",")[0]))))
        return f"{'a list of' if head == 'Sequence' else 'two, each'} {each}"
    return "what another function made" if head in MADE else WORDS.get(head, head)


def _shown(value: object) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
