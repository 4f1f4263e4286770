"""Files that survive a kill: written to a temporary name, synced, renamed; and the hashes that prove them."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xwam_ft.errors import UserError, spelled
from xwam_ft.machine import gigabytes


@contextlib.contextmanager
def atomic_path(target: Path) -> Generator[Path]:
    """Yield a temporary path beside `target`; on success sync and rename it there, on error remove it.

    The temporary name keeps the suffix, since media libraries choose the container by it.
    """
    require_local(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Generator[Path]:
    """Yield a temporary folder beside `target`; on success sync its files and rename it there.

    Raises:
        UserError: `target` exists already and is not an empty folder (nothing is ever overwritten).
    """
    require_new(target)
    with disk_errors(target, UNWRITABLE):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        with disk_errors(target, UNWRITABLE):
            temporary.chmod(0o755)
            move_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def sent_on(stream: IO[bytes]) -> Generator[Callable[[], None]]:
    """Yield what to call after each writing: the disk takes what is written so far beside the work that goes on.

    So that a sync at the end has little left to wait for.
    """
    going: Future[None] | None = None
    with ThreadPoolExecutor(1) as beside:

        def send() -> None:
            nonlocal going
            if going is None or going.done():
                if going is not None:
                    going.result()  # the system tells of a failed write once
                stream.flush()
                going = beside.submit(os.fsync, stream.fileno())

        yield send
        if going is not None:
            going.result()


def require_local(target: Path, what: str = "what is made or read here") -> None:
    """Raise a `UserError` where a path is a URL, which only shard sets, latent caches and recordings may be."""
    if spelled(target) != str(target):
        raise UserError(
            f"is a URL, and {what} lies on this machine",
            target,
            "give a path of this machine, and copy it from there or to there",
        )


def require_new(target: Path) -> None:
    """Raise a `UserError` unless `target` is free to be made: absent, or an empty folder."""
    require_local(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("exists already and is not an empty folder", target, "choose another folder or remove it")


TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp(\.\w+)?")
"""The names that `atomic_path` and `atomic_folder` write to, and of what they are."""


def remove_temporaries(target: Path, written: Callable[[Path], bool] = lambda place: False) -> None:
    """Remove what killed processes left half-written of a file or folder: beside it and in it.

    Only for whoever keeps others from writing there meanwhile (locks.py).

    Args:
        written: whether somebody else writes a place inside now (a bundle that is exported into its run): it stays.
    """
    beside = [
        path for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp*") if _made_of(path) == target.name
    ]
    inside: list[Path] = []
    for path in target.rglob(".*.tmp*"):
        way = (path, *path.parents[: len(path.relative_to(target).parts) - 1])
        if _made_of(path) and not any(written(place.with_name(_made_of(place) or place.name)) for place in way):
            inside.append(path)
    for path in (*beside, *inside):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _made_of(path: Path) -> str | None:
    """The name that a temporary one stands for; None: it is no such name."""
    found = TEMPORARY.fullmatch(path.name)
    return found[1] if found else None


def remove_folder(folder: Path) -> None:
    """Remove a folder whole or not at all: what a kill leaves of it has a temporary name."""
    gone = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    folder.replace(gone)
    shutil.rmtree(gone)


def full_disk(error: OSError, where: Path) -> UserError | None:
    """The sentence for an OSError that says there is no room (disk, quota, or a limit on file sizes); else None."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return UserError(
        f"there is no room to write ({error.strerror})",
        where,
        f"{remedy(error.errno)}; what is finished is kept, and the same command goes on with it",
    )


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes whose space is taken at once, so that a memory map of it cannot fail later.

    Raises:
        OSError: there is no room (writing into a hole of a map on a full disk would end the process instead).
    """
    with path.open("wb") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except AttributeError:  # not on macOS
            stream.truncate(size)


def move_folder(source: Path, target: Path) -> None:
    """Sync a finished folder and rename it to its final name (absent, or an empty folder), for good."""
    for path in (*sorted(source.rglob("*")), source):
        _sync(path)
    if target.exists():
        target.rmdir()
    source.rename(target)
    _sync(target.parent)


def link_tree(source: Path, target: Path) -> int:
    """Give `target` the files of `source`: hard links where the disk allows them, copies elsewhere.

    Symbolic links are followed (a hub's cache is made of them). Returns the bytes of all files.
    """
    total = 0
    for path in sorted(source.rglob("*")):
        if path.is_dir():
            continue
        real, place = path.resolve(), target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(real, place)
        except OSError:
            shutil.copy2(real, place)
        total += real.stat().st_size
    return total


def require_room(folder: Path, size: int) -> None:
    """Raise a `UserError` unless the disk of `folder` has `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{gigabytes(size)} are to be written and its disk has {gigabytes(free)} free",
            folder.parent,
            "free some space, or choose a folder on another disk",
        )


FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, *FORBIDDEN)
UNWRITABLE = (*FULL, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTEMPTY)
"""What making a new file or folder meets: these too say that its place is wrong (below a file, too long a name)."""

REMEDIES = {
    errno.ENOSPC: "free some space on its disk, or choose another disk",
    errno.EDQUOT: "your quota there is used up: remove files of yours, or choose another disk",
    errno.EFBIG: "no file may be so large there: raise `ulimit -f`, or choose another disk",
    errno.EROFS: "it is mounted read-only: choose another place, or mount it writable",
    errno.EACCES: "you may not write there: change its permissions, or choose another place",
    errno.EPERM: "you may not write there: change its owner or permissions, or choose another place",
    errno.EIO: "the disk itself fails: see what `dmesg` says, and choose another",
    errno.ESTALE: "the network disk was away: mount it again",
    errno.ENOTDIR: "a file is where a folder should be: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do, by error of the system; of those that are not here: choose another folder."""


def remedy(number: int | None) -> str:
    return REMEDIES.get(number or 0, "choose another folder")


@contextlib.contextmanager
def disk_errors(
    target: Path,
    kinds: tuple[int, ...] = FULL,
    *,
    kept: Callable[[], str] | None = None,
    then: str = "",
    forbidden: str | None = None,
) -> Generator[None]:
    """Turn a full, read-only or forbidden disk into a `UserError`; with `UNWRITABLE`, a wrong place as well.

    Args:
        target: what is written.
        kinds: which errors of the system.
        kept: says what is not lost.
        then: what to do once that is mended (", then ...").
        forbidden: what to do where the place may only be read, beside mending that.
    """
    try:
        yield
    except Exception as error:
        said = re.search(r"os error (\d+)", str(error))  # safetensors' words for it
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number not in kinds:
            raise
        what = f"cannot be written ({os.strerror(number).lower()}){f'; {kept()}' if kept else ''}"
        instead = f"{forbidden}; or " if forbidden and number in FORBIDDEN else ""
        raise UserError(what, target, f"{instead}{remedy(number)}{then}") from error


def write_bytes_atomic(target: Path, data: bytes) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(target: Path, text: str) -> None:
    write_bytes_atomic(target, text.encode())


def json_bytes(value: Any) -> bytes:
    """The one JSON form of the project: key order as given, two-space indent, floats exact, newline at the end."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json_atomic(target: Path, value: Any) -> None:
    write_bytes_atomic(target, json_bytes(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; absent, unreadable or malformed is a `UserError` naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, fix = stand_in(path) or ("the file is missing", "check the folder you gave")
        raise UserError(what, path, fix) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if (found := stand_in(path)) is not None:
            raise UserError(found[0], path, found[1]) from None
        raise UserError(f"is not valid JSON ({error})", path, "restore the file or make it again") from None


POINTERS = {
    b"version https://git-lfs": (
        "is a Git LFS pointer, not the file itself",
        "run `git lfs pull` in the repository it came with",
    ),
    b"/annex/objects/": (
        "is a git-annex pointer, not the file itself",
        "run `git annex get .` in the repository it came with",
    ),
}
PAGE = re.compile(rb"\s*<(?:!doctype html|html)\b", re.IGNORECASE)
HEAD = 64  # bytes that tell what a file is


def stand_in(path: Path) -> tuple[str, str] | None:
    """What lies in the place of a file that cannot be read, and what to do; None where nothing of it can be seen.

    A pointer of Git LFS or git-annex, a link that leads nowhere, a web page, an empty file.
    """
    if path.is_symlink() and not path.exists():
        link = path.readlink()
        if "annex/objects" in str(link):
            return POINTERS[b"/annex/objects/"]
        return (
            f"is a link to {link}, which is not there",
            "copy the data with its links followed (`cp -rL`, `rsync -rL`)",
        )
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if not head:
        return "is an empty file", "copy or download it again"
    if PAGE.match(head):
        return "is a web page, not the file itself", "download the file itself: a login may be needed"
    return next((told for mark, told in POINTERS.items() if head.startswith(mark)), None)


@dataclass(frozen=True)
class FilePart:
    """A file within a file: `size` bytes from `offset`."""

    path: Path
    offset: int
    size: int


class PartReader(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, part: FilePart) -> None:
        self._file, self._part, self._at = part.path.open("rb", buffering=0), part, 0

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._part.size - self._at)
        data = os.pread(self._file.fileno(), left if size < 0 else min(size, left), self._part.offset + self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + (0, self._at, self._part.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    seekable = readable

    def close(self) -> None:
        self._file.close()
        super().close()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
