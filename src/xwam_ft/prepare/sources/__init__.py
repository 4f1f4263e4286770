"""One reader a format; `open_source` finds which by looking at the folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode


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

    @property
    def command_columns(self) -> list[str]:
        return [name for name in self.columns if is_command(name)]

    @property
    def state_columns(self) -> list[str]:
        return [name for name in self.columns if not is_command(name)]


class Source(Protocol):
    @property
    def info(self) -> SourceInfo: ...

    def episodes(self) -> list[Episode]: ...


def is_command(column: str) -> bool:
    """Commands are the features named `action` or `action.<something>`; every other number is an observation."""
    feature = column.split("/", 1)[0]
    return feature.split(".", 1)[0] in ("action", "actions")


def open_source(path: Path) -> Source:
    """Find the format of the recordings in `path` and open them.

    Raises:
        UserError: no such folder, or no known format in it.
    """
    if not path.exists():
        raise UserError("the folder does not exist", path, "check the path of the recordings")
    if (path / "meta" / "info.json").is_file():
        from xwam_ft.prepare.sources.lerobot import open_lerobot

        return open_lerobot(path)
    for name in ("mcap", "rlds"):
        reader = import_module(f"{__name__}.{name}")
        if reader.detect(path):
            return reader.read(path)
    nested = sorted(found.parent.parent for found in path.glob("*/meta/info.json")) if path.is_dir() else []
    hint = f"; datasets are in it: give {nested[0]}" if nested else ""
    raise UserError(
        f"is not a dataset xwam-ft can read (no meta/info.json of LeRobot, no .mcap, no .tfrecord){hint}",
        path,
        "give the folder that holds meta/, data/ and videos/, or the one with the recordings",
    )
