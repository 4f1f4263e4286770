"""Closed loop in an environment of two numbers, where it is known what every command must do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import Rollout, closed_loop, episode_seeds, first_look, success_interval
from xwam_ft.evaluate.closed_loop_report import evaluate_in_environment
from xwam_ft.evaluate.environment import GymnasiumEnvironment, Outcome, require_fit
from xwam_ft.evaluate.environments import environment_maker
from xwam_ft.media import probe
from xwam_ft.policy.policy import Imagined, Policy, Settings

GOAL = 0.5  # metres along x


class Slider:
    """A hand that goes where it is told along x, at most `reach` a step; done where it has passed the goal.

    The observation's picture carries the position and the seed, so that a policy can answer by looking.
    """

    instruction, period, max_steps = "pick up the cube", 0.1, 40

    def __init__(self, contract: Contract, reach: float = 1.0) -> None:
        self.contract, self.reach = contract, reach
        self.told: list[float] = []
        self.looked = 0
        self.closed = False

    def reset(self, seed: int) -> None:
        self.seed, self.x = seed, -0.1 * (seed % 3)

    def observe(self) -> dict[str, Any]:
        self.looked += 1
        picture = np.full((32, 64, 3), self.seed % 251, np.uint8)
        state = {"tool": [self.x, 0, 0, 1, 0, 0, 0], "gripper": [0.04]}
        return {"images": {"front": picture, "wrist": picture}, "state": state, "prompt": self.instruction}

    def step(self, command: Mapping[str, np.ndarray]) -> Outcome:
        self.told.append(float(command["tool"][0]))
        self.x += float(np.clip(command["tool"][0] - self.x, -self.reach, self.reach))
        return Outcome.SUCCESS if self.x > GOAL else Outcome.GOES_ON

    def close(self) -> None:
        self.closed = True


class Walker:
    """A policy that commands `stride` further along x at every step of a chunk; it needs no network."""

    trained = True

    def __init__(self, contract: Contract, stride: float) -> None:
        self.contract, self.settings, self.stride, self.calls = contract, Settings(seed=3), stride, 0
        self.asked: list[tuple[bytes, int]] = []

    def infer_batch(self, inputs: Any, seeds: Any) -> np.ndarray:
        timing = self.contract.timing
        chunks = []
        for item, seed in zip(inputs, seeds, strict=True):
            self.asked.append((item.state.tobytes() + item.pictures[0, 0, 0].tobytes(), seed))
            table = np.tile(item.state, (timing.action_steps, 1))
            table[:, 0] += self.stride * np.arange(1, timing.action_steps + 1)
            action = conventions.encode_actions(self.contract, table, item.state, None)
            chunks.append(conventions.normalise_action(self.contract, action))
        return np.stack(chunks)

    def infer(self, request: Any, *, seed: int) -> Any:
        return SimpleNamespace(warnings=())

    def imagine(self, inputs: Any, seed: int) -> Imagined:
        timing, (views, height, width, _) = self.contract.timing, inputs.pictures.shape
        frames = np.arange(timing.clip_frames, dtype=np.uint8)[None, :, None, None, None]
        rgb = np.broadcast_to(frames, (views, timing.clip_frames, height, width, 3)).copy()
        return Imagined(rgb, None, np.zeros((timing.clip_frames, 8)), np.zeros((timing.action_steps, 7)))


def run(contract: Contract, seeds: list[int], side_by_side: int, stride: float = 0.04, **options: Any) -> Any:
    environments = [Slider(contract) for _ in range(side_by_side)]
    policy: Any = Walker(contract, stride)
    return closed_loop(policy, environments, seeds, **{"execute": 3, **options}), policy, environments


def test_the_interval_is_wilsons() -> None:
    for hits, of in ((0, 10), (7, 10), (50, 50), (41, 50)):
        z, p = 1.959963984540054, hits / of
        centre = (p + z * z / (2 * of)) / (1 + z * z / of)
        half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
        assert success_interval(hits, of) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_success_and_steps_follow_from_the_commands(contract: Contract) -> None:
    result, _, (environment,) = run(contract, [0, 1, 2], 1)
    # From -0.1 * seed in strides of 0.04 past 0.5: commands count from the state at the last look.
    expected = [math.floor((GOAL + 0.1 * seed) / 0.04 + 1e-9) + 1 for seed in (0, 1, 2)]
    assert [episode.steps for episode in result.episodes] == expected
    assert result.rate == 1.0
    np.testing.assert_allclose(environment.told[:4], [0.04, 0.08, 0.12, 0.16], atol=1e-9)


def test_what_comes_too_late_is_a_failure(contract: Contract) -> None:
    result, _, _ = run(contract, [0, 1, 2], 2, max_steps=13)
    assert [(e.success, e.steps) for e in result.episodes] == [(True, 13), (False, 13), (False, 13)]
    slow, _, _ = run(contract, [0], 1, stride=0.001)
    assert not slow.episodes[0].success
    assert slow.episodes[0].steps == Slider.max_steps


def test_an_episode_that_is_over_early_is_a_failure_and_is_not_stepped_on(contract: Contract) -> None:
    class Fragile(Slider):
        def step(self, command: Mapping[str, np.ndarray]) -> Outcome:
            assert self.x <= 0.2, "stepped after it was over"
            super().step(command)
            return Outcome.OVER if self.x > 0.2 else Outcome.GOES_ON

    policy: Any = Walker(contract, 0.04)
    result = closed_loop(policy, [Fragile(contract)], [0], execute=3)
    assert [(e.success, e.steps) for e in result.episodes] == [(False, 6)]


@pytest.mark.parametrize("side_by_side", [2, 5])
def test_episodes_do_not_depend_on_those_beside_them(contract: Contract, side_by_side: int) -> None:
    seeds = episode_seeds(4, 7)
    alone, asked_alone, _ = run(contract, seeds, 1)
    beside, asked, _ = run(contract, seeds, side_by_side)
    assert alone.episodes == beside.episodes
    assert sorted(asked_alone.asked) == sorted(asked.asked)
    assert len({seed for _, seed in asked.asked}) == len(asked.asked), "two requests shared their noise"


def test_the_policy_looks_once_a_chunk(contract: Contract) -> None:
    result, policy, (environment,) = run(contract, [0], 1)
    assert environment.looked == len(policy.asked) == math.ceil(result.episodes[0].steps / 3)


def test_a_rollout_pairs_every_picture_with_the_imagined_one_of_its_moment(contract: Contract) -> None:
    films: list[Rollout] = []
    run(contract, [0, 1], 2, execute=4, filmed=1, on_rollout=lambda rollout, _: films.append(rollout))
    (film,) = films
    assert len(film.seen) == len(film.imagined) == 1 + 13 // 2
    # Two actions a picture, four executed: imagined pictures 1 and 2 of every chunk, after picture 0 of the first.
    assert [int(picture.max()) for picture in film.imagined] == [0, 1, 2, 1, 2, 1, 2]
    assert film.seen[0].shape == film.imagined[0].shape


def test_seeds_of_evaluations_differ(contract: Contract) -> None:
    first, second = episode_seeds(0, 50), episode_seeds(1, 50)
    assert len({*first, *second}) == 100
    assert episode_seeds(0, 10) == first[:10]


class Gym:
    """The least of a gymnasium.Env."""

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.x = np.array([float(seed)])
        return self.x, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.x = self.x + action
        fallen = bool(self.x[0] < 0)
        return self.x, 0.0, fallen, bool(self.x[0] == 5), {"is_success": bool(self.x[0] > 10)}

    def close(self) -> None:
        self.x = np.array([np.nan])


def test_a_gymnasium_environment_is_read_and_written_by_two_functions() -> None:
    adapted = GymnasiumEnvironment(
        env=Gym(),
        observed=lambda seen: {"images": {}, "state": {"tool": seen}},
        acted=lambda command: 2 * command["tool"],
        instruction="go",
        period=0.1,
        max_steps=5,
    )
    adapted.reset(7)
    assert adapted.step({"tool": np.array([1.0])}) is Outcome.GOES_ON
    assert adapted.observe() == {"images": {}, "state": {"tool": np.array([9.0])}, "prompt": "go"}
    assert adapted.step({"tool": np.array([1.0])}) is Outcome.SUCCESS
    adapted.reset(7)
    assert adapted.step({"tool": np.array([-1.0])}) is Outcome.OVER  # truncated at 5
    assert adapted.step({"tool": np.array([-4.0])}) is Outcome.OVER  # terminated below 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"period": 0.05}, r"steps every 0.05 s, and the bundle commands every 0.1 s"),
        ({"instruction": "dance"}, "'dance'"),
    ],
)
def test_an_environment_that_does_not_fit_is_named(contract: Contract, changes: dict[str, Any], said: str) -> None:
    environment: Any = Slider(contract)
    for name, value in changes.items():
        setattr(environment, name, value)
    with pytest.raises(UserError, match=f"slider: .*{said}.* Fix: "):
        require_fit(contract, environment, "slider")
    if "instruction" in changes:  # one that was embedded beside the contract's
        require_fit(contract, environment, "slider", {"", "dance"})


@pytest.mark.parametrize("spec", ["metaworld", "metaworld:", "gym:Reacher", "nowhere.py", "/nowhere.py:make"])
def test_an_unknown_environment_is_one_sentence(spec: str) -> None:
    with pytest.raises(UserError, match=r"metaworld:TASK, or FILE.py:FUNCTION"):
        environment_maker(spec)


ENVIRONMENT = """
import sys
sys.path.insert(0, {here!r})
from test_closed_loop import Slider

