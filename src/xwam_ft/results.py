"""What the functions of the Python door return: where it lies, its numbers, the page about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xwam_ft.arguments import checked

if TYPE_CHECKING:
    from xwam_ft.policy.policy import Policy
    from xwam_ft.runs.runs import RunSummary
    from xwam_ft.shards import ShardSet


class Made(Protocol):
    """A result that lies somewhere."""

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True)
class Inspection:
    """What recordings hold: `text` as `xwam-ft inspect` prints it, and the starter file where one was asked for."""

    path: Path
    text: str
    starter: Path | None


@dataclass(frozen=True)
class PreparedSet:
    """A shard set: its folder, episodes and frames kept, episodes rejected, different warnings, the page about it."""

    path: Path
    episodes: int
    frames: int
    rejected: int
    warnings: int
    report: Path

    @property
    def shards(self) -> ShardSet:
        from xwam_ft.shards import ShardSet

        return ShardSet.open(self.path)


@dataclass(frozen=True)
class EncodedSet:
    """A latent cache: its folder and clips."""

    path: Path
    clips: int


@dataclass(frozen=True)
class Run:
    """A run: its folder, optimizer steps done and planned, the last held-out numbers by name, the page about it."""

    path: Path
    step: int
    max_steps: int
    held_out: dict[str, float]
    report: Path
    warnings: tuple[str, ...] = ()  # what its plan warned of

    @classmethod
    @checked()
    def open(cls, path: str | Path) -> Run:
        """A run that lies on disk.

        Raises:
            UserError: it is not one, or its newest checkpoint is damaged.
        """
        from xwam_ft.files import read_json
        from xwam_ft.runs.folder import PLAN_FILE, open_run
        from xwam_ft.runs.history import History
        from xwam_ft.runs.report import REPORT_FILE

        folder = open_run(Path(path))
        rows = [row for row in History(folder.path).metrics() if "held_out/total" in row]
        held_out = {name: value for name, value in (rows[-1] if rows else {}).items() if name != "step"}
        steps = folder.recipe.trainer.max_steps
        plan = read_json(folder.path / PLAN_FILE) if (folder.path / PLAN_FILE).is_file() else {}
        warned = tuple(plan.get("warnings", ()))
        return cls(folder.path, folder.first_step, steps, held_out, folder.path / REPORT_FILE, warned)


@dataclass(frozen=True)
class Runs:
    """The runs of a folder, or by what two recipes differ: {dotted key: (first, second)}."""

    path: Path
    runs: tuple[RunSummary, ...]
    differences: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Bundle:
    """What `export` wrote: its folder, the format, the run's step, for a bundle the page about it, and ORG/NAME@COMMIT
    where it was pushed."""

    path: Path
    format: str
    step: int
    report: Path | None
    pushed: str | None = None

    def load(self, device: str = "auto") -> Policy:
        """The policy, for a bundle; proves itself first."""
        from xwam_ft.policy.policy import Policy

        return Policy.load(self.path, device)


@dataclass(frozen=True)
class ImaginedEpisode:
    """Imagined beside recorded: the folder, its film, a sheet of pictures, and the scores."""

    path: Path
    film: Path
    report: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Errors in physical units (open loop), successes (closed loop), or two of them compared; folder and page where
    `out` was given."""

    metrics: dict[str, Any]
    path: Path | None
    report: Path | None
