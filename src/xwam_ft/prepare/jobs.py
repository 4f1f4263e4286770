"""An episode to be prepared, what came of it, and what finds it again: nouns of the pipeline and its workers.

`<staging>/episode-NNNNNN/` holds the files of an episode's segments, `motion.npz`, contact sheets and `result.json`;
it is put there under its name only when it is complete (episode_work.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from xwam_ft.copies import copies_folder
from xwam_ft.files import read_json
from xwam_ft.prepare.findings import Finding, Severity
from xwam_ft.quantiles import Motion
from xwam_ft.remote import url_of
from xwam_ft.shard_writer import episode_key

if TYPE_CHECKING:
    from pathlib import Path

    from xwam_ft.contract import Image, Timing
    from xwam_ft.prepare.depth import DepthPlan
    from xwam_ft.prepare.embodiment.cameras import CameraPlan
    from xwam_ft.prepare.embodiment.slots import SlotPlan
    from xwam_ft.prepare.episode import Episode
    from xwam_ft.prepare.from_url import RecordedFile

RESULT = "result.json"
MOTION_FILE = "motion.npz"
JOINTS = "joints "  # of a kinematic slot, in that file


@dataclass(frozen=True)
class FarWork:
    """What a machine without our disk needs besides the job: the URL of parts, the files that only this episode
    names, and those of the dataset that it or all may need."""

    parts: str
    own: tuple[RecordedFile, ...]
    shared: tuple[RecordedFile, ...]

    def part(self, number: int) -> str:
        return f"{self.parts}/{episode_key(number)}.tar"


@dataclass(frozen=True)
class EpisodeJob:
    """All that one episode needs; sent to a worker process."""

    number: int  # in the shard set, over all datasets; rejected episodes keep theirs
    episode: Episode
    fps: float
    cameras: list[CameraPlan]
    slots: list[SlotPlan]
    depth: DepthPlan
    image: Image
    timing: Timing
    instruction: str | None
    staging: Path
    far: FarWork | None = None  # where it is done by a machine that shares no disk with this one

    @property
    def folder(self) -> Path:
        return self.staging / episode_key(self.number)


@dataclass
class EpisodeResult:
    number: int
    index: int  # the dataset's own number
    dataset: str
    reason: str | None = None  # why it was rejected
    findings: list[Finding] = field(default_factory=list[Finding])
    frames: int = 0
    instructions: list[str] = field(default_factory=list[str])  # wordings of one, the usual first
    success: bool | None = None
    segments: list[str] = field(default_factory=list[str])
    padded_starts: int = 0
    sizes: dict[str, list[int]] = field(default_factory=dict[str, Any])  # camera -> height, width of the recording
    codecs: dict[str, str] = field(default_factory=dict[str, str])
    depth_valid: dict[str, float] = field(default_factory=dict[str, float])  # camera -> share of valid pixels
    depth_ends: dict[str, list[float]] = field(default_factory=dict[str, Any])  # of these: at near, and at far
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    depth_flicker: dict[str, dict[str, float | None]] = field(default_factory=dict[str, Any])  # camera -> raw, aligned
    depth_check: dict[str, dict[str, float]] = field(default_factory=dict[str, Any])  # camera -> DepthCheck
    # What the checks over all episodes compare (checks/across.py, checks/depth.py), and small pictures of findings.
    signatures: dict[str, list[float]] = field(default_factory=dict[str, Any])  # camera -> its usual picture
    depth_grids: dict[str, list[float | None]] = field(default_factory=dict[str, Any])  # camera -> metres
    pictures_hash: str = ""
    seconds_apart: list[float] = field(default_factory=list[float])  # between frames: least, median, most
    thumbnails: dict[str, str] = field(default_factory=dict[str, str])  # "camera:frame" -> JPEG in base64

    @property
    def instruction(self) -> str:
        """The usual wording, "" where none was recorded."""
        return self.instructions[0] if self.instructions else ""

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]


JobOutcome = EpisodeResult | tuple[str, str, str]  # or the parts of a UserError


def staging_of(out: Path) -> Path:
    """Where what is prepared for `out` waits until all of it is done: beside it, or for a URL where copies lie."""
    if (url := url_of(out)) is not None:
        return copies_folder() / "spool" / sha256(url.encode()).hexdigest()[:32] / "preparing"
    return out.absolute().parent / f".{out.name}.preparing"


def finished(job: EpisodeJob) -> EpisodeResult | None:
    """The result an earlier run left; a rejected episode is tried again."""
    if not (job.folder / RESULT).is_file():
        return None
    stored = read_json(job.folder / RESULT)
    stored["findings"] = [Finding(**finding) for finding in stored["findings"]]
    result = EpisodeResult(**stored)
    return result if result.reason is None else None


def load_motion(job: EpisodeJob) -> Motion:
    with np.load(job.folder / MOTION_FILE) as archive:
        return Motion(archive["state"], archive["command"], archive["command_mask"])


def load_joints(job: EpisodeJob) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Joint states and commands of the kinematic slots, [F, J] each."""
    with np.load(job.folder / MOTION_FILE) as archive:
        return {n.removeprefix(JOINTS): (archive[n][0], archive[n][1]) for n in archive if n.startswith(JOINTS)}


class Motions(Sequence[Motion]):
    """The motions of episodes that are done, each read when it is looked at and not kept."""

    def __init__(self, jobs: Sequence[EpisodeJob]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    @overload
    def __getitem__(self, index: int) -> Motion: ...

    @overload
    def __getitem__(self, index: slice) -> Motions: ...

    def __getitem__(self, index: int | slice) -> Motion | Motions:
        return Motions(self.jobs[index]) if isinstance(index, slice) else load_motion(self.jobs[index])


class MotionsByNumber(Mapping[int, Motion]):
    """The same by the episodes' numbers."""

    def __init__(self, jobs: Sequence[EpisodeJob]) -> None:
        self._jobs = {job.number: job for job in jobs}

    def __getitem__(self, number: int) -> Motion:
        return load_motion(self._jobs[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)
