"""What a policy can act in: a small protocol, and an adapter for any Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xwam_ft import observation
from xwam_ft.errors import UserError, listed
from xwam_ft.prompts import find

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract
    from xwam_ft.observation import EncodedObservation

Command = Mapping[str, "Float[ndarray, ' n']"]
"""Slot -> what the robot is told at one step, absolute, SI (see observation.Commands)."""
CHOICES = "metaworld:TASK, or FILE.py:FUNCTION, where FUNCTION(contract) returns an environment"


SUCCESS = ("success", "is_success")  # keys of a step's info
GYMNASIUM = "give an environment of Gymnasium's form (`gymnasium.make`, not old `gym`)"


class Outcome(Enum):
    """What a step led to: the episode goes on, the task is done, or it is over without that."""

    GOES_ON = "goes on"
    SUCCESS = "success"
    OVER = "over"


class Environment(Protocol):
    """One robot in one scene.

    Attributes:
        instruction: the task in words.
        period: seconds between two commands.
        max_steps: after as many commands an episode has failed.
    """

    instruction: str
    period: float
    max_steps: int

    def reset(self, seed: int) -> None:
        """Put everything where `seed` says."""
        ...

    def observe(self) -> dict[str, Any]:
        """What the robot reports: {"images": {camera: uint8 [H, W, 3]}, "state": {slot: numbers}, "prompt": text}.

        Rendered on demand, so that steps nobody looks at cost no pictures.
        """
        ...

    def step(self, command: Command) -> Outcome:
        """Do what the command says; success is the environment's own criterion."""
        ...

    def close(self) -> None: ...


@dataclass
class GymnasiumEnvironment:
    """Any Gymnasium environment, given how its numbers are read and written.

    Args:
        env: a `gymnasium.Env`.
        observed: its last observation -> {"images": {camera: uint8 [H, W, 3]}, "state": {slot: numbers}}; called only
            when the policy looks.
        acted: one command of every slot -> its action.
        success: its step's (terminated, info) -> done well; the default reads info["success"] or info["is_success"],
            one of which an episode has to say at least once.
    """

    env: Any
    observed: Callable[[Any], dict[str, Any]]
    acted: Callable[[Command], Any]
    instruction: str
    period: float
    max_steps: int
    success: Callable[[bool, Mapping[str, Any]], bool] | None = None
    _seen: Any = None
    _told: bool = False  # whether the episode has said if the task is done
    _keys: tuple[str, ...] = ()  # of the last info

    def reset(self, seed: int) -> None:
        answer = self.env.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(
                f"reset returned {_kinds(answer)}, not (observation, info)", "env", f"{GYMNASIUM}: (observation, info)"
            )
        self._seen, self._told, self._keys = answer[0], self.success is not None, ()

    def observe(self) -> dict[str, Any]:
        return {**self.observed(self._seen), "prompt": self.instruction}

    def step(self, command: Command) -> Outcome:
        answer = self.env.step(self.acted(command))
        if not isinstance(answer, tuple) or len(answer) != 5 or not isinstance(answer[4], Mapping):
            raise UserError(
                f"step returned {_kinds(answer)}",
                "env",
                f"{GYMNASIUM}: (observation, reward, terminated, truncated, info)",
            )
        self._seen, _, terminated, truncated, info = answer
        if self._done(bool(terminated), info):
            return Outcome.SUCCESS
        if terminated or truncated:
            self.require_told()
            return Outcome.OVER
        return Outcome.GOES_ON

    def _done(self, terminated: bool, info: Mapping[str, Any]) -> bool:
        if self.success is not None:
            return _verdict(self.success(terminated, info), "`success` of GymnasiumEnvironment")
        self._keys = tuple(map(str, info))
        said = [key for key in SUCCESS if info.get(key) is not None]
        self._told = self._told or bool(said)
        return bool(said) and _verdict(info[said[0]], f"info[{said[0]!r}]")

    def require_told(self) -> None:
        """Raise a `UserError` where the episode ended and nothing ever said whether the task was done."""
        if not self._told:
            wanted = " or ".join(map(repr, SUCCESS))
            raise UserError(
                f"info never held {wanted}, so nobody knows whether the task was done (its keys: {listed(self._keys)})",
                "env",
                "give GymnasiumEnvironment `success=lambda terminated, info: ...`",
            )

    def close(self) -> None:
        self.env.close()


def _verdict(said: Any, what: str) -> bool:
    """A yes or a no, also as 0 and 1 and as one of them in an array; a share, a text or several are none."""
    value = np.asarray(said)
    if value.size == 1 and value.dtype.kind in "biuf" and float(value.item()) in (0.0, 1.0):
        return bool(value.item())
    text = repr(said)
    raise UserError(
        f"{what} is {text if len(text) <= 60 else text[:57] + '...'}, which is neither true nor false",
        "env",
        "give GymnasiumEnvironment `success=lambda terminated, info: ...` that returns True or False",
    )


def _kinds(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"{len(answer)} values ({listed(type(part).__name__ for part in answer)})"
    return "nothing" if answer is None else f"a {type(answer).__name__}"


def encoded(contract: Contract, environment: Environment, request: Mapping[str, Any]) -> EncodedObservation:
    """An environment's observation in the model's form; of a user's, what does not fit is told with its place."""
    try:
        return observation.encode(contract, request)
    except UserError as error:
        place = getattr(environment, "place", None)
        if place is None:
            raise
        raise UserError(error.what, f"{place('observe')}: {error.where}", error.fix) from error


def require_fit(
    contract: Contract, environment: Environment, name: str, prompts: Collection[str] | None = None
) -> None:
    """Raise a `UserError` unless the bundle's contract and instruction suit the environment, which stands reset.

    Args:
        prompts: those the bundle can follow; default the contract's.
    """
    prompts = contract.prompts if prompts is None else sorted(filter(None, prompts))
    fix = "evaluate a bundle whose recordings came from this environment"
    period = contract.timing.action_period
    if abs(environment.period - period) > 1e-6 * period:
        raise UserError(
            f"it steps every {environment.period:.4g} s, and the bundle commands every {period:.4g} s", name, fix
        )
    if find(environment.instruction, prompts) is None:
        raise UserError(
            f"its instruction {environment.instruction!r} is not among the bundle's",
            name,
            f"the bundle knows: {listed(map(repr, prompts))}",
        )
