"""Closed-loop evaluation: the policy acts in an environment, as on a robot, and we count how often it gets there.

Every episode starts from a seed of its own. The policy answers an observation with a chunk of commands, of which the
first `execute` are carried out before it looks again. Episodes run side by side, so that one forward pass answers
several; each answer equals what it would be alone, to rounding, and does not depend on which episodes are beside it.
Answers come at once, or late (late.py); the first one of an episode is waited for while nothing moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import observation
from xwam_ft.evaluate.doubts import digest
from xwam_ft.evaluate.environment import Outcome, encoded
from xwam_ft.evaluate.late import AT_ONCE, LateAnswers, as_prefix, joined, under_way
from xwam_ft.pictures import centre_crop
from xwam_ft.policy.watch import watch_of

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.evaluate.environment import Environment
    from xwam_ft.observation import Commands, EncodedObservation
    from xwam_ft.policy.policy import Policy

LEVEL = 0.95
TIMED = 5  # chunks answered alone, to take their time


@dataclass(frozen=True)
class Trial:
    """One episode: the environment's seed, whether the task was done, and after how many commands it ended.

    `start` tells its first observation from others; `moved` says whether a later one differed, None where none was.
    """

    seed: int
    success: bool
    steps: int
    start: str = ""
    moved: bool | None = None


@dataclass(frozen=True)
class ClosedLoopResult:
    """All episodes, in the order of their seeds; `seconds_a_chunk` is of one observation alone."""

    episodes: tuple[Trial, ...]
    seconds_a_chunk: float

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        return success_interval(self.successes, len(self.episodes))

    def metrics(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "successes": self.successes,
            "of": len(self.episodes),
            "rate": self.rate,
            "interval_95": [low, high],
            "seconds_a_chunk": self.seconds_a_chunk,
            "runs": [asdict(episode) for episode in self.episodes],
        }


@dataclass
class Rollout:
    """What was seen in an episode and what had been imagined for the same moments, [V, h, w, 3] a picture."""

    seed: int
    seen: list[UInt8[ndarray, "v h w 3"]] = field(default_factory=list[Any])
    imagined: list[UInt8[ndarray, "v h w 3"]] = field(default_factory=list[Any])


def success_interval(successes: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate."""
    from scipy.stats import binomtest

    found = binomtest(successes, of).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Environment seeds of an evaluation; the recorder's come from other sequences."""
    return [int(np.random.SeedSequence([seed, 7, index]).generate_state(1)[0] % 2**31) for index in range(episodes)]


