"""Where a policy comes from: a bundle, or whatever else can be loaded as one (a run's checkpoint, see export/)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xwam_ft.policy.policy import Policy


@dataclass(frozen=True)
class PolicySource:
    """A policy to be loaded.

    Args:
        name: as a reader is told it, "bundles/a" or "runs/a@1500".
        folder: what holds its contract.json.
        load: reads it; a `UserError` where that cannot be.
    """

    name: str
    folder: Path
    load: Callable[[], Policy]

    @classmethod
    def of(cls, given: Path | PolicySource) -> PolicySource:
        """That of a bundle's folder; any other as it is."""
        from xwam_ft.policy.policy import Policy

        return given if isinstance(given, cls) else cls(str(given), Path(str(given)), lambda: Policy.load(str(given)))

    def with_future(self) -> PolicySource:
        """The same, whose actions are denoised together with the imagined frames; see `Policy.show_future`."""

        def load() -> Policy:
            policy = self.load()
            policy.show_future()
            return policy

        return replace(self, load=load)
