"""Recordings at a URL: the files that are needed of them, copied to this machine, where readers open them by path.

They lie in `$XWAM_FT_CACHE/recordings/<hash of the URL>/<name>` (copies.py) and stay, so that a second preparation
fetches what is new alone. Of each copy is noted what the store said of its content: one that changed comes again, and
one that is gone there goes here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xwam_ft import remote
from xwam_ft.copies import copies_folder
from xwam_ft.errors import UserError
from xwam_ft.files import UNWRITABLE, disk_errors, require_room, write_text_atomic
from xwam_ft.locks import waiting_lock
from xwam_ft.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.progress import Advance

SIDE_BY_SIDE = 8


class RecordedFile(NamedTuple):
    """A file of recordings: its URL, its copy's path, its bytes, and the store's mark of its content."""

    url: str
    path: Path
    size: int
    mark: str

    def bring(self) -> bool:
        """Copy it where its copy is not there or of another content; whether it had to come."""
        noted = self._noted
        with waiting_lock(copies_folder() / "locks" / f"file-{noted.name[:4]}"):
            with suppress(OSError):
                if self.path.stat().st_size == self.size and noted.read_text() == self.mark:
                    return False
            with disk_errors(self.path, UNWRITABLE, then="; XWAM_FT_CACHE=FOLDER says where copies lie"):
                noted.unlink(missing_ok=True)
                remote.fetch(self.url, self.path, self.size)
                write_text_atomic(noted, self.mark)
            return True

    def forget(self) -> None:
        """Remove the copy."""
        self._noted.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def _noted(self) -> Path:
        return copies_folder() / "marks" / hashlib.sha256(f"{self.url} {self.path}".encode()).hexdigest()


class RecordedUrl:
    """Recordings at a URL.

    Raises:
        UserError: nothing there, no right to see it, a web server, which cannot say what it has.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def folder(self) -> Path:
        """Where the copies lie; one file of recordings is that file."""
        key = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return copies_folder() / "recordings" / key / self.url.rpartition("/")[2]

    @cached_property
    def files(self) -> dict[str, RecordedFile]:
        """By their names from there; "" where the URL is a file."""
        if self.url.startswith("http"):
            raise UserError(
                "are recordings on a web server, which cannot say what files it has",
                self.url,
                "give s3://, gs:// or hf://datasets/, or download them",
            )
        found = {
            name: RecordedFile(f"{self.url}/{name}", self.folder / name, *row)
            for name, row in remote.listing(self.url).items()
            if name and not any(part.startswith(".") for part in name.split("/"))
        }
        if not found and (size := remote.size_of(self.url)) is not None:
            found = {"": RecordedFile(self.url, self.folder, size, str(size))}
        if not found:
            raise UserError("holds no recordings; nothing lies there", self.url, "check the URL")
        return found

    @property
    def sizes(self) -> dict[Path, int]:
        """Bytes of all files there, by where their copies lie."""
        return {file.path: file.size for file in self.files.values()}

    def fetch(
        self, console: Console, *, allow: Sequence[str] | None = None, ignore: Sequence[str] | None = None
    ) -> Path:
        """Copy the files that are asked for, by patterns (None: all, none); returns the folder of the copies."""
        wanted = [
            file
            for name, file in self.files.items()
            if (allow is None or any(fnmatchcase(name, pattern) for pattern in allow))
            and not any(fnmatchcase(name, pattern) for pattern in ignore or ())
        ]
        known = {file.path for file in self.files.values()}
        for path in self.folder.rglob("*") if self.folder.is_dir() else ():
            if path.is_file() and path not in known:
                path.unlink()
        missing = sum(file.size for file in wanted if not file.path.is_file() or file.path.stat().st_size != file.size)
        if missing:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            require_room(self.folder.parent, missing)
            console.print(f"recordings of {self.url} are copied to {self.folder}", markup=False, soft_wrap=True)
        with progress_bar(console, "fetch recordings", "bytes", sum(file.size for file in wanted)) as advance:
            _bring(wanted, advance)
        return self.folder


def _bring(files: Sequence[RecordedFile], advance: Advance) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            for file, _ in zip(files, pool.map(RecordedFile.bring, files), strict=True):
                advance(file.size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # ^C is not held up by files nobody waits for
            raise
