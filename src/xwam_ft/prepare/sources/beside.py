"""What lies beside the files a dataset names: why a named file is not there, and what is there and named by nobody.

Causes that the disk shows: a folder whose name is a letter off, a file at another place of the set, a path of another
machine whose end is in the set, a pointer or a broken link in the file's place (files.stand_in).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError, listed
from xwam_ft.files import stand_in
from xwam_ft.prepare.episode import Problem
from xwam_ft.prepare.sources.views import VIDEOS
from xwam_ft.remote import absolute
from xwam_ft.shard_files import CONTRACT_FILE, INDEX_FILE

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode
    from xwam_ft.prepare.sources import SourceInfo

NEAR = 0.8  # likeness of two names of which one may be the other, misspelt
SHOWN = 3  # files of a folder that are named
WALKED = 1_000_000  # entries of a dataset that are looked through


def files_of(root: Path, suffixes: Collection[str]) -> list[Path]:
    """The files of a dataset with these endings, in order; hidden folders and meta/ are not looked into."""
    if not root.is_dir() or not suffixes:
        return []
    found: list[Path] = []
    walked = 0
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(
            name for name in inside if not name.startswith(".") and not (folder == str(root) and name == "meta")
        )
        found += [
            Path(folder, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
        walked += len(names) + len(inside)
        if walked > WALKED:
            break
    return sorted(found)


def absent(path: Path, root: Path, files: Sequence[Path], *, camera: str = "", known: Collection[str] = ()) -> Problem:
    """Why a file that meta lists cannot be read, and what to do.

    Args:
        files: those of the dataset (`files_of`).
        camera: the feature whose video it is.
        known: names that mean something of their own, the features': none is another one misspelt.
    """
    if (other := stand_in(path)) is not None:
        return Problem(f"{path} {other[0]}", other[1], camera)
    lost = path
    while lost.parent != root and root in lost.parents and not lost.parent.exists():
        lost = lost.parent
    if (near := _misspelt(lost, known)) is not None:
        return Problem(
            f"{lost} is listed in meta and not there; {near} has nearly its name",
            f"rename {near.name} to {lost.name}",
            camera,
        )
    if (place := _elsewhere(path, root, files, camera, known)) is not None:
        return Problem(
            f"{path} is listed in meta and not there; a file of this name is {place}",
            f"move it to where meta lists it, or mend the path in {root / 'meta'}",
            camera,
        )
    if lost != path:
        where = (
            f"in which meta lists {'the videos of ' + repr(camera) if camera else 'the ' + path.suffix[1:] + ' files'}"
        )
        git = " (`git lfs pull`, where it is a git repository)" if (root / ".git").exists() else ""
        return Problem(f"the folder {lost} is not there, {where}", f"copy or download the whole dataset{git}", camera)
    return Problem(
        f"{path} is listed in meta and not there",
        "bring the file back from where the dataset was recorded or copied",
        camera,
    )


def unreadable(path: Path, reason: str, kind: str, camera: str = "") -> Problem:
    """Of a file that is there: what it is instead, else the decoder's own reason."""
    if (other := stand_in(path)) is not None:
        return Problem(f"{path} is not a readable {kind}: it {other[0]}", other[1], camera)
    return Problem(f"{path} is not a readable {kind} ({reason})", "copy or download it again", camera)


UNREAD = {
    ".bag": (
        "holds ROS 1 bags ({})",
        "convert them: `pip install rosbags`, `rosbags-convert --src A.bag --dst A`, as MCAP",
    ),
    ".db3": ("holds ROS 2 bags of SQLite ({}) without their metadata.yaml", "`ros2 bag reindex`, then convert to MCAP"),
    ".zarr": ("holds a Zarr store ({})", "write it out as a plain folder or a LeRobot set, an episode each"),
    ".zip": ("holds archives ({})", "unpack them first"),
    ".tar": ("holds archives ({})", "unpack them first"),
    ".gz": ("holds compressed files ({})", "unpack them first"),
    ".zst": ("holds compressed files ({})", "unpack them first"),
    ".pkl": ("holds pickles ({})", "write them out as .npz or .csv: pickles run code and are not opened"),
}


def without_meta(path: Path) -> tuple[str, str] | None:
    """Of a LeRobot set whose meta/info.json is not found: what is wrong, and what to do."""
    there = {child.name for child in path.iterdir()} if path.is_dir() else set[str]()
    if not {"data", "videos"} <= there and not {"data", "meta"} <= there:
        return None
    lost = path / "meta" / "info.json" if (path / "meta").is_dir() else path / "meta"
    near = _misspelt(lost, ("data", "videos", "images"))
    fix = f"rename {near.name} to {lost.name}" if near else "copy or download the whole dataset, its meta/ folder too"
    return "has the folders of a LeRobot set and no meta/info.json", fix


def prepared_already(names: Collection[str]) -> tuple[str, str] | None:
    """Of the names of files: what is wrong and what to do where they are no recordings but a shard set."""
    if not {INDEX_FILE, CONTRACT_FILE} <= set(names):
        return None
    return "is a shard set, not recordings", "`xwam-ft view` shows it; give the recordings that it was prepared from"


