"""The robot loop of `examples/`, against a served replay: what is sent was recorded, and it stops when it should."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xwam_ft import conventions
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.server import serving
from xwam_ft.shards import ShardSet

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from served import GatedPolicy

import robot_loop
from robot_loop import Loop, StandIn, stand_in

PERIOD = 0.02


@pytest.fixture
def policy(shard_set: ShardSet) -> GatedPolicy:
    replay = ReplayPolicy(shard_set, 0)
    timing = replay.contract.timing.model_copy(update={"fps": 1 / PERIOD})
    replay.contract = replay.contract.model_copy(update={"timing": timing})
    return GatedPolicy(replay)


@pytest.fixture
def client(policy: GatedPolicy) -> Iterator[PolicyClient]:
    with serving(policy) as address, PolicyClient(address) as client:
        yield client


def started(client: PolicyClient, policy: GatedPolicy) -> StandIn:
    """A robot in the state the episode begins with."""
    robot = stand_in(client)
    places = conventions.state_slices(policy.contract)
    for slot in policy.contract.slots:
        robot.now |= dict(zip(slot.columns, map(float, policy.replay.states[0, places[slot.name]]), strict=True))
    return robot


def test_it_follows_the_episode_chunk_after_chunk(policy: GatedPolicy, client: PolicyClient) -> None:
    robot = started(client, policy)
    assert Loop(client, robot, "any", execute=4, late=2.0).run(40 * PERIOD) == "done"
    sent = np.array([list(action.values()) for action in robot.sent])
    gap = np.abs(sent[:, None] - policy.replay.commands[None]).max(axis=2).min(axis=1)
    assert gap.max() < 1e-9, "something was sent that was never recorded"
    assert len(policy.seeds) >= 3
    assert robot.held == 1


def test_it_holds_when_an_answer_is_late(policy: GatedPolicy, client: PolicyClient) -> None:
    robot = started(client, policy)
    policy.close_gate()
    assert "no answer within 0.2 s" in Loop(client, robot, "any", execute=4, late=0.2).run(5.0)
    policy.gate.set()
    assert (robot.sent, robot.held) == ([], 1)


def test_it_holds_when_it_is_refused(policy: GatedPolicy, client: PolicyClient) -> None:
    robot = started(client, policy)
    robot.now["tool.x"] = float("nan")
    assert "send finite numbers only" in Loop(client, robot, "any", execute=4, late=2.0).run(5.0)
    assert (robot.sent, robot.held) == ([], 1)


def test_it_ends_when_answers_come_after_their_commands(policy: GatedPolicy, client: PolicyClient) -> None:
    robot = started(client, policy)
    infer = policy.replay.infer

    def slow(request: object) -> object:
        if policy.seeds[1:]:
            time.sleep(10 * PERIOD)
        return infer(request)  # pyright: ignore[reportArgumentType]

    policy.replay.infer = slow  # pyright: ignore[reportAttributeAccessIssue]
    why = Loop(client, robot, "any", execute=99, late=5.0).run(5.0)
    assert re.fullmatch(r"an answer took 0\.\d+ s and its commands last 0\.16 s; serve with fewer .*", why), why
    assert len(robot.sent) <= 8
    assert robot.held == 1


@pytest.mark.slow
def test_as_a_command_it_says_in_a_sentence_why_it_ends(policy: GatedPolicy) -> None:
    def ended(address: str, *options: str) -> tuple[int, str]:
        command = [sys.executable, robot_loop.__file__, address, "--seconds", "0.1", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    with serving(policy, api_key="0123456789abcdef") as address:
        code, said = ended(address, "--api-key", "0123456789abcdef")
        assert (code, said.split(":")[0]) == (0, "done")
        code, said = ended(address, "--api-key", "wrong")
        assert code == 2
        assert "the API key is wrong; send the header Authorization" in said
