"""The recorder against the simulator it records: needs the [sim] extra and a renderer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from xwam_ft.media import read_gray16, read_rgb
from xwam_ft.prepare.depth.sensor import lerobot_log12

TOOL = Path(__file__).parents[2] / "data_tools" / "record_metaworld.py"
SIMULATED = importlib.util.find_spec("metaworld") is not None
needs_simulator = pytest.mark.skipif(not SIMULATED, reason="Meta-World is not installed: pip install 'xwam-ft[sim]'")
ARGUMENTS = ["--task", "button-press-topdown", "--episodes", "1", "--height", "64", "--width", "96", "--seed", "5"]


def record(out: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(out), *ARGUMENTS, *extra]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def frames(folder: Path, key: str) -> Path:
    return folder / "videos" / f"observation.images.{key}" / "chunk-000" / "file-000.mp4"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("metaworld") / "set"
    done = record(out)
    if "no picture can be rendered" in done.stderr:
        pytest.skip(f"no renderer: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.sim
@needs_simulator
def test_recording_again_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    assert record(tmp_path / "again").returncode == 0
    names = sorted(str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file())
    assert len(names) == 12
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (dataset / name).read_bytes(), name


@pytest.mark.sim
@needs_simulator
def test_depth_video_and_calibration_agree_with_the_simulator(dataset: Path) -> None:
    """Replaying the recorded actions gives the recorded poses; depth is right to 1 % or 3 mm (median), and
    top, a known point of the simulator, lies on the depth surface of every static camera that sees it."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        import record_metaworld as recorder
    finally:
        sys.path.remove(str(TOOL.parent))
    simulator: Any = recorder.Simulator("button-press-topdown", ["corner", "corner3", "gripperPOV"], 64, 96)
    start = int(np.random.SeedSequence([5, 0, 0, 0]).generate_state(1)[0] % 2**31)
    simulator.environment.seed(start)
    simulator.environment.reset()
    table = pq.read_table(dataset / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    calibration = json.loads((dataset / "meta" / "calibration.json").read_text())["cameras"]
    rows = [0, 20, len(table["action"]) - 1]
    for row, action in enumerate(table["action.raw"]):
        np.testing.assert_allclose(table["observation.state"][row][:7], simulator.hand(), atol=1e-4)
        if row in rows:
            truth = simulator.pictures(depth=True)
            for camera in ("corner", "corner3", "gripper"):
                metres = lerobot_log12(read_gray16(frames(dataset, f"{camera}_depth"), [row])[0])
                seen = truth[camera] < 9.9
                # One step of the 12-bit code is 1.2 mm near the camera, so a share alone would be unfair there.
                allowed = np.maximum(0.01 * truth[camera][seen], 0.003)
                assert np.median(np.abs(metres - truth[camera])[seen] / allowed) < 1.0, camera
                live = simulator.calibration()["cameras"][camera]
                np.testing.assert_allclose(calibration[camera]["pose"], live["pose"], atol=1e-6)
        simulator.environment.step(np.array(action, dtype=np.float32))


@pytest.mark.sim
@needs_simulator
def test_static_cameras_see_the_hand_where_calibration_says(dataset: Path) -> None:
    """The lowest point of the hand, projected, is nearer the camera than 3 cm off the recorded depth there."""
    table = pq.read_table(dataset / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    calibration = json.loads((dataset / "meta" / "calibration.json").read_text())["cameras"]
    for camera in ("corner", "corner3"):
        fx, fy, cx, cy = calibration[camera]["intrinsics"]
        differences: list[float] = []
        for row in range(0, len(table["action"]), 8):
            point = np.append(table["observation.state"][row][:3], 1.0)
            x, y, z, _ = np.linalg.inv(np.array(calibration[camera]["pose"])) @ point
            column, line = round(fx * x / z + cx), round(fy * y / z + cy)
            metres = lerobot_log12(read_gray16(frames(dataset, f"{camera}_depth"), [row])[0])
            differences.append(float(np.abs(metres[line - 2 : line + 3, column - 2 : column + 3] - z).min()))
        assert np.median(differences) < 0.03, camera
        assert read_rgb(frames(dataset, camera), [0]).shape == (1, 64, 96, 3)


@pytest.mark.sim
@needs_simulator
def test_unknown_names_are_one_sentence(tmp_path: Path) -> None:
    done = record(tmp_path / "x", "--task", "make-coffee")
    assert done.returncode == 2
    assert "unknown task 'make-coffee'" in done.stderr
    assert "coffee-button" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(SIMULATED, reason="Meta-World is installed")
def test_without_the_simulator_the_sentence_names_the_extra(tmp_path: Path) -> None:
    done = record(tmp_path / "x")
    assert done.returncode == 2
    assert "pip install 'xwam-ft[sim]'" in done.stderr
    assert "Traceback" not in done.stderr
