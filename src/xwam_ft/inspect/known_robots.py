"""Which shipped embodiment files fit recordings, told from the robot's name and the columns' names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError, listed
from xwam_ft.inspect.evidence import element
from xwam_ft.prepare.embodiment.joint_units import UNITS

if TYPE_CHECKING:
    from xwam_ft.prepare.sources import SourceInfo

FOLDER = "recipes/embodiments"
# Names that many robots' recordings have, which alone say nothing of the robot.
COMMON = re.compile(r"(?:joint|j|q)_?\d+(?:\.pos)?|[xyz]|q?[wxyz]|r[xyz]|roll|pitch|yaw|gripper\w*(?:\.pos)?")


@dataclass(frozen=True)
class Known:
    """A shipped file. `fits`: all its columns are recorded; `named`: the recordings name its robot."""

    name: str
    fits: bool
    named: bool


def known_embodiments(info: SourceInfo) -> list[Known]:
    """The shipped files of this robot, those that fit first; none where nothing speaks for one."""
    try:
        files = sorted(bundled(FOLDER).glob("*.yaml"))
    except UserError:  # an installation without them
        return []
    recorded = {element(column) for column in info.columns} | set(info.columns)
    robot = set(_words(info.robot)) | set(_words(info.path.resolve().name))
    if "ACT/ALOHA" in info.format and {"left_gripper", "right_gripper"} <= recorded:
        robot.add("aloha")
    found: list[Known] = []
    for file in files:
        columns = _columns(_read(file))
        fits = bool(columns) and columns <= recorded
        of_its_own = any(not COMMON.fullmatch(column) for column in columns)
        # so101_poses: the first word is the robot, or the first two.
        words = re.split(r"[_]", file.stem)
        named = words[0] in robot or (len(words) > 1 and words[1] in robot and words[1] not in ("normalized", "joints"))
        if (fits and of_its_own) or named:
            found.append(Known(file.stem, fits, named))
    return sorted(found, key=lambda known: (not known.fits, known.name))


def known_units(known: list[Known]) -> dict[str, str]:
    """Column -> the unit all fitting files state for it; where they differ, or it needs a calibration, none."""
    stated: dict[str, set[str]] = {}
    for one in known:
        tree = _read(bundled(FOLDER) / f"{one.name}.yaml") if one.fits else {}
        for slot in tree.get("slots", {}).values():
            columns, units = slot.get("columns", []), slot.get("units")
            for i, column in enumerate(columns if isinstance(columns, list) else []):
                stated.setdefault(str(column), set()).add(str(units[i] if isinstance(units, list) else units))
    return {column: next(iter(units)) for column, units in stated.items() if len(units) == 1 and units <= set(UNITS)}


def said_of(known: list[Known]) -> list[str]:
    """Sentences about them, for the starter file and the terminal."""
    fitting = [one.name for one in known if one.fits]
    others = [one.name for one in known if not one.fits]
    place = f"in {FOLDER}/"
    sentences: list[str] = []
    if fitting:
        sentences.append(
            f"Embodiment files for these columns ship {place}: {listed(fitting)}. Check cameras and units."
        )
    elif others:
        sentences.append(f"Embodiment files for this robot ship {place}, with other names: {listed(others)}.")
    return sentences


@cache
def _read(file: Path) -> Any:
    # libyaml's loader where PyYAML was built with it: the shipped files take 10 ms instead of 80.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(encoding="utf-8"), loader)


def _columns(tree: Any) -> set[str]:
    """The observed columns of an embodiment file; those given as ranges say no names."""
    slots = tree.get("slots", {}) if isinstance(tree, dict) else {}
    given = [slot.get("columns", []) for slot in slots.values() if slot.get("present", True)]
    if any(isinstance(columns, str) for columns in given):
        return set()
    return {str(column) for columns in given for column in columns}


def _words(text: str) -> list[str]:
    parts = re.split(r"[^a-z0-9]+", text.lower())
    return [*parts, *(re.sub(r"_?(follower|leader)$", "", part) for part in parts)]
