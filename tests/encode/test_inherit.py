"""Whose quantiles a run that starts from another has, slot by slot, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xwam_ft.contract import Contract
from xwam_ft.conventions import normalise_action, normalise_proprio
from xwam_ft.encode.inherit import REACH, inherit, sentences
from xwam_ft.limits import Recorded

AROUND = (0.0, 1.0, 0.0, 0.0)


def stretched(contract: Contract, stream: str, factors: dict[int, float]) -> Contract:
    """The contract with some numbers' ranges `factor` times as wide around the same middle."""
    low, high = (np.array(getattr(contract.quantiles, f"{stream}_{end}")) for end in ("low", "high"))
    for number, factor in factors.items():
        middle, half = (low[number] + high[number]) / 2, (high[number] - low[number]) / 2
        low[number], high[number] = middle - factor * half, middle + factor * half
    parts = {f"{stream}_low": tuple(low.tolist()), f"{stream}_high": tuple(high.tolist())}
    return contract.model_copy(update={"quantiles": contract.quantiles.model_copy(update=parts)})


def test_ranges_that_reach_little_farther_are_kept_and_others_refitted(contract: Contract) -> None:
    new = stretched(stretched(contract, "proprio", {0: 1.4, 7: 2.0}), "action", {6: 0.01})
    made, rows, _ = inherit(new, contract, "auto")
    said = {(row.slot, row.stream): (row.number, round(row.reach, 6), row.kept) for row in rows}
    assert said == {
        ("tool", "proprio"): ("x", 1.4, True),
        ("gripper", "proprio"): ("width", 2.0, False),
        ("tool", "action"): ("dx", 1.0, True),
        ("gripper", "action"): ("width", 0.01, True),  # little of a known range: the weights know its scale
    }
    kept, own = slice(0, 7), slice(7, 8)
    numbers = np.linspace(-1, 1, 8)
    assert np.array_equal(normalise_proprio(made, numbers)[kept], normalise_proprio(contract, numbers)[kept])
    assert np.array_equal(normalise_proprio(made, numbers)[own], normalise_proprio(new, numbers)[own])
    assert np.array_equal(normalise_action(made, numbers[:7]), normalise_action(contract, numbers[:7]))
    told = sentences(rows, "auto")
    assert (
        told[0]
        == f"quantiles kept, within {REACH:g} times their old range: tool (proprio), tool (action), gripper (action)"
    )
    assert "refitted: gripper (proprio), whose width was 0..0.08 and is -0.04..0.12 now" in told[1]


@pytest.mark.parametrize("choice", ["keep", "refit"])
def test_a_choice_holds_for_all(contract: Contract, choice: str) -> None:
    new = stretched(stretched(contract, "proprio", {0: 9.0}), "action", {0: 1.1})
    made, rows, _ = inherit(new, contract, choice)  # pyright: ignore[reportArgumentType]
    assert made.quantiles == (contract if choice == "keep" else new).quantiles
    assert {row.kept for row in rows} == {choice == "keep"}


def test_slots_of_another_meaning_have_their_own(contract: Contract, contract_with: Callable[..., Contract]) -> None:
    other = contract_with("step_delta")
    made, rows, _ = inherit(stretched(contract, "action", {0: 1.1, 6: 1.1}), other, "keep")
    assert [(row.slot, row.stream) for row in rows] == [
        ("tool", "proprio"), ("gripper", "proprio"), ("gripper", "action"),
    ]  # fmt: skip
    assert made.quantiles.action_high[0] == pytest.approx(0.22)
    assert made.quantiles.action_high[6] == 0.08


@pytest.mark.parametrize(
    ("was", "now", "choice", "used"),
    [
        (AROUND, tuple(-x for x in AROUND), "auto", AROUND),  # the same orientation under the other sign
        (AROUND, None, "auto", AROUND),
        (AROUND, (0.0, 0.0, 1.0, 0.0), "auto", (0.0, 0.0, 1.0, 0.0)),  # another one
        (AROUND, (0.0, 0.0, 1.0, 0.0), "keep", AROUND),
        (None, AROUND, "auto", AROUND),
        (None, AROUND, "keep", None),
        (AROUND, (0.0, 0.0, 1.0, 0.0), "refit", (0.0, 0.0, 1.0, 0.0)),
    ],
)
def test_signs_of_quaternions_go_with_the_weights(
    contract: Contract, was: tuple[float, ...] | None, now: tuple[float, ...] | None, choice: str, used: object
) -> None:
    def around(sign: tuple[float, ...] | None) -> Contract:
        recorded = Recorded(hemispheres={} if sign is None else {"tool": sign})
        return contract.model_copy(update={"recorded": recorded})

    made, _, said = inherit(around(now), around(was), choice)  # pyright: ignore[reportArgumentType]
    assert made.recorded is not None
    assert made.recorded.hemispheres.get("tool") == used
    assert bool(said) == (choice != "refit" and used != was)
