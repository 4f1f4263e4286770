"""A run's processes end together: where one fails, no other waits for it in a barrier or a gathering for ever.

What waits in a collective hears of nothing, so a thread beside it listens, and ends its process. Until Lightning has
joined the processes it looks at the run's lock, which is the first one's and goes with it; afterwards twice a second at
a store that the first one serves, where whoever fails says why. A store that is gone says that the first one is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.distributed import TCPStore

from xwam_ft.encode.inputs import first_rank
from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.locks import holder, sole_writer
from xwam_ft.places import RECIPE_FILE
from xwam_ft.plan.memory import is_out_of_memory, out_of_memory
from xwam_ft.recipe import load_recipe
from xwam_ft.runs.checkpoint import kept_steps, run_disk_errors

if TYPE_CHECKING:
    from rich.console import Console

EVERY = 0.5
"""Seconds between two looks."""
ANSWER = timedelta(seconds=60)
"""Within which the store answers, however busy its machine is."""
HEARING = 5.0
"""Seconds that whoever fails waits until all have heard of it."""
LINGERING = 15.0
"""Seconds that whoever has failed has to end by itself; a collective that nobody joins may keep it."""
STARTING = 600.0
"""Seconds by which the first process may be slower to start than another: libraries come from a busy disk."""
FAILED, HEARD, DONE, GONE = "failed", "heard", "done", "gone"


class _Word(NamedTuple):
    """Why a process ends, and with which code."""

    text: str
    code: int


class Together(Callback):
    """One process of a run. Alone it does nothing."""

    def __init__(self, run: Path, console: Console) -> None:
        self.run, self.console = run, console
        self._store: TCPStore | None = None
        self._rank, self._processes = 0, 1
        self._child = False  # started by Lightning in the first process of its machine
        self._joined, self._over = threading.Event(), threading.Event()
        self._told, self._code = 0.0, EXIT_CODE  # when this process said that it fails, and what it ends with

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Once the processes are joined; the first of what they do together."""
        if trainer.world_size == 1 or self._store is not None:
            return
        environment: Any = trainer.strategy.cluster_environment  # pyright: ignore[reportAttributeAccessIssue]
        self._rank, self._processes = trainer.global_rank, trainer.world_size
        self._child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        address, first = environment.main_address, trainer.is_global_zero
        served = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=ANSWER) if first else None
        port: int = trainer.strategy.broadcast(served.port if served is not None else 0)
        self._store = served or TCPStore(address, port, is_master=False, timeout=ANSWER)
        self._joined.set()
        threading.Thread(target=self._listen, name="listens to the other processes", daemon=True).start()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.tell(exception)  # before Lightning cleans up, which may wait for a device that waits for the others

    def tell(self, error: BaseException) -> None:
        """Say to the others that this process fails, and wait until they have heard it."""
        store = self._store
        if store is None or self._told or self._over.is_set():
            return
        if self._heard_of() is not None:
            time.sleep(3 * LINGERING)  # another one's failure is why this one fails: the listener ends it
        self._told = time.monotonic()
        word = _word(error, self.run)
        self._code = word.code
        try:
            store.set(FAILED, json.dumps([self._rank, word.text, word.code]))
            self._wait_for(HEARD, self._processes - 1, HEARING)
        except RuntimeError:
            return  # the first one is gone too

    def close(self) -> None:
        """All is done: wait for the others, so that none takes the end of another for its failure."""
        store = self._store
        if store is None or self._told or self._over.is_set():
            return
        store.add(DONE, 1)
        self._wait_for(DONE, self._processes)
        self._over.set()
        if first_rank():  # whose end takes the store with it
            self._wait_for(GONE, self._processes - 1, LINGERING)
        else:
            store.add(GONE, 1)

    @contextmanager
    def beside_the_first(self) -> Generator[None]:
        """On the other processes: end where the first one, which holds the run's lock, has ended before all joined."""
        threading.Thread(target=self._watch_lock, name="watches the first process", daemon=True).start()
        try:
            yield
        finally:
            self._joined.set()

    def _wait_for(self, key: str, count: int, seconds: float = float("inf")) -> None:
        assert self._store is not None
        until = time.monotonic() + seconds
        while self._store.add(key, 0) < count and time.monotonic() < until:
            time.sleep(0.05)

    def _watch_lock(self) -> None:
        seen, free_since, until = False, 0.0, time.monotonic() + STARTING
        while not self._joined.wait(EVERY):
            if holder(self.run) is not None:
                seen, free_since = True, 0.0
                continue
            free_since = free_since or time.monotonic()
            # Seen free once, it may be between two looks of others.
            if (time.monotonic() > free_since + 2 * EVERY) if seen else (time.monotonic() > until):
                if not self._finished():
                    named = [os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK")]
                    self._end(_first_is_gone(self.run), says="1" in named)
                return

    def _finished(self) -> bool:
        """Whether the run is done, so that the first process had nothing to wait for."""
        try:
            return bool(steps := kept_steps(self.run)) and steps[-1] >= (
                load_recipe(self.run / RECIPE_FILE).trainer.max_steps
            )
        except UserError:
            return False

    def _listen(self) -> None:
        store = self._store
        assert store is not None
        while not self._over.wait(EVERY):
            if self._told:
                if time.monotonic() > self._told + LINGERING:
                    os._exit(self._code)
                continue
            if (heard := self._heard_of()) is None:
                continue
            rank, word = heard
            if self._over.is_set() or rank == self._rank:
                continue
            try:
                store.add(HEARD, 1)
                if first_rank():
                    self._wait_for(HEARD, self._processes - 1, HEARING)  # the store goes with this process
            except RuntimeError:
                pass
            gone = rank is None
            self._end(word, says=self._rank == (1 if gone else 0))

    def _heard_of(self) -> tuple[int | None, _Word] | None:
        """Which process fails, and why; None instead of its number: the first one is gone without a word."""
        assert self._store is not None
        try:
            if not self._store.check([FAILED]):
                return None
            rank, text, code = json.loads(self._store.get(FAILED))
        except RuntimeError:  # torch's DistNetworkError, and its DistStoreError where none answers
            return None, _first_is_gone(self.run)
        return rank, _Word(f"process {rank} of {self._processes} has stopped: {text}", code)

    def _served(self) -> bool:
        """Whether the first process, which serves the store, is still there."""
        try:
            return self._store is not None and (self._store.check([FAILED]) or True)
        except RuntimeError:
            return False

    def _end(self, word: _Word, *, says: bool) -> None:
        """End this process, whose main thread may never look up."""
        until = time.monotonic() + LINGERING
        # Lightning kills the process that has started this one once this one ends, unless it ends by itself before.
        while self._child and self._served() and time.monotonic() < until:
            time.sleep(0.05)
        if says:
            self.console.show_cursor()  # a bar may have hidden it
            sys.stdout.flush()
            print(f"xwam-ft: {word.text}", file=sys.stderr, flush=True)
        os._exit(word.code)


@contextmanager
def together(run: Path, console: Console) -> Generator[Together]:
    """Train a run, in each of its processes: the first keeps others from writing it, and none outlives a failed one.

    Raises:
        UserError: another command writes it.
    """
    one = Together(run, console)
    with sole_writer(run, "training it") if first_rank() else one.beside_the_first():
        try:
            yield one
        except BaseException as error:
            one.tell(error)
            raise
        one.close()


def _first_is_gone(run: Path) -> _Word:
    error = UserError(
        "its first process has ended",
        run,
        f"see what that one printed, or what ended it; then go on: xwam-ft train --resume {quote(str(run))}",
    )
    return _Word(str(error), EXIT_CODE)


def _word(error: BaseException, run: Path) -> _Word:
    try:
        with run_disk_errors(run):
            if is_out_of_memory(error):
                raise out_of_memory(load_recipe(run / RECIPE_FILE))
            raise error
    except UserError as said:
        return _Word(str(said), EXIT_CODE)
    except KeyboardInterrupt:
        return _Word("Ctrl-C, at once", 130)
    except BaseException as other:
        return _Word(f"{type(other).__name__}: {other}".splitlines()[0], 1)
