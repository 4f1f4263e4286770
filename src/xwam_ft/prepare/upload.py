"""A finished shard set goes to a URL: the record of what it is first, index.json last, so that half of it is known.

What went up is noted in the staging folder; a run that was stopped meanwhile goes on with the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft import remote
from xwam_ft.errors import UserError
from xwam_ft.files import read_json, sha256, write_json_atomic
from xwam_ft.prepare.fingerprint import OTHER_INPUTS, RECORD
from xwam_ft.progress import progress_bar
from xwam_ft.shards import INDEX_FILE

if TYPE_CHECKING:
    from rich.console import Console

PARTS = "parts-"  # of Ray's workers, see far.py


def upload(folder: Path, url: str, notes: Path, console: Console) -> None:
    """Put the files of `folder` up.

    Args:
        notes: the file that says what went up.

    Raises:
        UserError: as `remote.put`.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names.sort(key=lambda name: (name != RECORD, name == INDEX_FILE))
    done: dict[str, str] = read_json(notes) if notes.is_file() else {}
    there = remote.sizes(url)
    with progress_bar(console, "upload", "bytes", sum((folder / name).stat().st_size for name in names)) as advance:
        for name in names:
            path = folder / name
            size, print_ = path.stat().st_size, sha256(path)
            if there.get(name) != size or done.get(name) != print_:
                remote.put(path, f"{url}/{name}")
                done[name] = print_
                write_json_atomic(notes, done)
            advance(size)
    for name in there:
        if name.startswith("shard-") and name not in names:
            remote.remove(f"{url}/{name}")


def made_before(url: str, fingerprint: str) -> bool:
    """Whether the same set lies there already; what went up of it in a run that stopped does not hinder.

    Raises:
        UserError: anything else lies there.
    """
    there = [name for name in remote.sizes(url) if not name.startswith(PARTS)]
    if not there:
        return False
    if RECORD not in there:
        raise UserError("exists and is not empty", url, "give another OUT")
    if remote.load_json(f"{url}/{RECORD}").get("fingerprint") == fingerprint:
        return INDEX_FILE in there
    if INDEX_FILE in there:
        raise UserError(OTHER_INPUTS, url, "give another OUT")
    raise UserError("holds a part of another preparation", url, "remove it, or give another OUT")
