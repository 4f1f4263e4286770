"""X-WAM's own layout, in which its data sets are released.

    metadata.json                       {episode: number of frames}
    data/chunk-*/episode_*.json         one episode:
        num_frames, instructions        a whole number, and a list of texts
        observations                    {view: {type: static|dynamic, rgb_path, depth_path, start, end, fps}}
        proprios, actions               {ARM_ee_pos: [F, 3], ARM_ee_rotm: [F, 3 | 9 | 3, 3], ARM_gripper_pos: [F]}
        raw_actions                     optional, [F, 7 * arms] in the controller's own units
Paths are relative to the folder. Frames `start` to `end` of a video are the episode's; whether `end` is the last one or
the one after it is told by num_frames. A `dynamic` view is a wrist camera.

Columns: `observation.state/ARM_x .. ARM_qz, ARM_gripper` and the same under `action`, so that a pose slot takes them
with its default `rotation: wxyz`: rotations recorded as rotation vectors (3 numbers) or matrices (9, or 3x3) become
quaternions here. `raw_actions` is `action.raw/i`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xwam_ft import media
from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.prepare.episode import Episode, EpisodeError, Problem, Table, VideoView, View
from xwam_ft.prepare.sources import CameraInfo, Source, SourceInfo
from xwam_ft.prepare.sources.beside import located
from xwam_ft.prepare.sources.lerobot_meta import read_calibration
from xwam_ft.prepare.sources.views import VIDEOS, find_view, natural

reads = "X-WAM's own layout (metadata.json beside data/chunk-*/episode_*.json)"

CAMERA = "observation.images."
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")


def detect(path: Path) -> bool:
    return (path / "metadata.json").is_file() and any((path / "data").glob("chunk-*/episode_*.json"))


def read(path: Path) -> Source:
    """Open a data set of X-WAM's layout.

    Raises:
        UserError: metadata.json is no table of episodes, no episode can be read, or their rates differ.
    """
    return XWAMSet(path)


@dataclass(frozen=True)
class XWAMTable:
    path: Path
    length: int

    def read(self) -> Table:
        return Table(_numbers(_load(self.path), self.path, self.length), None, None)


class XWAMSet(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        where = path / "metadata.json"
        listing = read_json(where)
        if not isinstance(listing, dict) or not all(isinstance(frames, int) for frames in listing.values()):
            raise UserError("is no table of episodes and their frames", where, "restore it: {EPISODE: FRAMES}")
        files = sorted(path.glob("data/chunk-*/episode_*.json"), key=lambda file: natural(str(file)))
        self.files = {_number(file.stem): file for file in files}
        if twice := [file for file in files if self.files[_number(file.stem)] != file]:
            raise UserError(
                f"has the number of {self.files[_number(twice[0].stem)]}",
                twice[0],
                "number the episodes over all chunks",
            )
        self.listing = {_number(Path(str(name)).stem): frames for name, frames in listing.items()}
        self.rates: dict[float, Path] = {}
        self.kinds: dict[str, dict[str, Any]] = {}
        self.columns: dict[str, None] = {}
        self._episodes = [self._episode(index) for index in sorted({*self.files, *self.listing})]
        self._info = self._describe()

    @property
    def info(self) -> SourceInfo:
        return self._info

    def episodes(self) -> list[Episode]:
        return self._episodes

    def _describe(self) -> SourceInfo:
        cameras = sorted({name for episode in self._episodes for name in episode.views})
        if not self.columns:
            problem = next((text for episode in self._episodes for text in episode.problems), "metadata.json is empty")
            raise UserError(f"holds no episode that can be read ({problem})", self.path, "restore the files")
        if len(self.rates) > 1:
            one, other = list(self.rates)[:2]
            raise UserError(
                f"was recorded at {other:g} fps, others at {one:g}", self.rates[other], "prepare them apart"
            )
        calibration = read_calibration(self.path)

        def known(feature: str) -> dict[str, Any]:
            return calibration.get(feature, calibration.get(feature.removeprefix(CAMERA), {}))

        return SourceInfo(
            path=self.path,
            format="X-WAM",
            fps=next(iter(self.rates), None),
            robot="unknown",
            cameras={name: CameraInfo(name, name.endswith("_depth")) for name in cameras},
            columns=tuple(self.columns),
            calibration=calibration | {name: {**kind, **known(name)} for name, kind in self.kinds.items()},
            suffixes=VIDEOS,
        )

    def _episode(self, index: int) -> Episode:
        file = self.files.get(index, self.path / "data")
        frames = self.listing.get(index)
        views: dict[str, View] = {}
        problems: list[str] = []
        length, instructions = 0, ()
        try:
            if index not in self.files:
                raise EpisodeError(f"episode {index} is listed in {self.path / 'metadata.json'} and has no file")
            tree = _load(file)
            length = int(tree["num_frames"])
            if frames is None:
                problems.append(f"{file} is not listed in {self.path / 'metadata.json'}")
            elif frames != length:
                problems.append(f"{file} has {length} frames, {self.path / 'metadata.json'} says {frames}")
            self.columns |= dict.fromkeys(_numbers(tree, file, length))
            texts = tree.get("instructions") or ()
            instructions = tuple(map(str, [texts] if isinstance(texts, str) else texts))
            for name, view in tree["observations"].items():
                self.kinds[CAMERA + name] = {"kind": "wrist" if view.get("type") == "dynamic" else "static"}
                if isinstance(view.get("fps"), int | float) and view["fps"] > 0:
                    self.rates.setdefault(float(view["fps"]), file)
                for key, feature in (("rgb_path", CAMERA + name), ("depth_path", f"{CAMERA}{name}_depth")):
                    found = self._view(view, key, length, file, name)
                    if isinstance(found, str):
                        problems.append(found)
                        found = VideoView(self.path / str(view.get(key)), 0, length)  # that it was recorded is known
                    if found is not None:
                        views[feature] = found
        except EpisodeError as error:
            problems.append(Problem.of(error))
        return Episode(
            dataset=self.path,
            index=index,
            length=length,
            views=views,
            table=XWAMTable(file, length),
            instructions=instructions,
            problems=tuple(problems),
        )

    def _view(self, view: dict[str, Any], key: str, length: int, file: Path, name: str) -> View | str | None:
        """A view, what is wrong with it, or None where there is none."""
        if not view.get(key):
            return None if key == "depth_path" else f"{file} view {name!r} has no rgb_path"
        start, end = view.get("start", 0), view.get("end")
        path = located(self.path, str(view[key]))
        if not isinstance(start, int) or start < 0 or (end is not None and end - start not in (length, length - 1)):
            return f"{file} view {name!r} is frames {start!r} to {end!r} of {path}, the episode has {length}"
        found = find_view(path, start, length)
        if not isinstance(found, VideoView):
            return found
        counted = _counted(path)
        if counted < start + length:
            return f"{path} holds {counted} frames, the episode needs frames {start} to {start + length - 1}"
        return VideoView(path, start, length, shared=True)


def _number(name: str) -> int:
    match = re.search(r"(\d+)$", name)
    if match is None:
        raise UserError(f"names an episode {name!r} without a number", "metadata.json", "name it episode_000000")
    return int(match[1])


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> dict[str, Any]:
    """An episode's file with what every reader of it needs."""
    if not path.is_file():
        raise EpisodeError(f"{path} holds no file of this episode")
    try:
        tree = read_json(path)
    except UserError as error:
        raise EpisodeError(f"{path} {error.what}") from None
    if not isinstance(tree, dict):
        raise EpisodeError(f"{path} is no table of an episode")
    for key, kind in (("num_frames", int), ("observations", dict), ("proprios", dict)):
        if not isinstance(tree.get(key), kind):
            raise EpisodeError(f"{path} lacks {key!r}")
    if not all(isinstance(view, dict) for view in tree["observations"].values()):
        raise EpisodeError(f"{path} has an observation that is no table of paths")
    return tree


