"""LeRobot v2.0 and v2.1: a parquet and an mp4 an episode."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError
from xwam_ft.prepare.episode import Episode, Problem, VideoView, View
from xwam_ft.prepare.sources.lerobot_meta import CHUNK, read_jsonl
from xwam_ft.prepare.sources.lerobot_set import LeRobotSet
from xwam_ft.prepare.sources.lerobot_table import rows_of
from xwam_ft.prepare.sources.views import PictureFiles, picture_files

if TYPE_CHECKING:
    from pathlib import Path

V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


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
