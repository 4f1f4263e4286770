"""Jobs done side by side in worker processes of this machine, which end with their parent and leave ^C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from xwam_ft.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

AHEAD = 4  # jobs handed out for every worker; the others wait here, so that their number costs no memory there


def side_by_side(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    *,
    died: UserError,
    begin: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Iterator[tuple[Job, Result]]:
    """(job, what `work` gives for it) as they come. Processes are spawned, so that they inherit no threads or locks.

    Args:
        work, begin: functions of a module, which the workers import.
        died: what to raise where a worker is gone.
        begin: called once in each worker, with `given`, before its first job.

    Raises:
        UserError: `died`, or what `work` raised.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(os.getpid(), stop, begin, given)
    )
    waiting = iter(jobs)
    running: dict[Future[Result], Job] = {}
    try:
        while True:
            while len(running) < AHEAD * workers and (job := next(waiting, None)) is not None:
                with _script_left_out():
                    running[pool.submit(work, job)] = job
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            if any(one.exception() is not None for one in done):
                for one in running:  # those given earlier have begun: the error told is the one of one process
                    one.result()
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise died from None
    finally:
        stop.set()  # after an error or ^C nobody waits for the jobs that were begun
        pool.shutdown(wait=True, cancel_futures=True)


def worker_number() -> int:
    """Which worker of its pool this process is, from 0; 0 in any other process."""
    identity: tuple[int, ...] = getattr(multiprocessing.current_process(), "_identity", ()) or (1,)
    return identity[-1] - 1


@contextmanager
def _script_left_out() -> Generator[None]:
    """Let spawned processes not import the script that called us, of which they need nothing.

    One without `if __name__ == "__main__":` would run again in each of them, and prepare there.
    """
    script = sys.modules["__main__"].__dict__
    kept = {name: script[name] for name in ("__spec__", "__file__") if name in script}
    script["__spec__"] = None
    script.pop("__file__", None)
    try:
        yield
    finally:
        del script["__spec__"]
        script.update(kept)


def _begin(parent: int, stop: Any, begin: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    """A worker leaves ^C to its parent, and ends with it or when told to, rather than write on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent and not stop.is_set():
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if begin is not None:
        begin(*given)
