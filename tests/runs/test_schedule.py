"""The learning rates in closed form, and what another length of the run does to them."""

from __future__ import annotations

import math

import pytest

from xwam_ft.recipe import OptimSpec
from xwam_ft.runs.schedule import learning_rate_factor, when_extended


def rates(schedule: str, warmup: int, steps: int, share: float = 0.2) -> list[float]:
    optim = OptimSpec.model_validate({"schedule": schedule, "warmup_steps": warmup, "decay_share": share})
    return [learning_rate_factor(step, optim, steps) for step in range(steps + 1)]


def test_warm_up_is_linear_and_cosine_ends_at_zero() -> None:
    curve = rates("cosine", 4, 20)
    assert curve[:4] == [0.25, 0.5, 0.75, 1.0]
    assert curve[4] == 1.0
    assert curve[12] == pytest.approx(0.5)
    assert curve[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert curve[20] == 0.0
    assert rates("cosine", 0, 10)[0] == 1.0
    assert OptimSpec().schedule == "cosine"


@pytest.mark.parametrize("schedule", ["cosine", "constant", "warmup-stable-decay"])
def test_a_warm_up_longer_than_the_run_never_divides_by_zero(schedule: str) -> None:
    assert rates(schedule, 10, 5)[:5] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert rates(schedule, 5, 5)[5] == (1.0 if schedule == "constant" else 0.0)


def test_constant_stays_and_the_plateau_falls_at_the_end_alone() -> None:
    assert rates("constant", 2, 10) == [0.5, *[1.0] * 10]
    assert rates("warmup-stable-decay", 2, 20) == pytest.approx([0.5, *[1.0] * 16, 0.75, 0.5, 0.25, 0.0])
    assert rates("warmup-stable-decay", 2, 10, 0.0) == [0.5, *[1.0] * 9, 0.0]
    assert rates("warmup-stable-decay", 4, 8, 1.0) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize(
    ("schedule", "step", "before", "after", "said"),
    [
        ("cosine", 420, 420, 840, "the rates rise again from 0.00162 % to 52.9 % of their full value, and fall to 0"),
        ("cosine", 400, 840, 420, "the rates fall from 57 % to "),
        ("cosine", 5, 420, 840, "the warm-up goes on as before"),
        ("constant", 420, 420, 840, "the rates stay as they are"),
        ("warmup-stable-decay", 300, 420, 840, "it goes on at the plateau, and falls to 0 from step 672 on"),
        ("warmup-stable-decay", 420, 420, 840, "(the rates had fallen to 1.19 % and rise again), and falls to 0"),
        ("warmup-stable-decay", 420, 420, 430, "the rates go on at 11.6 % of their full value (were at 1.19 %),"),
    ],
)
def test_what_extending_does_is_one_sentence(schedule: str, step: int, before: int, after: int, said: str) -> None:
    optim = OptimSpec.model_validate({"schedule": schedule, "warmup_steps": 30})
    sentence = when_extended(optim, step, before, after)
    assert sentence.startswith(f"{schedule}, now to step {after} (was {before}): ")
    assert said in sentence
