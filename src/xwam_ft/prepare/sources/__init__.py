"""One reader a format; `open_source` finds which by looking at the folder.

A reader is a module (or object) with `reads`, `detect` and `read`, see `Reader`. Those that ship are named in
`READERS`; others come through the entry point group `xwam_ft.sources` (plugins.py) and are asked first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from xwam_ft import hub
from xwam_ft.errors import UserError, listed
from xwam_ft.prepare import plugins
from xwam_ft.prepare.sources.beside import unread_kind, without_meta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xwam_ft.prepare.episode import Episode

# Asked in this order. The plain folder comes last: it asks for least.
DEEPEST, MOST = 5, 200  # how far a folder of no known kind is searched for a dataset within it
READERS = ("lerobot", "xwam", "hdf5", "mcap", "rlds", "folder")


@dataclass(frozen=True)
class CameraInfo:
    """A camera as the dataset declares it. Codecs and sizes declared in meta are not trusted: probe the file."""

    feature: str
    depth: bool = False


@dataclass(frozen=True)
class SourceInfo:
    path: Path
    format: str  # "LeRobot v3.0"
    fps: float | None  # None: the format does not store it, so the embodiment file must
    robot: str
    cameras: dict[str, CameraInfo]  # by feature name
    columns: tuple[str, ...]  # every number column, full names, in recorded order
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict[str, Any])  # by feature name or its last part
    measured_fps: float | None = None  # by the timestamps, where the rate is not stored
    suffixes: tuple[str, ...] = ()  # of the files of this format, each of which an episode should name
    notes: tuple[str, ...] = ()  # what was seen of the whole dataset

    @property
    def command_columns(self) -> list[str]:
        return [name for name in self.columns if is_command(name)]

    @property
    def state_columns(self) -> list[str]:
        return [name for name in self.columns if not is_command(name)]


class Source(Protocol):
    """A dataset that was opened: what it declares, and its episodes in a fixed order."""

    @property
    def info(self) -> SourceInfo: ...

    def episodes(self) -> list[Episode]: ...


class Reader(Protocol):
    """One format. `Episode`s it gives are sent to worker processes, so what they hold can be pickled and is lazy."""

    @property
    def reads(self) -> str:
        """What it reads, for the sentence about a folder of no known kind ("LeRobot v2.0, v2.1 and v3.0")."""
        ...

    def detect(self, path: Path) -> bool:
        """Whether `path`, a folder or file that exists, is of this format; by looking at names, not at much content."""
        ...

    def read(self, path: Path) -> Source:
        """Open it.

        Raises:
            UserError: what concerns the whole dataset. What concerns an episode goes into its `problems`.
        """
        ...


def is_command(column: str) -> bool:
    """Commands are the features named `action` or `action.<something>`; every other number is an observation."""
    feature = column.split("/", 1)[0]
    return feature.split(".", 1)[0] in ("action", "actions")


def readers() -> list[Reader]:
    """All readers, in the order in which they are asked."""
    added = [
        plugins.load_plugin(entry, ("reads", "detect", "read")) for entry in plugins.plugins(plugins.SOURCES).values()
    ]
    shipped = [import_module(f"{__name__}.{name}") for name in READERS]
    return [cast("Reader", reader) for reader in (*added, *shipped)]


def open_source(path: Path) -> Source:
    """Find the format of the recordings in `path` and open them.

    Raises:
        UserError: no such folder, or no known format in it.
    """
    if not path.exists():
        more = hub.hint(path, "dataset")
        raise UserError("the folder does not exist", path, f"check the path of the recordings{more}")
    known = readers()
    for reader in known:
        if reader.detect(path):
            return reader.read(path)
    if (seen := without_meta(path)) is not None:
        raise UserError(seen[0], path, seen[1])
    nested = next((child for child in _inside(path) if any(reader.detect(child) for reader in known)), None)
    if nested is None and (seen := unread_kind(path)) is not None:
        raise UserError(seen[0], path, seen[1])
    hint = "" if nested is None else f"; there is a dataset in {nested}"
    raise UserError(
        f"is not a dataset xwam-ft can read{hint}",
        path,
        f"give one of these: {listed([reader.reads for reader in known], 40)}",
    )


def _inside(path: Path) -> Iterator[Path]:
    """Folders within a folder, level by level, down to `DEEPEST` and the first `MOST`: where a dataset may lie."""
    level = [path] if path.is_dir() else []
    seen = 0
    for _ in range(DEEPEST):
        level = [child for folder in level for child in sorted(folder.iterdir()) if child.is_dir()]
        for child in level:
            seen += 1
            if seen > MOST:
                return
            yield child
