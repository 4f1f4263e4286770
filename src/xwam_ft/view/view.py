"""`xwam-ft view`: what is shown of a shard set, a run, a bundle or results, where it is served, and when it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.consoles import typed
from xwam_ft.errors import UserError, listed
from xwam_ft.files import require_local
from xwam_ft.places import RECIPE_FILE, run_at
from xwam_ft.shards import INDEX_FILE, ShardSet
from xwam_ft.view.episodes import WatchedSet
from xwam_ft.view.imagining import Imagining
from xwam_ft.view.runs import is_results, run_sets
from xwam_ft.view.server import PageServer
from xwam_ft.view.site import Site

if TYPE_CHECKING:
    from rich.console import Console

KINDS = "a shard set, a run, a bundle, or a folder that `imagine` or `evaluate` wrote"
MANIFEST = "manifest.json"  # of a bundle; policy/bundle.py, which loads torch, says so too
PATIENCE = 2.0  # seconds for a browser to say that it cannot
ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Viewing:
    """A page that is being served; `close` ends it, and so does leaving a `with` block."""

    address: str
    server: PageServer
    site: Site

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> Viewing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_site(target: Path, shards: Path | None, results: Sequence[Path], console: Console) -> Site:
    """What is to be shown of a place.

    Args:
        shards: a shard set beside a bundle, a run or results.
        results: folders that `imagine` or `evaluate` wrote.

    Raises:
        UserError: it is none of what can be shown, or what is given beside it is not, or does not belong to it.
    """
    name = str(target)
    if shards is not None:
        require_local(shards, "a shard set that is watched")
    if not name.startswith("hf:"):  # which is for the Hub to say
        require_local(target, "what is watched")
    for folder in results:
        if not is_results(folder):
            raise UserError("holds no results", folder, "give a folder that `xwam-ft imagine` or `evaluate` wrote")
    beside = [] if shards is None else [WatchedSet(ShardSet.open(shards))]
    if _is_policy(target):
        return _policy_site(target, beside, results, console)
    if is_results(target) and not (target / INDEX_FILE).is_file():
        why = "there is no policy here: give BUNDLE or RUN, with --results for this folder"
        return Site((name, "results"), beside, results=[target, *results], why_no_imagining=why)
    if (target / INDEX_FILE).is_file():
        if shards is not None:
            raise UserError("is a shard set itself", target, "leave --shards out, or give a bundle or a run")
        why = "there is no policy here: `xwam-ft view BUNDLE --shards SHARDS` imagines"
        return Site((name, "shards"), [WatchedSet(ShardSet.open(target))], results=results, why_no_imagining=why)
    raise _unknown(target)


def _is_policy(target: Path) -> bool:
    """Whether it is a run, a step of one, or a bundle, which may lie on the Hub."""
    from xwam_ft import hub

    if target.exists() and not any((target / file).is_file() for file in (RECIPE_FILE, MANIFEST)):
        return run_at(target)[1] is not None
    if target.exists():
        return True
    return hub.repo_of(target, "model") is not None or run_at(target)[1] is not None


def _policy_site(target: Path, beside: list[WatchedSet], results: Sequence[Path], console: Console) -> Site:
    console.print(f"opening {target}", soft_wrap=True)
    console.file.flush()  # torch is loaded now
    from xwam_ft.export.checkpoint import policy_source

    source = policy_source(target, console)
    run = source.folder if (source.folder / RECIPE_FILE).is_file() else None
    lost: list[str] = []
    if run is not None and not beside:
        found, lost = run_sets(run)
        beside = [WatchedSet(shards) for shards in found]
    why, imagining = "give a shard set to imagine clips of: --shards SHARDS", None
    if beside:
        try:
            imagining = Imagining(source, {watched.token: watched for watched in beside})
        except UserError as error:
            if run is None:
                raise
            why = str(error)  # what was prepared anew since is still worth a look
    kind = "bundle" if run is None else "run"
    return Site(
        (str(target), kind),
        beside,
        run=run,
        bundle=source.folder if run is None else None,
        results=results,
        imagining=imagining,
        why_no_imagining=why,
        notes=lost,
    )


def _unknown(target: Path) -> UserError:
    if target.is_file():
        return UserError("is a file", target, f"give the folder: {KINDS}")
    staging = target.absolute().parent / f".{target.name}.preparing"
    if staging.is_dir() or target.name.endswith(".preparing"):
        return UserError("is not prepared to the end", target, "run the same `xwam-ft prepare` again: it goes on")
    if not target.exists():
        return UserError("is not there", target, f"give {KINDS}")
    return UserError(
        "is none of what can be shown", target, f"give {KINDS}; `xwam-ft prepare` makes shards of recordings"
    )


def start(site: Site, host: str | None, port: int) -> Viewing:
    """Serve the page in threads of this process."""
    server = PageServer(site.ask, site.tell, host, port)
    server.begin()
    return Viewing(server.address, server, site)


def view(
    target: Path,
    *,
    shards: Path | None,
    results: Sequence[Path],
    host: str | None,
    port: int,
    browser: bool,
    episode: int | None,
    console: Console,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; opens a browser.

    Args:
        episode: that the page begins with.

    Raises:
        UserError: as `open_site`, or there is no such episode, or the port or host cannot be used.
    """
    site = open_site(target, shards, results, console)
    place = "" if episode is None else site.place_of_episode(episode)
    with start(site, host, port) as viewing, _signals() as wait:
        address = viewing.address + place
        console.print(f"{address} shows {target}; Ctrl-C ends it", soft_wrap=True)
        if host is not None:
            console.print("Anyone who reaches this address can look at it.")
        console.file.flush()
        if browser and not opened(address):
            console.print("No browser was found here: open the address in one.")
        wait()
        console.print("ended")
        if site.imagining is not None and site.imagining.working:
            console.file.flush()
            os._exit(0)  # a network at work cannot be interrupted


def show_in_rerun(shards: Path, episode: int | None, save: Path | None, console: Console) -> None:
    """An episode of a shard set in Rerun's viewer, or in a .rrd file.

    Raises:
        UserError: not a shard set, no such episode or none named, or Rerun is not installed.
    """
    from xwam_ft.evaluate.rerun_log import show_episode

    opened_set = ShardSet.open(shards)
    if episode is None:
        known = [entry.index for entry in opened_set.index.episodes]
        raise UserError("got no episode", "--rerun", f"add --episode K: one of {listed(known)}")
    show_episode(opened_set, episode, save)
    if save is not None:
        console.print(f"{save}: open it with {typed('rerun', save)}", soft_wrap=True)


def opened(address: str) -> bool:
    """Whether a browser was asked to open it. A text browser, which would take the terminal, does not count."""
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False
    done: list[bool] = []

    def ask() -> None:
        with suppress(webbrowser.Error):
            done.append(webbrowser.open(address))

    asking = threading.Thread(target=ask, daemon=True)  # some browsers are waited for until they are closed
    asking.start()
    asking.join(PATIENCE)
    return asking.is_alive() or done == [True]


@contextmanager
def _signals() -> Generator[Callable[[], object]]:
    """A function that waits for Ctrl-C or SIGTERM. In a thread, where signals do not come, it waits for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event().wait
        return
    # Any thread may be the one that the system gives a signal to, and then a wait in this one goes on: Python itself
    # writes the signal's number into the pipe, from whichever.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while os.read(reading, 1)[0] not in ENDING:
            pass

    awake = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {which: signal.signal(which, lambda *_: None) for which in ENDING}
    try:
        yield wait
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        signal.set_wakeup_fd(awake)
        os.close(reading)
        os.close(writing)
