"""`xwam-ft shards export --format lerobot`: a shard set -> a LeRobot v3.0 dataset that LeRobot's own code reads.

One video file an episode and camera: the segment's own bytes where an episode is one segment, else joined without loss
(joined_video.py). Numbers are float32 in the robot's units (lerobot_columns.py). Metric depth becomes LeRobot's depth
video. `meta/embodiment.yaml` reads all of it back with `xwam-ft prepare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from xwam_ft import depth_code, media
from xwam_ft.consoles import typed
from xwam_ft.errors import UserError, listed
from xwam_ft.files import disk_errors, require_new, require_room, write_json_atomic, write_text_atomic
from xwam_ft.locks import sole_folder
from xwam_ft.pictures import resize_intrinsics
from xwam_ft.progress import progress_bar
from xwam_ft.sets import lerobot_columns as columns
from xwam_ft.sets import lerobot_meta as meta
from xwam_ft.sets.joined_video import own_rows, require_frames, write_depth, write_joined
from xwam_ft.sets.opened import OpenedSet, open_set
from xwam_ft.sets.stored import StoredMotions, members_of
from xwam_ft.shard_index import depth_member, rgb_member

if TYPE_CHECKING:
    from rich.console import Console

    from xwam_ft.contract import Camera
    from xwam_ft.quantiles import Motion
    from xwam_ft.shard_index import EpisodeEntry

SAMPLED = 4  # pictures an episode for the statistics of a camera
PIXELS = 16  # every n-th of their rows and columns
EMBODIMENT = "embodiment.yaml"
NO_DEPTH = ("--depth", "none")


@dataclass(frozen=True)
class ExportedSet:
    """A LeRobot dataset: its folder, the embodiment file that reads it back, and what could not be written as it is."""

    path: Path
    embodiment: Path
    episodes: int
    frames: int
    notes: tuple[str, ...]


def export(folder: Path, out: Path, *, depth: bool, console: Console) -> ExportedSet:
    """Write the set at `folder` as a LeRobot dataset at `out`; see `xwam_ft.sets.export_lerobot`."""
    opened = open_set(folder)
    require_new(out)
    if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
        raise UserError("lies in the set that is read", out, "give a folder outside it")
    columns.command_columns(opened.shards.contract)  # refuses what has no form there
    opened.require_sound(opened.episodes, console)
    with disk_errors(out), sole_folder(out, "exporting to it") as made:
        require_room(made, 2 * sum(shard.bytes for shard in opened.shards.index.shards))
        notes = _Export(opened, made, depth=depth).write(console)
    frames = sum(episode.frames for episode in opened.episodes)
    console.print(f"{out}: {len(opened.episodes)} episodes, {frames} frames, LeRobot {meta.VERSION}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    where = out / "meta" / EMBODIMENT
    with_depth = depth and opened.shards.contract.depth.kind == "metric"
    command = typed("xwam-ft", "prepare", out, "SHARDS", "--embodiment", where, *([] if with_depth else NO_DEPTH))
    console.print(f"back again: {command}", markup=False, soft_wrap=True)
    return ExportedSet(out, where, len(opened.episodes), frames, tuple(notes))


class _Export:
    """One export: its features, and what is gathered while episodes are written."""

    def __init__(self, opened: OpenedSet, out: Path, *, depth: bool) -> None:
        self.opened, self.out = opened, out
        self.contract = opened.shards.contract
        self.with_depth = depth and self.contract.depth.kind == "metric"
        self.left_out_depth = depth and self.contract.depth.kind == "relative"
        fps = self.contract.timing.fps
        self.fps: float = int(fps) if fps == int(fps) else fps
        self.columns = {
            columns.STATE: (columns.state_columns(self.contract), columns.state_places(self.contract)),
            columns.ACTION: (columns.command_columns(self.contract), columns.command_places(self.contract)),
        }
        self.numbers: dict[str, list[np.ndarray]] = {name: [] for name in self.columns}
        self.pixels: dict[str, list[np.ndarray]] = {}
        self.joined = 0

    def write(self, console: Console) -> list[str]:
        episodes = self.opened.episodes
        tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
        names = {name: [c.name for group in each.values() for c in group] for name, (each, _) in self.columns.items()}
        (self.out / "meta").mkdir()
        rows = meta.Rows(self.out, {name: len(each) for name, each in names.items()}, self.fps)
        motions = StoredMotions([(self.opened.shards, episode) for episode in episodes])
        lines: list[dict[str, Any]] = []
        frames = sum(episode.frames for episode in episodes)
        with progress_bar(console, "export", "frames", frames) as advance:
            for number, (episode, motion) in enumerate(zip(episodes, motions, strict=True)):
                line = {"episode_index": number, "tasks": [episode.instruction], "length": episode.frames}
                line |= rows.add(number, tasks.index(episode.instruction), self._numbers(motion))
                line |= self._videos(number, episode)
                line |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0, "success": episode.success}
                lines.append({**line, "xwam_ft/episode": episode.index, "xwam_ft/split": episode.split})
                advance(episode.frames)
        rows.close()
        if all(line["success"] is None for line in lines):
            lines = [{name: value for name, value in line.items() if name != "success"} for line in lines]
        meta.write_episodes(self.out, lines)
        meta.write_tasks(self.out, tasks)
        self._write_meta(names, len(tasks), frames)
        return self._notes()

    def _numbers(self, motion: Motion) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, values in ((columns.STATE, motion.state), (columns.ACTION, motion.command)):
            each, places = self.columns[name]
            found[name] = columns.written(each, values, places).astype(np.float32)
            self.numbers[name].append(found[name])
        return found

    def _videos(self, number: int, episode: EpisodeEntry) -> dict[str, Any]:
        """Write the videos of an episode; what its line in meta/episodes says of them."""
        entries = self.opened.segments[episode]
        segments = [members_of(self.opened.shards, entry) for entry in entries]
        rows = own_rows(entries)
        place = {"chunk_index": number // meta.CHUNK, "file_index": number % meta.CHUNK}
        line: dict[str, Any] = {}
        self.joined += len(entries) > 1
        for camera in self.contract.cameras:
            key = f"observation.images.{camera.name}"
            path = self.out / meta.VIDEO_PATH.format(video_key=key, **place)
            videos = [members[rgb_member(camera.name)] for members in segments]
            path.parent.mkdir(parents=True, exist_ok=True)
            if len(videos) == 1:
                path.write_bytes(videos[0])
            else:
                write_joined(path, videos, rows, self.contract.timing.fps)
            require_frames(path, episode.frames)
            shown = np.unique(np.linspace(0, episode.frames - 1, SAMPLED).round().astype(int))
            pictures = media.read_rgb(path, shown.tolist())[:, ::PIXELS, ::PIXELS]
            self.pixels.setdefault(key, []).append(pictures.reshape(-1, 3) / 255.0)
            keys = [key]
            if self.with_depth:
                keys.append(f"{key}_depth")
                self._depth(camera, keys[-1], [members[depth_member(camera.name)] for members in segments], rows, place)
            for one in keys:
                line |= {f"videos/{one}/{name}": value for name, value in place.items()}
                line |= {f"videos/{one}/from_timestamp": 0.0, f"videos/{one}/to_timestamp": episode.frames / self.fps}
        return line

    def _depth(self, camera: Camera, key: str, videos: list[bytes], rows: list[range], place: dict[str, int]) -> None:
        near, far = depth_code.require_metric(self.contract.depth_of(camera))
        codes = [media.read_gray16(data)[: len(wanted)] for data, wanted in zip(videos, rows, strict=True)]
        path = self.out / meta.VIDEO_PATH.format(video_key=key, **place)
        write_depth(path, codes, near, far, self.contract.timing.fps)
        require_frames(path, sum(map(len, codes)))
        metres = depth_code.code_to_metres(codes[0][:: max(1, len(codes[0]) // SAMPLED), ::PIXELS, ::PIXELS], near, far)
        self.pixels.setdefault(key, []).append(metres[np.isfinite(metres)].reshape(-1, 1))

    def _write_meta(self, names: dict[str, list[str]], tasks: int, frames: int) -> None:
        image, cameras = self.contract.image, self.contract.cameras
        features = {name: meta.number_feature(each, self.fps) for name, each in names.items()}
        for camera in cameras:
            key = f"observation.images.{camera.name}"
            features[key] = meta.video_feature(image.height, image.width, "h264", "yuv420p", self.fps)
            if self.with_depth:
                span = depth_code.require_metric(self.contract.depth_of(camera))
                depth = meta.video_feature(image.height, image.width, "hevc", "gray12le", self.fps, span)
                features[f"{key}_depth"] = depth
        episodes = len(self.opened.episodes)
        info = {
            "codebase_version": meta.VERSION,
            "robot_type": self.contract.embodiment,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": meta.CHUNK,
            "data_files_size_in_mb": meta.DATA_MEGABYTES,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": meta.DATA_PATH,
            "video_path": meta.VIDEO_PATH,
            "features": {**features, **meta.bookkeeping(self.fps)},
        }
        folder = self.out / "meta"
        write_json_atomic(folder / "info.json", info)
        stats = {name: meta.statistics(np.concatenate(parts)) for name, parts in self.numbers.items()}
        for key, parts in self.pixels.items():
            if sum(map(len, parts)):
                stats[key] = meta.statistics(np.concatenate(parts), frames, picture=True)
        write_json_atomic(folder / "stats.json", stats)
        write_json_atomic(folder / "calibration.json", {"cameras": {c.name: self._calibration(c) for c in cameras}})
        tree, files = columns.embodiment(
            self.contract, self.opened.record, self.contract.camera_names if self.with_depth else []
        )
        none = "" if self.with_depth else f" {' '.join(NO_DEPTH)}"
        head = (
            f"# Reads this export back: xwam-ft prepare DATASET SHARDS --embodiment DATASET/meta/{EMBODIMENT}{none}\n"
        )
        write_text_atomic(folder / EMBODIMENT, head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        for name, motors in files.items():
            write_json_atomic(folder / name, motors)

    def _calibration(self, camera: Camera) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": camera.kind}
        if camera.intrinsics is not None:
            image, source = self.contract.image, (camera.source_height, camera.source_width)
            found["intrinsics"] = list(resize_intrinsics(camera.intrinsics, source, (image.height, image.width)))
        if camera.pose is not None:
            found["pose"] = [list(row) for row in camera.pose]
        return found

    def _notes(self) -> list[str]:
        image, slots = self.contract.image, [slot for slot in self.contract.slots if slot.present]
        notes = [f"pictures are those of the set, {image.height}x{image.width}; the recordings' own are not in it"]
        if self.joined:
            notes.append(
                f"{self.joined} of {len(self.opened.episodes)} episodes are several segments: their videos are joined "
                "without loss, and larger for it; the others are copied byte for byte"
            )
        if self.left_out_depth:
            notes.append("depth is left out: it is relative, and a LeRobot depth video holds metres")
        if any(slot.chain is not None for slot in slots):
            notes.append("poses that were computed from joints are written as poses: a set does not hold the joints")
        if any(slot.reduced for slot in slots):
            notes.append("what was reduced to one number (a mean, a maximum, a norm) is written as that number")
        if unnamed := [slot.name for slot in slots if not columns.own_columns(self.contract, slot)]:
            notes.append(f"in the contract's names and SI units, for want of the robot's own: {listed(unnamed)}")
        if several := sum(len(episode.instructions) > 1 for episode in self.opened.episodes):
            notes.append(
                f"{several} episodes have further wordings of their instruction, of which the first is written"
            )
        return notes
