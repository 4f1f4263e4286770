"""Episodes done side by side: in worker processes of this machine, or on a Ray cluster. The same function does the
work, so neither changes a byte of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError, require
from xwam_ft.prepare.far import take, work_afar
from xwam_ft.prepare.jobs import RESULT
from xwam_ft.processes import AHEAD, side_by_side

if TYPE_CHECKING:
    from xwam_ft.prepare.jobs import EpisodeJob, JobOutcome

    Work = Callable[[EpisodeJob], JobOutcome]

RETRIES = 2  # of an episode whose Ray worker or node died


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
    try:
        import ray
    except ImportError:
        raise require("ray", "ray", "--ray") from None
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    resources: Mapping[str, float] = ray.cluster_resources()
    on_gpu = jobs[0].depth.estimator is not None and resources.get("GPU", 0) >= 1
    slots = int(resources.get("GPU", 0) if on_gpu else resources.get("CPU", 1)) or 1

    def afar(job: EpisodeJob) -> JobOutcome:
        return work(job) if job.far is None else work_afar(job, work)

    remote = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=RETRIES)(afar)
    waiting = iter(jobs)
    running: dict[Any, EpisodeJob] = {}
    try:
        while True:
            while len(running) < AHEAD * slots and (job := next(waiting, None)) is not None:
                running[remote.remote(job)] = job
            if not running:
                return
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            outcome = _fetch(ray, done)
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
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise UserError(
            f"there is no Ray cluster ({str(error).splitlines()[0]})",
            f"--ray {address}",
            "start one with `ray start --head`, or give its address, such as ray://head:10001",
        ) from None


def _fetch(ray: Any, reference: Any) -> JobOutcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError) or "failed to import on the worker" in str(error.cause):
            reason = str(error.cause).strip().splitlines()[-1]
            raise UserError(
                f"the cluster's workers cannot import what they are to do ({reason})",
                "xwam-ft prepare --ray",
                "install this xwam-ft, with the same Python, on every node",
            ) from None
        raise error.cause from None  # a bug of ours, with its traceback
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a worker of the Ray cluster died over one episode, {RETRIES} retries included "
            f"({str(error).strip().splitlines()[0]})",
            "xwam-ft prepare --ray",
            "look at that node's memory and log, and run it again; finished episodes are kept",
        ) from None
