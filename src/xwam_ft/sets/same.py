"""Whether shard sets can be one: the first thing in which their contracts differ, in words of the embodiment file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xwam_ft.contract import COUNTED
from xwam_ft.errors import UserError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xwam_ft.contract import Contract
    from xwam_ft.sets.opened import OpenedSet

FIX = "prepare the recordings alike, by one embodiment file; sets of different contracts cannot be one"


def require_mergeable(sets: Sequence[OpenedSet]) -> None:
    """Raise a `UserError` that names the first difference, unless all contracts are equal but for what is counted."""
    first, *others = sets
    for other in others:
        if (found := difference(first.shards.contract, other.shards.contract)) is not None:
            what, ours, theirs = found
            raise UserError(f"{what} is {theirs}, and {ours} in {first.folder}", other.folder, FIX)


def difference(ours: Contract, theirs: Contract) -> tuple[str, str, str] | None:
    """The first thing that differs and both its values; None: only what comes from the recordings themselves."""
    left, right = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    fields = [name for name in type(ours).model_fields if name not in COUNTED and left.get(name) != right.get(name)]
    if not fields:
        return None
    name = fields[0]
    if name == "cameras":
        return _of_named("camera", left[name], right[name])
    if name == "slots":
        for one, other in zip(ours.slots, theirs.slots, strict=False):
            if one.name == other.name and one.state_width != other.state_width:
                return f"the dimension of slot {one.name!r}", _numbers(one.elements), _numbers(other.elements)
        return _of_named("slot", left[name], right[name])
    if isinstance(left[name], dict):
        return _of_fields(f"{name}.", left[name], right[name])
    return f"`{name}`", repr(left[name]), repr(right[name])


def _numbers(elements: Sequence[str]) -> str:
    return f"{len(elements)} ({listed(elements)})"


def _of_named(kind: str, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> tuple[str, str, str]:
    names = [[part["name"] for part in side] for side in (left, right)]
    if names[0] != names[1]:
        return f"the list of {kind}s", listed(names[0]), listed(names[1])
    one, other = next((a, b) for a, b in zip(left, right, strict=True) if a != b)
    what, ours, theirs = _of_fields("", one, other)
    return f"{what} of {kind} {one['name']!r}", ours, theirs


def _of_fields(prefix: str, left: dict[str, Any], right: dict[str, Any]) -> tuple[str, str, str]:
    name = next(name for name in [*left, *right] if left.get(name) != right.get(name))
    if prefix == "timing." and name == "fps":
        return "the frame rate", f"{left[name]:g}", f"{right[name]:g}"
    return f"`{prefix}{name}`", _short(left.get(name)), _short(right.get(name))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
