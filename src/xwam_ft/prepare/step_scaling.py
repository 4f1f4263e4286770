"""A scale for every number of the action at every step of a chunk: mean and spread over the training chunks.

Actions relative to the chunk's start grow along it, so that under one range a number the first steps hardly differ from
nought and noise covers them; scaled by step, every number of every step has mean 0 and spread 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xwam_ft import conventions
from xwam_ft.contract import POSE_ACTION_ELEMENTS, Contract
from xwam_ft.prepare.statistics import Motion, encoded_chunks, gripper_pools, widen

Ranges = tuple[tuple[float, ...], ...]


def step_ranges(contract: Contract, episodes: Sequence[Motion]) -> tuple[Ranges, Ranges]:
    """mean - std and mean + std [Ta, Da] of valid actions; absent slots and steps never recorded: -1 and 1."""
    shape = (contract.timing.action_steps, contract.action_dim)
    count, total, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for encoded, mask in encoded_chunks(contract, episodes):
        steps = slice(0, encoded.shape[1])
        valid = mask > 0
        seen = np.where(valid, encoded, 0.0)
        count[steps] += valid.sum(axis=0)
        total[steps] += seen.sum(axis=0)
        squares[steps] += np.square(seen).sum(axis=0)
    low, high = np.full(shape, -1.0), np.full(shape, 1.0)
    places, pools = conventions.action_slices(contract), gripper_pools(contract)
    for slot in contract.slots:
        if not slot.present or not slot.commanded:
            continue
        units = ("m",) * 3 + ("rad",) * 3 if slot.kind == "pose" else slot.command_units or slot.units
        if slot.kind == "pose" and slot.for_controller:
            units = (slot.command_units or ("1",))[:1] * len(POSE_ACTION_ELEMENTS)
        for number, unit in enumerate(units):
            columns = [places[name].start + number for name in pools.get(slot.name, [slot.name])]
            for step in range(shape[0]):
                seen = count[step, columns].sum()
                if seen == 0:
                    continue
                mean = total[step, columns].sum() / seen
                spread = np.sqrt(max(squares[step, columns].sum() / seen - mean**2, 0.0))
                at = step, places[slot.name].start + number
                low[at], high[at] = widen(mean - spread, mean + spread, unit)
    return tuple(map(tuple, low.tolist())), tuple(map(tuple, high.tolist()))
