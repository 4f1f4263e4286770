"""ReplayPolicy: the interface of a policy, answered from a recorded episode.

For bringing a robot up: cameras, state, units, timing and the stop are tested with commands that are known to be good,
without weights or torch. Every observation is checked as a policy checks it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import conventions, observation
from xwam_ft.aliases import resolved
from xwam_ft.errors import UserError
from xwam_ft.policy.request import PolicyOutput, example_observation, implausible, read_options
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract

ALIKE = 0.02
"""States this close to the nearest one (root mean square, normalised) are the same moment to a robot's noise."""


class ReplayPolicy:
    """Answers with what was commanded at the recorded moment nearest to the robot's state.

    Of moments equally near, the one that follows the last answer's is taken, so that a pause passes; past the episode's
    end the last command is held. `frame` is the moment last answered.

    Args:
        shards: a shard set, or its folder.
        episode: its number there.

    Raises:
        UserError: not a shard set, no such episode, or a damaged shard.
    """

    def __init__(self, shards: ShardSet | Path | str, episode: int) -> None:
        if not isinstance(shards, ShardSet):
            shards = ShardSet.open(Path(shards))
        self.contract: Contract = shards.contract
        self.episode = shards.episode(episode)
        self.prompts: tuple[str, ...] = (self.episode.instruction,)
        self.states, self.commands = _tables(shards, episode, self.episode.frames)
        self._normalised = conventions.normalise_proprio(self.contract, self.states)
        self._seen = conventions.state_mask(self.contract) > 0
        self.frame: int | None = None

    def reset(self) -> None:
        """Forget how far the episode went."""
        self.frame = None

    def infer(self, request: Mapping[str, Any]) -> PolicyOutput:
        """One observation -> the recorded chunk. Any prompt does; of the options only `chunk` changes the answer.

        Raises:
            UserError: an observation that does not fit the contract.
        """
        started = time.perf_counter()
        request = resolved(self.contract, request)
        options = read_options(request, self.contract)
        if options.prefix is not None:
            raise UserError(
                "was given, and a replay cannot go on from it", "observation.options.prefix", "leave it out"
            )
        inputs = observation.encode(self.contract, request)
        warnings = implausible(self.contract, inputs, request["images"], request["state"])
        found = time.perf_counter()
        self.frame = self._nearest(inputs.proprio)
        timing = self.contract.timing
        steps = np.arange(options.chunk or timing.action_steps) * timing.action_skip
        rows = np.minimum(self.frame + steps, len(self.commands) - 1)
        chunk, along = self.commands[rows], self.states[rows]
        # There and back by the contract, so that limits and inverse kinematics apply as they do to a policy's answer.
        actions = conventions.encode_actions(self.contract, chunk, inputs.state, along)
        action = conventions.normalise_action(self.contract, actions)
        commands = observation.decode(self.contract, action, inputs.state, request, along)
        done = time.perf_counter()
        seconds = {"observe": found - started, "sample": 0.0, "decode": done - found, "total": done - started}
        return PolicyOutput(commands, action, seconds, warnings, seen=inputs)

    def warm_up(self) -> float:
        """Answer a made-up observation once; the episode stays where it is."""
        frame = self.frame
        seconds = self.infer(example_observation(self.contract, self.prompts[0])).seconds["total"]
        self.frame = frame
        return seconds

    def _nearest(self, proprio: Float[ndarray, " p"]) -> int:
        difference = (self._normalised - proprio)[:, self._seen]
        distance = np.sqrt(np.mean(difference**2, axis=1))
        alike = np.flatnonzero(distance <= distance.min() + ALIKE)
        if self.frame is None:
            return int(alike[0])
        # Not further than a clip: an episode may end where it began.
        next_ = alike[(alike > self.frame) & (alike <= self.frame + self.contract.timing.span)]
        return int((next_ if len(next_) else alike)[0])


def _tables(shards: ShardSet, episode: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """States [F, P] and commands [F, Q] of a whole episode."""
    contract = shards.contract
    states, commands = np.zeros((frames, contract.state_dim)), np.zeros((frames, contract.command_dim))
    for entry in shards.segments():
        if entry.episode == episode:
            segment = shards.read_motion(entry)
            place = slice(segment.first_frame, segment.first_frame + segment.num_frames)
            states[place], commands[place] = segment.proprio, segment.action
    return states, commands
