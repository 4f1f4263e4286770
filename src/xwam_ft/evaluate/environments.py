"""How `--env` names an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.evaluate.environment import CHOICES, Environment

if TYPE_CHECKING:
    from xwam_ft.contract import Contract


def environment_maker(spec: str, perturbed: Mapping[str, float] | None = None) -> Callable[[Contract], Environment]:
    """What `--env` names, as a function that makes such an environment for a contract.

    Args:
        perturbed: what is made harder (see perturb.py); Meta-World's alone.

    Raises:
        UserError: an unknown form, `perturbed` of another environment, no such file or function; making one raises
            where it does not fit the contract.
    """
    kind, _, rest = spec.partition(":")
    if kind == "metaworld" and rest:
        from xwam_ft.evaluate.metaworld import MetaWorld

        return lambda contract: MetaWorld(rest, contract, perturbed)
    if perturbed:
        fix = "perturb your environment in its own code, or leave it out"
        raise UserError(f"goes with --env metaworld:TASK, not with {spec}", "--perturb", fix)
    if kind.endswith(".py") and rest:
        from xwam_ft.evaluate.user_environment import user_environment

        return user_environment(Path(kind), rest)
    raise UserError(f"is {spec!r}", "--env", f"give {CHOICES}")
