"""ReplayPolicy: the commands are those recorded, at the moment the robot is in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xwam_ft import conventions
from xwam_ft.errors import UserError
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.request import example_observation
from xwam_ft.shards import ShardSet


@pytest.fixture
def policy(shard_set: ShardSet) -> ReplayPolicy:
    return ReplayPolicy(shard_set, 0)


def at(policy: ReplayPolicy, frame: int, **options: Any) -> dict[str, Any]:
    places = conventions.state_slices(policy.contract)
    state = {name: policy.states[frame, place] for name, place in places.items()}
    return {**example_observation(policy.contract, "anything"), "state": state, "options": options}


def test_the_tables_are_the_episode(policy: ReplayPolicy, shard_set: ShardSet) -> None:
    for ref in shard_set.clips(None, 1):
        if ref.entry.episode == 0:
            clip = shard_set.read_clip(ref)
            np.testing.assert_array_equal(policy.states[ref.start], clip.proprio[0])
            np.testing.assert_array_equal(policy.commands[ref.start], clip.action[0])


@pytest.mark.parametrize("frame", [0, 9, 20])
def test_the_recorded_commands_are_answered(policy: ReplayPolicy, frame: int) -> None:
    out = policy.infer(at(policy, frame))
    assert policy.frame == frame
    table = np.concatenate(list(out.commands.slots.values()), axis=1)
    rows = np.minimum(frame + np.arange(8), len(policy.commands) - 1)
    np.testing.assert_allclose(table, policy.commands[rows], atol=1e-9)
    assert len(policy.infer(at(policy, frame, chunk=3)).action) == 3


def test_a_pause_passes_and_the_end_is_held(policy: ReplayPolicy) -> None:
    policy._normalised[5:9] = policy._normalised[5]
    seen = []
    for _ in range(3):
        policy.infer(at(policy, 5))
        seen.append(policy.frame)
    assert seen == [5, 6, 7]
    last = len(policy.states) - 1
    table = policy.infer(at(policy, last)).commands.table
    np.testing.assert_allclose(table, np.repeat(policy.commands[last:], 8, axis=0), atol=1e-9)
    policy.reset()
    assert policy.frame is None


def test_changes_of_the_measured_state_replay_too(shard_set: ShardSet, contract_with: Any) -> None:
    policy = ReplayPolicy(shard_set, 0)
    policy.contract = contract_with("delta_to_state")
    table = policy.infer(at(policy, 4)).commands.table
    np.testing.assert_allclose(table, policy.commands[4:12], atol=1e-9)


def test_an_episode_that_is_not_there(shard_set: ShardSet) -> None:
    with pytest.raises(UserError, match="there is no episode 12"):
        ReplayPolicy(shard_set.folder, 12)
    with pytest.raises(UserError, match="cannot go on from it"):
        ReplayPolicy(shard_set, 1).infer(at(ReplayPolicy(shard_set, 0), 0, prefix=np.zeros((1, 8))))


def test_commands_are_as_far_apart_as_the_actions(shard_set: ShardSet) -> None:
    policy = ReplayPolicy(shard_set, 0)
    timing = policy.contract.timing.model_copy(update={"frame_skip": 4, "action_skip": 2})
    policy.contract = policy.contract.model_copy(update={"timing": timing})
    table = policy.infer(at(policy, 3)).commands.table
    np.testing.assert_allclose(table, policy.commands[3:19:2], atol=1e-9)


def test_an_episode_that_ends_where_it_began_is_not_left_in_its_middle(policy: ReplayPolicy) -> None:
    policy._normalised[-1] = policy._normalised[4]
    for frame in (3, 4, 5):
        policy.infer(at(policy, frame))
        assert policy.frame == frame
    policy.infer(at(policy, 4))
    assert policy.frame == 4  # the end looks the same, and is more than a clip away
