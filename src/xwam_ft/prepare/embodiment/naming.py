"""What the recordings, and so the robot, call what it observes: the contract's aliases (aliases.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xwam_ft.alias_table import PROMPTS, Aliases, Reported
from xwam_ft.contract import POSE_ELEMENTS
from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.embodiment.reading import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.embodiment.schema import Embodiment
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.prepare.sources import SourceInfo

ORDERS = {"wxyz": (0, 1, 2, 3, 4, 5, 6), "xyzw": (0, 1, 2, 4, 5, 6, 3)}
"""Place in the contract's pose (x y z, quaternion w x y z) of each recorded number."""


def aliases_of(spec: Embodiment, info: SourceInfo, slots: Sequence[SlotPlan], cameras: Sequence[CameraPlan]) -> Aliases:
    """The recordings' own names and units, and those that the embodiment file adds.

    Poses recorded in another form than a quaternion have no numbers of their own here.

    Raises:
        UserError: an alias of the embodiment file that means nothing.
    """
    used = _numbers(slots)
    short = [plain(full) for full in info.state_columns]
    names = {full: own if short.count(own) == 1 else full for full, own in zip(info.state_columns, short, strict=True)}
    vectors: dict[str, tuple[str, ...]] = {}
    for full in info.state_columns:
        feature = full.split("/", 1)[0]
        vectors[feature] = (*vectors.get(feature, ()), names[full])
    images = {camera.source: camera.name for camera in cameras}
    last = [source.rpartition(".")[2] for source in images]
    images |= {end: name for end, name in zip(last, list(images.values()), strict=True) if last.count(end) == 1}
    unused = tuple(sorted(set(info.cameras) - set(images)))
    numbers = {names[full]: number for full, number in used.items()}
    found = Aliases(images=images, numbers=numbers, vectors=vectors, unused=unused)
    return _further(found, spec.aliases, slots) if spec.aliases else found


def _numbers(slots: Sequence[SlotPlan]) -> dict[str, Reported]:
    """By a column's full name."""
    found: dict[str, Reported] = {}
    for plan in slots:
        reading = plan.state
        if reading is None or (reading.rotation is not None and reading.rotation not in ORDERS):
            continue
        order = ORDERS[reading.rotation] if reading.rotation else range(len(reading.columns))
        offsets = reading.offset or (0.0,) * len(reading.columns)
        rows = zip(reading.columns, order, reading.scale, offsets, strict=True)
        for full, column, scale, offset in rows:
            found.setdefault(full, Reported(slot=plan.slot.name, column=column, scale=scale, offset=offset))
    return found


def _further(known: Aliases, given: Mapping[str, str], slots: Sequence[SlotPlan]) -> Aliases:
    images, vectors = dict(known.images), dict(known.vectors)
    prompts: list[str] = list(PROMPTS)
    own = {plan.slot.name: plan for plan in slots if plan.state is not None}
    for key, meant in given.items():
        if meant in images.values():
            images[key] = meant
        elif meant in vectors:
            vectors[key] = vectors[meant]
        elif meant in own:
            placed = {number.column: name for name, number in known.numbers.items() if number.slot == meant}
            if len(placed) != len(own[meant].slot.columns):
                raise UserError(f"means slot {meant!r}, whose form has no numbers of its own", f"aliases.{key}", _FIX)
            vectors[key] = tuple(placed[column] for column in sorted(placed))
        elif meant == "prompt":
            prompts.append(key)
        else:
            choices = listed([*images.values(), *own, *known.vectors, "prompt"], 30)
            raise UserError(f"means {meant!r}, which there is not", f"aliases.{key}", f"name one of: {choices}")
    return known.model_copy(update={"images": images, "vectors": vectors, "prompts": tuple(prompts)})


_FIX = f"name a camera, the recorded vector, or a slot of joints (a pose is {' '.join(POSE_ELEMENTS)})"
