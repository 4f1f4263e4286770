"""Episodes done side by side: in worker processes of this machine, or on a Ray cluster. The same function does the
work, so neither changes a byte of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError
from xwam_ft.prepare.far import take, work_afar
from xwam_ft.prepare.jobs import RESULT
from xwam_ft.processes import side_by_side
from xwam_ft.ray_cluster import Told, connected

if TYPE_CHECKING:
    from xwam_ft.prepare.jobs import EpisodeJob, JobOutcome

    Work = Callable[[EpisodeJob], JobOutcome]


def outcomes(work: Work, jobs: list[EpisodeJob], workers: int, ray: str | None) -> Iterator[tuple[int, JobOutcome]]:
    """(number of the episode, what `work` says of it) as they come.

    Args:
        workers: processes; 0 does everything in this one.
        ray: a cluster's address, `auto` for the one this machine belongs to; then `workers` is not used.

    Raises:
        UserError: a worker died, or the cluster cannot be used.
    """
    if not jobs:
        return iter(())
    if ray is not None:
        return _on_ray(work, jobs, ray)
    return _in_processes(work, jobs, workers) if workers else ((job.number, work(job)) for job in jobs)


def _in_processes(work: Work, jobs: list[EpisodeJob], workers: int) -> Iterator[tuple[int, JobOutcome]]:
    died = UserError(
        "a worker process died, most likely for lack of memory",
        "xwam-ft prepare",
        "run it again with fewer --workers; finished episodes are kept",
    )
    for job, outcome in side_by_side(work, jobs, min(workers, len(jobs)), died=died):
        yield job.number, outcome


def _on_ray(work: Work, jobs: list[EpisodeJob], address: str) -> Iterator[tuple[int, JobOutcome]]:
    def afar(job: EpisodeJob) -> JobOutcome:
        return work(job) if job.far is None else work_afar(job, work)

    told = Told("xwam-ft prepare --ray", "episode", "finished episodes are kept")
    with connected(address) as cluster:
        gpu = jobs[0].depth.estimator is not None and cluster.has(gpu=True) > 0
        for job, outcome in cluster.side_by_side(afar, jobs, told=told, gpu=gpu):
            whole = not isinstance(outcome, tuple) and outcome.reason is None
            if whole and job.far is not None:
                take(job)
            if whole and not (job.folder / RESULT).is_file():
                raise UserError(
                    "was written by a worker of the cluster and is not there",
                    job.folder,
                    "let OUT and the recordings lie on storage that every node mounts at the same path, or at URLs",
                )
            yield job.number, outcome
