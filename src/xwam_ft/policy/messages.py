"""What a server says: its metadata when a client connects, and answers. openpi's clients read both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import xwam_ft
from xwam_ft.policy.request import (
    OPTIONS,
    PolicyOutput,
    command_columns,
    command_table,
    command_units,
    example_observation,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xwam_ft.contract import Contract


class Servable(Protocol):
    """What can be served: a `Policy`, a `ReplayPolicy`, or one's own."""

    @property
    def contract(self) -> Contract: ...

    @property
    def prompts(self) -> Iterable[str]: ...

    def infer(self, request: Mapping[str, Any]) -> PolicyOutput: ...

    def warm_up(self) -> float: ...


def metadata(policy: Servable) -> dict[str, Any]:
    """All a client needs to know: the contract, the columns of `actions`, an observation that can be sent back."""
    contract = policy.contract
    prompts = sorted(prompt for prompt in policy.prompts if prompt.strip())
    return {
        "server": "xwam-ft",
        "version": xwam_ft.__version__,
        "embodiment": contract.embodiment,
        "contract": contract.model_dump(mode="json"),
        "contract_sha256": contract.sha256,
        "prompts": prompts,
        "action_columns": command_columns(contract),
        "action_units": command_units(contract),
        "action_steps": contract.timing.action_steps,
        "action_period": contract.timing.action_period,
        "action_prefix": getattr(policy, "action_prefix", 0),
        "future": getattr(policy, "future", "joint"),
        "options": list(OPTIONS),
        "example_observation": example_observation(contract, prompts[0]),
    }


def answer(contract: Contract, output: PolicyOutput, timing: Mapping[str, float]) -> dict[str, Any]:
    """`actions` [H, D] is what the robot takes, absolute, in metres and radians, columns as the metadata names them.

    `commands` is the same by slot; `clamped` counts the numbers of each slot that were brought inside its limits, and
    `residual` says by how much inverse kinematics missed (metres, radians). `novelty` is there where the bundle knows.
    """
    commands = output.commands
    return {
        "actions": command_table(contract, commands.slots),
        "commands": dict(commands.slots),
        "clamped": dict(commands.clamped),
        "residual": dict(commands.residual),
        "warnings": list(output.warnings),
        "server_timing": dict(timing),
        **({"novelty": dict(output.novelty)} if output.novelty else {}),
    }
