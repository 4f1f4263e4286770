"""MCAP recordings (ROS 2 bags, Foxglove): a file or a rosbag2 folder is an episode.

Every topic has its own times: when its messages were made, by their headers, or else when they were logged
(mcap_stamps.py). The episode's clock is its slowest camera: pictures of the others are the nearest in time, numbers are
interpolated (orientations along great arcs, true or false by the nearest), commands hold until the next one. The
episode is the time that all topics share; a topic that covers less than half of it, or has a sample further off than
MAX_SKEW, is refused where an embodiment uses it.

A camera is called by its topic (`/cam_high/image_raw/compressed`). The numbers of `/left/joint_states` are
`observation.left.joint_states/<joint>`; those of a topic with a word of COMMANDS in its name are `action.<topic>/...`.
The instruction is a String topic or a metadata entry called instruction, task, prompt or language_instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.episode import Episode, EpisodeError, Problem, Table, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo
from xwam_ft.prepare.sources import mcap_messages as messages
from xwam_ft.prepare.sources.mcap_clock import EpisodeClock, clock_of
from xwam_ft.prepare.sources.mcap_index import Topic, index_file, read_messages, require_mcap, topics_of
from xwam_ft.prepare.sources.mcap_stamps import by_stamp
from xwam_ft.prepare.sources.resampling import nearest, nominal_rate, resample, resample_quaternions

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

reads = "MCAP files and rosbag2 folders (ROS 2, Foxglove JSON)"

COMMANDS = re.compile(r"(?:^|[/_])(?:cmd|commands?|commanded|actions?|targets?|goals?|desired|setpoint)(?:[/_]|$)")
INSTRUCTIONS = ("instruction", "task", "prompt", "language_instruction")
VIDEO = re.compile(r"(?:^|[/.])(?:CompressedVideo|FFMPEGPacket|H26[45]\w*|VideoPacket)$", re.IGNORECASE)
LOOKED_AT = 10  # messages of a topic that are decoded to learn the names of its numbers
RATE_SLACK = 0.05  # how far an episode's own rate may be from the set's
QUATERNION = ("qx", "qy", "qz", "qw")


@dataclass(frozen=True)
class McapView:
    """One camera: the picture nearest to each tick of the episode's clock, decoded when it is asked for."""

    paths: tuple[Path, ...]
    topic: Topic
    places: np.ndarray  # [F, 3], see Topic
    fault: str | None = None  # why it cannot be used

    @property
    def frames(self) -> int:
        return len(self.places)

    @property
    def path(self) -> Path:
        return self.paths[0]

    def size(self) -> tuple[int, int]:
        height, width = self._pictures([0])[0].shape[:2]
        return int(height), int(width)

    def codec(self) -> str:
        return "pictures"

    def read_rgb(self, rows: Sequence[int]) -> UInt8[ndarray, "n h w 3"]:
        return self._stack([messages.as_rgb(picture, self._name) for picture in self._pictures(rows)])

    def read_gray16(self, rows: Sequence[int]) -> UInt16[ndarray, "n h w"]:
        return self._stack([messages.as_depth(picture, self._name) for picture in self._pictures(rows)])

    @property
    def _name(self) -> str:
        return f"{self.path}: topic {self.topic.name}"

    def _pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self.fault is not None:
            raise EpisodeError(self.fault)
        decode = messages.decoder_of(self.topic)
        found = read_messages(self.paths, self.places[list(rows)])
        return [messages.picture_of(decode(message), self._name) for message in found]

    def _stack(self, pictures: list[np.ndarray]) -> np.ndarray:
        sizes = {picture.shape for picture in pictures}
        if len(sizes) > 1:
            raise EpisodeError(f"{self._name} has pictures of different sizes ({listed(map(str, sorted(sizes)))})")
        return np.stack(pictures)


