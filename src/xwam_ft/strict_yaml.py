"""Strict YAML files, of recipes and embodiments alike: an unknown key is a mistake, a key that stands twice too.

All mistakes are told at once, each with its place and, for a misspelt key, the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xwam_ft.errors import UserError, did_you_mean, listed

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Natural = Annotated[int, Field(ge=0)]
Schema = TypeVar("Schema", bound=BaseModel)
Overrides = Sequence[str] | Mapping[str, object]
"""`section.key=value` texts, or values by `section.key`."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset; it would let the last of two equal keys win, so these are noted here and refused."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before merges (`<<`) are resolved: overriding a merged key is no repetition.
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                lines = sorted({before.start_mark.line + 1, key.start_mark.line + 1})
                place = f"lines {lines[0]} and {lines[1]}" if len(lines) > 1 else f"line {lines[0]}"
                self.repeated.append(f"key {key.value!r} stands twice, at {place}")
        return node


class Section(BaseModel):
    """A mapping of a file: only known keys, only finite numbers, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; everything that is not one is a `UserError`."""
    repeated: list[str] = []
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        tree: object = loader.get_single_data()
        repeated = loader.repeated
    except FileNotFoundError:
        raise UserError(
            "the file does not exist", path, "check the path; the recipes that ship are in recipes/"
        ) from None
    except IsADirectoryError:
        raise UserError("is a folder, not a YAML file", path, "give the file inside it") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date like 2024-13-01
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where is not None else ""
        raise UserError(f"is not valid YAML{line}", path, "mend the syntax there") from None
    if repeated:
        raise UserError("; ".join(repeated), path, "leave one of each, or give each its own name")
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds {_kind(tree)}, not keys and their values"
        raise UserError(found, path, "write `key: value` lines")
    return {str(key): value for key, value in tree.items()}  # pyright: ignore[reportUnknownVariableType]


def parse(schema: type[Schema], tree: dict[str, Any], path: Path, overrides: Overrides = ()) -> Schema:
    """Validate `tree`, read from `path` and changed by `overrides`, against a strict pydantic schema.

    Raises:
        UserError: every mistake in one; its place is `--set` where all of them were made there.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        typed, wrong = override_names(overrides), {".".join(map(str, item["loc"])) for item in error.errors()}
        by_hand = bool(wrong) and all(any(at == name or at.startswith(f"{name}.") for name in typed) for at in wrong)
        raise UserError(_describe(schema, error), "--set" if by_hand else path, "correct each of them") from None


def _describe(schema: type[BaseModel], error: ValidationError) -> str:
    parts: list[str] = []
    for item in error.errors():
        location = ".".join(str(step) for step in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _keys_at(schema, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1]), known) or f" (known: {listed(known)})"
            parts.append(f"unknown key {location!r}{hint}")
        elif item["type"] == "missing":
            parts.append(f"{location!r} is missing")
        elif item["type"] in ("model_type", "model_attributes_type", "dict_type"):
            keys = _keys_at(schema, item["loc"])
            parts.append(f"{location!r} has keys of its own ({listed(keys)}), and is given {_kind(item['input'])}")
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            value = item["input"]
            told = isinstance(value, dict | list) or (isinstance(value, str) and value != "" and _names(message, value))
            given = "" if told else f", not {value!r}"
            if item["type"] == "literal_error":
                given += did_you_mean(str(value), re.findall(r"'([^']+)'", message))
            place = f"{location!r}: " if location else ""  # none: keys of several sections disagree
            parts.append(f"{place}{message[:1].lower() + message[1:]}{given}")
    count = f"{len(parts)} mistakes: " if len(parts) > 1 else ""
    return count + "; ".join(parts)


def _kind(value: object) -> str:
    """A value of a YAML file, in words."""
    if value is None:
        return "nothing"
    return f"a list of {len(value)}" if isinstance(value, list) else repr(value)  # pyright: ignore[reportUnknownArgumentType]


def _names(message: str, value: str) -> bool:
    """Whether a message holds the value as a whole word."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", message) is not None


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at `location`, looked through lists, dicts and optional types."""

    def models(annotation: Any) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [found for inner in get_args(annotation) for found in models(inner)]

    current = [schema]
    for step in location:
        fields = [found.model_fields[step] for found in current if isinstance(step, str) and step in found.model_fields]
        if fields:
            current = [found for field in fields for found in models(field.annotation)]
    return [name for found in current for name in found.model_fields]


def parse_override(text: str) -> tuple[str, object]:
    """Key and value of `section.key=value`, the value parsed as YAML; a mapping only in braces, so that a place or
    prompt with a colon stays a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{text!r} is not of the form a.b=c", "--set", "write for example --set trainer.max_steps=100")
    try:
        read = yaml.safe_load(value)
        return name.strip(), value if isinstance(read, dict) and not value.lstrip().startswith("{") else read
    except yaml.YAMLError:
        raise UserError(f"the value {value!r} is not valid YAML", f"--set {name}", "quote it") from None


def override_names(overrides: Overrides) -> set[str]:
    return set(overrides) if isinstance(overrides, Mapping) else {parse_override(text)[0] for text in overrides}


def apply_overrides(tree: dict[str, Any], overrides: Overrides) -> None:
    """Put values into a YAML tree."""
    given = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    for name, value in given:
        *sections, key = name.split(".")
        place: dict[str, Any] = tree
        for section in sections:
            below = place.setdefault(section, {})
            if not isinstance(below, dict):
                raise UserError(f"{section!r} is a value, not a section", f"--set {name}", "name a key of a section")
            place = below
        place[key] = str(value) if isinstance(value, Path) else value
