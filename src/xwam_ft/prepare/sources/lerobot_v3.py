"""LeRobot v3.0: many episodes share a parquet and an mp4 file.

Where an episode begins in an mp4 is told by the lengths of those before it, by `from_timestamp` and, where these leave
a doubt, by the pictures: lerobot_places.py. Everything is keyed by value, never by position.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from xwam_ft import media
from xwam_ft.errors import UserError
from xwam_ft.files import stand_in
from xwam_ft.prepare.episode import Episode, Problem, VideoView, View
from xwam_ft.prepare.sources.beside import unreadable
from xwam_ft.prepare.sources.lerobot_places import Place, places
from xwam_ft.prepare.sources.lerobot_set import LeRobotSet
from xwam_ft.prepare.sources.lerobot_table import rows_of

V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


MISPLACED = (
    "mend from_timestamp in meta/episodes, or write the video again with a picture for every row of its episodes"
)


class LeRobotV3(LeRobotSet):
    def episodes(self) -> list[Episode]:
        rows = {int(row["episode_index"]): row for row in self._meta_rows()}
        if not rows:
            raise UserError("lists no episode", self.path / "meta" / "episodes", "record some, or restore the files")
        ordered = [rows[index] for index in sorted(rows)]
        starts = {key: self._video_starts(key, ordered) for key, f in self.features.items() if f.dtype == "video"}
        data_starts = self._data_starts(ordered)
        listed_rows: Counter[Path] = Counter()
        for row in ordered:
            listed_rows[data_starts[int(row["episode_index"])][0]] += int(row["length"])
        tasks = self._tasks()
        known = [self._episode(row, starts, data_starts, tasks) for row in ordered]
        known[0] = replace(known[0], notes=(*known[0].notes, *_more_rows(listed_rows)))
        known = self.told_of_meta(known, len(rows))
        return [*known, *self.unlisted(self.leftovers(), set(rows))]

    def _meta_rows(self) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = sorted((self.path / "meta" / "episodes").rglob("*.parquet"))
        rows: list[dict[str, Any]] = []
        for file in files:
            try:
                names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
                rows += pq.read_table(file, columns=names).to_pylist()
            except (pa.ArrowException, OSError):
                raise _broken(file) from None
        for row in rows:
            for name in ("episode_index", "length"):
                if (number := _whole(row.get(name))) is None:
                    what = f"has no whole numbers in the columns episode_index and length ({name} is {row.get(name)!r})"
                    raise UserError(what, files[0], "write meta/episodes again, or copy it from before it was edited")
                row[name] = number
        return rows

    def _tasks(self) -> dict[int, str]:
        """task_index -> text; the text is the pandas index, stored as `__index_level_0__` or under its own name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.path / "meta" / "tasks.parquet"
        if not file.is_file():
            return {}
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError):
            raise _broken(file) from None
        texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
        texts += [name for name in table.column_names if name != "task_index" and name not in texts]
        if not texts or "task_index" not in table.column_names:
            raise UserError("lacks the task texts or the column task_index", file, "restore meta/tasks.parquet")
        return dict(zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist(), strict=True))

    def _place(self, row: dict[str, Any], prefix: str) -> tuple[int, int]:
        try:
            return int(row[f"{prefix}/chunk_index"]), int(row[f"{prefix}/file_index"])
        except (KeyError, TypeError, ValueError):  # a NaN too
            raise UserError(
                f"does not say where {prefix!r} of episode {row['episode_index']} is",
                self.path / "meta" / "episodes",
                "restore the columns chunk_index and file_index",
            ) from None

    def _video_starts(self, key: str, ordered: list[dict[str, Any]]) -> dict[int, tuple[Path, Place]]:
        """Per episode: the mp4, and where it begins there."""
        prefix = f"videos/{key}"
        by_file: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in ordered:
            by_file.setdefault(self._place(row, prefix), []).append(row)
        found: dict[int, tuple[Path, Place]] = {}
        for (chunk, number), rows in by_file.items():
            file = self.file("video_path", V3_VIDEO, {"video_key": key, **_names(chunk, number)})
            times = {row["episode_index"]: _time(row.get(f"{prefix}/from_timestamp")) for row in rows}
            rows.sort(key=lambda row: (times[row["episode_index"]] or 0.0, row["episode_index"]))
            lengths = [int(row["length"]) for row in rows]
            stated = [times[row["episode_index"]] for row in rows]
            counted = counted_frames(file)
            placed = (
                places(file, lengths, stated, counted, float(self.meta["fps"])) if counted else [Place(0)] * len(rows)
            )
            for row, place in zip(rows, placed, strict=True):
                found[int(row["episode_index"])] = (file, place)
        return found

    def _data_starts(self, ordered: list[dict[str, Any]]) -> dict[int, tuple[Path, int]]:
        place: dict[Path, int] = {}
        found: dict[int, tuple[Path, int]] = {}
        for row in ordered:
            chunk, number = self._place(row, "data")
            file = self.file("data_path", V3_DATA, _names(chunk, number))
            found[int(row["episode_index"])] = (file, place.get(file, 0))
            place[file] = place.get(file, 0) + int(row["length"])
        return found

    def _episode(
        self,
        row: dict[str, Any],
        starts: dict[str, dict[int, tuple[Path, Place]]],
        data_starts: dict[int, tuple[Path, int]],
        tasks: dict[int, str],
    ) -> Episode:
        index, length = int(row["episode_index"]), int(row["length"])
        data, first_row = data_starts[index]
        problems: list[str] = []
        notes: list[str] = []
        videos: dict[str, View] = {}
        for key in starts:
            file, place = starts[key][index]
            videos[key] = VideoView(file, place.first, length, shared=True, code=self.features[key].code)
            if not file.is_file():
                problems.append(self.absent(file, key))
                continue
            if not counted_frames(file):
                problems.append(unreadable(file, "no picture of it decodes", "video", key))
            elif place.problem:
                problems.append(Problem(place.problem, MISPLACED, key))
            if place.note:
                notes.append(place.note)
        return self.episode(row, data, first_row, tasks, videos, problems, notes)


def _whole(value: Any) -> int | None:
    """A whole number, also where editing made floats of them."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return int(value) if fits else None


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _broken(file: Path) -> UserError:
    what, fix = stand_in(file) or ("is not a readable parquet file", "copy or download it again")
    return UserError(what, file, fix)


def _more_rows(listed: Counter[Path]) -> list[str]:
    """Of tables with rows of episodes that meta does not list."""
    return [
        f"{file} holds {rows_of(file)} rows, its episodes in meta add up to {rows}: the others are not read"
        for file, rows in listed.items()
        if rows_of(file) > rows
    ]


def _names(chunk: int, number: int) -> dict[str, int]:
    """What a path template may name; some sets keep v2's word for the chunk."""
    return {"chunk_index": chunk, "episode_chunk": chunk, "file_index": number}


@functools.lru_cache(maxsize=1024)
def counted_frames(path: Path) -> int:
    """Frames of a video by decoding or demuxing; files that cannot be read count 0."""
    try:
        return media.count_frames(path)
    except (OSError, ValueError, UserError):
        return 0
