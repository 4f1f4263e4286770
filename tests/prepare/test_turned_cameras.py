"""Cameras that hang upside down or sideways: recordings turned upright, calibration with them, live pictures alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shared import QUIET
from xwam_ft import observation
from xwam_ft.contract import load_contract
from xwam_ft.inspect.inspect import inspect
from xwam_ft.pictures import resize_nearest, turn_pictures
from xwam_ft.policy.request import implausible
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.depth_only import estimate_depth
from xwam_ft.prepare.sources import open_source
from xwam_ft.shards import Segment, ShardSet


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def prepared(raw: Path, out: Path, embodiment: str, depth: str | None = None) -> tuple[ShardSet, Segment]:
    file = out.with_suffix(".yaml")
    file.write_text(embodiment)
    options: Any = {"workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET}
    pipeline.prepare([raw], out, embodiment=file, depth=depth, **options)
    shards = ShardSet.open(out)
    return shards, shards.read(shards.segments()[0])


def turned(embodiment: str, rotate: int, mirror: bool) -> str:
    return embodiment.replace("depth: {", f"rotate: {rotate}, mirror: {str(mirror).lower()}, depth: {{")


@pytest.mark.parametrize(("rotate", "mirror"), [(180, False), (90, True)])
def test_both_sides_see_the_same_bytes(tmp_path: Path, lerobot: Any, rotate: int, mirror: bool) -> None:
    made = lerobot.recording([12, 12])
    raw = lerobot.v21(tmp_path / "raw", made)
    calibration = {"intrinsics": [40.0, 50.0, 20.0, 10.0], "pose": np.eye(4).tolist()}
    (raw / "meta" / "calibration.json").write_text(json.dumps({lerobot.camera: calibration}))
    shards, segment = prepared(raw, tmp_path / "out", turned(lerobot.embodiment, rotate, mirror))
    contract = load_contract(tmp_path / "out" / "contract.json")
    (camera,) = contract.cameras
    assert (camera.rotate, camera.mirror) == (rotate, mirror)
    size = (48, 32) if rotate == 90 else (32, 48)
    assert (camera.source_height, camera.source_width) == size
    # What the robot's camera gives is turned by the policy as the recordings were.
    view = open_source(raw).episodes()[0].views[lerobot.camera]
    live = view.read_rgb(range(12))
    state = {"arm": made.states[0][0, :2], "hand": made.states[0][0, 2:]}
    request = {"images": {"front": live[0]}, "state": state, "prompt": "x"}
    seen = observation.encode(contract, request)
    stored = segment.rgb[0, 0].astype(int)  # went through H.264
    assert np.abs(seen.pictures[0].astype(int) - stored).mean() < 3
    assert np.abs(np.flip(seen.pictures[0], (0, 1)).astype(int) - stored).mean() > 10
    assert segment.depth is not None
    expected = resize_nearest(turn_pictures(made.depths[0][:1], rotate, mirror=mirror), 32, 32)
    np.testing.assert_array_equal(segment.depth[0, 0] == 0, expected[0] == 0)
    assert not [text for text in implausible(contract, seen, request["images"]) if "stretched" in text]
    sideways = {"front": np.swapaxes(live[0], 0, 1)}
    assert [text for text in implausible(contract, seen, sideways) if "stretched otherwise" in text]
    fx, _, cx, cy = camera.intrinsics or (0, 0, 0, 0)
    assert (fx, cx, cy) == ((40.0, 27.0, 21.0) if rotate == 180 else (-50.0, 10.0, 20.0))
    assert shards.contract == contract


def test_depth_made_apart_lies_as_the_recordings_do(tmp_path: Path, lerobot: Any) -> None:
    raw = lerobot.v21(tmp_path / "raw", lerobot.recording([12, 12]))
    text = turned(lerobot.embodiment, 90, False)
    _, direct = prepared(raw, tmp_path / "direct", text)
    made = estimate_depth(
        raw, tmp_path / "depth", embodiment=tmp_path / "direct.yaml", depth="sensor", check=False, workers=0, ray=None,
        console=QUIET,
    )  # fmt: skip
    _, through = prepared(raw, tmp_path / "through", text, made.spec)
    assert direct.depth is not None
    assert through.depth is not None
    np.testing.assert_array_equal(direct.depth == 0, through.depth == 0)
    assert np.abs(direct.depth.astype(int) - through.depth.astype(int)).max() < 200  # whole millimetres


def test_a_change_of_aspect_is_said(tmp_path: Path, lerobot: Any) -> None:
    raw = lerobot.v21(tmp_path / "raw", lerobot.recording([12, 12]))
    prepared(raw, tmp_path / "out", lerobot.embodiment)
    lines = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    (text,) = {line["text"] for line in lines if line["check"] == "aspect-changed"}
    assert text == "camera 'front': 48x32 becomes 32x32, and what it shows 50% taller than it is"
    same = lerobot.embodiment.replace("width: 32", "width: 48")
    prepared(raw, tmp_path / "same", same)
    assert "aspect-changed" not in (tmp_path / "same" / "findings.jsonl").read_text()


@pytest.mark.parametrize(("name", "told"), [("libero_spatial", True), ("my_kitchen", False)])
def test_sources_known_to_stand_on_their_head_are_mentioned(
    tmp_path: Path, lerobot: Any, name: str, told: bool
) -> None:
    raw = lerobot.v21(tmp_path / name, lerobot.recording([12, 12]))
    console = Console(record=True, width=300, file=(tmp_path / "log").open("w"))
    inspect(raw, None, console)
    assert ("rotate: 180, mirror: true" in console.export_text()) == told
    embodiment = tmp_path / "toy.yaml"
    options: Any = {"workers": 0, "strict": False, "urdf_dirs": [], "depth": None}
    for number, text in enumerate((lerobot.embodiment, turned(lerobot.embodiment, 180, True))):
        embodiment.write_text(text)
        pipeline.prepare([raw], tmp_path / f"out{number}", embodiment=embodiment, console=console, **options)
        assert ("renders pictures with their rows" in console.export_text()) == (told and number == 0)
