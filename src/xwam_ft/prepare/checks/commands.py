"""What the recorded actions are by their numbers, against what the embodiment says they are: absolute targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.conventions import slot_columns
from xwam_ft.prepare.action_semantics import guess_actions
from xwam_ft.prepare.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.quantiles import Motion

MIXED = (
    "put these episodes into a dataset of their own, prepare it with `command: delta` and merge the sets (`xwam-ft "
    "shards merge`); or write `command: next_state`, which does without recorded commands"
)
OF_TARGETS = ("delta-commands", "unrelated-commands")
MOVES = 0.05  # m or rad in an episode: what holds still, commanded or not, follows nothing


def check_commands(slots: Sequence[Slot], motions: Sequence[Motion], changes: Collection[str] = ()) -> list[Finding]:
    """Findings about whole slots, each true of all episodes; pose and joint slots with recorded commands.

    Args:
        changes: slots whose commands were read as changes, so that nobody takes them for targets.
    """
    found: list[Finding] = []
    for slot, (state, command) in zip(slots, slot_columns(slots), strict=True):
        if _is_judged(slot):
            said = _judge(slot, motions, state, command)
            found += [one for one in said if slot.name not in changes or one.check not in OF_TARGETS]
    return found


def check_mixed_commands(plans: Sequence[SlotPlan], motions: Mapping[int, Motion]) -> dict[int, list[Finding]]:
    """Episodes whose commands are changes where those of other episodes are the targets that the embodiment says."""
    found: dict[int, list[Finding]] = {}
    for plan, (state, command) in zip(plans, slot_columns([plan.slot for plan in plans]), strict=True):
        slot = plan.slot
        if plan.delta is not None or not _is_judged(slot):
            continue
        width = 3 if slot.kind == "pose" else slot.state_width
        guesses = {
            n: guess_actions([motion.state[:, state][:, :width]], [motion.command[:, command][:, :width]])
            for n, motion in motions.items()
        }
        odd = {n: guess for n, guess in guesses.items() if (guess.kind, guess.sure) == ("delta", "sure")}
        if odd and any(guess.kind in ("target", "next_state") for guess in guesses.values()):
            for number, guess in odd.items():
                text = f"the recorded commands of {slot.name!r} are changes of the state, and targets in other episodes"
                found.setdefault(number, []).append(
                    Finding("delta-commands", "error", f"{text} ({guess.why})", slot.name, fix=MIXED)
                )
    return found


def _is_judged(slot: Slot) -> bool:
    recorded = slot.present and slot.commanded and slot.command_from == "recorded"
    return recorded and slot.kind in ("pose", "joints") and slot.command_units in (None, slot.units)


def _judge(slot: Slot, motions: Sequence[Motion], state: slice, command: slice) -> list[Finding]:
    width = 3 if slot.kind == "pose" else slot.state_width  # a pose is told by its position
    guess = guess_actions(
        [motion.state[:, state][:, :width] for motion in motions],
        [motion.command[:, command][:, :width] for motion in motions],
    )
    if guess.sure == "unsure" and guess.kind != "unknown":
        return []
    name = f"the recorded commands of {slot.name!r}"

    def one(check: str, severity: Severity, text: str) -> list[Finding]:
        return [Finding(check, severity, f"{name} {text}", slot.name)]

    if guess.kind == "delta":
        certain = guess.sure == "sure"
        text = f"are changes of the state, and are read as absolute targets ({guess.sure}: {guess.why})"
        return one("delta-commands", "error" if certain else "warning", text)
    if guess.kind == "copy":
        return one("copied-commands", "warning", "are the present state, so they tell nothing about what comes")
    if guess.kind == "next_state":
        return one("next-state-commands", "note", "are the next state: what the robot did, not what it was told")
    frames = sum(len(motion.state) for motion in motions)
    moved = all(
        float(np.median([np.ptp(part[:, place][:, :width], axis=0).max() for part in parts])) > MOVES
        for parts, place in (
            ([motion.state for motion in motions], state),
            ([motion.command for motion in motions], command),
        )
    )
    if guess.kind == "unknown" and frames >= 200 and moved and guess.as_target < 0.2:
        return one("unrelated-commands", "warning", f"do not follow the state ({guess.why})")
    return []
