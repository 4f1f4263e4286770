"""What the versions of LeRobot's datasets share: the metadata, and an episode made of located files."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xwam_ft.prepare.episode import Episode, Problem, View
from xwam_ft.prepare.sources import Source, SourceInfo
from xwam_ft.prepare.sources.beside import absent, files_of
from xwam_ft.prepare.sources.lerobot_meta import fill_template, read_features, source_info
from xwam_ft.prepare.sources.lerobot_table import LeRobotTable, ParquetPictures

if TYPE_CHECKING:
    from pathlib import Path

    from xwam_ft.prepare.sources.lerobot_meta import Feature


class LeRobotSet(Source):
    """What is the same in all versions: the metadata, and an episode made of located files."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self.features: dict[str, Feature] = read_features(path, meta)
        self._info = source_info(path, meta, self.features)

    @property
    def info(self) -> SourceInfo:
        return self._info

    @functools.cached_property
    def files(self) -> list[Path]:
        """Every table and video that is there, named by meta or not."""
        return files_of(self.path, self._info.suffixes)

    def absent(self, path: Path, camera: str = "") -> Problem:
        return absent(path, self.path, self.files, camera=camera, known=(*self.features, "data", "videos", "images"))

    def file(self, key: str, default: str, names: dict[str, Any]) -> Path:
        """The file a path template of meta/info.json names."""
        return self.path / fill_template(self.path, key, str(self.meta.get(key) or default), names)

    def episode(
        self,
        row: dict[str, Any],
        data: Path,
        first_row: int | None,
        tasks: dict[int, str],
        videos: dict[str, View],
        problems: list[str],
        notes: list[str] | None = None,
    ) -> Episode:
        """An episode of meta row `row` (episode_index, length, tasks, success) whose rows stand in `data`.

        Args:
            first_row: see lerobot_table.py.
            videos: the views of the video features.
        """
        index, length = int(row["episode_index"]), int(row["length"])
        if not data.is_file():
            problems = [self.absent(data), *problems]
        views: dict[str, View] = {}
        for key, feature in self.features.items():
            if feature.dtype == "image":
                views[key] = ParquetPictures(data, key, index, length, first_row, self.path)
            elif key in videos:
                views[key] = videos[key]
        listed_tasks = row.get("tasks")
        return Episode(
            dataset=self.path,
            index=index,
            length=length,
            views=views,
            table=LeRobotTable(data, index, length, first_row, tuple(self.features.values())),
            instructions=tuple(map(str, listed_tasks)) if isinstance(listed_tasks, list | tuple) else (),
            tasks=tasks,
            success=row.get("success"),
            problems=tuple(problems),
            notes=tuple(notes or ()),
        )

    def told_of_meta(self, episodes: list[Episode], listed: int) -> list[Episode]:
        """The episodes, the first with a note where meta/info.json says other things than what is there."""
        where = self.path / "meta" / "info.json"
        notes: list[str] = []
        if (said := self.meta.get("said_version")) is not None:
            notes.append(
                f"{where} says version {said}, its files are those of v{self.meta['codebase_version']}, as read"
            )
        total = self.meta.get("total_episodes")
        if isinstance(total, int) and total != listed:
            notes.append(f"{where} says {total} episodes, {listed} are listed")
        if not notes or not episodes:
            return episodes
        return [replace(episodes[0], notes=(*episodes[0].notes, *notes)), *episodes[1:]]

    def leftovers(self) -> dict[int, Path]:
        """Folders of pictures that a recording did not come to encode, by episode (episode_7 or episode-7)."""
        folders = [path for path in sorted((self.path / "images").glob("*/episode*")) if path.is_dir()]
        numbers = [(re.search(r"(\d+)$", path.name), path) for path in folders]
        return {int(number[1]): path for number, path in numbers if number}

    def unlisted(self, found: dict[int, Path], known: set[int]) -> list[Episode]:
        """What was `found` of episodes that meta does not list, as episodes to be rejected."""
        what = "belongs to an episode that meta does not list: the recording was interrupted"
        fix = "restore the list in meta; where the episode was given up, nothing needs to be done"
        return [
            Episode(
                dataset=self.path,
                index=index,
                length=0,
                views={},
                table=LeRobotTable(path, index, 0, None, ()),
                problems=(Problem(f"{path} {what}", fix),),
            )
            for index, path in sorted(found.items())
            if index not in known
        ]
