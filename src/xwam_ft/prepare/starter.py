"""The starter embodiment file of `xwam-ft inspect --write`: what was guessed, with how sure that is, and TODOs."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.prepare.evidence import Evidence, Group, element, slot_columns, slug

if TYPE_CHECKING:
    from xwam_ft.prepare.inspect import TimingProposal
    from xwam_ft.prepare.sources import SourceInfo

ACTIONS = {
    "target": ("recorded", "targets, {lead} frames ahead of the state"),
    "next_state": ("recorded", "exactly the next state"),
    "copy": ("next_state", "the recorded action repeats the present state"),
    "delta": ("delta", "a change of the state; say in `delta` whether of the state or of the command before"),
    "unknown": ("recorded", "the recorded action follows the state neither as a target nor as a change"),
}


def starter(info: SourceInfo, evidence: Evidence, proposal: TimingProposal, raw: Path) -> str:
    """A commented embodiment file; it loads once every TODO is replaced. What is unsure is a TODO."""
    rate = "rate not recorded" if info.fps is None else f"{info.fps:g} fps"
    lines = [
        f"# Starter for {raw.name} ({info.format}, {info.robot}, {rate}). Recordings do not say",
        "# units, kinds of camera or what an action is: what stands here was guessed from numbers and pictures, each",
        "# with how sure that is. Check it and replace every TODO. Finished files are in recipes/embodiments/.",
        f"name: {_quoted(slug(info.robot if info.robot != 'unknown' else raw.name))}",
        *(["fps: TODO  # these recordings do not store their frames per second"] if info.fps is None else []),
        "",
        "cameras:  # name: the recording's feature; kind: static or wrist (a wrist camera needs `mount: POSE_SLOT`)",
        *_cameras(info, evidence),
        "",
        "image: {height: 256, width: 320, crop: 0.95}",
        "",
        f"# {proposal.reason}",
        f"timing: {{frame_skip: {proposal.frame_skip}, action_skip: {proposal.action_skip}, "
        f"clip_frames: {proposal.clip_frames}}}",
        "",
        "slots:  # split these into arms (kind: joints or pose) and hands (kind: gripper); units: rad, deg, m, mm or 1",
    ]
    shared = Counter(element(name) for name in slot_columns(info))  # a name of two features is written in full
    taken = {column for group in evidence.groups for column in group.commands}
    free = [column for column in info.command_columns if column not in taken]
    for group in evidence.groups:
        lines += _slot(group, shared, free)
    if free:
        lines.append(f"# recorded commands that no slot has: {', '.join(free)}")
    lines += ["", "held_out: 0.1  # share of the episodes kept for evaluation", ""]
    return "\n".join(lines)


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
        lines.append(f"  {_quoted(slug(short))}: {{source: {_quoted(feature)}, kind: {kind}{tail}}}  # {why}")
    return lines


def _slot(group: Group, shared: Counter[str], free: list[str]) -> list[str]:
    unit = group.units
    stated = unit.unit if unit.unit is not None and unit.sure != "unsure" else None
    maybe = f"{unit.unit}? " if unit.unit is not None and stated is None else ""
    units = f'"{stated}"' if stated == "1" else stated or "TODO"
    lines = [
        f"  {group.name}:",
        f"    kind: {group.kind}",
        f"    columns: [{', '.join(_quoted(_short(member, shared)) for member in group.columns)}]",
        f"    units: {units}  # {maybe}{unit.sure}: {unit.why}",
    ]
    if group.kind == "pose":
        lines.insert(-1, _rotation(group))
    if not group.commands and free:
        why = "no command of these names is recorded: list its `command_columns`, or write next_state"
        return [*lines, f"    command: TODO  # {why}"]
    if not group.commands:
        return [*lines, "    command: next_state  # no command is recorded"]
    if group.action is None:
        return [*lines, "    command: recorded"]
    command, words = ACTIONS[group.action.kind]
    said = words.format(lead=group.action.lead)
    lines.append(f"    command: {command}  # {group.action.sure}: {said}; {group.action.why}")
    return lines if command != "delta" else [*lines, "    delta: {to: state}"]


def _rotation(group: Group) -> str:
    """The order of a quaternion's numbers, where their names say it."""
    order = "".join(name[-1].lower() for name in group.columns[-4:])
    if order in ("wxyz", "xyzw"):
        return f"    rotation: {order}  # by the columns' names"
    return "    rotation: TODO  # wxyz or xyzw: in which order the quaternion's numbers stand"


def _short(name: str, shared: Counter[str]) -> str:
    """A column's own name, with its feature where another feature has that name too."""
    return element(name) if shared[element(name)] == 1 else name


def _quoted(text: str) -> str:
    """A YAML string, quoted where YAML would read something else."""
    words = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in words else json.dumps(text)
