"""What recordings show about themselves: slots by the columns' names; units, action semantics and camera kinds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.inspect.grouping import Limb, is_nothing, limbs_of, read_name
from xwam_ft.prepare.action_semantics import ActionGuess, guess_actions
from xwam_ft.prepare.camera_kind import KindGuess, edge_change, far_pairs, guess_kind, guess_mount
from xwam_ft.prepare.episode import EpisodeError
from xwam_ft.prepare.sources import is_command
from xwam_ft.prepare.unit_guess import UnitGuess, guess_units

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode, Table, View
    from xwam_ft.prepare.sources import SourceInfo

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
    side: str = ""
    form: str | None = None  # of a pose's rotation
    maybe: str = ""  # what that may be, where nothing says it
    why: str = ""  # what else than names made it a slot
    explicit: bool = False  # an embodiment file has to list the commands
    ends: tuple[float, float] | None = None  # of one number of a gripper
    command_ends: tuple[float, float] | None = None
    doubt: str = ""  # what else than its kind it may be


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
    read = list(tables.values())
    limbs = limbs_of(slot_columns(info), lambda columns: _finite(read, columns), info.robot)
    groups = tuple(_group(name, limb, info, read) for name, limb in _named(limbs))
    kinds: dict[str, KindGuess] = {}
    mounts: dict[str, str] = {}
    for feature, camera in info.cameras.items():
        if camera.depth:
            continue
        changes, moved = _changes(feature, info, episodes, tables, groups)
        kinds[feature] = guess_kind(changes, feature)
        mount = guess_mount(changes, moved) if kinds[feature].kind == "wrist" else None
        poses = {group.name: group.side for group in groups if group.kind == "pose"}
        if kinds[feature].kind == "wrist" and mount is None:
            of_side = [name for name, side in poses.items() if side and side in feature.lower()]
            mount = of_side[0] if len(of_side) == 1 else next(iter(poses)) if len(poses) == 1 else None
        if mount in poses:
            mounts[feature] = mount
    return Evidence(groups, kinds, mounts)


def _group(name: str, limb: Limb, info: SourceInfo, tables: list[Table]) -> Group:
    commands, explicit = _commands(limb, info, tables)
    read = [table for table in tables if all(column in table.columns for column in (*limb.columns, *commands))]
    states = [_stack(table, limb.columns) for table in read]
    told = [_stack(table, commands) for table in read] if commands else []
    action = None
    if commands and limb.kind in ("joints", "pose"):
        place = _position(limb) if limb.kind == "pose" else list(range(len(limb.columns)))  # a pose by its position
        action = guess_actions([state[:, place] for state in states], [command[:, place] for command in told])
    whole = np.concatenate([np.zeros((0, len(limb.columns))), *states])
    units = guess_units(limb.kind, whole[:, _position(limb)] if limb.kind == "pose" else whole, told=bool(tables))
    grip = (_ends(states), _ends(told)) if limb.kind == "gripper" and len(limb.columns) == 1 else (None, None)
    return Group(
        name,
        limb.kind,
        limb.columns,
        commands,
        units,
        action,
        limb.side,
        limb.form,
        limb.maybe,
        limb.why,
        explicit,
        *grip,
        doubt=limb.doubt,
    )


def _position(limb: Limb) -> list[int]:
    """Where a pose's x y z stand among its columns; of a matrix whose order is not known, wherever they may."""
    if len(limb.columns) != 16:
        return [0, 1, 2]
    return [12, 13, 14] if limb.form == "matrix4_column_major" else [3, 7, 11]


def _ends(parts: list[np.ndarray]) -> tuple[float, float] | None:
    """The ends between which numbers usually are."""
    values = np.concatenate([np.zeros((0, 1)), *parts])
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) < 1e-6:
        return None
    low, high = (float(end) for end in np.quantile(values, [0.01, 0.99]))
    return (low, high) if high > low else (float(values.min()), float(values.max()))