def make(contract):
    return Slider(contract)
"""


@pytest.mark.slow
def test_a_bundle_acts_in_an_environment_of_ones_own(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(ENVIRONMENT.format(here=str(Path(__file__).parent)))
    options: dict[str, Any] = {
        "execute": 4,
        "max_steps": 8,
        "action_steps": 1,
        "films": 1,
        "console": QUIET,
    }
    env, out = f"{tmp_path / 'own.py'}:make", tmp_path / "out"
    found = evaluate_in_environment(bundle, env, episodes=3, seed=1, out=out, **options)
    again = evaluate_in_environment(bundle, env, episodes=3, seed=1, out=None, **options)
    assert found["runs"] == again["runs"]
    assert found["of"] == 3
    assert found["action_steps"] == 1
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["runs"] == found["runs"]
    page = (out / "report.html").read_text()
    assert f"{found['successes']} of 3" in page
    assert "http" not in page.replace("http-equiv", ""), "the page must open without a network"
    film = probe(out / "rollouts" / "000.mp4")
    assert film.frames == 1 + metrics["runs"][0]["steps"] // 2
    for name, value in (("execute", 9), ("max_steps", 41)):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}: is {value}, and .* at most "):
            evaluate_in_environment(bundle, env, episodes=1, seed=0, out=None, **options | {name: value})
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(UserError, match=r"broken.py: cannot be loaded \(ModuleNotFoundError"):
        environment_maker(f"{tmp_path / 'broken.py'}:make")
    with pytest.raises(UserError, match="has no function 'other'"):
        evaluate_in_environment(bundle, f"{tmp_path / 'own.py'}:other", episodes=1, seed=0, out=None, **options)


def test_what_is_strange_about_the_first_observation_is_told(bundle: Path) -> None:
    """A simulator that reports millimetres fails at every episode, and looks like a policy that has not learned."""
    policy = Policy.load(bundle, "cpu", selfcheck=False)
    environment = Slider(policy.contract)
    environment.reset(0)
    usual = first_look(policy, environment)
    assert not [said for said in usual if "unit" in said]
    seen = environment.observe()
    seen["state"] = {**seen["state"], "tool": np.asarray(seen["state"]["tool"]) + np.array([400.0, 0, 0, 0, 0, 0, 0])}
    environment.observe = lambda: seen  # pyright: ignore[reportAttributeAccessIssue]
    assert any("tool.x is 40" in said and "is it in that unit?" in said for said in first_look(policy, environment))
    assert policy.watch is None  # the same observation is asked again and again to take its time
    assert policy.calls == 0
