"""The registry of readers: detection, readers of other distributions, the rate."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats import write_aloha

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.prepare import pipeline
from xwam_ft.prepare.plugins import DEPTH, plugins
from xwam_ft.prepare.sources import open_source

READER = """
import numpy as np
from pathlib import Path
from xwam_ft.prepare.episode import Episode, Table
from xwam_ft.prepare.sources import SourceInfo

reads = "a throwaway log (.log)"

def detect(path):
    return path.suffix == ".log"

class Numbers:
    def __init__(self, path):
        self.path = path
    def read(self):
        return Table({"j": np.array([float(x) for x in self.path.read_text().split()])}, None, None)

class Log:
    def __init__(self, path):
        self.path = path
        self.info = SourceInfo(path, "throwaway", 5.0, "none", {}, ("j",))
    def episodes(self):
        return [Episode(self.path, 0, 3, {}, Numbers(self.path))]

read = Log
"""


def distribution(folder: Path, name: str, points: str, **modules: str) -> None:
    """An installed distribution as the import system sees one: modules and a .dist-info folder."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def test_another_distribution_adds_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "throwaway", "[xwam_ft.sources]\nlog = throwaway_log\n", throwaway_log=READER)
    (tmp_path / "run.log").write_text("1 2 3")
    with pytest.raises(UserError, match="is not a dataset xwam-ft can read"):
        open_source(tmp_path / "run.log")
    monkeypatch.syspath_prepend(tmp_path / "site")
    source = open_source(tmp_path / "run.log")
    assert (source.info.format, source.info.fps) == ("throwaway", 5.0)
    np.testing.assert_array_equal(source.episodes()[0].table.read().columns["j"], [1, 2, 3])
    with pytest.raises(UserError, match=r"give one of these: a throwaway log \(.log\), a LeRobot v2.0, v2.1 or v3.0"):
        open_source(tmp_path / "site" / "throwaway_log.py")
    monkeypatch.delitem(sys.modules, "throwaway_log")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("import nowhere_at_all", r"log: bad_log cannot be imported \(ModuleNotFoundError: .*nowhere_at_all"),
        ("reads = 'x'", "log: bad_log lacks detect, read"),
    ],
)
def test_a_bad_plugin_is_named(module: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "bad", "[xwam_ft.sources]\nlog = bad_log\n", bad_log=module)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(UserError, match=sentence):
        open_source(tmp_path)
    sys.modules.pop("bad_log", None)


def test_a_name_given_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "a", "one", f"[{DEPTH}]\nmine = one_depth\n")
    distribution(tmp_path / "b", "two", f"[{DEPTH}]\nmine = two_depth\n")
    monkeypatch.syspath_prepend(tmp_path / "a")
    assert [entry.value for entry in plugins(DEPTH).values()] == ["one_depth"]
    monkeypatch.syspath_prepend(tmp_path / "b")
    with pytest.raises(UserError, match=r"xwam_ft.depth: mine: is given twice, as one_depth and two_depth"):
        plugins(DEPTH)


def test_no_known_kind_lists_what_is_read_and_points_inside(tmp_path: Path, v21: Path) -> None:
    with pytest.raises(UserError, match="the folder does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"can read; there is a dataset in .*v21.*LeRobot.*X-WAM.*HDF5.*plain folder"):
        open_source(tmp_path)
    deep = tmp_path / "outer" / "tests" / "debug" / "1.0.0"
    deep.mkdir(parents=True)
    shutil.copytree(v21, deep / "set")
    with pytest.raises(UserError, match=r"there is a dataset in .*outer/tests/debug/1.0.0/set"):
        open_source(tmp_path / "outer")


def test_the_inner_folder_of_a_lerobot_set_is_no_plain_folder(v30: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"is the 'data' folder of a LeRobot set. Fix: give {v30}"):
        open_source(v30 / "data")
    monkeypatch.chdir(v30 / "data")
    with pytest.raises(UserError, match=f"Fix: give {v30}"):
        open_source(Path())


def test_counters_of_a_plain_folder_are_no_observations(tmp_path: Path) -> None:
    (tmp_path / "set" / "0").mkdir(parents=True)
    (tmp_path / "set" / "0" / "table.csv").write_text(
        "index,frame_index,episode_index,task_index,j1\n" + "0,0,0,0,1\n" * 3
    )
    assert open_source(tmp_path / "set").info.columns == ("j1",)


def test_a_rate_is_needed_once(tmp_path: Path, made: Any, lerobot: Any) -> None:
    embodiment = tmp_path / "toy.yaml"
    text = "name: t\ncameras: {front: {source: front}}\ntiming: {frame_skip: 2, action_skip: 1, clip_frames: 5}\n"
    text += "slots: {arm: {kind: joints, columns: 'observation.qpos[0:3]', units: rad, command: next_state}}\n"
    embodiment.write_text(text)
    options = {"embodiment": embodiment, "workers": 0, "strict": True, "urdf_dirs": [], "console": QUIET}
    raw = write_aloha(tmp_path / "aloha", made)
    with pytest.raises(UserError, match=r"does not store its frames per second .*write `fps: NUMBER` in .*toy.yaml"):
        pipeline.prepare([raw], tmp_path / "out", depth="none", **options)
    embodiment.write_text(lerobot.embodiment + "fps: 25\n")
    with pytest.raises(UserError, match=r"toy.yaml: fps: is 25, and .*v21 says 10"):
        pipeline.prepare([lerobot.v21(tmp_path / "v21", made)], tmp_path / "out", depth="none", **options)
