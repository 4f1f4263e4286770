"""What a robot should send, and what it sends first, for a person to compare: in words, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft import conventions
from xwam_ft.errors import listed
from xwam_ft.files import atomic_path
from xwam_ft.policy.request import units_of_commands

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.observation import EncodedObservation

SHOWN = 8  # numbers of a slot, and prompts
TILE, MARGIN, LINE = 320, 8, 18  # pixels


def expected(contract: Contract, prompts: Iterable[str]) -> list[str]:
    """Lines that say what a client sends and gets."""
    cameras = [f"{camera.name} (recorded {camera.source_width}x{camera.source_height})" for camera in contract.cameras]
    known = sorted(text for text in prompts if text.strip())
    timing = contract.timing
    lines = [f"images: {listed(cameras)}; RGB"]
    lines += [
        f"state {slot.name}: {listed(_numbers(contract, slot), SHOWN)}" for slot in contract.slots if slot.present
    ]
    lines.append(f"prompt: {listed(map(repr, known), SHOWN)}")
    told = [slot for slot in contract.slots if slot.commanded and slot.present]
    units = ", ".join(f"{slot.name} in {_commanded(slot)}" for slot in told)
    return [*lines, f"commands: {units}; {1 / timing.action_period:.4g} a second"]


def sent(contract: Contract, seen: EncodedObservation) -> str:
    """An observation's numbers and words, in a line."""
    places = conventions.state_slices(contract)
    numbers = [
        f"{slot.name} {' '.join(f'{value:.4g}' for value in seen.state[places[slot.name]])}"
        for slot in contract.slots
        if slot.present
    ]
    return f"{'; '.join(numbers)}; {seen.prompt!r}"


def picture(contract: Contract, seen: EncodedObservation, recorded: EncodedObservation | None, path: Path) -> None:
    """Write a PNG: a column a camera, as recorded above and as sent below; the state beside what recordings held."""
    from PIL import Image, ImageDraw, ImageFont

    rows = [("recorded", recorded), ("sent", seen)] if recorded is not None else [("sent", seen)]
    high = round(TILE * contract.image.height / contract.image.width)
    text = [*expected(contract, [])[1:-2], f"sent: {sent(contract, seen)}"]
    font = ImageFont.load_default(size=13)
    width = max(len(contract.cameras) * (TILE + MARGIN), *(int(font.getlength(line)) for line in text)) + 2 * MARGIN
    page = Image.new("RGB", (width, len(rows) * (high + LINE + MARGIN) + LINE * (len(text) + 1)), (18, 20, 24))
    draw = ImageDraw.Draw(page)
    for row, (label, shown) in enumerate(rows):
        top = MARGIN + row * (high + LINE + MARGIN)
        for view, name in enumerate(contract.camera_names):
            left = MARGIN + view * (TILE + MARGIN)
            draw.text((left, top), f"{name}, {label}", font=font, fill=(140, 190, 255))
            page.paste(Image.fromarray(shown.pictures[view]).resize((TILE, high)), (left, top + LINE))
    for index, line in enumerate(text):
        top = MARGIN + len(rows) * (high + LINE + MARGIN) + index * LINE
        draw.text((MARGIN, top), line, font=font, fill=(236, 238, 242))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG")


def _numbers(contract: Contract, slot: Slot) -> list[str]:
    """Of what a robot reports of a slot, each number with its unit and the range that recordings held."""
    if slot.transform != "identity":
        return [f"{name} [rad]" if slot.chain is not None else name for name in slot.columns]
    place = conventions.state_slices(contract)[slot.name]
    low, high = (
        conventions.denormalise_proprio(contract, np.full(contract.state_dim, end))[place] for end in (-1.0, 1.0)
    )
    sense = f" ({slot.gripper_closed:g} closed, {slot.gripper_open:g} open)" if slot.gripper_open is not None else ""
    return [
        f"{name} {low[index]:.3g}..{high[index]:.3g}{_unit(unit)}{sense}" if slot.kind != "pose" or index < 3 else name
        for index, (name, unit) in enumerate(zip(slot.columns, slot.units, strict=True))
    ]


def _unit(unit: str) -> str:
    return "" if unit == "1" else f" {unit}"


def _commanded(slot: Slot) -> str:
    if slot.for_controller:
        return "its controller's units"
    if slot.kind == "pose" and slot.chain is None:
        return "m and a quaternion w x y z"
    return "/".join("its recorded scale" if unit == "1" else unit for unit in dict.fromkeys(units_of_commands(slot)))