def closed_loop(
    policy: Policy,
    environments: Sequence[Environment],
    seeds: Sequence[int],
    *,
    execute: int,
    late: LateAnswers = AT_ONCE,
    max_steps: int | None = None,
    filmed: int = 0,
    on_rollout: Callable[[Rollout, Trial], None] | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> ClosedLoopResult:
    """Run one episode a seed.

    Args:
        environments: equal ones, as many as episodes may run side by side.
        execute: commands carried out before the policy looks again.
        late: how many commands pass until an answer is there, and what happens meanwhile.
        max_steps: fewer than the environment's own limit, where given.
        filmed: so many of the first episodes are imagined as well, chunk for chunk, and handed to `on_rollout`.
        progress: told of every episode that ended.
    """
    queue = list(enumerate(seeds))
    results: dict[int, Trial] = {}
    running: list[_Run] = []
    free = list(environments)
    seconds: float | None = None
    while queue or running:
        while queue and free:
            index, seed = queue.pop(0)
            environment = free.pop(0)
            environment.reset(seed)
            limit = min(environment.max_steps, max_steps or environment.max_steps)
            running.append(_Run(index, seed, environment, limit, Rollout(seed) if index < filmed else None))
        requests = [run.environment.observe() for run in running]
        inputs = [encoded(policy.contract, run.environment, seen) for run, seen in zip(running, requests, strict=True)]
        for run, item in zip(running, inputs, strict=True):
            run.looks(digest(item))
        noise = [_noise_seed(policy, run) for run in running]
        if seconds is None:
            seconds = _time_alone(policy, requests[0], noise[0])
        given = [
            run.goes_on_with(item, execute, late, policy.contract) for run, item in zip(running, inputs, strict=True)
        ]
        actions = _answers(policy, inputs, noise, given)
        for run, request, item, action, drawn, prefix in zip(
            running, requests, inputs, actions, noise, given, strict=True
        ):
            underway = 0 if prefix is None else len(prefix)
            commands = observation.decode(policy.contract, action, item.state, request, underway=underway)
            if run.rollout is not None:
                run.imagine(policy, item, drawn)
            run.act(commands, execute, late, policy)
        for run in [run for run in running if run.over]:
            running.remove(run)
            free.append(run.environment)
            if run.outcome is not Outcome.SUCCESS and hasattr(run.environment, "require_told"):
                run.environment.require_told()  # pyright: ignore[reportAttributeAccessIssue]
            results[run.index] = result = Trial(
                run.seed, run.outcome is Outcome.SUCCESS, run.steps, run.start, run.moved
            )
            if run.rollout is not None and on_rollout is not None:
                on_rollout(run.rollout, result)
            if progress is not None:
                progress(result)
    return ClosedLoopResult(tuple(results[index] for index in range(len(seeds))), seconds or 0.0)


def first_look(policy: Policy, environment: Environment) -> list[str]:
    """What a policy warns of at the first observation of an environment, which stands reset: units, cameras, scenes.

    Afterwards it watches no more: episodes run side by side, and one observation is asked several times to time it.
    """
    request = environment.observe()
    encoded(policy.contract, environment, request)  # what does not fit is told with its place
    policy.watch, calls = watch_of(policy), policy.calls
    output = policy.infer(request, seed=0)
    policy.watch, policy.calls = None, calls
    return list(output.warnings)


@dataclass
class _Run:
    """An episode under way."""

    index: int
    seed: int
    environment: Environment
    limit: int
    rollout: Rollout | None
    steps: int = 0
    chunks: int = 0
    start: str = ""
    moved: bool | None = None
    outcome: Outcome = Outcome.GOES_ON
    _ahead: Any = None  # pictures imagined for the chunk at hand [V, T, h, w, 3]
    _chunk: Commands | None = None  # the one under way; None before the first

    @property
    def over(self) -> bool:
        return self.outcome is not Outcome.GOES_ON or self.steps >= self.limit

    def looks(self, seen: str) -> None:
        """Take note of what an observation is told by."""
        if self.start:
            self.moved = bool(self.moved) or seen != self.start
        self.start = self.start or seen

    def imagine(self, policy: Policy, item: EncodedObservation, seed: int) -> None:
        assert self.rollout is not None
        self._ahead = policy.imagine(item, seed).rgb
        if not self.rollout.seen:
            first = _cropped(policy, item.pictures)
            self.rollout.seen.append(first)
            self.rollout.imagined.append(self._ahead[:, 0])

    def goes_on_with(
        self, item: EncodedObservation, execute: int, late: LateAnswers, contract: Contract
    ) -> Float[ndarray, "k da"] | None:
        """The actions that the policy is told of: those executed while it answers."""
        if self._chunk is None or not late.tells:
            return None
        return as_prefix(contract, under_way(self._chunk, execute, late.delay), item.state)

    def act(self, commands: Commands, execute: int, late: LateAnswers, policy: Policy) -> None:
        """Carry out the head of a chunk; an episode ends with the step that does the task, or that spoils it."""
        self.chunks += 1
        before, self._chunk = self._chunk, commands
        if before is not None and late.holds:
            still = min(execute, len(before.table)) - 1
            for _ in range(min(late.delay, self.limit - self.steps)):
                if not self._step(before, still):
                    return
        elif before is not None and late.overlaps:
            self._chunk = commands = joined(before, commands, execute, late.delay)
        every = policy.contract.timing.actions_per_frame
        for step in range(min(execute, len(commands.table), self.limit - self.steps)):
            going = self._step(commands, step)
            if self.rollout is not None and (step + 1) % every == 0:
                pictures = encoded(policy.contract, self.environment, self.environment.observe()).pictures
                self.rollout.seen.append(_cropped(policy, pictures))
                self.rollout.imagined.append(self._ahead[:, (step + 1) // every])
            if not going:
                return

    def _step(self, commands: Commands, row: int) -> bool:
        """Do one command; whether the episode goes on."""
        # Copies: an environment that converts its command in place changed what is sent again, or gone on from.
        self.outcome = self.environment.step({name: table[row].copy() for name, table in commands.slots.items()})
        self.steps += 1
        return self.outcome is Outcome.GOES_ON


def _answers(
    policy: Policy,
    inputs: Sequence[EncodedObservation],
    noise: Sequence[int],
    given: Sequence[Float[ndarray, "k da"] | None],
) -> list[Float[ndarray, "ta da"]]:
    """Chunks of several observations, those that go on from given actions apart from those that do not."""
    free = [index for index, prefix in enumerate(given) if prefix is None]
    told = [(index, prefix) for index, prefix in enumerate(given) if prefix is not None]
    found: dict[int, Float[ndarray, "ta da"]] = {}
    if free:
        answers = policy.infer_batch([inputs[index] for index in free], [noise[index] for index in free])
        found |= dict(zip(free, answers, strict=True))
    if told:
        places = [index for index, _ in told]
        prefix = np.stack([rows for _, rows in told])
        answers = policy.infer_batch([inputs[i] for i in places], [noise[i] for i in places], prefix=prefix)
        found |= dict(zip(places, answers, strict=True))
    return [found[index] for index in range(len(inputs))]


def _noise_seed(policy: Policy, run: _Run) -> int:
    """Noise of a request: a function of the policy's seed, the episode and the chunk alone."""
    words = [policy.settings.seed, run.seed, run.chunks]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def _time_alone(policy: Policy, request: dict[str, Any], seed: int) -> float:
    """Seconds of one `Policy.infer`, the median of a few after one that warms up."""
    policy.infer(request, seed=seed)
    taken: list[float] = []
    for _ in range(TIMED):
        started = time.perf_counter()
        policy.infer(request, seed=seed)
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def _cropped(policy: Policy, pictures: UInt8[ndarray, "v h w 3"]) -> UInt8[ndarray, "v h2 w2 3"]:
    return centre_crop(pictures, policy.contract.image.crop)