def _numbers(tree: dict[str, Any], path: Path, length: int) -> dict[str, np.ndarray]:
    """Full column name -> [F]."""
    found: dict[str, np.ndarray] = {}
    for key, feature in (("proprios", "observation.state"), ("actions", "action")):
        part: dict[str, Any] = tree.get(key) or {}
        for name in part:
            where = f"{path} {key} {name!r}"
            values = _array(part[name], where, length)
            if name.endswith("_ee_pos"):
                labels = [f"{name.removesuffix('_ee_pos')}_{axis}" for axis in POSE[:3]]
            elif name.endswith("_ee_rotm"):
                labels = [f"{name.removesuffix('_ee_rotm')}_{axis}" for axis in POSE[3:]]
                values = _quaternions(values, where)
            else:
                stem = name.removesuffix("_pos")
                labels = [stem] if values.shape[1] == 1 else [f"{stem}_{i}" for i in range(values.shape[1])]
            if values.shape[1] != len(labels):
                raise EpisodeError(f"{where} holds {values.shape[1]} numbers a frame, not {len(labels)}")
            found |= {f"{feature}/{label}": values[:, i] for i, label in enumerate(labels)}
    if tree.get("raw_actions") is not None:
        raw = _array(tree["raw_actions"], f"{path} 'raw_actions'", length)
        found |= {f"action.raw/{i}": raw[:, i] for i in range(raw.shape[1])}
    return found


def _array(values: Any, where: str, length: int) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise EpisodeError(f"{where} has rows of different lengths or missing values") from None
    if len(np.atleast_1d(array)) != length:
        raise EpisodeError(f"{where} holds {len(np.atleast_1d(array))} rows, the episode has {length} frames")
    if not length:
        raise EpisodeError(f"{where} holds no row", "copy the episode's file again, or leave it out")
    return array.reshape(length, -1)


def _quaternions(values: np.ndarray, where: str) -> np.ndarray:
    """Rotation vectors [F, 3] or matrices [F, 9], row by row -> quaternions w x y z."""
    from scipy.spatial.transform import Rotation

    if values.shape[1] == 3:
        return Rotation.from_rotvec(values).as_quat(scalar_first=True)
    if values.shape[1] != 9:
        raise EpisodeError(f"{where} holds {values.shape[1]} numbers a frame; a rotation vector has 3, a matrix 9")
    matrices = values.reshape(-1, 3, 3)
    off = np.abs(matrices @ matrices.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    bad = np.flatnonzero(~(off < 1e-3) | ~(np.linalg.det(matrices) > 0))
    if len(bad):
        raise EpisodeError(f"{where} is no rotation in frame {bad[0]}")
    return Rotation.from_matrix(matrices).as_quat(scalar_first=True)


@functools.lru_cache(maxsize=1024)
def _counted(path: Path) -> int:
    try:
        return media.count_frames(path)
    except (OSError, ValueError, UserError):
        return 0
