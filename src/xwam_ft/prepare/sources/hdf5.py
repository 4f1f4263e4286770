"""HDF5 recordings in the layouts of hdf5_layouts.py: a file, or a folder of files.

Numbers are named `observation.X/i` and `action/i`, with element names where the layout has fixed ones. The rate is
robomimic's control_freq, else an attribute `fps` of the file, else the embodiment file's.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft.errors import UserError, listed
from xwam_ft.prepare.episode import Episode, EpisodeError, Problem, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo
from xwam_ft.prepare.sources.hdf5_layouts import CAMERA, LAYOUTS, FileLayout
from xwam_ft.prepare.sources.hdf5_views import HDF5Pictures, HDF5Table, opened
from xwam_ft.prepare.sources.resampling import nominal_rate, rate
from xwam_ft.prepare.sources.views import natural

reads = "HDF5 files of ACT/ALOHA, robomimic, LIBERO, RoboTwin or RoboMIND"

SUFFIXES = (".hdf5", ".h5")
INSTRUCTION = ("instruction", "language_instruction", "language_raw", "task")
TIMES = ("timestamp", "timestamps")
FASTEST = 1000.0  # frames a second: times that say more are not in seconds
WIDEST = 2048  # numbers a row: more is a picture, a map or a cloud of points


def detect(path: Path) -> bool:
    return bool(hdf5_files(path))


def hdf5_files(path: Path) -> list[Path]:
    """The HDF5 files of a dataset in the order of the numbers in their names."""
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    found = [file for suffix in SUFFIXES for file in path.rglob(f"*{suffix}") if file.is_file()]
    return sorted(found, key=lambda file: natural(str(file.relative_to(path))))


def read(path: Path) -> Source:
    """Open HDF5 recordings.

    Raises:
        UserError: no file can be read, or the files are of no known layout.
    """
    return HDF5Set(path)


@dataclass
class EpisodeGroup:
    """One episode as its file's structure shows it, no data read."""

    file: Path
    index: int
    group: str  # path of the episode's group, "" for the file itself
    length: int = 0
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict[str, Any])  # dataset path -> column names
    cameras: dict[str, str] = field(default_factory=dict[str, str])  # feature -> dataset path
    times: str | None = None
    instructions: tuple[str, ...] = ()
    problem: str | None = None
    left_out: dict[str, str] = field(default_factory=dict[str, str])  # dataset path -> type and shape


