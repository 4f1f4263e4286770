"""Places that are no folders here, and the one door to them: fsspec behind retries and sentences.

    s3://BUCKET/PATH                      [s3]; AWS_* variables, AWS_ENDPOINT_URL for other stores than Amazon's
    gs://BUCKET/PATH                      [gcs]
    hf://datasets/ORG/NAME[@REV]/PATH     huggingface_hub, with its token
    http://..., https://...               read only; the server must answer range requests

A place travels as a text or `Path` like any other; `url_of` tells which are URLs. Everything here may be called in any
process; fsspec is imported at the first call with a URL. What fails for a moment (no connection, 5xx, a body that is
cut off) is tried again for about a minute; what will not mend is one sentence at once. Copies of what is read often:
copies.py.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, TypeVar

from xwam_ft.errors import UserError, require
from xwam_ft.files import read_json
from xwam_ft.remote_errors import Missing, first_line, sentence, unreachable

Result = TypeVar("Result")
Place = str | Path

LIBRARIES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
"""By scheme, the package that reads it and the extra that brings it."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before each further try."""
CONNECT, SILENT = 15, 60
"""Seconds in which a server must take a connection, and after which silence counts as a cut."""
FIRST = 5.0
"""Seconds after which a store that has never taken a connection is given up."""
PATIENCE = 150.0
"""The same of any other, since a try alone may take `SILENT`."""
TELL_AFTER, TELL_SECONDS = 2, 10.0  # further tries, or seconds, that pass without a word
BLOCK = 32 << 20
"""Bytes of one request where a file is read through."""
AT_ONCE = 16  # requests side by side, where there are many small ones
_answered: set[str] = set()  # stores that have answered this process
_last_told = [float("-inf")]
_URL = re.compile(r"(s3|gs|gcs|hf|https?):/{1,2}([^/].*)", re.DOTALL)


def url_of(place: Place) -> str | None:
    """The URL that a place is; None: a path of this machine."""
    found = _URL.fullmatch(str(place))
    return None if found is None else f"{found[1]}://{found[2]}".rstrip("/")


def absolute(place: Place) -> Path:
    """A path that means the same from any folder; a URL does as it is."""
    return Path(place) if url_of(place) else Path(place).resolve()


def is_file(place: Place) -> bool:
    """Whether a file is there, here or at a URL."""
    return size_of(place) is not None


def size_of(place: Place) -> int | None:
    """Bytes of a file, here or at a URL; None: it is not there.

    Raises:
        UserError: as `read_bytes`, for a URL.
    """
    if (url := url_of(place)) is None:
        return Path(place).stat().st_size if Path(place).is_file() else None
    try:
        found = _tried(url, lambda files, path: files.info(path))
    except Missing:
        return None
    if found.get("type") == "directory":
        return None
    return int(found["size"])


def read_bytes(place: Place, start: int = 0, size: int | None = None) -> bytes:
    """A file, or `size` bytes of it from `start` on; from a URL in one request.

    Raises:
        UserError: `Missing`, `NotAllowed`, a library that is not installed, a server that does not answer or that sends
            other bytes than were asked for.
    """
    url = url_of(place)
    if url is None:
        with Path(place).open("rb") as stream:
            stream.seek(start)
            return stream.read(-1 if size is None else size)
    if size is None:
        return _tried(url, lambda files, path: _whole(files, path, url))
    return _tried(url, lambda files, path: _exactly(files.cat_file(path, start=start, end=start + size), size, url))