@dataclass(frozen=True)
class McapTable:
    """The numbers of an episode at the ticks of its clock; one pass over the file, a chunk at a time."""

    paths: tuple[Path, ...]
    topics: tuple[Topic, ...]
    clock: EpisodeClock

    def read(self) -> Table:
        ticks = self.clock.seconds
        columns: dict[str, np.ndarray] = {}
        problems: dict[str, str] = {}
        for topic, samples in zip(self.topics, self._samples(), strict=True):
            feature, command = feature_of(topic.name), is_command_topic(topic.name)
            seconds = self.clock.relative(topic.times)
            whole = {name: (seconds[rows], values, boolean) for name, (rows, values, boolean) in samples.items()}
            for name, (times, values, boolean) in whole.items():
                rule = "hold" if command else "nearest" if boolean else "linear"
                columns[column_of(feature, name)] = resample(ticks, times, values, rule)
            if not command:
                for prefix in {name[:-2] for name in whole if name.endswith("qw")}:
                    group = [whole.get(f"{prefix}{part}") for part in QUATERNION]
                    if all(part is not None and len(part[0]) == len(whole[f"{prefix}qw"][0]) for part in group):
                        turns = np.stack([part[1] for part in group if part is not None], axis=1)
                        at = whole[f"{prefix}qw"][0]
                        for i, values in enumerate(resample_quaternions(ticks, at, turns).T):
                            columns[column_of(feature, f"{prefix}{QUATERNION[i]}")] = values
            if fault := self.clock.faults.get(topic.name):
                problems |= {column_of(feature, name): fault for name in samples}
        return Table(columns, ticks, None, problems=problems)

    def _samples(self) -> list[dict[str, tuple[np.ndarray, np.ndarray, bool]]]:
        """For each topic, by name of number: rows of the topic, values, and whether they are true or false."""
        owner = np.concatenate([np.full(len(t.times), i) for i, t in enumerate(self.topics)] or [np.zeros(0, int)])
        row = np.concatenate([np.arange(len(t.times)) for t in self.topics] or [np.zeros(0, int)])
        places = np.concatenate([topic.places for topic in self.topics] or [np.zeros((0, 3), int)])
        order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))  # each chunk is opened once
        decoders = [messages.decoder_of(topic) for topic in self.topics]
        kept: list[dict[str, tuple[list[int], list[float | bool]]]] = [{} for _ in self.topics]
        for at, message in zip(order.tolist(), read_messages(self.paths, places[order]), strict=True):
            topic = int(owner[at])
            for name, value in messages.numbers_of(decoders[topic](message)).items():
                rows, values = kept[topic].setdefault(name, ([], []))
                rows.append(int(row[at]))
                values.append(value)
        found: list[dict[str, tuple[np.ndarray, np.ndarray, bool]]] = []
        for samples in kept:
            of_topic: dict[str, tuple[np.ndarray, np.ndarray, bool]] = {}
            for name, (rows, values) in samples.items():
                by_time = np.argsort(rows, kind="stable")
                boolean = all(isinstance(value, bool) for value in values)
                of_topic[name] = np.array(rows)[by_time], np.array(values, dtype=np.float64)[by_time], boolean
            found.append(of_topic)
        return found


@dataclass(frozen=True)
class _Recording:
    """One episode's files after the index pass."""

    paths: tuple[Path, ...]
    topics: dict[str, Topic]
    clock: EpisodeClock | None
    metadata: dict[str, str]
    problem: str | None = None


