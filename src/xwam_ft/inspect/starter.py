"""The starter embodiment file of `xwam-ft inspect --write`: what was guessed, with how sure that is, and TODOs."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.errors import listed
from xwam_ft.inspect.evidence import Evidence, Group, element, slot_columns, slug
from xwam_ft.inspect.known_robots import known_embodiments, known_units, said_of
from xwam_ft.prepare.unit_guess import UnitGuess

if TYPE_CHECKING:
    from xwam_ft.inspect.timing import TimingProposal
    from xwam_ft.prepare.sources import SourceInfo

ACTIONS = {
    "target": ("recorded", "targets, {lead} frames ahead of the state"),
    "next_state": ("recorded", "exactly the next state"),
    "copy": ("next_state", "the recorded action repeats the present state"),
    "delta": ("delta", "a change of the state, or of the command before"),
    "unknown": (
        "TODO",
        "recorded (targets), delta (changes), next_state or none: the recorded action follows the state neither as a "
        "target nor as a change",
    ),
}
UNIT_ENDING = re.compile(r"[_./](rad|deg|mm|m)(?:\.pos)?$")
SNAP = 0.03  # of a gripper's range: how far its end may be from 0, 1 or 100 to be meant by it


def starter(info: SourceInfo, evidence: Evidence, proposal: TimingProposal, raw: Path) -> str:
    """A commented embodiment file; it loads once every TODO is replaced. What is unsure is a TODO."""
    known = known_embodiments(info)
    units = known_units(known)
    lines = [
        f"# Starter for {raw.name} ({info.format}, {info.robot}, {_rate(info)}). Recordings do not say",
        "# units, kinds of camera or what an action is: what stands here was guessed from numbers and pictures, each",
        "# with how sure that is. Check it and replace every TODO. Finished files are in recipes/embodiments/.",
        *(f"# {line}" for line in said_of(known)),
        f"name: {_quoted(slug(info.robot if info.robot != 'unknown' else raw.resolve().stem))}",
        *_fps(info),
        "",
        "cameras:  # name: the recording's feature; kind: static or wrist (a wrist camera needs `mount: POSE_SLOT`)",
        *(_cameras(info, evidence) or ["  # TODO: no camera was recorded, and at least one is needed"]),
        "",
        "image: {height: 256, width: 320, crop: 0.95}",
        "",
        f"# {proposal.reason}",
        f"timing: {{frame_skip: {proposal.frame_skip}, action_skip: {proposal.action_skip}, "
        f"clip_frames: {proposal.clip_frames}}}",
        "",
        "slots:  # arms are joints or a pose, hands a gripper, the rest a vector; units: rad, deg, m, mm or 1",
    ]
    shared = Counter(element(name) for name in slot_columns(info))  # a name of two features is written in full
    taken = {column for group in evidence.groups for column in group.commands}
    free = [column for column in info.command_columns if column not in taken]
    for group in evidence.groups:
        lines += _slot(with_known_unit(group, units), shared, free)
    if free:
        lines.append(f"# recorded commands that no slot has: {', '.join(free)}")
    if idle := [column for column in info.state_columns if column not in slot_columns(info)]:
        lines.append(f"# recorded and in no slot, for they say how fast, how hard or when: {listed(idle, 20)}")
    lines += ["", "held_out: 0.1  # share of the episodes kept for evaluation", ""]
    return "\n".join(lines)


def _rate(info: SourceInfo) -> str:
    return "rate not recorded" if info.fps is None else f"{info.fps:g} fps"


def _fps(info: SourceInfo) -> list[str]:
    if info.fps is not None:
        return []
    if info.measured_fps is not None:
        return [f"fps: {info.measured_fps:g}  # by the recorded timestamps"]
    usual = " (ACT's recorder makes 50)" if "ACT/ALOHA" in info.format else ""
    return [f"fps: TODO  # these recordings do not store their frames per second{usual}"]


def _cameras(info: SourceInfo, evidence: Evidence) -> list[str]:
    lines: list[str] = []
    depth = [name for name, camera in info.cameras.items() if camera.depth]
    if depth:
        lines.append("  # depth unit: mm, m, lerobot_log12 (LeRobot's 12-bit code), or the metres of one count")
    shown = [feature for feature, camera in info.cameras.items() if not camera.depth]
    shorts = Counter(slug(feature.rsplit(".", 1)[-1]) for feature in shown)
    for feature in shown:
        of_it = [
            name for name in depth if max((f for f in shown if name.startswith(f)), key=len, default="") == feature
        ]
        short = feature.rsplit(".", 1)[-1]
        if shorts[slug(short)] > 1:  # another camera's last word is the same
            short = feature.removeprefix("observation.images.")
        guess = evidence.kinds[feature]
        said = info.calibration.get(feature, info.calibration.get(short, {})).get("kind")
        kind = said or guess.kind
        mount = evidence.mounts.get(feature) or next((g.name for g in evidence.groups if g.kind == "pose"), None)
        tail = f", mount: {mount}" if kind == "wrist" and mount else ""
        tail += f", depth: {{source: {_quoted(of_it[0])}, unit: TODO}}" if of_it else ""
        why = "by meta/calibration.json" if said else f"{guess.sure}: {guess.why}"
        if not said and guess.sure == "unsure":
            # Where pictures leave it open, a person has to look; without any, static is what is assumed anyway.
            kind, why = ("TODO" if guess.pairs else kind), f"static or wrist; {guess.kind}? {why}"
        lines.append(f"  {_quoted(slug(short))}: {{source: {_quoted(feature)}, kind: {kind}{tail}}}  # {why}")
    return lines


def _slot(group: Group, shared: Counter[str], free: list[str]) -> list[str]:
    unit = group.units
    stated = unit.unit if unit.unit is not None and unit.sure != "unsure" else None
    maybe = f"{unit.unit}? " if unit.unit is not None and stated is None else ""
    stated, maybe = (None, f"{unit.unit}? ") if group.doubt and stated else (stated, maybe)
    units = f'"{stated}"' if stated == "1" else stated or "TODO"
    lines = [
        f"  {group.name}:",
        f"    kind: {f'TODO  # {group.doubt}' if group.doubt else group.kind}",
        f"    columns: [{', '.join(_quoted(_short(member, shared)) for member in group.columns)}]"
        + (f"  # {group.why}" if group.why and not (group.kind == "pose" and group.form) else ""),
        f"    units: {units}  # {maybe}{unit.sure}: {unit.why}",
    ]
    if group.kind == "pose":
        lines.insert(-1, _rotation(group))
    lines += _grip(group)
    if not group.commands and free:
        why = "no command of these names is recorded: list its `command_columns`, or write next_state or none"
        return [*lines, f"    command: TODO  # {why}"]
    if not group.commands:
        return [*lines, "    command: next_state  # no command is recorded"]
    if group.explicit:
        lines.append(f"    command_columns: [{', '.join(map(_quoted, group.commands))}]")
    if group.action is None:
        return [*lines, "    command: recorded"]
    command, words = ACTIONS[group.action.kind]
    said = words.format(lead=group.action.lead)
    lines.append(f"    command: {command}  # {group.action.sure}: {said}; {group.action.why}")
    if command != "delta":
        return lines
    return [*lines, "    delta: {to: TODO}  # state: of the state at its own step; command: of the command before"]


def with_known_unit(group: Group, units: dict[str, str]) -> Group:
    """The group with the unit its columns' names or a shipped file say, where the numbers leave it open."""
    if group.units.sure != "unsure" or group.units.why.startswith(("no numbers", "servo")):
        return group
    endings = {match[1] if (match := UNIT_ENDING.search(name.lower())) else "" for name in group.columns}
    shipped = {units.get(element(name), "") for name in group.columns}
    for said, why in ((endings, "by the columns' names"), (shipped, "as in the shipped file of these columns")):
        unit = next(iter(said)) if len(said) == 1 else ""
        if unit and group.units.unit in (None, unit):
            return replace(group, units=UnitGuess(unit, "likely", f"{why}; {group.units.why}"))
    return group


