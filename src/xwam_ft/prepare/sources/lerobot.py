"""LeRobot v2.0, v2.1 and v3.0. What the versions share and v2's layout (a parquet and an mp4 an episode) are here;
v3.0's layout is lerobot_v3.py.

Paths come from the templates in meta/info.json. Missing things have these fallbacks, all stated in the report:
    chunks_size              1000
    meta/episodes.jsonl      the parquet files that are there, numbered by their name
    meta/tasks.jsonl         the instructions in meta/episodes.jsonl
    column frame_index       rows in file order
    column episode_index     the whole file is the episode (v2), rows located by earlier lengths (v3)
    column timestamp         frame number / fps
    the mp4 (v2)             the pictures an interrupted recording left in images/KEY/episode_N/, where all are there
What meta does not list (a parquet, pictures of an unsaved episode) is given as an episode with a problem, so that it
stands among the rejected ones.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError
from xwam_ft.prepare.episode import Episode, Problem, VideoView, View
from xwam_ft.prepare.sources import Source, SourceInfo
from xwam_ft.prepare.sources.beside import absent, files_of
from xwam_ft.prepare.sources.lerobot_meta import (
    CHUNK,
    fill_template,
    read_features,
    read_info,
    read_jsonl,
    source_info,
    version_of,
)
from xwam_ft.prepare.sources.lerobot_table import LeRobotTable, ParquetPictures, rows_of
from xwam_ft.prepare.sources.views import PictureFiles, picture_files

if TYPE_CHECKING:
    from xwam_ft.prepare.sources.lerobot_meta import Feature

reads = "a LeRobot v2.0, v2.1 or v3.0 dataset (a folder with meta/info.json)"

V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def detect(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def read(path: Path) -> Source:
    """Open a LeRobot dataset; its version is its `codebase_version`, else its layout.

    Raises:
        UserError: meta/info.json is not one, lacks what locates the data, or has a version that is not supported.
    """
    meta = read_info(path)
    version = version_of(meta)
    third, second = ((path / "meta" / name).exists() for name in ("episodes", "episodes.jsonl"))
    if third != second and version[:1] in ("2", "3"):  # half-converted sets say a version that their files have not
        layout = "3.0" if third else "2.1"
        if layout[0] != version[0]:
            meta = {**meta, "said_version": version, "codebase_version": layout, "data_path": None, "video_path": None}
            version = layout
    if version.startswith("3") or (not version and third):
        from xwam_ft.prepare.sources.lerobot_v3 import LeRobotV3

        return LeRobotV3(path, meta)
    if version.startswith("2") or not version:
        return LeRobotV2(path, meta)
    raise UserError(
        f"codebase_version is {version!r}; v2.0, v2.1 and v3.0 are read",
        path / "meta" / "info.json",
        "convert it with LeRobot's own scripts",
    )


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


class LeRobotV2(LeRobotSet):
    def episodes(self) -> list[Episode]:
        tasks = read_jsonl(self.path / "meta" / "tasks.jsonl", "task_index")
        texts = {index: str(row.get("task", "")) for index, row in tasks.items()}
        rows = read_jsonl(self.path / "meta" / "episodes.jsonl", "episode_index") or self._scanned()
        if not rows:
            raise UserError(
                "lists no episode", self.path / "meta" / "episodes.jsonl", "record some, or restore the file"
            )
        known = [self._episode(index, rows[index], texts) for index in sorted(rows)]
        known = self.told_of_meta(known, len(rows))
        return [*known, *self.unlisted({**self.leftovers(), **self._tables()}, set(rows))]

    def _scanned(self) -> dict[int, dict[str, Any]]:
        """Episodes by the files that are there, for sets without meta/episodes.jsonl."""
        return {index: {"length": rows_of(file)} for index, file in self._tables().items()}

    def _tables(self) -> dict[int, Path]:
        files = sorted((self.path / "data").rglob("*.parquet"))
        numbers = [(re.search(r"(\d+)$", file.stem), file) for file in files]
        return {int(number[1]): file for number, file in numbers if number}

    def _episode(self, index: int, row: dict[str, Any], tasks: dict[int, str]) -> Episode:
        chunk = index // int(self.meta.get("chunks_size") or CHUNK)
        names = {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": index, "file_index": index}
        data = self.file("data_path", V2_DATA, names)
        length = int(row["length"]) if isinstance(row.get("length"), int) else rows_of(data)
        problems: list[str] = []
        notes: list[str] = []
        videos: dict[str, View] = {}
        for key, feature in self.features.items():
            if feature.dtype == "video":
                file = self.file("video_path", V2_VIDEO, {**names, "video_key": key})
                videos[key] = VideoView(file, 0, length, code=feature.code)
                if not file.is_file():
                    self._from_pictures(file, key, index, length, videos, problems, notes)
        row = {**row, "episode_index": index, "length": length}
        return self.episode(row, data, None, tasks, videos, problems, notes)

    def _from_pictures(
        self,
        file: Path,
        key: str,
        index: int,
        length: int,
        videos: dict[str, View],
        problems: list[str],
        notes: list[str],
    ) -> None:
        """Use the pictures a recording that stopped before encoding left, where there are as many as rows."""
        folder = self.path / "images" / key / f"episode_{index:06d}"
        files = picture_files(folder) if folder.is_dir() else ()
        if not folder.is_dir():
            problems.append(self.absent(file, key))
        elif len(files) != length:
            text = (
                f"{file} is not there; {folder} holds {len(files)} of its {length} pictures: the recording was "
                "interrupted before encoding"
            )
            problems.append(Problem(text, "leave the episode out, or bring the rest of its pictures back", key))
        else:
            videos[key] = PictureFiles(folder, files)
            notes.append(f"{file} was never encoded; its pictures in {folder} are used")
