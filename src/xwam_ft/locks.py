"""One writer a place: a lock that dies with its process, and says whose it is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Generator
from datetime import datetime
from pathlib import Path

from xwam_ft.errors import UserError
from xwam_ft.files import UNWRITABLE, disk_errors

try:
    import fcntl
except ImportError:  # Windows: two commands on one folder are not kept apart there
    fcntl = None


@contextlib.contextmanager
def sole_writer(target: Path, doing: str) -> Generator[None]:
    """Keep others from writing `target` (a file or folder, there or not yet) meanwhile.

    The lock is the operating system's own on a hidden file beside `target`, so one that a killed process left behind
    holds nobody up. It holds between machines too where their shared disk supports it (NFS 4 does).

    Args:
        doing: what this process does with it ("exporting to it").

    Raises:
        UserError: another process writes it; says which, where and since when.
    """
    place = target.absolute()
    path = place.with_name(f".{place.name}.lock")
    with disk_errors(target, UNWRITABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, target)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}
        owner["since"] = datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # before it is let go: whoever opened it meanwhile sees that it is gone
        os.close(descriptor)


def _locked(path: Path, target: Path) -> int:
    """An open descriptor that holds the lock at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise UserError(f"is in use: {owner}", target, "wait until it has ended, or stop it") from None
        # Whoever held it may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on {owner['host']} is {owner['doing']} since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "another process has just begun to write it"


def holder(target: Path) -> str | None:
    """Who writes `target` now ("process 12 on box is training since ..."); None: nobody does."""
    path = target.absolute().with_name(f".{target.absolute().name}.lock")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(descriptor)
    finally:
        os.close(descriptor)
    return None
