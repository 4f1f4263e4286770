"""Grippers: what is stated of their range and sense, and their commands against their states.

A command of the same sense goes up before the state goes up. While the gripper moves, the command in force says where
to; and over leads of up to half a second commands and states rise and fall together, or against each other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.conventions import slot_columns
from xwam_ft.prepare.checks.followed import correlation
from xwam_ft.prepare.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xwam_ft.contract import Slot
    from xwam_ft.quantiles import Motion

LEADS = 15
STILL = 1e-3
AGAINST = -0.5  # of -1..1: what moves against its command
OUTSIDE = 0.25  # of the stated range, by which states may leave it
BEYOND = 0.6  # of the stated range, by which commands may push beyond the states; of the seen range twice as much
PUSHED, REACHED = 0.15, 0.05  # of the range: a gripper held open by what it grips, and one that arrives
WIDTH = (0.02, 0.2)  # metres between fingers, whatever unit is stated
WIDER = re.compile(r"open|width|apert", re.IGNORECASE)
TIGHTER = re.compile(r"clos", re.IGNORECASE)


def check_grippers(slots: Sequence[Slot], motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Findings about grippers, by episode; what is true of a slot is told of all its episodes."""
    found: dict[int, list[Finding]] = {number: [] for number in motions}
    for slot, (at, told) in zip(slots, slot_columns(slots), strict=True):
        states = {n: motion.state[:, at] for n, motion in motions.items()}
        commands = {n: motion.command[:, told] for n, motion in motions.items()}
        if slot.kind != "gripper" or not slot.present or not motions:
            continue
        low, high = np.quantile(np.concatenate(list(states.values())), [0.01, 0.99], axis=0)
        whole = _stated_range(slot, low, high)
        if slot.commanded and slot.command_from == "recorded" and (high - low).max() > STILL:
            whole += _commanded_range(slot, low, high, np.concatenate(list(commands.values())))
            for number, state in states.items():
                if _against(state, commands[number], high - low):
                    found[number].append(_say(slot, "gripper-sense", "its commands run against its state: one rises "
                                              "where the other falls"))  # fmt: skip
        if slot.state_width == 1 and slot.gripper_open is not None and slot.gripper_closed is not None:
            opposed = len([number for number in motions if found[number]]) * 2 > len(motions)
            same = slot.commanded and slot.command_from == "recorded" and not whole and not opposed
            pairs = [(states[n][:, 0], commands[n][:, 0]) for n in motions] if same else []
            whole += _stated_sense(slot, slot.gripper_open - slot.gripper_closed, pairs)
        for findings in found.values():
            findings += whole
    return {number: findings for number, findings in found.items() if findings}


def _say(slot: Slot, check: str, text: str) -> Finding:
    """A command in units of its own may well be another quantity, an effort say; a difference of the two may not."""
    relative = slot.convention in ("relative_to_chunk_start", "step_delta", "delta_to_state")
    severity: Severity = "error" if relative else "note" if slot.command_units is not None else "warning"
    fix = ""
    if relative:
        text += f", and `{slot.convention}` subtracts one from the other"
    elif severity == "note":
        text += "; that is right where they are another quantity, as `command_units` says"
        fix = "nothing needs to be done where they are (an effort, say); else leave `command_units` out"
    return Finding(check, severity, f"gripper {slot.name!r}: {text}", slot.name, fix=fix)


def _stated_range(slot: Slot, low: np.ndarray, high: np.ndarray) -> list[Finding]:
    if slot.gripper_open is None or slot.gripper_closed is None:
        return []
    bottom, top = sorted((slot.gripper_open, slot.gripper_closed))
    reach, span, size = top - bottom, float((high - low).max()), float(np.abs([low, high]).max())
    seen = f"its states go from {low.min():.3g} to {high.max():.3g}"
    stated = f"`gripper_closed: {slot.gripper_closed:g}` and `gripper_open: {slot.gripper_open:g}` are stated"
    outside = low.min() < bottom - OUTSIDE * reach or high.max() > top + OUTSIDE * reach
    tiny = STILL < span < 0.12 * reach and size < 0.3 * max(abs(bottom), abs(top))
    if not outside and not tiny:
        return []
    return [Finding("gripper-range", "warning", f"gripper {slot.name!r}: {seen}, and {stated}", slot.name)]


