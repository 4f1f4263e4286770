"""Recordings by their name on the Hub, or at a URL: metadata first, then the files that are needed of them.

Of a LeRobot dataset the films of cameras that nobody asked for stay where they are; of other formats everything comes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft import hub, remote
from xwam_ft.copies import copies_folder
from xwam_ft.errors import UserError
from xwam_ft.prepare.from_url import RecordedUrl
from xwam_ft.prepare.sources.beside import prepared_already
from xwam_ft.prepare.sources.lerobot_meta import read_features, read_info

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.prepare.embodiment.schema import Embodiment

INFO = "meta/info.json"


def recordings_at(place: Path, console: Console, embodiment: Embodiment | None = None) -> Path:
    """Where recordings lie: `place` itself, the Hub's cache, where it names a dataset of the Hub (hub.py), or copies of
    what lies at a URL (from_url.py).

    Args:
        embodiment: whose cameras are wanted, and depth; None: what shows a dataset, every number and the first film of
            each camera.

    Raises:
        UserError: no such dataset, no right to see it, no network.
    """
    if (recorded := recorded_url(place)) is not None:
        names = list(recorded.files)

        def fetch(allow: list[str] | None = None, ignore: list[str] | None = None) -> Path:
            return recorded.fetch(console, allow=allow, ignore=ignore)
    else:
        repo = hub.repo_of(place, "dataset")
        if repo is None:
            return place
        pinned = hub.pinned(repo, console)
        names = hub.files(pinned)
        if not [name for name in names if not name.startswith(".") and name != "README.md"]:
            raise UserError("holds no recordings yet", pinned.page, "upload them first, or check the name")

        def fetch(allow: list[str] | None = None, ignore: list[str] | None = None) -> Path:
            return hub.fetch(pinned, console, allow=allow, ignore=ignore)

    if (seen := prepared_already(names)) is not None:  # before all of it is fetched
        raise UserError(seen[0], place, seen[1])
    if INFO not in names:
        return fetch()
    films = _films(fetch(allow=[INFO]), names)
    if embodiment is None:
        folder = fetch(ignore=[pattern for pattern, _ in films.values()])
        return fetch(allow=[found[0] for _, found in films.values()]) if films else folder
    named = _cameras(embodiment)
    idle = [key for key in films if not {key, key.rsplit(".", 1)[-1]} & named]
    return fetch(ignore=[films[key][0] for key in idle] or None)


def recorded_url(place: Path) -> RecordedUrl | None:
    """The recordings at a URL; None: a path, or a repository of the Hub, which is taken by its commit."""
    url = remote.url_of(place)
    if url is None or (url.startswith("hf://") and url.removeprefix("hf://datasets/").count("/") < 2):
        return None
    return RecordedUrl(url)


@contextmanager
def named_as_given(places: Iterable[Path], folders: Iterable[Path]) -> Generator[None]:
    """Name recordings by what was given, not by the folder of their copies, where they are no dataset.

    Args:
        folders: where each of them lies here (`recordings_at`).
    """
    try:
        yield
    except UserError as error:
        what, where, fix = error.what, error.where, error.fix
        for place, folder in zip(places, folders, strict=True):
            what, where, fix = (text.replace(str(folder), str(place)) for text in (what, where, fix))
        raise UserError(what, where, fix) from None


def is_partial(place: Path) -> bool:
    """Whether a folder is one that `recordings_at` fetched, so that files of it may be absent on purpose."""
    return hub.fetched_from(place) is not None or place.is_relative_to(copies_folder())


def _films(folder: Path, names: Collection[str]) -> dict[str, tuple[str, list[str]]]:
    """Of each RGB camera with videos, the pattern of its files and their names, in order."""
    meta = read_info(folder)
    template = meta.get("video_path")
    found: dict[str, tuple[str, list[str]]] = {}
    if not isinstance(template, str) or "{video_key}" not in template:
        return found
    for key, feature in read_features(folder, meta).items():
        if feature.dtype == "video" and not feature.depth:
            pattern = re.sub(r"\{[^}]*\}", "*", template.replace("{video_key}", key))
            if files := fnmatch.filter(names, pattern):
                found[key] = pattern, sorted(files)
    return found


def _cameras(embodiment: Embodiment) -> set[str]:
    """What an embodiment names of recordings' cameras, in full or by the last part."""
    further = [part for camera in embodiment.cameras.values() for part in (camera.depth, camera.stereo) if part]
    return {camera.source for camera in embodiment.cameras.values()} | {part.source for part in further}
