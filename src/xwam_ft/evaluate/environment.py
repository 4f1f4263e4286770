"""What a policy can act in: a small protocol, an adapter for any Gymnasium environment, and how `--env` names one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xwam_ft.errors import UserError, listed

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from xwam_ft.contract import Contract

Command = Mapping[str, "Float[ndarray, ' n']"]
"""Slot -> what the robot is told at one step, absolute, SI (see observation.Commands)."""
CHOICES = "metaworld:TASK, or FILE.py:FUNCTION, where FUNCTION(contract) returns an environment"


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
        success: its step's (terminated, info) -> done well; the default reads info["success"] or info["is_success"].
    """

    env: Any
    observed: Callable[[Any], dict[str, Any]]
    acted: Callable[[Command], Any]
    instruction: str
    period: float
    max_steps: int
    success: Callable[[bool, Mapping[str, Any]], bool] = field(
        default=lambda _, info: bool(info.get("success", info.get("is_success", False)))
    )
    _seen: Any = None

    def reset(self, seed: int) -> None:
        self._seen, _ = self.env.reset(seed=seed)

    def observe(self) -> dict[str, Any]:
        return {**self.observed(self._seen), "prompt": self.instruction}

    def step(self, command: Command) -> Outcome:
        self._seen, _, terminated, truncated, info = self.env.step(self.acted(command))
        if self.success(bool(terminated), info):
            return Outcome.SUCCESS
        return Outcome.OVER if terminated or truncated else Outcome.GOES_ON

    def close(self) -> None:
        self.env.close()


def environment_maker(spec: str) -> Callable[[Contract], Environment]:
    """What `--env` names, as a function that makes such an environment for a contract.

    Raises:
        UserError: an unknown form, no such file or function; making one raises where it does not fit the contract.
    """
    kind, _, rest = spec.partition(":")
    if kind == "metaworld" and rest:
        from xwam_ft.evaluate.metaworld import MetaWorld

        return lambda contract: MetaWorld(rest, contract)
    if kind.endswith(".py") and rest:
        return _function(Path(kind), rest)
    raise UserError(f"is {spec!r}", "--env", f"give {CHOICES}")


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
    if environment.instruction not in prompts:
        raise UserError(
            f"its instruction {environment.instruction!r} is not among the bundle's",
            name,
            f"the bundle knows: {listed(map(repr, prompts))}",
        )


def _function(path: Path, name: str) -> Callable[[Contract], Environment]:
    if not path.is_file():
        raise UserError("no such file", path, f"give {CHOICES}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's own file may raise
        raise UserError(
            f"cannot be loaded ({type(error).__name__}: {error})", path, f"run it: python {path}"
        ) from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"has no function {name!r}", path, "name a function that takes the contract")
    made: Callable[[Contract], Environment] = getattr(module, name)
    return made
