"""Depth stages: LeRobot's code in closed form, files by pattern, estimators by their config, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET, save_tiny_dpt
from xwam_ft.depth_code import metres_to_code
from xwam_ft.errors import UserError
from xwam_ft.pictures import resize_nearest
from xwam_ft.prepare.depth import CHOICES, parse_depth
from xwam_ft.prepare.depth.estimator import DepthPart
from xwam_ft.prepare.depth.files import DepthFiles, parse_pattern
from xwam_ft.prepare.depth.sensor import Sensor, lerobot_log12, to_metres
from xwam_ft.prepare.embodiment.cameras import CameraPlan
from xwam_ft.prepare.embodiment.schema import DepthRange, DepthVideo
from xwam_ft.prepare.episode import Episode, EpisodeError, LogCode
from xwam_ft.prepare.sources.lerobot_table import LeRobotTable

PLAIN = CameraPlan("front", "observation.images.front", None)
WITH = CameraPlan("front", "observation.images.front", DepthVideo(source="front_depth", unit="mm"))
SPAN = DepthRange()


def episode(folder: Path, length: int = 4) -> Episode:
    return Episode(folder, 2, length, {}, LeRobotTable(folder, 2, length, None, ()))


def test_lerobots_code_spans_its_range_and_zero_is_invalid() -> None:
    assert lerobot_log12(np.array([0]))[0] == 0.0  # it would decode to 10 mm
    assert lerobot_log12(np.array([4095]))[0] == pytest.approx(10.0)
    assert lerobot_log12(np.array([1]))[0] == pytest.approx(0.01 + 3.51 * np.log(13.5 / 3.51) / 4095, rel=1e-4)
    metres = np.array([0.3, 1.0, 4.0])
    code = np.rint(4095 * np.log((metres + 3.5) / 3.51) / np.log(13.5 / 3.51))
    np.testing.assert_allclose(
        to_metres(code.astype(np.uint16), DepthVideo(source="d", unit="lerobot_log12")), metres, atol=2e-3
    )


@pytest.mark.parametrize(("unit", "metres"), [("mm", 1.5), ("m", 1500.0), (0.0001, 0.15)])
def test_counts_become_metres(unit: Any, metres: float) -> None:
    assert to_metres(np.array([1500], np.uint16), DepthVideo(source="d", unit=unit))[0] == pytest.approx(metres)


class Counts:
    """A recorded view of given numbers."""

    code = LogCode(0.2, 8.0, 1.5)

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    def read_gray16(self, rows: Sequence[int]) -> np.ndarray:
        return self.counts[list(rows)]


@pytest.mark.parametrize("unit", ["mm", "m", 0.0001, "lerobot_log12"])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_stored_codes_are_those_of_the_metres(tmp_path: Path, unit: Any, kind: Any) -> None:
    """Counts are looked up: all 65,536 of them, to the bit; real numbers are computed."""
    counts = np.arange(1 << 16).reshape(2, 128, 256).astype(kind)
    if kind == np.float32:
        if unit == "lerobot_log12":
            pytest.skip("its counts are whole")
        counts[0, :2, :3] = [[np.nan, np.inf, -1.0], [0.5, 65.535, 0.0]]
    camera = CameraPlan("front", "front", DepthVideo(source="front_depth", unit=unit), rotate=90, mirror=True)
    found = replace(episode(tmp_path, 2), views={"front_depth": Counts(counts)})  # pyright: ignore[reportArgumentType]

    def fit(depth: np.ndarray) -> np.ndarray:
        return resize_nearest(camera.turn(depth), 96, 60)

    part = DepthPart(found, camera, [1, 0], np.zeros((2, 0, 0, 3), np.uint8), fit)
    metres = Sensor().read(found, camera, [1, 0], part.pictures)
    coded = Sensor().coded(part, (0.1, 10.0))
    assert metres is not None
    assert coded is not None
    np.testing.assert_array_equal(coded[0], metres_to_code(fit(metres), 0.1, 10.0))
    np.testing.assert_array_equal(coded[1], fit(metres)[:, ::4, ::4])
    assert coded[0].dtype == np.uint16


def test_without_a_choice_recorded_depth_is_taken_or_asked_for() -> None:
    assert parse_depth(None, [WITH], [], SPAN).spec == "sensor"
    assert (
        parse_depth("sensor", [WITH, replace(PLAIN, name="side")], [], SPAN).note
        == "side: no recorded depth, stored as invalid"
    )
    with pytest.raises(UserError, match="no depth was recorded") as refused:
        parse_depth(None, [PLAIN], [], SPAN)
    for choice in CHOICES.replace(" or ", ", ").split(", "):  # all but the one that is not there, with what each takes
        assert (choice in str(refused.value)) == (choice != "sensor"), choice
    with pytest.raises(UserError, match="depth was recorded as 'front_depth', and the embodiment does not name it"):
        parse_depth(None, [PLAIN], ["front_depth"], SPAN)
    with pytest.raises(UserError, match="is `sensor` and no camera of the embodiment names a recorded depth video"):
        parse_depth("sensor", [PLAIN], [], SPAN)
    with pytest.raises(UserError, match=r"is 'sensr' \(did you mean 'sensor'\?\)"):
        parse_depth("sensr", [WITH], [], SPAN)
    assert parse_depth("none", [WITH], [], SPAN).code.kind == "none"


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("d/{episode}_{camera}.npy", "does not state its unit"),
        ("d/{episode}_{camera}.npy?unit=feet", "ends with 'unit=feet'"),
        ("d/{episode}.npy?unit=m", r"lacks \{episode\} or \{camera\}"),
        ("d/{episode}_{camera}.tif?unit=m", "ends with '.tif'"),
        ("d/{episode}_{view}.npy?unit=m", "has the placeholder view"),
        ("d/{episode}_{camera}.png?unit=m", r".png and \{frame\} belong together"),
    ],
)
def test_a_wrong_pattern_is_told(pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_pattern(pattern)


def test_files_of_every_kind_give_the_same_metres(tmp_path: Path) -> None:
    from PIL import Image

    from xwam_ft.media import write_gray16

    depth = (np.arange(4 * 6 * 8).reshape(4, 6, 8) * 7 + 300).astype(np.uint16)
    np.save(tmp_path / "000002_front.npy", depth)
    np.savez(tmp_path / "000002_front.npz", depth=depth, other=depth[0])
    write_gray16(tmp_path / "000002_front.mkv", depth, 10)
    for frame, picture in enumerate(depth):
        Image.fromarray(picture).save(tmp_path / f"000002_front_{frame}.png")
    pictures = np.zeros((2, 6, 8, 3), np.uint8)
    for suffix in (".npy", ".npz", ".mkv", "_{frame}.png"):
        stage = DepthFiles(f"{tmp_path}/{{episode:06d}}_{{camera}}{suffix}?unit=mm")
        found = stage.read(episode(tmp_path), PLAIN, [1, 3], pictures)
        np.testing.assert_allclose(found, depth[[1, 3]] / 1000, rtol=1e-6)
        with pytest.raises(EpisodeError, match=r"4 frames of depth, the episode has 5|is not there"):
            stage.read(episode(tmp_path, 5), PLAIN, [4], pictures)
    with pytest.raises(EpisodeError, match="the depth file is not there"):
        DepthFiles(f"{tmp_path}/{{episode}}_{{camera}}.npy?unit=m").read(episode(tmp_path), PLAIN, [0], pictures)
    assert parse_depth("files:{episode}_{camera}.npy?unit=relative", [PLAIN], [], SPAN).code.clip_normalised


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_dpt(tmp_path_factory.mktemp("models") / "tiny_dpt")


def test_whether_an_estimator_gives_metres_is_read_from_its_config(estimator: Path, tmp_path: Path) -> None:
    plan = parse_depth(f"transformers:{estimator}", [PLAIN], [], SPAN)
    assert (plan.code.kind, plan.code.clip_normalised) == ("relative", True)
    assert "dpt models are unless they say otherwise" in plan.note
    config = json.loads((estimator / "config.json").read_text())
    for name, change, note in (
        ("a", {"depth_estimation_type": "metric"}, "metric by its config"),
        ("dpt-nyu", {}, "metric by its name (nyu)"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
        plan = parse_depth(f"transformers:{tmp_path / name}", [PLAIN], [], SPAN)
        assert (plan.code.kind, plan.note) == ("metric", note)


def test_an_estimator_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a 'bert' model, not one for depth estimation"):
        parse_depth(f"transformers:{tmp_path}", [PLAIN], [], SPAN)
    with pytest.raises(UserError, match="cannot be loaded"):
        parse_depth(f"transformers:{tmp_path / 'nowhere'}", [PLAIN], [], SPAN)


def test_batches_do_not_change_an_estimate(estimator: Path, tmp_path: Path) -> None:
    stage = parse_depth(f"transformers:{estimator}", [PLAIN], [], SPAN).open()
    assert stage is not None
    pictures = np.random.default_rng(0).integers(0, 255, (11, 24, 40, 3), dtype=np.uint8)
    together = stage.read(episode(tmp_path, 11), PLAIN, range(11), pictures)
    assert together is not None
    assert together.shape == (11, 24, 40)
    alone = stage.read(episode(tmp_path, 11), PLAIN, [9], pictures[9:10])
    assert alone is not None
    np.testing.assert_allclose(together[9], alone[0], atol=1e-5)
    assert together.std() > 0


def test_an_estimate_is_prepared_as_relative_depth(estimator: Path, v21: Path, toy: Path, tmp_path: Path) -> None:

    from xwam_ft.prepare.pipeline import prepare
    from xwam_ft.shards import ShardSet

    prepare(
        [v21],
        tmp_path / "out",
        embodiment=toy,
        depth=f"transformers:{estimator}",
        workers=0,
        strict=True,
        urdf_dirs=[],
        console=QUIET,
    )
    shards = ShardSet.open(tmp_path / "out")
    assert (shards.contract.depth.kind, shards.contract.depth.near) == ("relative", None)
    codes = shards.read(shards.segments()[0]).depth
    assert codes is not None
    assert (codes.min(), codes.max()) == (1, 65535)
