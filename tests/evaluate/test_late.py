"""LateAnswers answers: what the robot is told while it waits, in an environment where every command is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.evaluate import closed_loop_report
from xwam_ft.evaluate.closed_loop import closed_loop, episode_seeds
from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment, success_line
from xwam_ft.evaluate.late import LateAnswers, read_late
from xwam_ft.policy.source import PolicySource

from .test_closed_loop import Slider, Walker

STRIDE, EXECUTE, DELAY = 0.01, 4, 3


class Leaper(Walker):
    """Every chunk but the first of an episode strides from `leap` beside the robot, unless it is told how to begin."""

    future, action_prefix, acts_with_future = "joint", 3, True

    def __init__(self, contract: Contract, stride: float = STRIDE, leap: float = 0.05) -> None:
        super().__init__(contract, stride)
        self.leap, self.prefixes = leap, []
        self.prompts = [Slider.instruction]

    def infer_batch(self, inputs: Any, seeds: Any, prefix: np.ndarray | None = None) -> np.ndarray:
        self.prefixes += [None] * len(inputs) if prefix is None else list(prefix)
        chunks = []
        for index, item in enumerate(inputs):
            table = np.tile(item.state, (self.contract.timing.action_steps, 1))
            if prefix is None:
                start, known = item.state[0] + (self.leap if item.state[0] > 0 else 0.0), 0
            else:
                raw = conventions.denormalise_action(self.contract, prefix[index])
                told = conventions.decode_actions(self.contract, raw, item.state, None)
                known, start = len(told), told[-1, 0]
                table[:known] = told
            table[known:, 0] = start + self.stride * np.arange(1, len(table) - known + 1)
            action = conventions.normalise_action(
                self.contract, conventions.encode_actions(self.contract, table, item.state, None)
            )
            chunks.append(action)
        return np.stack(chunks)


def run(contract: Contract, late: LateAnswers, leap: float = 0.05, seeds: Any = (0,), side_by_side: int = 1) -> Any:
    environments = [Slider(contract) for _ in range(side_by_side)]
    policy: Any = Leaper(contract, leap=leap)
    return closed_loop(policy, environments, list(seeds), execute=EXECUTE, late=late), policy, environments


def test_holding_still_repeats_the_last_command_while_time_goes_on(contract: Contract) -> None:
    result, _, (environment,) = run(contract, LateAnswers(DELAY, "hold"), leap=0.0)
    strides = np.array([0.01, 0.02, 0.03, 0.04, *[0.04] * 3, 0.05, 0.06, 0.07, 0.08, *[0.08] * 3])
    np.testing.assert_allclose(environment.told[:14], strides, atol=1e-9)
    assert result.episodes[0].steps == Slider.max_steps, "40 steps reach no farther than 0.24"
    assert environment.looked == 1 + 6, "after 4 commands, then every 7"


@pytest.mark.parametrize("meanwhile", ["switch", "prefix"])
def test_going_on_costs_no_time_where_the_new_chunk_agrees(contract: Contract, meanwhile: Any) -> None:
    late, _, (environment,) = run(contract, LateAnswers(DELAY, meanwhile), leap=0.0)
    at_once, _, (before,) = run(contract, LateAnswers(), leap=0.0)
    assert late.episodes == at_once.episodes
    np.testing.assert_allclose(environment.told, before.told, atol=1e-9)


def test_a_switch_jumps_where_a_prefix_does_not(contract: Contract) -> None:
    _, policy, (switched,) = run(contract, LateAnswers(DELAY, "switch"))
    assert all(prefix is None for prefix in policy.prefixes)
    # The second chunk is asked for at 0.04, begins 0.05 beside that, and is taken from its fourth command on.
    np.testing.assert_allclose(switched.told[:8], [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.13], atol=1e-9)
    jumps = np.diff(switched.told)
    assert jumps.max() == pytest.approx(STRIDE + 0.05)
    _, policy, (told,) = run(contract, LateAnswers(DELAY, "prefix"))
    np.testing.assert_allclose(np.diff(told.told), STRIDE, atol=1e-9)
    assert policy.prefixes[0] is None
    assert all(len(prefix) == DELAY for prefix in policy.prefixes[1:])


def test_answers_at_once_are_asked_for_as_before(contract: Contract) -> None:
    plain, policy, (environment,) = run(contract, LateAnswers())
    for meanwhile in ("hold", "switch", "prefix"):
        again, asked, (other,) = run(contract, LateAnswers(0, meanwhile))
        assert again.episodes == plain.episodes
        assert other.told == environment.told
        assert asked.prefixes == policy.prefixes


@pytest.mark.parametrize("meanwhile", ["hold", "switch", "prefix"])
def test_episodes_do_not_depend_on_those_beside_them(contract: Contract, meanwhile: Any) -> None:
    seeds = episode_seeds(4, 5)
    alone, _, _ = run(contract, LateAnswers(DELAY, meanwhile), seeds=seeds)
    beside, _, _ = run(contract, LateAnswers(DELAY, meanwhile), seeds=seeds, side_by_side=3)
    assert alone.episodes == beside.episodes


def test_the_first_answer_is_waited_for_while_nothing_moves(contract: Contract) -> None:
    for meanwhile in ("hold", "switch", "prefix"):
        _, _, (environment,) = run(contract, LateAnswers(DELAY, meanwhile))
        np.testing.assert_allclose(environment.told[:EXECUTE], STRIDE * np.arange(1, EXECUTE + 1), atol=1e-9)


def asked(contract: Contract, delay: int, meanwhile: str | None, execute: int = 4, **changes: Any) -> LateAnswers:
    policy: Any = SimpleNamespace(contract=contract, action_prefix=3)
    for name, value in changes.items():
        setattr(policy, name, value)
    return read_late(delay, meanwhile, policy, execute)


def test_what_cannot_be_is_one_sentence(contract: Contract) -> None:
    assert asked(contract, 0, None) == LateAnswers()
    assert asked(contract, 6, None) == LateAnswers(6, "hold")  # a robot may wait as long as it likes
    assert asked(contract, 3, "prefix") == LateAnswers(3, "prefix")
    with pytest.raises(UserError, match=r"--meanwhile: is 'stop'\. Fix: give hold, switch, prefix"):
        asked(contract, 2, "stop")
    with pytest.raises(UserError, match="--meanwhile: changes nothing: answers come at once"):
        asked(contract, 0, "hold")
    with pytest.raises(UserError, match=r"--answer-delay: is 5, .* chunks of 8 commands .* give at most 4"):
        asked(contract, 5, "switch")
    with pytest.raises(UserError, match=r"is 3, .*6 are executed.* or --execute from 3 to 5"):
        asked(contract, 3, "switch", execute=6)
    with pytest.raises(UserError, match=r"go on from 4 commands, and this bundle was trained with up to 3"):
        asked(contract, 4, "prefix")
    with pytest.raises(UserError, match=r"trained with none\. Fix: train with noise\.action_prefix\.max"):
        asked(contract, 4, "prefix", action_prefix=0)
    slots = tuple(slot.model_copy(update={"convention": "delta_to_state"}) for slot in contract.slots)
    with pytest.raises(UserError, match="changes of states still to be measured"):
        asked(contract.model_copy(update={"slots": slots}), 2, "prefix")


def test_the_metrics_say_how_late_answers_were(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Any = Leaper(contract)
    policy.settings = replace(policy.settings, action_steps=2)
    monkeypatch.setattr(closed_loop_report, "environment_maker", lambda env, perturbed: Slider)
    source = PolicySource("walker", None, lambda: policy)  # pyright: ignore[reportArgumentType]
    found = evaluate_in_environment(
        source, "slide", episodes=2, seed=0, out=None, answer_delay=2, meanwhile="prefix", console=QUIET
    )
    assert (found["answer_delay"], found["meanwhile"], found["execute"]) == (2, "prefix", 4)
    assert "slide, answers 2 commands late (prefix meanwhile): " in success_line(found)
    at_once = evaluate_in_environment(source, "slide", episodes=2, seed=0, out=None, console=QUIET)
    assert (at_once["answer_delay"], at_once["meanwhile"]) == (0, None)
    assert "late" not in success_line(at_once)
