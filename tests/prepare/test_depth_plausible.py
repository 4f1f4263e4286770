"""Depth that cannot be what it is stated to be: a sensor's word for "nothing seen", and a wrong unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft.depth_code import FARTHEST, INVALID, metres_to_code
from xwam_ft.errors import UserError
from xwam_ft.files import read_json
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.checks.depth import check_range, held_shares
from xwam_ft.prepare.depth.files import DepthFiles
from xwam_ft.prepare.depth.sensor import to_metres
from xwam_ft.prepare.embodiment.schema import DepthVideo
from xwam_ft.shards import ShardSet


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


@pytest.mark.parametrize(
    ("unit", "values", "metres"),
    [
        ("mm", np.array([65535, 0, 1500], np.uint16), [0, 0, 1.5]),
        (0.00025, np.array([65535, 4000], np.uint16), [0, 1]),
        ("m", np.array([65.535, 65535, 1.5], np.float32), [0, 0, 1.5]),
        ("lerobot_log12", np.array([65535, 0], np.uint16), [0, 0]),
    ],
)
def test_what_a_sensor_writes_for_nothing_is_no_depth(unit: Any, values: np.ndarray, metres: list[float]) -> None:
    np.testing.assert_allclose(to_metres(values, DepthVideo(source="d", unit=unit)), metres)


def test_neither_zero_nor_infinity_nor_nan_becomes_a_wall() -> None:
    values = np.array([0, np.nan, np.inf, -np.inf, -1, 65.535, 65535], np.float32)
    codes = metres_to_code(to_metres(values, DepthVideo(source="d", unit="m")), 0.1, 10.0)
    np.testing.assert_array_equal(codes, INVALID)


@pytest.mark.parametrize(("unit", "full", "kind"), [("mm", 65535, np.uint16), ("m", 65.535, np.float32)])
def test_files_made_elsewhere_say_it_alike(tmp_path: Path, unit: str, full: float, kind: Any) -> None:
    depth = np.full((2, 3, 4), 1500 if unit == "mm" else 1.5, kind)
    depth[:, 0] = full
    np.save(tmp_path / "0_c.npy", depth)
    episode: Any = type("E", (), {"index": 0, "dataset": tmp_path, "length": 2})()
    camera: Any = type("C", (), {"name": "c"})()
    stage = DepthFiles(f"{tmp_path}/{{episode}}_{{camera}}.npy?unit={unit}")
    found = stage.read(episode, camera, [0, 1], np.zeros((0, 0, 0, 3), np.uint8))
    assert found is not None
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[:, 1:], 1.5)


def test_the_share_at_an_end_is_of_what_was_measured() -> None:
    codes = np.array([[[0, 0, FARTHEST, 65535, 500, 500]]], np.uint16)
    assert held_shares(codes) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("ends", "metres", "said"),
    [
        ((0.0, 0.01), 1.5, None),
        ((0.0, 0.4), 2.0, ("note", "40% of its depth at 10 m or farther (median 2 m)")),
        ((0.0, 1.0), 1500.0, ("error", "millimetres read as metres: write `unit: mm`")),
        ((1.0, 0.0), 0.0015, ("error", "metres read as millimetres: write `unit: m`")),
        ((0.0, 0.7), 15.0, ("error", "mend `unit` (metres of one count, say) or `depth_range`")),
    ],
)
def test_depth_in_a_wrong_unit_is_an_error_with_the_right_one(
    ends: tuple[float, float], metres: float, said: tuple[str, str] | None
) -> None:
    found = check_range("front", ends, metres, (0.1, 10.0), recorded=True)
    assert [(f.severity, said is not None and said[1] in f.text) for f in found] == ([(said[0], True)] if said else [])
    assert not [f for f in check_range("front", ends, metres, (0.1, 10.0), recorded=False) if f.severity == "error"]


def test_a_recording_in_millimetres_stated_as_metres(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    made = lerobot.recording([16, 16])
    for depth in made.depths:
        depth[:, :, 40:] = 65535
    raw = lerobot.v21(tmp_path / "raw", made)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(toy.read_text().replace("unit: mm", "unit: m"))
    options: Any = {"workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET, "depth": None}
    with pytest.raises(UserError, match=r"millimetres read as metres: write `unit: mm`"):
        pipeline.prepare([raw], tmp_path / "wrong", embodiment=wrong, **options)
    assert not (tmp_path / "wrong").exists()
    pipeline.prepare([raw], tmp_path / "right", embodiment=toy, **options)
    stored = read_json(tmp_path / "right" / "depth.json")["cameras"]["front"]
    assert (stored["at_near"], stored["at_far"]) == (0, 0)
    shards = ShardSet.open(tmp_path / "right")
    clip = shards.read(shards.segments()[0])
    assert clip.depth is not None
    assert (clip.depth[0][:, :, 28:] == INVALID).all()
    assert (clip.depth[0][:, 8:, :24] != INVALID).all()