class HDF5Set(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout: FileLayout | None = None
        self.fps: float | None = None
        self.robot = "unknown"
        self.entries: list[EpisodeGroup] = []
        self.rates: list[float] = []  # by the times of each episode
        files = hdf5_files(path)
        for file in files:
            self._scan(file)
        numbers = {_number(file) for file in files}
        if self.layout is not None and not self.layout.many and None not in numbers and len(numbers) == len(files):
            for entry in self.entries:
                entry.index = _number(entry.file) or 0
        if self.layout is None:
            self._unknown(files)
        if not self.entries:
            raise UserError(f"holds no episode ({self._name})", path, "record some, or restore the files")
        self._info = self._describe()

    @property
    def info(self) -> SourceInfo:
        return self._info

    def episodes(self) -> list[Episode]:
        return [self._episode(entry) for entry in self.entries]

    @property
    def _name(self) -> str:
        return "HDF5" if self.layout is None else f"HDF5 ({self.layout.name})"

    def _unknown(self, files: list[Path]) -> None:
        with contextlib.suppress(EpisodeError), opened(files[0]) as file:
            raise UserError(
                f"has the groups {listed(sorted(file))}, which is no known layout",
                files[0],
                f"record in one of: {listed([layout.name for layout in LAYOUTS])}",
            )
        problem = self.entries[0].problem or "is no HDF5 file"
        raise UserError(problem, self.path, getattr(problem, "fix", "") or "copy or download it again")

    def _scan(self, path: Path) -> None:
        try:
            with opened(path) as file:
                layout = next((layout for layout in LAYOUTS if layout.detect(file)), None)
                self.layout = self.layout or layout
                if layout is not self.layout:
                    here = "no known layout" if layout is None else f"the layout of {layout.name}"
                    raise EpisodeError(f"{path} has {here}, the files before it that of {self._name}")
                if layout is None:
                    raise EpisodeError(f"{path} has no known layout")
                self._attributes(file)
                for name in sorted(file["data"], key=natural) if layout.many else [""]:
                    group = f"data/{name}" if name else ""
                    self.entries.append(self._entry(file, path, group, len(self.entries)))
        except EpisodeError as error:
            self.entries.append(EpisodeGroup(path, len(self.entries), "", problem=Problem.of(error)))

    def _attributes(self, file: Any) -> None:
        holder = file["data"] if self.layout is not None and self.layout.many else file
        settings = _json(holder.attrs.get("env_args"))
        rate = settings.get("env_kwargs", {}).get("control_freq") or file.attrs.get("fps")
        with contextlib.suppress(TypeError, ValueError):
            self.fps = self.fps or (float(rate) if float(rate) > 0 else None)
        robots = settings.get("env_kwargs", {}).get("robots")
        if robots:
            self.robot = str(robots[0] if isinstance(robots, list) else robots)

    def _entry(self, file: Any, path: Path, group: str, index: int) -> EpisodeGroup:
        import h5py

        assert self.layout is not None
        layout = self.layout
        entry = EpisodeGroup(path, index, group)
        root = file[group] if group else file
        datasets: dict[str, Any] = {}
        root.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        entry.instructions = _instructions(file, root, path)
        for name, dataset in datasets.items():
            full = f"{group}/{name}" if group else name
            feature = layout.feature(name)
            if feature is None or name.split("/")[-1] in INSTRUCTION or not dataset.ndim:
                continue
            if feature.startswith(CAMERA):
                entry.cameras[feature] = full
            elif _pictures(dataset):  # at another place than the layout's
                entry.cameras[CAMERA + _camera_name(name)] = full
            elif name.split("/")[-1] in TIMES:
                entry.times = full
                self._measure(dataset)
            elif dataset.dtype.kind in "iufb" and int(np.prod(dataset.shape[1:])) > WIDEST:
                entry.left_out[full] = f"{dataset.dtype} {list(dataset.shape)}"
            elif dataset.dtype.kind in "iufb":
                entry.columns[full] = _columns(layout, feature, int(np.prod(dataset.shape[1:])))
        # The command has a row a frame in every layout that records one; else the first numbers do.
        commands = [full for full, names in entry.columns.items() if names and names[0].startswith("action")]
        lead = (commands or list(entry.columns))[:1]
        entry.length = len(file[lead[0]]) if lead else 0
        if not entry.columns:
            entry.problem = f"{path} {group} holds no numbers".replace("  ", " ")
        return entry

    def _measure(self, times: Any) -> None:
        """The rate by an episode's times, where they are seconds."""
        values = np.asarray(times[: min(len(times), 1000)], dtype=np.float64).reshape(-1)
        if len(values) > 1 and np.isfinite(values).all() and 0 < (found := rate(values)) < FASTEST:
            self.rates.append(found)

    def _describe(self) -> SourceInfo:
        names: dict[str, None] = {}
        cameras: dict[str, CameraInfo] = {}
        for entry in self.entries:
            names |= {name: None for columns in entry.columns.values() for name in columns}
            cameras |= {feature: CameraInfo(feature, feature.endswith("_depth")) for feature in entry.cameras}
        return SourceInfo(
            path=self.path,
            format=self._name,
            fps=self.fps,
            robot=self.robot,
            cameras=dict(sorted(cameras.items())),
            columns=tuple(sorted(names, key=lambda name: name.startswith("action"))),
            calibration=self._calibration(),
            notes=self._notes(cameras),
            measured_fps=nominal_rate(float(np.median(self.rates))) if self.rates and self.fps is None else None,
        )

    def _notes(self, cameras: dict[str, CameraInfo]) -> tuple[str, ...]:
        """What was left out, and what there is instead of pictures."""
        left_out = {name: kind for entry in self.entries for name, kind in entry.left_out.items()}
        notes = [f"{self.path}: {listed(f'{n} ({k})' for n, k in left_out.items())} left out: too wide for numbers"]
        notes = notes if left_out else []
        if not cameras:
            there = [*(name for entry in self.entries[:1] for name in entry.columns), *left_out]
            notes.append(
                f"{self.path} holds no pictures in the places of {self._name}; its datasets are {listed(there)}"
            )
        return tuple(notes)

    def _calibration(self) -> dict[str, dict[str, Any]]:
        """RoboTwin's cameras: intrinsics where they are the same in the first and last episode, and for cameras that
        do not move their pose (extrinsic_cv takes the world to the camera)."""
        whole = [entry for entry in self.entries if entry.problem is None]
        found: dict[str, dict[str, Any]] = {}
        if self.layout is None or self.layout.name != "RoboTwin" or not whole:
            return found
        for feature, dataset in whole[0].cameras.items():
            if feature.endswith("_depth"):
                continue
            ends = [_camera_at(entry, dataset) for entry in (whole[0], whole[-1])]
            if any(end is None for end in ends):
                continue
            inner, outer = (np.concatenate([end[i] for end in ends if end is not None]) for i in (0, 1))
            if len(inner) and np.ptp(inner, axis=0).max() < 1e-6:
                found[feature] = {"intrinsics": [float(inner[0][at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))]}
                if len(outer) and np.ptp(outer, axis=0).max() < 1e-6:
                    pose = np.linalg.inv(np.vstack([outer[0], [0, 0, 0, 1]]))
                    found[feature] |= {"kind": "static", "pose": pose.tolist()}
                elif len(outer):
                    found[feature] |= {"kind": "wrist"}
        return found

    def _episode(self, entry: EpisodeGroup) -> Episode:
        assert self.layout is not None
        views: dict[str, View] = {
            feature: HDF5Pictures(entry.file, dataset, entry.length, self.layout.swapped)
            for feature, dataset in entry.cameras.items()
        }
        return Episode(
            dataset=self.path,
            index=entry.index,
            length=entry.length,
            views=views,
            table=HDF5Table(entry.file, entry.columns, entry.length, entry.times),
            instructions=entry.instructions,
            problems=() if entry.problem is None else (entry.problem,),
        )


def _columns(layout: FileLayout, feature: str, width: int) -> tuple[str, ...]:
    labels = layout.labels(feature, width) or [str(i) for i in range(width)]
    return (feature,) if width == 1 else tuple(f"{feature}/{label}" for label in labels)


def _pictures(dataset: Any) -> bool:
    """Whether a dataset's rows are colour pictures by type and shape."""
    if dataset.ndim != 4 or dataset.dtype != np.uint8:
        return False
    return 3 in (dataset.shape[1], dataset.shape[3]) and min(sorted(dataset.shape[1:])[1:]) >= 16


def _camera_name(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("observations", "observation", "obs", "images", "rgb")]
    return ".".join(parts) or "camera"


def _number(path: Path) -> int | None:
    match = re.search(r"(\d+)$", path.stem)
    return int(match[1]) if match else None


def _json(text: Any) -> dict[str, Any]:
    with contextlib.suppress(TypeError, ValueError):
        tree = json.loads(text)
        return tree if isinstance(tree, dict) else {}
    return {}


def _instructions(file: Any, root: Any, path: Path) -> tuple[str, ...]:
    """From the episode, its file, LIBERO's problem_info, or RoboTwin's instructions/ folder."""
    for holder in (root, file):
        for name in INSTRUCTION:
            value = holder[name][()] if name in holder and hasattr(holder[name], "dtype") else holder.attrs.get(name)
            if texts := _texts(value):
                return texts
    if "data" in file:
        spoken = _json(file["data"].attrs.get("problem_info")).get("language_instruction")
        if texts := _texts(spoken):
            return texts
    beside = path.parent.parent / "instructions" / f"{path.stem}.json"
    if beside.is_file():
        try:
            tree = json.loads(beside.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            raise EpisodeError(f"{beside} is not valid JSON") from None
        return _texts(tree.get("seen") if isinstance(tree, dict) else tree)
    return ()


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _camera_at(entry: EpisodeGroup, dataset: str) -> tuple[np.ndarray, np.ndarray] | None:
    """intrinsic_cv [F, 3, 3] and extrinsic_cv [F, 3, 4] (none: length 0) beside a RoboTwin camera's pictures."""
    group = dataset.rsplit("/", 1)[0]
    with contextlib.suppress(EpisodeError), opened(entry.file) as file:
        if f"{group}/intrinsic_cv" not in file:
            return None
        outer = file[f"{group}/extrinsic_cv"][()] if f"{group}/extrinsic_cv" in file else np.zeros((0, 3, 4))
        inner = file[f"{group}/intrinsic_cv"][()]
        if inner.shape[1:] == (3, 3) and outer.shape[1:] == (3, 4):
            return np.asarray(inner, dtype=np.float64), np.asarray(outer, dtype=np.float64)
    return None