class Mcap(Source):
    def __init__(self, path: Path) -> None:
        require_mcap()
        self.path = path
        self.recordings = [_index(files) for files in recordings_in(path)]
        self.info_ = self._describe()

    @property
    def info(self) -> SourceInfo:
        return self.info_

    def episodes(self) -> list[Episode]:
        return [self._episode(i, recording) for i, recording in enumerate(self.recordings)]

    def _describe(self) -> SourceInfo:
        """Cameras and columns over all episodes, by a look at the first messages of each topic."""
        cameras: dict[str, CameraInfo] = {}
        columns: dict[str, None] = {}
        seen: set[str] = set()
        for recording in self.recordings:
            for topic in recording.topics.values():
                if topic.name in seen:
                    continue
                seen.add(topic.name)
                try:
                    first = [
                        messages.decoder_of(topic)(m) for m in read_messages(recording.paths, topic.places[:LOOKED_AT])
                    ]
                    if messages.is_picture(topic):
                        picture = messages.picture_of(first[0], topic.name)
                        cameras[topic.name] = CameraInfo(topic.name, depth=picture.ndim == 2)
                    else:
                        names = [name for message in first for name in messages.numbers_of(message)]
                        columns |= {column_of(feature_of(topic.name), name): None for name in names}
                except EpisodeError:
                    if messages.is_picture(topic):
                        cameras[topic.name] = CameraInfo(topic.name)  # reading it says what is wrong
        rates = [recording.clock.rate for recording in self.recordings if recording.clock is not None]
        if not rates:
            problems = [recording.problem or "" for recording in self.recordings]
            fix = next((fix for problem in problems if (fix := getattr(problem, "fix", ""))), "mend them")
            raise UserError(f"no episode can be read ({listed(dict.fromkeys(problems), 3)})", self.path, fix)
        return SourceInfo(
            path=self.path,
            format="MCAP",
            fps=nominal_rate(float(np.median(rates))),
            robot="unknown",
            cameras=cameras,
            columns=tuple(columns),
            suffixes=(".mcap", ".db3"),
        )

    def _episode(self, index: int, recording: _Recording) -> Episode:
        clock, paths = recording.clock, recording.paths
        if clock is None:
            problem = recording.problem or "holds nothing"
            empty = McapTable(paths, (), EpisodeClock.empty())
            return Episode(self.path, index, 0, {}, empty, problems=(problem,))
        problems = [recording.problem] if recording.problem else []
        assert self.info_.fps is not None
        if abs(clock.rate - self.info_.fps) > RATE_SLACK * self.info_.fps:
            problems.append(
                f"{paths[0]}: camera {clock.camera} gives {clock.rate:.3g} pictures a second, most of the set "
                f"{self.info_.fps:g}"
            )
        views: dict[str, View] = {}
        for topic in recording.topics.values():
            if messages.is_picture(topic):
                rows = nearest(clock.seconds, clock.relative(topic.times))[0]
                views[topic.name] = McapView(paths, topic, topic.places[rows], clock.faults.get(topic.name))
        numbers = tuple(topic for topic in recording.topics.values() if not messages.is_picture(topic))
        success = recording.metadata.get("success", "").strip().lower()
        return Episode(
            dataset=self.path,
            index=index,
            length=len(clock.seconds),
            views=views,
            table=McapTable(paths, numbers, clock),
            instructions=_instructions(recording),
            success={"true": True, "1": True, "false": False, "0": False}.get(success),
            problems=tuple(problems),
            notes=clock.notes,
        )