def read_ranges(place: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Several parts (start, size) of one file, asked for side by side."""
    if len(ranges) == 1 or url_of(place) is None:
        return [read_bytes(place, *one) for one in ranges]
    with ThreadPoolExecutor(min(AT_ONCE, len(ranges))) as pool:
        return list(pool.map(lambda one: read_bytes(place, *one), ranges))


def blocks(place: Place, size: int) -> Iterator[bytes]:
    """A file of `size` bytes from its beginning to its end, in pieces."""
    for start in range(0, size, BLOCK):
        yield read_bytes(place, start, min(BLOCK, size - start))


def sha256(place: Place, size: int) -> str:
    """Hex SHA-256 of a file of `size` bytes."""
    digest = hashlib.sha256()
    for block in blocks(place, size):
        digest.update(block)
    return digest.hexdigest()


def load_json(place: Place) -> Any:
    """A JSON file, here or at a URL; see `files.read_json`."""
    import json

    if url_of(place):
        try:
            return json.loads(read_bytes(place))
        except ValueError as error:
            raise UserError(f"is not valid JSON ({error})", place, "restore the file or make it again") from None
    return read_json(Path(place))


def sizes(folder: Place, names: Sequence[str] | None = None) -> dict[str, int]:
    """Bytes of the files below a folder, by their names from there; hidden ones too.

    Args:
        names: those that are wanted. A web server lists nothing, so there they must be said; those that are not there
            are left out.

    Raises:
        UserError: as `read_bytes`; nothing there is an empty answer.
    """
    url = url_of(folder)
    if url is None:
        here = {p.relative_to(folder).as_posix(): p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()}
        return here if names is None else {name: here[name] for name in names if name in here}
    if url.startswith("http"):
        if names is None:
            raise UserError("cannot be listed: web servers only give files that are asked for", url, _other_store())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = zip(names, pool.map(lambda name: size_of(f"{url}/{name}"), names), strict=True)
            return {name: size for name, size in found if size is not None}

    there = {name: size for name, (size, _) in listing(url).items()}
    return there if names is None else {name: there[name] for name in names if name in there}


def listing(url: str) -> dict[str, tuple[int, str]]:
    """Bytes of the files below a URL, and what changes with their content (the store's own mark, or a date)."""

    def listed(files: Any, path: str) -> dict[str, tuple[int, str]]:
        files.invalidate_cache()
        top = str(files._strip_protocol(path)).rstrip("/") + "/"
        rows: dict[str, Any] = files.find(path, detail=True)
        marks = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "updated")
        return {
            str(name).removeprefix(top): (
                int(row["size"]),
                str(next((row[mark] for mark in marks if row.get(mark)), "")),
            )
            for name, row in rows.items()
            if str(name).startswith(top)
        }

    try:
        return _tried(url, listed)
    except Missing:
        if _lacks_bucket(url):
            raise
        return {}


def fetch(place: Place, target: Path, size: int) -> None:
    """Write a file of `size` bytes of a URL to `target`, which appears whole or not at all."""
    from xwam_ft.files import atomic_path

    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        for block in blocks(place, size):
            stream.write(block)


def put(source: Path, place: Place) -> None:
    """Write a file of this machine to a URL, where it appears whole or not at all.

    Raises:
        UserError: as `read_bytes`; the place can only be read.
    """
    url, size = require_writable(place), source.stat().st_size

    def send(files: Any, path: str) -> None:
        files.put_file(str(source), path)
        _require_arrived(files, path, size)

    _tried(url, send, writing=True)


def put_bytes(data: bytes, place: Place) -> None:
    """The same for bytes."""

    def send(files: Any, path: str) -> None:
        files.pipe_file(path, data)
        _require_arrived(files, path, len(data))

    _tried(require_writable(place), send, writing=True)


def remove(place: Place) -> None:
    """Remove a file of a URL, where it is there."""
    try:
        _tried(require_writable(place), lambda files, path: files.rm_file(path), writing=True)
    except Missing:
        return


def _require_arrived(files: Any, path: str, size: int) -> None:
    files.invalidate_cache()
    if (there := int(files.info(path)["size"])) != size:
        raise OSError(f"{there} of {size} bytes arrived")


def require_writable(place: Place) -> str:
    """The URL, where its kind may be written to; a `UserError` of a web server."""
    url = url_of(place)
    assert url is not None
    if url.startswith("http"):
        raise UserError("cannot be written to: a web server only gives", url, _other_store())
    return url


def _other_store() -> str:
    return "give s3://, gs:// or hf://datasets/, or a folder of this machine"


def _files(url: str) -> tuple[Any, str]:
    """The file system of a URL in this process, and the path in it. fsspec keeps one a process and set of options."""
    scheme = url.partition(":")[0]
    package, extra = LIBRARIES.get(scheme, ("fsspec", ""))  # which knows http and hf by what is always installed
    if find_spec(package) is None:
        raise require(package, extra, url)
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "s3":  # botocore's own tries are left out: they would be multiplied with ours
        waits = {"connect_timeout": CONNECT, "read_timeout": SILENT, "retries": {"max_attempts": 0}}
        options |= {"config_kwargs": waits}
    elif scheme.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENT)
        options |= {"client_kwargs": {"timeout": timeout}}
    files, path = fsspec.core.url_to_fs(url, **options)
    return files, path


def _tried(url: str, ask: Callable[[Any, str], Result], *, writing: bool = False) -> Result:
    """What `ask` gives, tried again while that may help."""
    began, store = time.monotonic(), "/".join(url.split("/")[:3])
    for number, pause in enumerate((*PAUSES, None)):
        try:
            files, path = _files(url)
            found = ask(files, path)
            _answered.add(store)
            return found
        except UserError:
            raise
        except Exception as error:
            told = sentence(error, url, writing=writing)
            if told is not None:
                raise told from error
            lost, waited = unreachable(error) and _is_first(store), time.monotonic() - began
            if pause is None or waited + pause > (FIRST if lost else PATIENCE):
                raise UserError(
                    f"does not answer as it should, after {number + 1} tries ({first_line(error)})",
                    url,
                    "check the address, the network and AWS_ENDPOINT_URL"
                    if lost and url.startswith("s3:")
                    else "look at the network and the store, then do it again: what came is kept",
                ) from error
            if number >= TELL_AFTER or waited > TELL_SECONDS:
                _tell(f"{url} does not answer as it should ({first_line(error)}); it is tried again for a while")
            time.sleep(pause)
    raise AssertionError


def _is_first(store: str) -> bool:
    """Whether a store has never answered: its address may be wrong, and a minute of patience would hide that.

    Not in a worker process, whose store answered the process that started it.
    """
    return store not in _answered and parent_process() is None


def _tell(text: str) -> None:
    """Say on stderr why nothing happens; of requests side by side one says it."""
    now = time.monotonic()
    if now - _last_told[0] > SILENT:
        _last_told[0] = now
        logging.getLogger(__name__).warning("xwam-ft: %s", text)


def _whole(files: Any, path: str, url: str) -> bytes:
    data = files.cat_file(path)
    size = files.info(path)["size"]
    return data if size is None else _exactly(data, int(size), url)


def _exactly(data: bytes, size: int, url: str) -> bytes:
    if len(data) > size:
        raise UserError(
            f"gave {len(data)} bytes where {size} were asked for: this server does not answer range requests",
            url,
            "serve it with one that does (nginx, an object store; `python -m http.server` does not)",
        )
    if len(data) < size:
        raise ConnectionError(f"{len(data)} of {size} bytes came")
    return data


def _lacks_bucket(url: str) -> bool:
    try:
        _tried("/".join(url.split("/")[:3]), lambda files, path: files.ls(path))
    except Missing:
        return True
    except UserError:
        return False
    return False