def _grip(group: Group) -> list[str]:
    """The ends of a gripper, and its commands' own numbers where they are others."""
    if group.ends is None:
        return []
    low, high = (_meant(end, group.ends) for end in group.ends)
    percent = group.units.unit == "1" and "percentage" in group.units.why
    low, high = (0.0, 100.0) if percent else (low, high)
    scale = 1e-3 if group.units.unit == "mm" else 1.0
    opens = not re.search(r"clos", group.columns[0].lower())
    open_, closed = (high, low) if opens else (low, high)
    why = "likely: the ends recorded; that the larger number is open is usual" if opens else "by the column's name"
    why = "likely: of a percentage; that the larger number is open is usual" if percent and opens else why
    lines = [f"    gripper_open: {open_ * scale:g}  # {why}", f"    gripper_closed: {closed * scale:g}"]
    if group.command_ends is None:
        return lines
    told, seen = group.command_ends, group.ends
    ratio = (told[1] - told[0]) / (seen[1] - seen[0])
    if not 0.5 < ratio < 2.0 or told[0] > seen[1] or told[1] < seen[0]:
        span = f"{told[0]:.3g} to {told[1]:.3g}, the state from {seen[0]:.3g} to {seen[1]:.3g}"
        lines.append(f'    command_units: "1"  # commands run from {span}: learned as they are')
    return lines


def _meant(value: float, ends: tuple[float, float]) -> float:
    """0, 1 or 100 where an end is so near to it that it is meant; else three digits of it."""
    slack = SNAP * (ends[1] - ends[0])
    return next((whole for whole in (0.0, 1.0, 100.0, -1.0) if abs(value - whole) <= slack), float(f"{value:.3g}"))


def _rotation(group: Group) -> str:
    """The order of a rotation's numbers, where their names or they themselves say it."""
    order = "".join(name[-1].lower() for name in group.columns[-4:])
    form = group.form or (order if order in ("wxyz", "xyzw") else None)
    if form is not None:
        by = group.why if group.form and group.why else "by the columns' names"
        return f"    rotation: {form}  # {by}"
    maybe = group.maybe or "wxyz, or xyzw"
    return f"    rotation: TODO  # {maybe}: in which order the rotation's numbers stand"


def _short(name: str, shared: Counter[str]) -> str:
    """A column's own name, with its feature where another feature has that name too."""
    return element(name) if shared[element(name)] == 1 else name


def _quoted(text: str) -> str:
    """A YAML string, quoted where YAML would read something else."""
    words = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in words else json.dumps(text)