def detect(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".mcap"
    return (
        _is_rosbag2(path)
        or any(next(path.glob(pattern), None) for pattern in ("*.mcap", "*/*.mcap"))
        or any(_is_rosbag2(child) for child in path.iterdir() if child.is_dir())
    )


def read(path: Path) -> Source:
    """Index every file of the recordings.

    Raises:
        UserError: a package is missing, a file is no MCAP, a bag is of another storage, or no episode can be read.
    """
    return Mcap(path)


def recordings_in(path: Path) -> list[tuple[Path, ...]]:
    """The files of each episode, in order of their names.

    Raises:
        UserError: a rosbag2 folder that is not MCAP or lacks a file its metadata names.
    """
    if path.is_file():
        return [(path,)]
    if _is_rosbag2(path):
        return [_rosbag2_files(path)]
    found: list[tuple[Path, ...]] = []
    for child in sorted(path.iterdir()):
        if child.is_file() and child.suffix == ".mcap":
            found.append((child,))
        elif child.is_dir() and _is_rosbag2(child):
            found.append(_rosbag2_files(child))
        elif child.is_dir():
            found += [(file,) for file in sorted(child.glob("*.mcap"))]
    return found


def feature_of(topic: str) -> str:
    return ("action." if is_command_topic(topic) else "observation.") + topic.strip("/").replace("/", ".")


def is_command_topic(topic: str) -> bool:
    return COMMANDS.search(topic.lower()) is not None


def column_of(feature: str, name: str) -> str:
    return f"{feature}/{name}" if name else feature


def _index(paths: tuple[Path, ...]) -> _Recording:
    files = [index_file(path) for path in paths]
    metadata = {key: value for file in files for key, value in file.metadata.items()}
    try:
        topics = topics_of(files)
    except EpisodeError as error:
        return _Recording(paths, {}, None, metadata, str(error))
    every = {name: topic for name, topic in topics.items() if messages.is_picture(topic) or messages.is_numbers(topic)}
    used, notes = by_stamp(paths, every)
    broken = next((file.path for file in files if not file.complete), None)
    cut = f"{broken} ends in the middle: the recorder was stopped, or the file is damaged (try `mcap recover`)"
    problem = None if broken is None else cut
    pictures = {name: topic.times for name, topic in used.items() if messages.is_picture(topic)}
    numbers = {name: topic.times for name, topic in used.items() if name not in pictures}
    if not pictures:
        return _Recording(paths, used, None, metadata, problem or _no_pictures(paths[0], topics))
    texts = {name for name in numbers if messages.is_text(used[name])}
    commands = {name for name in numbers if is_command_topic(name)}
    try:
        clock = clock_of(
            str(paths[0]), pictures, {name: times for name, times in numbers.items() if name not in texts}, commands
        )
    except EpisodeError as error:
        return _Recording(paths, used, None, metadata, problem or str(error))
    return _Recording(paths, used, replace(clock, notes=(*clock.notes, *notes)), metadata, problem)


def _no_pictures(path: Path, topics: dict[str, Topic]) -> Problem:
    """With what is there instead; compressed video is the usual reason."""
    there = [f"{topic.name} ({topic.schema}, {len(topic.times)} messages)" for topic in topics.values()]
    video = [topic.name for topic in topics.values() if VIDEO.search(topic.schema)]
    read = "sensor_msgs/Image or CompressedImage (or Foxglove's)"
    fix = (
        f"record the camera topics as {read}"
        if not there or not video
        else (f"write {listed(video)} out as {read}: packets of compressed video are not read")
    )
    return Problem(f"{path} holds no pictures; its topics are {listed(there, 30)}", fix)


def _instructions(recording: _Recording) -> tuple[str, ...]:
    for key in INSTRUCTIONS:
        if recording.metadata.get(key, "").strip():
            return (recording.metadata[key].strip(),)
    for topic in recording.topics.values():
        if topic.name.rsplit("/", 1)[-1].lower() in INSTRUCTIONS:
            try:
                text = messages.text_of(
                    messages.decoder_of(topic)(next(read_messages(recording.paths, topic.places[:1])))
                )
            except EpisodeError:
                continue
            if text:
                return (text.strip(),)
    return ()


def _is_rosbag2(path: Path) -> bool:
    return _bag_information(path) is not None


def _bag_information(path: Path) -> dict[str, Any] | None:
    file = path / "metadata.yaml"
    if not file.is_file():
        return None
    try:
        tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    found = tree.get("rosbag2_bagfile_information") if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else None


def _rosbag2_files(path: Path) -> tuple[Path, ...]:
    information = _bag_information(path) or {}
    storage = information.get("storage_identifier")
    if storage != "mcap":
        raise UserError(
            f"is a rosbag2 of storage {storage!r}; mcap is read",
            path,
            "convert it: `ros2 bag convert -i BAG -o options.yaml` with `storage_id: mcap`",
        )
    names = [str(name) for name in information.get("relative_file_paths") or []]
    files = tuple(path / name for name in names) or tuple(sorted(path.glob("*.mcap")))
    for file in files:
        if not file.is_file():
            raise UserError(f"names the file {file.name}, which is not there", path / "metadata.yaml", "restore it")
        if file.suffix != ".mcap":
            fix = "decompress it: `ros2 bag convert` with `compression_mode: none`"
            raise UserError(f"is compressed as a whole ({file.name})", path, fix)
    if not files:
        raise UserError("holds no .mcap file", path, "restore the recording")
    return files
