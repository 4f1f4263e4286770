"""Failed reads, jumps, what never moves, and what lies outside the limits that are stated or that a URDF has.

A jump is a step faster than the joint can go (the URDF's velocity limit, where the slot has a URDF), or, for positions
without a limit, one that stands far out of that episode's own steps: `OUT` times the step that 95 % of the steps stay
below, and more than `SIZE`. A spike, which goes there and back, counts from half of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.prepare.findings import Finding

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Slot
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.prepare.episode import Table

SERVO_FAULT = -1.0
OUT = 12.0
SIZE = {"rad": 0.2, "m": 0.05}
TOLERANCE = 1.2  # of a velocity limit: rates are differences of sampled positions
WRAP = 0.3  # rad around a full turn
HELD = "a policy's commands are held there: widen `limits` (metres and radians), unless that is what you want"
BEYOND = {"prismatic": 0.05, "revolute": 0.2}  # m or rad outside a URDF's range: more than a calibration is off by
OFTEN = 0.05  # share of an episode's commands, from which stated limits change what was taught


def check_numbers(
    table: Table, plans: list[SlotPlan], state: Float[ndarray, "f p"], command: Float[ndarray, "f q"], fps: float
) -> list[Finding]:
    """Oddities of the numbers that do not reject the episode."""
    found: list[Finding] = []
    at = told = 0
    for plan in plans:
        slot = plan.slot
        part = state[:, at : at + slot.state_width]
        orders = command[:, told : told + slot.command_width]
        at, told = at + slot.state_width, told + slot.command_width
        if plan.state is None or len(part) < 2:
            continue
        found += _still(slot, part) + _failed_reads(plan, table)
        found += _out_of_range(plan, table) + _held(slot, orders, fps)
        if plan.speed and any(plan.speed):
            found += _too_fast(plan, plan.state.read(table), fps)
        elif slot.kind in ("pose", "joints"):
            found += _outliers(slot, part, "")
        if plan.command is not None and slot.kind in ("pose", "joints") and slot.command_units in (None, slot.units):
            found += _outliers(slot, orders, "the command of ")
    return found


def _still(slot: Slot, part: np.ndarray) -> list[Finding]:
    moved = float(np.ptp(part, axis=0).max())
    if slot.kind == "gripper" and moved < 1e-3:
        return [Finding("still-gripper", "warning", f"gripper {slot.name!r} never moves", slot.name)]
    if slot.kind in ("pose", "joints") and moved < 1e-4:
        return [Finding("still", "warning", f"{slot.name!r} never moves", slot.name)]
    return []


def _failed_reads(plan: SlotPlan, table: Table) -> list[Finding]:
    """A value of exactly -1 in some frames and some columns is what servo buses give for a read that failed."""
    assert plan.state is not None
    raw = np.stack([table.columns[name] for name in plan.state.columns], axis=1)
    faults = np.flatnonzero((raw == SERVO_FAULT).any(axis=1) & ~(raw == SERVO_FAULT).all(axis=1))
    if plan.slot.kind != "joints" or not 0 < len(faults) < len(raw) // 2:
        return []
    text = f"{plan.slot.name!r} reads exactly -1 in {len(faults)} frames, as failed servo reads do"
    return [Finding("failed-reads", "warning", text, plan.slot.name, frame=int(faults[0]))]


def _too_fast(plan: SlotPlan, joints: np.ndarray, fps: float) -> list[Finding]:
    assert plan.state is not None
    found: list[Finding] = []
    rates = np.abs(np.diff(joints, axis=0)) * fps
    for column, name in enumerate(plan.state.columns):
        limit = plan.speed[column] if column < len(plan.speed) else None
        if limit is None or rates[:, column].max() <= TOLERANCE * limit:
            continue
        at = int(rates[:, column].argmax())
        if (wrap := _wrap(plan.slot.name, name, joints[at + 1, column] - joints[at, column], at)) is not None:
            found.append(wrap)
            continue
        text = (
            f"{name.rsplit('/', 1)[-1]!r} of {plan.slot.name!r} goes {rates[at, column]:.3g} rad/s between frames {at} "
            f"and {at + 1}; its URDF allows {limit:g}"
        )
        found.append(Finding("jump", "warning", text, plan.slot.name, frame=at + 1))
    return found


def _out_of_range(plan: SlotPlan, table: Table) -> list[Finding]:
    """Joints where the URDF says that its robot cannot be: a sign, a zero, or another joint's numbers."""
    found: list[Finding] = []
    if plan.slot.chain is None or plan.state is None:
        return found
    joints = {joint.name: joint for joint in plan.slot.chain.joints}
    for name, values in zip(plan.slot.chain.movable, plan.state.read(table).T, strict=True):
        joint = joints[name]
        if joint.lower is None or joint.upper is None:
            continue
        off = np.maximum(joint.lower - values, values - joint.upper)
        at = int(off.argmax())
        if off[at] > BEYOND.get(joint.type, np.inf):
            text = f"joint {name!r} of {plan.slot.name!r} is at {values[at]:.3g}; its URDF allows {joint.lower:.3g} to "
            text += f"{joint.upper:.3g}"
            found.append(Finding("outside-limits", "warning", text, f"{plan.slot.name} {name}", frame=at))
    return found