def _commanded_range(slot: Slot, low: np.ndarray, high: np.ndarray, commands: np.ndarray) -> list[Finding]:
    if commands.shape[1] != len(low):
        return []
    least, most = np.quantile(commands, [0.01, 0.99], axis=0)
    stated = slot.gripper_open is not None and slot.gripper_closed is not None
    reach = np.maximum(high - low, abs((slot.gripper_open or 0.0) - (slot.gripper_closed or 0.0)))
    room = (BEYOND if stated else 2 * BEYOND) * reach
    apart = (least < low - room) | (most > high + room) | ((most - least < (high - low) / 5) & (most - least > 0))
    moving = high - low > STILL
    if not np.mean(apart[moving]) > 0.5:
        return []
    text = (
        f"its commands go from {least.min():.3g} to {most.max():.3g} and its states from {low.min():.3g} to "
        f"{high.max():.3g}"
    )
    return [_say(slot, "gripper-range", text)]


def _against(state: np.ndarray, command: np.ndarray, usual: np.ndarray) -> bool:
    """Whether most of the numbers that move do so against their commands."""
    if state.shape != command.shape:
        return False
    votes: list[bool] = []
    for s, c, span in zip(state.T, command.T, usual, strict=True):
        if np.ptp(s) < max(STILL, 0.2 * span) or np.ptp(c) < STILL or len(s) < 2 * LEADS:
            continue
        steps = np.diff(s)
        moving = np.abs(steps) > 0.01 * np.ptp(s)
        told = np.sign(c[:-1] - (c.max() + c.min()) / 2)
        agreement = float((steps * told)[moving].sum() / max(np.abs(steps[moving]).sum(), 1e-12))
        together = [correlation(c[: len(c) - lead], s[lead:]) for lead in range(LEADS + 1)]
        votes.append(agreement < AGAINST and min(together) < AGAINST and min(together) + max(together) < 0)
    return len(votes) > 0 and sum(votes) * 2 > len(votes)


def _stated_sense(slot: Slot, opening: float, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Finding]:
    """`gripper_open` and `gripper_closed` the wrong way round, where numbers or names say it.

    Args:
        opening: open less closed, as stated.
        pairs: states and commands that can be compared.
    """
    why = ""
    size = abs(opening)
    if opening < 0 and (slot.units[0] == "m" or (WIDTH[0] <= size <= WIDTH[1] and slot.gripper_open == 0)):
        why = "an opening in metres is the larger the wider"
    names = {bool(WIDER.search(name)) for name in slot.columns}
    tight = {bool(TIGHTER.search(name)) for name in slot.columns}
    if names == {True} and tight == {False} and opening < 0:
        why = f"{slot.columns[0]!r} is named after what grows as it opens"
    elif tight == {True} and names == {False} and opening > 0:
        why = f"{slot.columns[0]!r} is named after what grows as it closes"
    held = _closes(pairs, abs(opening))
    if not why and held is not None and held * opening > 0:
        end = "largest" if held > 0 else "smallest"
        why = f"at its {end} commands it is held apart, as by what it grips, and it arrives at the others"
    if not why:
        return []
    stated = f"`gripper_open: {slot.gripper_open:g}` and `gripper_closed: {slot.gripper_closed:g}`"
    return [Finding("gripper-sense", "warning", f"gripper {slot.name!r}: {stated} look swapped: {why}", slot.name)]


def _closes(pairs: list[tuple[np.ndarray, np.ndarray]], reach: float) -> int | None:
    """1 where it closes towards larger numbers, -1 towards smaller, by the commands it does not reach; else None."""
    gaps: list[list[float]] = [[], []]
    for state, command in pairs:
        low, high = float(command.min()), float(command.max())
        if high - low < 0.3 * reach or len(state) < 2 * LEADS:
            continue
        steps = np.abs(np.diff(state, prepend=state[:1])) + np.abs(np.diff(command, prepend=command[:1]))
        busy = np.convolve(steps > 0.01 * reach, np.ones(LEADS, bool))[: len(steps)] > 0  # within the last LEADS frames
        for end, near in enumerate((command < low + (high - low) / 3, command > high - (high - low) / 3)):
            gap = (state - command if end == 0 else command - state)[near & ~busy]
            gaps[end] += gap.tolist()
    if min(len(gaps[0]), len(gaps[1])) < LEADS:
        return None
    below, above = (float(np.median(gap)) / reach for gap in gaps)
    if below > PUSHED and abs(above) < REACHED:
        return -1
    return 1 if above > PUSHED and abs(below) < REACHED else None
