"""Chunk seams: how hard commands jerk where one chunk follows another, beside within chunks and as recorded.

A robot executes the first half of a chunk and goes on with a new one, whose first command knows nothing of the last.
Jerk is the third difference of commands over the period cubed; of a pose along its path and about its axis. A jump is
how far the new chunk's first command lies from what the old chunk had planned for that time. Where the bundle was
trained with action prefixes, the new chunk is also asked to go on from the old one (real-time chunking).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, observation, poses
from xwam_ft.evaluate.errors import DEGREES, ErrorTable, command_errors, mean_errors
from xwam_ft.evaluate.late import as_prefix
from xwam_ft.evaluate.open_loop import BATCH, spread
from xwam_ft.policy.policy import clip_observation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

    from xwam_ft.contract import Contract, Slot
    from xwam_ft.policy.policy import Policy
    from xwam_ft.progress import Advance
    from xwam_ft.shard_index import Split
    from xwam_ft.shards import Clip, ClipRef, ShardSet

MOST_PAIRS = 16
LEAST = 3  # commands of a chunk that are executed: a seam's jerk is of three before and three after it
COLUMNS = ("seam", "seam_prefix", "inside", "recorded")

Jerks = dict[tuple[str, str, str], "Float[ndarray, ' n']"]
"""(slot, quantity, unit) -> the jerk of every four commands in a row."""


def jerks(contract: Contract, commands: Float[ndarray, "n q"]) -> Jerks:
    """Of absolute commands a period apart: n - 3 numbers of each quantity, the root mean square over a slot's own.

    Poses in m/s^3 and deg/s^3, joints in deg/s^3, other numbers in their unit a second cubed. Slots that command
    changes of the measured state have none, since their commands depend on states that are still to be measured.
    """
    period = contract.timing.action_period
    found: Jerks = {}
    for name, place in conventions.command_slices(contract).items():
        slot = contract.slot(name)
        if not slot.present or slot.convention == "delta_to_state":
            continue
        table = commands[:, place]
        if slot.kind == "pose" and not slot.for_controller:
            steps = poses.pose_difference(table[1:], table[:-1]) / period
            rates = np.diff(steps, n=2, axis=0) / period**2
            found[name, "position", "m/s³"] = np.linalg.norm(rates[:, :3], axis=1)
            found[name, "rotation", "deg/s³"] = np.linalg.norm(rates[:, 3:], axis=1) * DEGREES
            continue
        third = np.diff(table, n=3, axis=0) / period**3
        scale, unit = _unit(slot)
        found[name, "command", f"{unit}/s³"] = np.sqrt(np.mean(third**2, axis=1)) * scale
    return found


def at_seam(jerk: Float[ndarray, " n"], seam: int) -> Bool[ndarray, " n"]:
    """Which of them are of commands on both sides of a seam before command number `seam`."""
    first = np.arange(len(jerk))
    return (first < seam) & (first + 3 >= seam)


def seam_table(
    policy: Policy,
    shards: ShardSet,
    *,
    split: Split = "held_out",
    clips: int,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """{"pairs", "execute", "prefix", "slots": {slot: {quantity: {"unit", and each of `COLUMNS`}}},
    "jumps": {slot: {quantity: {"unit", "seam", "inside", "recorded"}}}}.

    Jumps are means, in the units of errors.py: "inside" and "recorded" are from one command to the next. Jerks are root
    mean squares over pairs of chunks, the second asked for when the first was executed by half, from what was
    recorded then; None where there is nothing to measure.

    Args:
        clips: pairs at most, and `MOST_PAIRS`.
        advance: is told how many pairs were done.
    """
    contract = shards.contract
    steps = contract.timing.action_steps
    execute = min(steps - LEAST, max(LEAST, steps // 2)) if steps > LEAST else steps
    pairs = find_pairs(shards, split, execute, min(clips, MOST_PAIRS))
    prefix = min(policy.action_prefix, steps - execute, steps - LEAST) if _one_frame(contract) else 0
    sums: dict[tuple[str, str, str], dict[str, list[np.ndarray]]] = {}
    jumps: dict[str, list[ErrorTable]] = {"seam": [], "inside": [], "recorded": []}

    def add(column: str, found: Jerks, chosen: Callable[[np.ndarray], np.ndarray]) -> None:
        for key, values in found.items():
            kept = values[chosen(values)]
            sums.setdefault(key, {name: [] for name in COLUMNS})[column].append(kept)

    for at in range(0, len(pairs), BATCH):
        batch = [(shards.read_clip(a), shards.read_clip(b)) for a, b in pairs[at : at + BATCH]]
        seeds = [policy.settings.seed + 2 * (at + index) for index in range(len(batch))]
        before = _answers(policy, [first for first, _ in batch], seeds)
        after = _answers(policy, [second for _, second in batch], [seed + 1 for seed in seeds])
        joined = [np.concatenate([a[:execute], b[:execute]]) for a, b in zip(before, after, strict=True)]
        for (first, _), a, b in zip(batch, before, after, strict=True):
            everything = np.ones_like(a)
            planned = a[execute : execute + 1]  # nothing where a whole chunk is executed
            jumps["seam"].append(command_errors(contract, b[: len(planned)], planned, everything[: len(planned)]))
            jumps["inside"].append(command_errors(contract, a[1:], a[:-1], everything[1:]))
            both = first.action_mask[1:] * first.action_mask[:-1]
            jumps["recorded"].append(command_errors(contract, first.action[1:], first.action[:-1], both))
        for (first, _), table in zip(batch, joined, strict=True):
            found = jerks(contract, table)
            add("seam", found, lambda values: at_seam(values, execute))
            add("inside", found, lambda values: ~at_seam(values, execute))
            recorded = np.asarray((first.action_mask > 0).all(axis=1))
            whole = np.array([recorded[i : i + 4].all() for i in range(len(recorded) - 3)], dtype=bool)
            add("recorded", jerks(contract, first.action), lambda values, whole=whole: whole[: len(values)])
        if prefix:
            rows = [a[execute : execute + prefix] for a in before]
            given = [as_prefix(contract, row, second.proprio[0]) for row, (_, second) in zip(rows, batch, strict=True)]
            again = _answers(policy, [second for _, second in batch], [seed + 1 for seed in seeds], np.stack(given))
            for a, b in zip(before, again, strict=True):
                found = jerks(contract, np.concatenate([a[:execute], b]))
                add("seam_prefix", found, lambda values: at_seam(values, execute + prefix))
        if advance is not None:
            advance(len(batch))
    slots: dict[str, dict[str, Any]] = {}
    for (slot, name, unit), columns in sums.items():
        values = {column: _root_mean_square(parts) for column, parts in columns.items()}
        slots.setdefault(slot, {})[name] = {"unit": unit, **values}
    found = {} if not pairs else mean_errors(jumps)
    return {"pairs": len(pairs), "execute": execute, "prefix": prefix, "slots": slots, "jumps": found}


def find_pairs(shards: ShardSet, split: Split, execute: int, count: int) -> list[tuple[ClipRef, ClipRef]]:
    """Clips of an episode that start `execute` commands apart, evenly; what both execute was recorded."""
    refs = shards.clips(split, 1)
    at = {(ref.entry.episode, ref.start): ref for ref in refs}
    ahead = execute * shards.contract.timing.action_skip
    after = [(ref.entry.episode, ref.start + ahead, ref.start + 2 * ahead) for ref in refs]
    both = [
        (ref, at[e, one]) for ref, (e, one, two) in zip(refs, after, strict=True) if {(e, one), (e, two)} <= at.keys()
    ]
    return spread(both, count)


def _answers(
    policy: Policy, clips: list[Clip], seeds: list[int], prefix: Float[ndarray, "n k da"] | None = None
) -> list[Float[ndarray, "ta q"]]:
    """Absolute commands of several clips."""
    inputs = [clip_observation(policy.contract, clip) for clip in clips]
    actions = policy.infer_batch(inputs, seeds) if prefix is None else policy.infer_batch(inputs, seeds, prefix=prefix)
    rows = zip(actions, clips, strict=True)
    return [observation.decode(policy.contract, a, c.proprio[0], states=c.action_states).table for a, c in rows]


def _one_frame(contract: Contract) -> bool:
    """Whether every command of a chunk is told from the state it starts from."""
    return not any(slot.convention == "delta_to_state" and slot.present for slot in contract.slots)


def _unit(slot: Slot) -> tuple[float, str]:
    units = set(slot.command_units or slot.units)
    if slot.kind == "joints" and units == {"rad"}:
        return DEGREES, "deg"
    return 1.0, units.pop() if len(units) == 1 else "unit"


def _root_mean_square(parts: Iterable[np.ndarray]) -> float | None:
    values = np.concatenate([*parts, np.zeros(0)])
    return float(np.sqrt(np.mean(values**2))) if len(values) else None
