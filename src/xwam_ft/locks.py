"""One writer a place: a lock that dies with its process, and says whose it is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from xwam_ft.errors import UserError
from xwam_ft.files import UNWRITABLE, atomic_folder, disk_errors, remove_temporaries, require_local

PATIENCE = 0.3
"""Seconds in which another's look at the lock is over."""
LINGERING = 10.0
"""Seconds in which the workers of a killed process end, which hold its lock as long as they live."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

try:
    import fcntl
except ImportError:  # Windows: two commands on one folder are not kept apart there
    fcntl = None


@contextlib.contextmanager
def sole_writer(target: Path, doing: str) -> Generator[None]:
    """Keep others from writing `target` (a file or folder, there or not yet) meanwhile.

    The lock is the operating system's own on a hidden file beside `target`, so one that a killed process left behind
    holds nobody up; what that process left half-written is removed. It holds between machines too where their shared
    disk supports it (NFS 4 does); on a disk without locks the process that the file names counts, unless it was on this
    machine and has ended.

    Args:
        doing: what this process does with it ("exporting to it").

    Raises:
        UserError: another process writes it; says which, where and since when.
    """
    require_local(target)
    path = _lock_of(target)
    with disk_errors(target, UNWRITABLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, target)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}
        owner["since"] = datetime.now().astimezone().isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        remove_temporaries(target.absolute(), lambda place: holder(place) is not None)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # before it is let go: whoever opened it meanwhile sees that it is gone
        os.close(descriptor)


@contextlib.contextmanager
def waiting_lock(path: Path) -> Generator[None]:
    """Keep others out of what the file `path` stands for, and wait while they keep us out; for short work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_folder(target: Path, doing: str) -> Generator[Path]:
    """`atomic_folder` under `sole_writer`: a new folder that nobody else makes meanwhile."""
    with sole_writer(target, doing), atomic_folder(target) as folder:
        yield folder


def holder(target: Path) -> str | None:
    """Who writes `target` now, as a phrase ("process 12 on host is training it since ..."); None: nobody.

    Only looks: it holds nobody up.
    """
    path = _lock_of(target)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # left behind by a process that was killed
    except BlockingIOError:
        return _said(_owner(descriptor))
    except OSError:
        pass
    finally:
        os.close(descriptor)
    owner = _read(path)
    return _said(owner) if owner and not _dead(owner) else None


def _lock_of(target: Path) -> Path:
    place = target.absolute()
    return place.with_name(f".{place.name}.lock")


def _locked(path: Path, target: Path) -> int:
    """An open descriptor that holds the lock at `path`."""
    until = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            # Whoever only looks holds it for a moment; workers of a killed process end a little after it.
            if time.monotonic() < until + (LINGERING if owner and _dead(owner) else 0):
                time.sleep(0.02)
                continue
            fix = "wait until it has ended, or stop it"
            if owner and _dead(owner):
                fix = "its workers live on: stop them"
            raise UserError(f"is in use: {_said(owner)}", target, fix) from None
        except OSError as error:  # a disk without locks: what the file says must do
            owner = _owner(descriptor)
            if error.errno not in WITHOUT_LOCKS or (owner and not _dead(owner) and owner["pid"] != os.getpid()):
                os.close(descriptor)
                if error.errno not in WITHOUT_LOCKS:
                    raise
                fix = f"wait until it has ended; where it was killed on another machine, remove {path}"
                raise UserError(f"is in use: {_said(owner)}", target, fix) from None
        # Whoever held it may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


Owner = dict[str, Any]


def _owner(descriptor: int) -> Owner | None:
    """What the holder wrote; None where it has the lock and has not written yet."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return {key: owner[key] for key in ("pid", "host", "doing", "since")}
    except (ValueError, KeyError, TypeError):
        return None


def _read(path: Path) -> Owner | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _owner(descriptor)
    finally:
        os.close(descriptor)


def _dead(owner: Owner) -> bool:
    """Whether the process is known to have ended: it was on this machine and is not there any more."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _said(owner: Owner | None) -> str:
    if owner is None:
        return "another process has just begun to write it"
    ended = ", and has ended" if _dead(owner) else ""
    return f"process {owner['pid']} on {owner['host']} is {owner['doing']} since {owner['since']}{ended}"
