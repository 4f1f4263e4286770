"""What makes a success rate mean nothing and looks like one: scenes that are shared, repeated, or deaf to commands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.evaluate.environment import Environment, GymnasiumEnvironment, encoded
from xwam_ft.evaluate.user_environment import UserEnvironment

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.evaluate.closed_loop import Trial
    from xwam_ft.observation import EncodedObservation

FEW = 3  # episodes below which equal starts may be chance
AT_ONCE = 0.1  # share of episodes done by their first command: more is hardly a task


def side_by_side(
    make: Callable[[], Environment], most: int, seeds: Sequence[int], contract: Contract
) -> list[Environment]:
    """Environments for episodes side by side, the first one reset with `seeds[0]`.

    One, where `make` returns the same object again: then episodes run one after another.

    Raises:
        UserError: two of a user's own are different objects in one scene: what one does, the other sees.
    """
    made = [make()]
    made[0].reset(seeds[0])
    while len(made) < most:
        another = make()
        if _core(another) is _core(made[0]):
            break
        made.append(another)
    if len(made) > 1 and isinstance(made[0], UserEnvironment):
        _require_apart(contract, made[0], made[1], seeds[1])
    return made


def _core(environment: Environment) -> object:
    """What a user's function made, out of its wrappers."""
    made = environment.made if isinstance(environment, UserEnvironment) else environment
    return made.env if isinstance(made, GymnasiumEnvironment) else made


def _require_apart(contract: Contract, one: UserEnvironment, other: Environment, seed: int) -> None:
    def seen() -> str:
        return digest(encoded(contract, one, one.observe()))

    before = seen()
    if seen() != before:  # noise in every observation: they cannot be compared
        return
    other.reset(seed)
    if seen() != before:
        raise UserError(
            f"two environments that {one.name} made share one scene: resetting the second changed what the first sees",
            one.place("reset"),
            "give each a simulator of its own; where there can be one only, return the same object every time, and "
            "episodes run one after another",
        )


def digest(item: EncodedObservation) -> str:
    """Tells an observation from every other: pictures and state, to the bit."""
    found = hashlib.blake2b(item.pictures.tobytes(), digest_size=8)
    found.update(item.state.tobytes())
    return found.hexdigest()


def doubts(trials: Sequence[Trial]) -> list[str]:
    """Sentences about episodes that ended: why their rate may mean nothing. Empty where nothing is strange."""
    found: list[str] = []
    count = len(trials)
    starts = len({trial.start for trial in trials})
    if count >= FEW and 2 * starts <= count:
        what = "the same observation" if starts == 1 else f"one of {starts} observations"
        found.append(
            f"all {count} episodes began with {what}: `reset(seed)` should put things where the seed says; repeated "
            "starts tell no more than one, and the interval is too narrow"
        )
    looked = [trial.moved for trial in trials if trial.moved is not None]
    if looked and not any(looked):
        found.append(
            "what the environment showed never changed after its start: commands do not reach it, or `observe` "
            "returns what it saw first"
        )
    at_once = sum(trial.success and trial.steps == 1 for trial in trials)
    if at_once > AT_ONCE * count:
        found.append(
            f"{at_once} of {count} episodes succeeded with their first command: does `reset` put everything back, and "
            "is success told of the episode at hand?"
        )
    return found
