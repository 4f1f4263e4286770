"""Estimates through `prepare`: cached by content, another distribution's, compared with recorded depth, and alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shared import QUIET
from xwam_ft.errors import UserError
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.depth import Description, Estimator, parse_depth
from xwam_ft.prepare.depth.estimated import Estimated, PackedDepth
from xwam_ft.prepare.embodiment.cameras import CameraPlan
from xwam_ft.prepare.embodiment.schema import DepthRange, DepthVideo
from xwam_ft.prepare.episode import Episode
from xwam_ft.prepare.sources.lerobot_table import LeRobotTable
from xwam_ft.shards import ShardSet

FRONT = CameraPlan("front", "front", None, intrinsics=(50.0, 50.0, 24.0, 16.0))
PLUGIN = '''
"""Depth that is the same everywhere, of a distribution of its own."""
import numpy as np
from xwam_ft.prepare.depth import Description
estimated = []
def describe(argument):
    return Description(metric=True, note="flat", fingerprint=f"flat {argument}")
class Flat:
    def __init__(self, metres):
        self.metres = metres
    def estimate(self, pictures, focal, prompt):
        estimated.append(len(pictures))
        return np.full(pictures.shape[:3], self.metres, np.float32)
def open_estimator(argument):
    return Flat(float(argument))
'''


class Counting(Estimator):
    """Depth that is the brightness, and a list of how many pictures were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float | None]] = []

    def estimate(self, pictures: np.ndarray, focal: float | None, prompt: np.ndarray | None) -> np.ndarray:
        self.asked.append((len(pictures), focal))
        depth = pictures[..., 0].astype(np.float32) / 50.0
        return np.where(depth > 0, depth, np.nan).astype(np.float32)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def episode(folder: Path) -> Episode:
    return Episode(folder, 0, 4, {}, LeRobotTable(folder, 0, 4, None, ()))


def test_a_picture_is_estimated_once(tmp_path: Path) -> None:
    counting, cache = Counting(), tmp_path / "cache"
    described = Description(metric=True, note="", fingerprint="a")
    stage = Estimated(counting, described, (16, 24), cache)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    fresh = stage.read(episode(tmp_path), FRONT, range(4), pictures)
    assert fresh is not None
    assert fresh.shape == (4, 16, 24)
    # Another episode, camera name and dataset: the pictures are the same.
    other = Episode(tmp_path / "b", 7, 4, {}, LeRobotTable(tmp_path, 7, 4, None, ()))
    renamed = CameraPlan("top", "top", None, intrinsics=FRONT.intrinsics)
    again = Estimated(Counting(), described, (16, 24), cache).read(other, renamed, range(4), pictures)
    np.testing.assert_array_equal(again, fresh)
    assert counting.asked == [(4, 50.0)]
    (entry,) = cache.rglob("*.npz")
    entry.write_bytes(entry.read_bytes()[:100])  # damaged: made again
    np.testing.assert_array_equal(stage.read(episode(tmp_path), FRONT, range(4), pictures), fresh)
    changed = pictures.copy()
    changed[3, 0, 0, 0] ^= 1
    stage.read(episode(tmp_path), FRONT, range(4), changed)
    stage.read(episode(tmp_path), CameraPlan("front", "front", None), range(4), pictures)  # no focal length
    Estimated(counting, Description(True, "", "b"), (16, 24), cache).read(episode(tmp_path), FRONT, range(4), pictures)
    Estimated(counting, described, (8, 8), cache).read(episode(tmp_path), FRONT, range(4), pictures)
    assert counting.asked == [(4, 50.0), (4, 50.0), (4, 50.0), (4, None), (4, 50.0), (4, 50.0)]


