"""Episodes done by machines that share no disk: recordings come from their URL, what is made goes to OUT's.

A worker copies the files of its episode to the paths they have on the machine that gives the work, works in a folder of
its own, and puts the finished episode up as one file, `OUT/parts-<fingerprint>/episode-NNNNNN.tar`. The machine that
gives the work takes it from there into its own staging folder, as if it had made it, so that the set is the same.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import remote
from xwam_ft.copies import copies_folder
from xwam_ft.errors import UserError
from xwam_ft.files import UNWRITABLE, atomic_folder, disk_errors
from xwam_ft.prepare.jobs import FarWork
from xwam_ft.shard_writer import episode_key

if TYPE_CHECKING:
    from xwam_ft.prepare.from_url import RecordedFile, RecordedUrl
    from xwam_ft.prepare.jobs import EpisodeJob, JobOutcome


def with_urls(jobs: Sequence[EpisodeJob], sources: Iterable[RecordedUrl], parts: str) -> list[EpisodeJob]:
    """The jobs, each with what it needs from afar.

    A file that an episode holds the path of is brought for that episode; what nobody names (metadata, calibration) is
    brought for each.
    """
    of_dataset = {recorded.folder: recorded for recorded in sources}
    claims = [_claimed(job, of_dataset.get(job.episode.dataset)) for job in jobs]
    times: dict[str, int] = {}
    for names in claims:
        for name in names:
            times[name] = times.get(name, 0) + 1
    found: list[EpisodeJob] = []
    unnamed: dict[Path, tuple[RecordedFile, ...]] = {
        folder: tuple(file for file in recorded.files.values() if file.url not in times)
        for folder, recorded in of_dataset.items()
    }
    for job, names in zip(jobs, claims, strict=True):
        own = tuple(file for url, file in names.items() if times[url] == 1)
        with_others = tuple(file for url, file in names.items() if times[url] > 1)
        shared = (*with_others, *unnamed.get(job.episode.dataset, ()))
        found.append(replace(job, far=FarWork(parts, own, shared)))
    return found


def _claimed(job: EpisodeJob, recorded: RecordedUrl | None) -> dict[str, RecordedFile]:
    """The files whose path, or a folder of whose, an episode holds; by URL."""
    if recorded is None:
        return {}
    named: set[Path] = set()
    _paths_in(job.episode, named, set())
    return {
        file.url: file
        for file in recorded.files.values()
        if any(path in named for path in (file.path, *file.path.parents) if path != recorded.folder)
        or (file.path == recorded.folder and recorded.folder in named)
    }


def _paths_in(thing: Any, found: set[Path], seen: set[int]) -> None:
    """Every `Path` in an object and what it holds."""
    if isinstance(thing, Path):
        found.add(thing)
    if thing is None or isinstance(thing, Path | str | bytes | int | float | np.ndarray | type) or id(thing) in seen:
        return
    seen.add(id(thing))
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        parts = list(thing)
    elif hasattr(thing, "__dict__"):
        parts = list(vars(thing).values())
    for part in parts:
        _paths_in(part, found, seen)


def work_afar(job: EpisodeJob, work: Callable[[EpisodeJob], JobOutcome]) -> JobOutcome:
    """Do `work` for a job without the disk of whoever gives it.

    A `UserError` comes back as its three parts, since it crosses processes.
    """
    far = job.far
    assert far is not None
    try:
        brought = [file for file in far.own if file.bring()]
        for file in far.shared:
            file.bring()
        spool = copies_folder() / "spool"
        with disk_errors(spool, UNWRITABLE):
            spool.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=spool) as place:
            here = replace(job, staging=Path(place))
            outcome = work(here)
            if not isinstance(outcome, tuple) and outcome.reason is None:
                packed = Path(place) / "part.tar"
                with disk_errors(packed), tarfile.open(packed, "w") as tar:
                    for path in sorted(here.folder.iterdir()):
                        tar.add(path, path.name)
                remote.put(packed, far.part(job.number))
        for file in brought:
            file.forget()
        return outcome
    except UserError as error:
        return error.what, error.where, error.fix


def take(job: EpisodeJob) -> None:
    """Bring an episode that another machine made into the staging folder."""
    assert job.far is not None
    url = job.far.part(job.number)
    data = remote.read_bytes(url)
    shutil.rmtree(job.folder, ignore_errors=True)
    with atomic_folder(job.folder) as folder, tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            if stream is None or "/" in member.name or member.name.startswith("."):
                raise UserError(f"holds {member.name!r}, which is none of an episode's files", url, "remove it")
            (folder / member.name).write_bytes(stream.read())


def take_finished(jobs: Sequence[EpisodeJob], finished: Callable[[EpisodeJob], object]) -> None:
    """Bring what other machines finished in a run that stopped."""
    if not jobs or jobs[0].far is None:
        return
    there = remote.sizes(jobs[0].far.parts)
    for job in jobs:
        if f"{episode_key(job.number)}.tar" in there and finished(job) is None:
            take(job)


def remove_parts(jobs: Sequence[EpisodeJob]) -> None:
    """Remove what was put up, once the set is whole."""
    if jobs and (far := jobs[0].far) is not None:
        for name in remote.sizes(far.parts):
            remote.remove(f"{far.parts}/{name}")
