"""What recordings show about themselves: slots by the columns' names; units, action semantics and camera kinds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.prepare.action_semantics import ActionGuess, guess_actions
from xwam_ft.prepare.camera_kind import KindGuess, edge_change, far_pairs, guess_kind, guess_mount
from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources import is_command
from xwam_ft.prepare.unit_guess import UnitGuess, guess_units

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode, Table, View
    from xwam_ft.prepare.sources import SourceInfo

HAND = re.compile(r"grip|hand|finger|jaw", re.IGNORECASE)
POSE = re.compile(r"(?:.*[._])?(?:[xyz]|q?[wxyz])")
MOVING = re.compile(r"(?:^|[._/])(?:q?vel|velocity|velocities|effort|torque|current)(?:$|[._/])", re.IGNORECASE)
FILMS = 4  # episodes whose pictures are looked at
PAIRS = 4  # of an episode
SPAN = 0.5  # s between the pictures of a pair
UNKNOWN_RATE = 10.0  # frames a second, where none is stored


@dataclass(frozen=True)
class Group:
    """Columns that make a slot of the starter file."""

    name: str
    kind: str
    columns: tuple[str, ...]  # full names of the state's
    commands: tuple[str, ...]  # of the action's, in their order; empty where not all are recorded
    units: UnitGuess
    action: ActionGuess | None  # None where no command of these names was recorded


@dataclass(frozen=True)
class Evidence:
    groups: tuple[Group, ...]
    kinds: dict[str, KindGuess]  # by RGB camera
    mounts: dict[str, str]  # wrist camera -> pose group that carries it


def gather(info: SourceInfo, episodes: list[Episode], tables: dict[int, Table]) -> Evidence:
    """Guess all there is to guess.

    Args:
        tables: of the episodes that were read, by place in `episodes`.
    """
    groups = tuple(_group(name, kind, members, info, list(tables.values())) for (name, kind), members in _named(info))
    kinds: dict[str, KindGuess] = {}
    mounts: dict[str, str] = {}
    for feature, camera in info.cameras.items():
        if camera.depth:
            continue
        changes, moved = _changes(feature, info, episodes, tables, groups)
        kinds[feature] = guess_kind(changes)
        mount = guess_mount(changes, moved) if kinds[feature].kind == "wrist" else None
        poses = [group.name for group in groups if group.kind == "pose"]
        mount = poses[0] if mount is None and len(poses) == 1 and kinds[feature].kind == "wrist" else mount
        if mount in poses:
            mounts[feature] = mount
    return Evidence(groups, kinds, mounts)


def _group(name: str, kind: str, members: list[str], info: SourceInfo, tables: list[Table]) -> Group:
    named: dict[str, list[str]] = {}
    for column in info.command_columns:
        named.setdefault(column.split("/", 1)[-1], []).append(column)
    states = Counter(column.split("/", 1)[-1] for column in slot_columns(info))
    elements = [member.split("/", 1)[-1] for member in members]
    # A name that two features have does not say which command goes with which state.
    whole = all(len(named.get(element, ())) == states[element] == 1 for element in elements)
    commands = tuple(named[element][0] for element in elements) if whole else ()
    read = [table for table in tables if all(column in table.columns for column in (*members, *commands))]
    values = [_stack(table, members) for table in read]
    action = None
    if commands and kind in ("joints", "pose"):
        width = 3 if kind == "pose" else len(members)  # a pose is told by its position
        action = guess_actions(
            [state[:, :width] for state in values], [_stack(table, commands)[:, :width] for table in read]
        )
    units = guess_units(kind, np.concatenate([np.zeros((0, len(members))), *values]))
    return Group(name, kind, tuple(members), commands, units, action)


def _named(info: SourceInfo) -> list[tuple[tuple[str, str], list[str]]]:
    """Columns by slot name and kind: per feature and side, hands apart from arms, poses apart from joints."""
    found: dict[tuple[str, str], list[str]] = {}
    for column in slot_columns(info):
        feature, _, element = column.partition("/")
        side = next((side for side in ("left", "right") if side in column.lower()), "")
        kind = "gripper" if HAND.search(element or feature) else "pose" if POSE.fullmatch(element.lower()) else "joints"
        limb = "hand" if kind == "gripper" else "arm"
        name = f"{side}_{limb}" if side else f"{slug(feature.removeprefix('observation.'))}_{kind}"
        found.setdefault((name, kind), []).append(column)
    for (name, kind), members in list(found.items()):
        if kind == "pose" and len(members) != 7:  # not x y z and a quaternion: leave it to the user
            found[name, "vector"] = found.pop((name, kind))
    names = Counter(name for name, _ in found)  # an arm recorded in joints and as a pose is two slots
    return [((name if names[name] == 1 else f"{name}_{kind}", kind), part) for (name, kind), part in found.items()]


def slot_columns(info: SourceInfo) -> list[str]:
    """Columns that say where the robot is; how fast it moves and how hard it pushes is in no slot."""
    return [
        column
        for column in info.columns
        if not is_command(column) and not column.startswith("next.") and not MOVING.search(column)
    ]


def element(name: str) -> str:
    """A column's name without its feature, unless it is a number."""
    rest = name.split("/", 1)[-1]
    return name if rest.isdigit() else rest


def _changes(
    feature: str, info: SourceInfo, episodes: list[Episode], tables: dict[int, Table], groups: tuple[Group, ...]
) -> tuple[list[float], dict[str, list[float]]]:
    """Edge changes of pairs of one camera's pictures, and how far each group moved between them."""
    changes: list[float] = []
    arms = [group for group in groups if group.kind in ("pose", "joints")]
    moved: dict[str, list[float]] = {group.name: [] for group in arms}
    places = list(tables)
    for place in [places[i] for i in np.unique(np.linspace(0, len(places) - 1, min(FILMS, len(places))).astype(int))]:
        view, table = episodes[place].views.get(feature), tables[place]
        columns = [name for group in arms for name in group.columns if name in table.columns]
        if view is None or not columns:
            continue
        apart = max(1, round(SPAN * (info.fps or UNKNOWN_RATE)))
        for first, second in far_pairs(np.nan_to_num(_stack(table, columns)), PAIRS, apart):
            pictures = _read(view, first, second)
            if pictures is None:
                break
            changes.append(edge_change(pictures[0], pictures[1]))
            for group in arms:
                ends = _stack(table, [name for name in group.columns if name in table.columns])
                moved[group.name].append(float(np.abs(ends[second] - ends[first]).sum()))
    return changes, moved


def _read(view: View, first: int, second: int) -> np.ndarray | None:
    """Two pictures; None where they cannot be read, which `inspect` says elsewhere."""
    try:
        return view.read_rgb([first, second])
    except (UserError, EpisodeError):
        return None


def _stack(table: Table, names: list[str] | tuple[str, ...]) -> np.ndarray:
    return np.stack([table.columns[name] for name in names], axis=1)


def slug(text: str) -> str:
    """A name the contract takes: [a-z0-9_-]+."""
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_") or "unnamed"
