"""Jobs done side by side on a Ray cluster: what processes.py is for one machine.

A worker is an actor, a process of some node with a GPU or a CPU of its own, which keeps what it has loaded from job to
job. It ends with the command that asked for it. A job whose worker dies goes to another one.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from xwam_ft.errors import UserError, require

Job = TypeVar("Job")
Result = TypeVar("Result")

RETRIES = 2  # of a job whose worker or node died
AHEAD = 2  # jobs a worker holds: one it works on, and one so that it need not wait for us
LOOK = 10.0  # seconds after which it is looked whether the cluster has grown or shrunk
PATIENCE = 30.0  # seconds without any worker after which that is told


@dataclass(frozen=True)
class Told:
    """The words of sentences about a worker that died.

    Args:
        command: that was given ("xwam-ft prepare --ray").
        one: what a job is ("episode").
        kept: what is not lost ("finished episodes are kept").
    """

    command: str
    one: str
    kept: str


@contextmanager
def connected(address: str) -> Generator[Cluster]:
    """A Ray cluster, for as long as the block lasts; one that this process is connected to already stays so.

    Args:
        address: `auto` for the one this machine belongs to.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise require("ray", "ray", "--ray") from None
    started = not ray.is_initialized()
    if started:
        _connect(ray, address)
    try:
        yield Cluster(ray)
    finally:
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


@dataclass(eq=False)
class _Worker:
    """One worker as we see it: the jobs it holds (reference, job, deaths over it), the first being worked on.

    Actors do what they are asked in order, so that the first reference is always the next to come, and the job to
    blame where the worker dies.
    """

    actor: Any
    begun: Any  # reference to its beginning; None once that is over
    held: deque[tuple[Any, Any, int]] = field(default_factory=deque[tuple[Any, Any, int]])

    @property
    def next(self) -> Any:
        """The reference that is waited for; None: it has nothing to do."""
        return self.begun if self.begun is not None else self.held[0][0] if self.held else None


@dataclass(frozen=True)
class Cluster:
    """A cluster that we are connected to."""

    ray: Any

    def has(self, *, gpu: bool) -> int:
        """Its GPUs or CPUs, those in use included."""
        resources: Mapping[str, float] = self.ray.cluster_resources()
        return int(resources.get("GPU" if gpu else "CPU", 0))

    def side_by_side(
        self,
        work: Callable[[Job], Result],
        jobs: Sequence[Job],
        *,
        told: Told,
        gpu: bool = False,
        most: int | None = None,
        begin: Callable[..., None] | None = None,
        given: tuple[Any, ...] = (),
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[Job, Result]]:
        """(job, what `work` gives for it) as they come.

        Args:
            work, begin: functions of a module that nodes have, or local ones, which go there whole.
            gpu: a worker has a GPU; otherwise a CPU.
            most: workers; default one a GPU or CPU.
            begin: called once in each worker, with `given`, before its first job.
            tell: told where no worker can begin.

        Raises:
            UserError: what `work` or `begin` raised, naming the node; a job whose workers died, or a node that cannot
                import what it is to do.
        """
        ray, queue = self.ray, deque((job, 0) for job in jobs)
        made = ray.remote(num_cpus=1, num_gpus=int(gpu), max_restarts=0, scheduling_strategy="SPREAD")(_Actor)
        orders = ray.put((work, begin, given))
        workers: list[_Worker] = []
        stillborn, look, patient = 0, 0.0, time.monotonic() + PATIENCE
        try:
            while queue or any(worker.held for worker in workers):
                if (now := time.monotonic()) >= look:
                    look = now + LOOK
                    left = len(queue) + sum(len(worker.held) for worker in workers)
                    wanted = min(self.has(gpu=gpu) or 1, left, most or left)
                    while len(workers) < wanted:
                        actor = made.remote()
                        workers.append(_Worker(actor, actor.begin.remote(orders)))
                _hand_out(queue, workers)
                if now > patient and all(worker.begun is not None for worker in workers):
                    patient = now + 10 * PATIENCE
                    if tell is not None:
                        what = "GPUs" if gpu else "CPUs"
                        tell(f"waiting: no worker could begin yet on the Ray cluster's {self.has(gpu=gpu)} {what}")
                awaited = [worker.next for worker in workers if worker.next is not None]
                done, _ = ray.wait(awaited, num_returns=1, timeout=LOOK)
                for worker in [worker for worker in workers if worker.next in done]:
                    try:
                        result = self._fetch(worker.next, told)
                    except _Died as died:
                        workers.remove(worker)
                        ray.kill(worker.actor)
                        look = 0.0
                        stillborn += worker.begun is not None
                        deaths = stillborn if worker.begun is not None else worker.held[0][2] + 1
                        if deaths > RETRIES:
                            raise _gone(died, told) from None
                        for number, (_, job, before) in reversed(list(enumerate(worker.held))):
                            queue.appendleft((job, before + (number == 0)))
                        continue
                    if worker.begun is not None:
                        worker.begun, stillborn = None, 0
                        continue
                    _, job, _ = worker.held.popleft()
                    _hand_out(queue, workers)  # before our own part of the work
                    yield job, result
        finally:
            for worker in workers:
                ray.kill(worker.actor)

    def _fetch(self, reference: Any, told: Told) -> Any:
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except exceptions.RayTaskError as error:
            reason = str(error.cause).strip().splitlines()[-1:] or [type(error.cause).__name__]
            if isinstance(error.cause, ImportError | exceptions.RaySystemError) and "No module named" in reason[0]:
                raise UserError(
                    f"the cluster's workers cannot import what they are to do ({reason[0]})",
                    told.command,
                    "install this xwam-ft, with the same Python, on every node",
                ) from None
            raise error.cause from None  # what we raised ourselves, or a bug of ours
        except exceptions.RayError as error:
            raise _Died(str(error).strip().splitlines()[0]) from None


class _Died(Exception):
    """A worker, over the job whose result was asked for."""


def _gone(died: _Died, told: Told) -> UserError:
    return UserError(
        f"a worker of the Ray cluster died over one {told.one}, {RETRIES} retries included ({died})",
        told.command,
        f"look at that node's memory and log, and run it again; {told.kept}",
    )


def _hand_out(queue: deque[tuple[Any, int]], workers: Sequence[_Worker]) -> None:
    """Give jobs to workers that have begun, a first one to each before any has a second."""
    for held in range(AHEAD):
        for worker in workers:
            if queue and worker.begun is None and len(worker.held) == held:
                job, deaths = queue.popleft()
                worker.held.append((worker.actor.do.remote(job), job, deaths))


class _Actor:
    """What runs on the node."""

    def begin(self, orders: tuple[Callable[[Any], Any], Callable[..., None] | None, tuple[Any, ...]]) -> None:
        self._work, begin, given = orders
        if begin is not None:
            with _node_named():
                begin(*given)

    def do(self, job: Any) -> Any:
        with _node_named():
            return self._work(job)


@contextmanager
def _node_named() -> Generator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{error.what} (on the node {socket.gethostname()})", error.where, error.fix) from None