def unread_kind(path: Path) -> tuple[str, str] | None:
    """What a folder or file of no known format shows of itself, and what to do."""
    if path.is_file() and (other := stand_in(path)) is not None:
        return other
    names = [path] if path.is_file() else sorted(path.iterdir())
    if (seen := prepared_already([name.name for name in names])) is not None:
        return seen
    kinds = {name.suffix.lower() for name in names if name.is_file()}
    if kinds & {".csv", ".parquet", ".npz"} and (kinds & set(VIDEOS) or any(name.is_dir() for name in names)):
        return "is one episode of a plain folder, not a folder of them", "give the folder above it, a folder an episode"
    names += [path] if path.suffix.lower() == ".zarr" else []  # a store is a folder
    for suffix, (what, fix) in UNREAD.items():
        if found := [name.name for name in names if suffix in (name.suffix.lower(), Path(name.stem).suffix.lower())]:
            return what.format(listed(found, SHOWN)), fix
    return None


def located(root: Path, name: str) -> Path:
    """The file a dataset names, relative to it; of a path of another machine, the end that is in the dataset.

    At least the file's folder has to agree, since frames are numbered alike in every episode.
    """
    given = Path(name.replace("\\", "/"))
    path = root / given
    if path.exists() or not (given.is_absolute() or re.match(r"[A-Za-z]:/", str(given))):
        return path
    parts = given.parts
    tails = (root.joinpath(*parts[first:]) for first in range(1, len(parts) - 1))
    return next((tail for tail in tails if tail.exists()), path)


def unnamed(info: SourceInfo, episodes: Iterable[Episode]) -> list[str]:
    """Sentences about the files of the dataset's kind that belong to no episode, a folder each."""
    episodes = list(episodes)
    used = {str(path) for episode in episodes for path in _paths(episode)}
    told = " ".join(problem for episode in episodes for problem in episode.problems)
    folders: dict[Path, list[str]] = {}
    for file in files_of(info.path, info.suffixes):
        if str(file) not in used and str(file) not in told and "depth" not in file.name.lower():
            folders.setdefault(file.parent, []).append(file.name)
    sentences: list[str] = []
    for folder, names in folders.items():
        what = folder / names[0] if len(names) == 1 else f"{folder} holds {len(names)} files"
        which = "is" if len(names) == 1 else f"({listed(names, SHOWN)}) that are"
        sentences.append(f"{what} {which} not read: no episode is listed with {'it' if len(names) == 1 else 'them'}")
    return sentences


def require_apart(raws: list[Path], out: Path) -> None:
    """Raise a `UserError` where OUT would be made among the recordings, which it must never touch."""
    made = absolute(out)
    for raw in raws:
        recordings = absolute(raw)
        if made == recordings or recordings in made.parents:
            where = "is RAW itself" if made == recordings else f"lies in RAW ({raw})"
            raise UserError(f"OUT {where}", out, f"give a folder outside the recordings, such as {_aside(recordings)}")


def _aside(recordings: Path) -> Path:
    folder = recordings.parent if recordings.is_file() else recordings
    return folder.with_name(f"{folder.name}_shards")


def _paths(episode: Episode) -> list[Path]:
    table = episode.table
    tables = [getattr(table, "path", None), *getattr(table, "paths", ())]
    return [*(path for path in tables if path is not None), *(view.path for view in episode.views.values())]


def _misspelt(lost: Path, known: Collection[str]) -> Path | None:
    """A folder or file beside `lost` whose name differs by letters only."""
    if not lost.parent.is_dir():
        return None
    numbers = re.findall(r"\d+", lost.name)
    kind = bool(lost.suffix)
    others = [
        child
        for child in sorted(lost.parent.iterdir())
        if re.findall(r"\d+", child.name) == numbers
        and child.name not in known
        and bool(child.suffix) == kind
        and not child.name.startswith(".")
    ]
    likeness = {child: difflib.SequenceMatcher(None, child.name.lower(), lost.name.lower()).ratio() for child in others}
    best = max(others, key=lambda child: likeness[child], default=None)
    return best if best is not None and likeness[best] >= NEAR else None


def _elsewhere(path: Path, root: Path, files: Sequence[Path], camera: str, known: Collection[str]) -> Path | None:
    """The one file of this name that lies at another place of the dataset: of the same camera and numbered folders."""
    needed = {camera} if camera else set[str]()
    chunk = next((part for part in path.parts if re.fullmatch(r"\D*\d+", part)), None)
    found: list[Path] = []
    for file in files:
        parts = file.relative_to(root).parts if root in file.parents else file.parts
        numbered = [part for part in parts[:-1] if re.fullmatch(r"\D*\d+", part)]
        of_another = not camera and any(part in known for part in parts[1:-1])
        same_chunk = path.stem.startswith("episode") or not numbered or chunk in numbered
        if file.name == path.name and file != path and needed <= set(parts) and not of_another and same_chunk:
            found.append(file)
    return found[0] if len(found) == 1 else None