@pytest.mark.parametrize("metric", [True, False])
def test_packing_rounds_by_no_more_than_it_says(metric: bool) -> None:
    rng = np.random.default_rng(1)
    depth = np.exp(rng.uniform(-3, 3, (3, 8, 10))) if metric else rng.normal(0, 5, (3, 8, 10))
    depth[0, :2], depth[1] = np.nan, np.nan
    block = PackedDepth.of(depth, metric=metric)
    found = PackedDepth.unpack(block.pack()).depth()
    np.testing.assert_array_equal(found, block.depth())
    np.testing.assert_array_equal(np.isnan(found), np.isnan(depth))
    known = np.isfinite(depth)
    bound = 1e-4 * depth[known] if metric else 1e-5 * np.ptp(depth[known])
    assert np.all(np.abs(found - depth)[known] <= bound)
    assert np.isnan(PackedDepth.unpack(PackedDepth.of(np.full((1, 4, 4), np.nan), metric=metric).pack()).depth()).all()


@pytest.fixture
def flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of an installed distribution with an estimator `flat`."""
    info = tmp_path / "site" / "flat_depth-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flat-depth\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xwam_ft.depth]\nflat = flat_depth\n")
    (tmp_path / "site" / "flat_depth.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield __import__("flat_depth")
    del sys.modules["flat_depth"]


def prepared(raw: Path, out: Path, embodiment: Path, console: Console | None = None, **more: Any) -> Any:
    options = {"workers": 0, "strict": True, "urdf_dirs": [], "console": console or QUIET, **more}
    return pipeline.prepare([raw], out, embodiment=embodiment, **options)


def test_an_estimator_of_another_distribution_compared_with_recorded_depth(
    v21: Path, toy: Path, tmp_path: Path, made: Any, flat: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = prepared(v21, tmp_path / "out", toy, Console(width=140), depth="flat:0.6", depth_check=True)
    metres = np.concatenate(made.depths)[:, :, ((np.arange(32) + 0.5) * 48 / 32).astype(int)] / 1000
    truth = metres[metres > 0]
    front = outcome.depth["front"]
    assert (front.valid, front.flicker, front.check.pixels) == (1.0, None, len(truth))  # every pixel moves
    assert front.check.abs_rel == pytest.approx(float(np.mean(np.abs(0.6 - truth) / truth)), rel=1e-3)
    near = np.maximum(0.6 / truth, truth / 0.6) < 1.25
    assert front.check.delta1 == pytest.approx(float(np.mean(near)), abs=2e-3)
    table = capsys.readouterr().out
    assert "AbsRel" in table
    assert f"{front.check.abs_rel:.4f}" in table
    assert f"{front.check.abs_rel:.4f}" in (tmp_path / "out" / "report.html").read_text()
    stored = json.loads((tmp_path / "out" / "depth.json").read_text())["cameras"]["front"]["check"]
    assert stored["delta1"] == front.check.delta1
    assert ShardSet.open(tmp_path / "out").contract.depth.source == "flat:0.6"


def test_a_change_of_the_embodiment_estimates_nothing_again(v21: Path, toy: Path, tmp_path: Path, flat: Any) -> None:
    prepared(v21, tmp_path / "out", toy, depth="flat:0.6")
    assert sum(flat.estimated) == 37
    toy.write_text(toy.read_text().replace("frame_skip: 2", "frame_skip: 1").replace("name: toy", "name: other"))
    prepared(v21, tmp_path / "next", toy, depth="flat:0.6")
    assert sum(flat.estimated) == 37
    prepared(v21, tmp_path / "more", toy, depth="flat:0.7")
    assert sum(flat.estimated) == 74


def test_relative_depth_is_compared_after_one_scale_and_shift(v21: Path, toy: Path, tmp_path: Path, made: Any) -> None:
    """Files of an affine change of the true inverse depth: fitted, they are the truth."""
    for number, depth in enumerate(made.depths):
        inverse = np.where(depth > 0, 1000.0 / np.maximum(depth, 1), np.nan)
        np.save(tmp_path / f"{number}_front.npy", 7.0 * inverse - 3.0)
    spec = f"files:{tmp_path}/{{episode}}_{{camera}}.npy?unit=relative"
    outcome = prepared(v21, tmp_path / "out", toy, depth=spec, depth_check=True)
    assert outcome.depth["front"].check.abs_rel < 1e-3
    assert outcome.depth["front"].check.delta1 == 1.0


def test_a_comparison_with_nothing_is_told(v21: Path, toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compares an estimate with recorded depth, and --depth is sensor"):
        prepared(v21, tmp_path / "out", toy, depth="sensor", depth_check=True)
    toy.write_text(toy.read_text().replace(", depth: {source: front_depth, unit: mm}", ""))
    with pytest.raises(UserError, match="has nothing to compare with: no camera of the embodiment names"):
        prepared(v21, tmp_path / "out", toy, depth="tiny", depth_check=True)


def test_an_estimator_that_lacks_something_is_told(flat: Any) -> None:
    del flat.open_estimator
    with pytest.raises(UserError, match="flat_depth lacks open_estimator"):
        parse_depth("flat:1", [FRONT], [], DepthRange())
    with pytest.raises(UserError, match=r"is 'flatt' \(did you mean 'flat'\?\).*installed besides: flat"):
        parse_depth("flatt", [FRONT], [], DepthRange())


def test_a_prompted_estimator_sees_recorded_metres(tmp_path: Path) -> None:
    class View:
        def read_gray16(self, rows: Any) -> np.ndarray:
            return np.full((len(rows), 8, 8), 1500, np.uint16)

    seen: list[np.ndarray | None] = []

    class Completing(Estimator):
        def estimate(self, pictures: np.ndarray, focal: float | None, prompt: np.ndarray | None) -> np.ndarray:
            seen.append(prompt)
            return np.ones(pictures.shape[:3], np.float32)

    stage = Estimated(Completing(), Description(True, "", "c", prompted=True), None, tmp_path / "cache")
    recorded = Episode(tmp_path, 0, 2, {"d": View()}, LeRobotTable(tmp_path, 0, 2, None, ()))  # pyright: ignore[reportArgumentType]
    camera = CameraPlan("front", "front", DepthVideo(source="d", unit="mm"))
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    stage.read(recorded, camera, [0, 1], pictures)
    assert seen[0] is not None
    np.testing.assert_allclose(seen[0], 1.5)
    assert stage.read(recorded, CameraPlan("side", "side", None), [0, 1], pictures) is None


def test_the_depth_stage_alone_gives_what_prepare_stores(
    v21: Path, toy: Path, tmp_path: Path, made: Any, flat: Any
) -> None:
    from xwam_ft.prepare.depth_only import estimate_depth

    options: dict[str, Any] = {"embodiment": toy, "workers": 0, "ray": None, "console": QUIET}
    done = estimate_depth(v21, tmp_path / "depth", depth="sensor", check=False, **options)
    assert done.rejected == []
    prepared(v21, tmp_path / "files", toy, depth=done.spec)
    shards = ShardSet.open(tmp_path / "files")
    segment = shards.read(shards.segments()[0])
    metres = made.depths[segment.episode][:, :, ((np.arange(32) + 0.5) * 48 / 32).astype(int)] / 1000
    from xwam_ft.depth_code import code_to_metres

    assert segment.depth is not None
    decoded = code_to_metres(segment.depth[0], 0.1, 10.0)
    np.testing.assert_array_equal(np.isnan(decoded), metres == 0)
    np.testing.assert_allclose(decoded[metres > 0], metres[metres > 0], atol=6e-4)
    # Once more: nothing to do, and what was made is not touched; other inputs are refused.
    stamp = next((tmp_path / "depth").rglob("*.mkv")).stat().st_mtime_ns
    estimate_depth(v21, tmp_path / "depth", depth="sensor", check=False, **options)
    assert next((tmp_path / "depth").rglob("*.mkv")).stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="holds depth made from other inputs"):
        estimate_depth(v21, tmp_path / "depth", depth="flat:1", check=False, **options)
    checked = estimate_depth(v21, tmp_path / "flat", depth="flat:0.6", check=True, **options)
    assert checked.cameras["front"].check is not None
    with pytest.raises(UserError, match="is none, and depth is what is to be made"):
        estimate_depth(v21, tmp_path / "none", depth="none", check=False, **options)