def _held(slot: Slot, orders: np.ndarray, fps: float) -> list[Finding]:
    """Recorded commands that the limits of the embodiment file would change."""
    found: list[Finding] = []
    if slot.limits is None or not orders.shape[1]:
        return found
    columns = 3 if slot.kind == "pose" else orders.shape[1]
    told = orders[:, :columns]
    outside = np.zeros_like(told, dtype=bool)
    if slot.limits.low is not None and slot.limits.high is not None:
        outside = (told < np.array(slot.limits.low) - 1e-9) | (told > np.array(slot.limits.high) + 1e-9)
    fast = np.zeros((len(told) - 1, 1), dtype=bool)
    if slot.limits.speed is not None:
        rates = np.abs(np.diff(told, axis=0)) * fps
        if slot.kind == "pose":
            rates = np.linalg.norm(rates, axis=1, keepdims=True)
        fast = rates > TOLERANCE * np.array(slot.limits.speed[: rates.shape[1]])
    for what, where in (("outside `low` to `high`", outside), ("faster than `speed`", fast)):
        share = where.mean(axis=0)
        if share.max() > OFTEN:
            worst = int(share.argmax())
            of = "" if where.shape[1] == 1 else f" of {slot.elements[worst]!r}"
            text = f"{share[worst]:.0%} of the recorded commands{of} of {slot.name!r} are {what} of its `limits`"
            found.append(Finding("outside-limits", "warning", text, slot.name, fix=HELD))
    return found


def _outliers(slot: Slot, part: np.ndarray, whose: str) -> list[Finding]:
    """Steps of positions far out of the episode's own."""
    found: list[Finding] = []
    for column in range(3 if slot.kind == "pose" else part.shape[1]):
        unit = slot.units[column]
        if unit not in SIZE:
            continue
        steps = np.diff(part[:, column])
        sizes = np.abs(steps)
        back = np.zeros(len(steps))
        back[:-1] = np.where(steps[:-1] * steps[1:] < 0, np.minimum(sizes[:-1], sizes[1:]), 0.0)
        bound = OUT * float(np.quantile(sizes, 0.95))
        far = (sizes > max(bound, SIZE[unit])) | (back > max(bound, SIZE[unit]) / 2)
        if not np.any(far):
            continue
        at = int(np.argmax(np.where(far, sizes, 0)))
        name = slot.elements[column]
        wrap = _wrap(slot.name, name, float(steps[at]), at) if unit == "rad" else None
        text = (
            f"{whose}{name!r} of {slot.name!r} jumps by {sizes[at]:.3g} {unit} between frames {at} and {at + 1}, "
            f"{sizes[at] / max(bound / OUT, 1e-9):.0f} times its usual step ({int(far.sum())} such steps)"
        )
        found.append(wrap or Finding("jump", "warning", text, slot.name, frame=at + 1))
    return found


def _wrap(slot: str, name: str, step: float, at: int) -> Finding | None:
    if abs(abs(step) - 2 * np.pi) > WRAP:
        return None
    text = f"{name.rsplit('/', 1)[-1]!r} of {slot!r} turns by a full turn between frames {at} and {at + 1}"
    return Finding("angle-wrap", "warning", text, slot, frame=at + 1)
