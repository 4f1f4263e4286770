"""Each command column against the state column it moves, episode by episode: dead, exchanged and inverted columns.

What is true of a whole slot is told elsewhere (commands.py, grippers.py); here one wrong column among five, or one
wrong episode among fifty, is not outvoted. A state follows its command within `LEADS` frames: over those leads their
best correlation is near 1 in a sound recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.conventions import slot_columns
from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from xwam_ft.contract import Slot
    from xwam_ft.quantiles import Motion

LEADS = 15
FRAMES = 30  # of an episode, below which a correlation says little
MOVES = 0.05  # m or rad; of a gripper, as a share of its range
DEAD = 0.02  # of what moves, that what stands still may move
FOLLOWS, STRAYS = 0.8, 0.5  # correlation of the other episodes, and of one that is not like them


def check_followed(
    slots: Sequence[Slot], motions: Mapping[int, Motion], changes: Collection[str] = ()
) -> dict[int, list[Finding]]:
    """Findings by episode, about slots with recorded targets in the state's own unit.

    Args:
        changes: slots whose commands were read as changes, and so lie near the states whatever they are.
    """
    found: dict[int, list[Finding]] = {}
    for slot, (state, command) in zip(slots, slot_columns(slots), strict=True):
        recorded = slot.present and slot.commanded and slot.command_from == "recorded"
        if not recorded or slot.state_width != slot.command_width or slot.command_units not in (None, slot.units):
            continue
        if slot.name in changes:
            continue
        for column in range(3 if slot.kind == "pose" else slot.state_width):  # a pose is told by its position
            pairs = {
                number: (motion.state[:, state][:, column], motion.command[:, command][:, column])
                for number, motion in motions.items()
            }
            for number, text in _column(slot, pairs).items():
                name = slot.elements[column] if column < len(slot.elements) else str(column)
                finding = Finding("unfollowed-command", "warning", f"{slot.name!r}, {name}: {text}", slot.name)
                found.setdefault(number, []).append(finding)
    return found


def _column(slot: Slot, pairs: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> dict[int, str]:
    """What is wrong with one column, by episode."""
    said: dict[int, str] = {}
    reach = max(float(np.ptp(np.concatenate([pair[which] for pair in pairs.values()]))) for which in (0, 1))
    least = MOVES * reach if slot.kind == "gripper" else MOVES
    # A gripper may be told to close throughout, while it closes once: only among others is that strange.
    told = sum(float(np.ptp(command)) > least for _, command in pairs.values()) * 2 > len(pairs)
    may_be_dead = told or slot.kind != "gripper"
    follows: dict[int, float] = {}
    for number, (state, command) in pairs.items():
        spans = float(np.ptp(state)), float(np.ptp(command))
        if may_be_dead and spans[0] > max(least, 0.1 * reach) and spans[1] < DEAD * spans[0]:
            said[number] = f"its command stands at {command[0]:.3g} while its state moves by {spans[0]:.3g}"
        elif slot.kind != "gripper" and spans[1] > max(least, 0.1 * reach) and spans[0] < DEAD * spans[1]:
            said[number] = f"its state stands at {state[0]:.3g} while its command moves by {spans[1]:.3g}"
        elif min(spans) > max(least, 0.1 * reach) and len(state) >= FRAMES:
            follows[number] = _follows(state, command)
    for number, value in follows.items():
        others = [other for key, other in follows.items() if key != number]
        usual = float(np.median(others)) if others else 1.0
        if value < STRAYS and usual > FOLLOWS:
            than = f", and {usual:.2f} in the other episodes" if others else ""
            said[number] = f"its state does not follow its command (correlation {value:.2f}{than})"
    other = slot.kind == "gripper" and slot.command_units is not None  # an effort, say; grippers.py tells its sense
    against = [value for value in follows.values() if value < 0 and not other]
    if len(against) > max(1, len(follows) / 2):
        for number in follows:
            said.setdefault(number, f"its state runs against its command (correlation {np.median(against):.2f})")
    return said


def _follows(state: np.ndarray, command: np.ndarray) -> float:
    """The best correlation of a state with commands of up to `LEADS` frames before."""
    return max(correlation(command[: len(command) - lead], state[lead:]) for lead in range(LEADS + 1))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two rows of numbers, -1..1; 0 where one of them does not move."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(np.sqrt((one**2).sum() * (other**2).sum()), 1e-12))