def _commands(limb: Limb, info: SourceInfo, tables: list[Table]) -> tuple[tuple[str, ...], bool]:
    """The command columns of a limb, and whether an embodiment file has to list them; none where not all are known."""
    named: dict[str, list[str]] = {}
    by_name: dict[tuple[str, ...], list[str]] = {}
    sides: dict[str, str] = {}
    for column in info.command_columns:
        named.setdefault(column.split("/", 1)[-1], []).append(column)
        by_name.setdefault(_key(column, sides), []).append(column)
    states = Counter(column.split("/", 1)[-1] for column in slot_columns(info))
    alike = Counter(_key(column, sides) for column in slot_columns(info))
    elements = [column.split("/", 1)[-1] for column in limb.columns]
    # A name that two features have does not say which command goes with which state.
    if all(len(named.get(element, ())) == states[element] == 1 for element in elements):
        return tuple(named[element][0] for element in elements), False
    keys = [_key(column, sides) for column in limb.columns]
    if all(len(by_name.get(key, ())) == alike[key] == 1 for key in keys):
        return tuple(by_name[key][0] for key in keys), True
    return _by_place(limb, info, tables)


def _key(column: str, sides: dict[str, str]) -> tuple[str, ...]:
    name = read_name(column, sides)
    return (name.side, *name.stem, name.kin, name.role)


def _by_place(limb: Limb, info: SourceInfo, tables: list[Table]) -> tuple[tuple[str, ...], bool]:
    """Commands at the same places of a vector as wide, where their numbers follow the state's."""
    feature = limb.columns[0].split("/", 1)[0]
    whole = [column for column in slot_columns(info) if column.split("/", 1)[0] == feature]
    told = [column for column in info.command_columns if column.split("/", 1)[0] in ("action", "actions")]
    if "/" not in limb.columns[0] or len(whole) != len(told) or not set(limb.columns) <= set(whole):
        return (), False
    commands = tuple(told[whole.index(column)] for column in limb.columns)
    read = [table for table in tables if all(column in table.columns for column in (*limb.columns, *commands))]
    guess = guess_actions([_stack(table, limb.columns) for table in read], [_stack(table, commands) for table in read])
    follows = guess.kind in ("target", "next_state", "copy") and guess.sure != "unsure"
    return (commands, True) if follows else ((), False)


def _finite(tables: list[Table], columns: Sequence[str]) -> np.ndarray:
    read = [_stack(table, columns) for table in tables if all(column in table.columns for column in columns)]
    values = np.concatenate([np.zeros((0, len(columns))), *read])
    return values[np.isfinite(values).all(axis=1)]


def _named(limbs: list[Limb]) -> list[tuple[str, Limb]]:
    """Limbs with the names of their slots: by side, else by feature, else by what they are."""
    names = [_slot_name(limb) for limb in limbs]
    often = Counter(names)  # an arm recorded in joints and as a pose is two slots
    names = [name if often[name] == 1 else f"{name}_{limb.kind}" for name, limb in zip(names, limbs, strict=True)]
    found: list[tuple[str, Limb]] = []
    for name, limb in zip(names, limbs, strict=True):
        twins = sum(
            other == name or (other.startswith(f"{name}_") and other[len(name) + 1 :].isdigit()) for other, _ in found
        )
        found.append((name if not twins else f"{name}_{twins + 1}", limb))
    return found


def _slot_name(limb: Limb) -> str:
    features = {column.split("/", 1)[0] for column in limb.columns if "/" in column}
    if limb.side:
        return f"{limb.side}_{'hand' if limb.kind == 'gripper' else 'arm'}"
    if len(features) == 1:
        return f"{slug(features.pop().removeprefix('observation.'))}_{limb.kind}"
    if limb.kind == "gripper":
        return "gripper"
    arm = limb.stem in ("", "joint", "joints", "q", "qpos", "j", "pose", "ee", "eef", "tcp", "arm", "state")
    return "arm" if arm and limb.kind != "vector" else slug(limb.stem or limb.kind)


def slot_columns(info: SourceInfo) -> list[str]:
    """Columns that say where the robot is; how fast it moves and how hard it pushes is in no slot."""
    return [
        column
        for column in info.columns
        if not is_command(column)
        and not column.startswith("next.")
        and not MOVING.search(column)
        and not is_nothing(column)
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
        apart = max(1, round(SPAN * (info.fps or info.measured_fps or UNKNOWN_RATE)))
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


def _stack(table: Table, names: Sequence[str]) -> np.ndarray:
    return np.stack([table.columns[name] for name in names], axis=1)


def slug(text: str) -> str:
    """A name the contract takes: [a-z0-9_-]+."""
    return re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_") or "unnamed"
