"""Copies on this machine of what is read from URLs, within a limit; the ones used longest ago go first.

So are files that are made once for all processes of a machine.

They lie below `$XWAM_FT_CACHE`, default `~/.cache/xwam-ft`, and are shared by all processes and runs of a machine. A
copy is named by what it is (the hash of its file and which bytes), so that it is never an old one. It appears whole or
not at all; one process fetches it while others wait for it. Whoever reads one has it open, and keeps it when it is
removed meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xwam_ft.errors import UserError
from xwam_ft.files import UNWRITABLE, atomic_path, disk_errors, write_bytes_atomic
from xwam_ft.locks import waiting_lock

LOCAL_GB = 50.0
KEPT = 0.9  # of the limit, once something had to go
STALE = 3600.0  # seconds after which a temporary file is of a process that was killed
KEY = "data.local_gb"


def copies_folder() -> Path:
    """Where copies lie."""
    named = os.environ.get("XWAM_FT_CACHE")
    return Path(named).absolute() if named else Path.home() / ".cache" / "xwam-ft"


@dataclass(frozen=True)
class Copies:
    """The copies of this machine. `limit_gb`: of the disk they may fill, those of other runs included."""

    limit_gb: float = LOCAL_GB

    @property
    def limit(self) -> int:
        """In bytes."""
        return int(self.limit_gb * 1e9)

    def get(
        self, name: str, size: int, fetch: Callable[[], bytes], sound: Callable[[bytes], bool] | None = None
    ) -> bytes:
        """The bytes of this name, from the copy or from `fetch`, which is called where there is none.

        Args:
            name: says what the bytes are, for good.
            size: of them.
            fetch: gives them; what it gives is kept as it is.
            sound: whether bytes are those that are meant; a copy that is not comes anew.

        Raises:
            UserError: what `fetch` raises; one copy is larger than the limit; the disk cannot be written.
        """
        path = _path(name)
        if (data := _read(path, size)) is not None and (sound is None or sound(data)):
            return data
        return self._fetched(path, size, fetch, sound)

    def file(self, name: str, size: int, fetch: Callable[[], bytes]) -> Path:
        """The same as a file, which is to be opened at once: it may go when others need its room."""
        path = _path(name)
        if _read(path, size, 0) is None:
            self._fetched(path, size, fetch)
        return path

    def made(self, name: str, write: Callable[[Path], None]) -> Path:
        """The file of this name, which `write` makes where there is none; one process does, while others wait for it.

        It is to be opened at once: it may go when others need its room.

        Raises:
            UserError: what `write` raises; the disk cannot be written.
        """
        path = _path(name)
        with disk_errors(copies_folder()), waiting_lock(copies_folder() / "locks" / f"made-{path.name[:8]}"):
            if path.is_file():
                os.utime(path)
                return path
            with atomic_path(path) as temporary:
                write(temporary)
                with self._room(temporary.stat().st_size):
                    pass
        return path

    def require_within(self, size: int) -> None:
        """Raise a `UserError` where one file is larger than all of them may be."""
        if size > self.limit:
            raise UserError(
                f"is {self.limit_gb:g}, and one piece of what is read has {size / 1e9:.3g} GB",
                KEY,
                f"set it to {max(1.0, 20 * size / 1e9):.2g} or more",
            )

    def _fetched(
        self, path: Path, size: int, fetch: Callable[[], bytes], sound: Callable[[bytes], bool] | None = None
    ) -> bytes:
        self.require_within(size)
        with disk_errors(copies_folder(), UNWRITABLE), waiting_lock(copies_folder() / "locks" / path.name[:2]):
            data = _read(path, size)
            if data is None or (sound is not None and not sound(data)):
                data = fetch()
                assert len(data) == size
                with self._room(size):
                    write_bytes_atomic(path, data)
        return data

    @contextmanager
    def _room(self, size: int) -> Generator[None]:
        """Count `size` bytes more, for which older copies go where they must; one writes at a time, or whoever counts
        anew would miss what another is about to write."""
        count = copies_folder() / "bytes"
        with waiting_lock(copies_folder() / "locks" / "bytes"):
            try:
                held = int(count.read_text())
            except (OSError, ValueError):
                held = _evict(self.limit)
            if held + size > self.limit:
                held = _evict(int(KEPT * self.limit) - size)
            count.write_text(str(held + size))  # of a torn one nothing is read, and all is counted anew
            yield


def _path(name: str) -> Path:
    key = hashlib.sha256(name.encode()).hexdigest()
    return copies_folder() / "copies" / key[:2] / key


def _read(path: Path, size: int, count: int = -1) -> bytes | None:
    """A copy, or its first `count` bytes; None where it is not there, or a broken disk has left another size of it."""
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != size:
                return None
            data = stream.read(count)
    except FileNotFoundError:
        return None
    with suppress(OSError):
        os.utime(path)  # when it was last used: a disk may not note that by itself
    return data


def _evict(keep: int) -> int:
    """Remove copies, the ones used longest ago first, until no more than `keep` bytes are left; how many those are."""
    found: list[tuple[float, int, Path]] = []
    for path in (copies_folder() / "copies").glob("*/*"):
        with suppress(OSError):
            state = path.stat()
            if path.name.startswith(".") and state.st_mtime < time.time() - STALE:
                path.unlink()
            elif not path.name.startswith("."):
                found.append((state.st_mtime, state.st_size, path))
    held = sum(size for _, size, _ in found)
    for _, size, path in sorted(found, key=lambda one: one[0]):
        if held <= keep:
            break
        path.unlink(missing_ok=True)
        held -= size
    return held
