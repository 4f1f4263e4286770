"""The built-in depth estimator against the simulator's own depth, and `--depth tiny` through prepare."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from xwam_ft.bundled import bundled
from xwam_ft.depth_code import to_metres
from xwam_ft.media import read_gray16, read_rgb
from xwam_ft.prepare.depth.sensor import lerobot_log12
from xwam_ft.prepare.depth.tiny import FARTHEST, NEAREST, TinyDepth, load_tiny_depth
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.shards import ShardSet

RECORDINGS = "recordings/metaworld_demo"  # two tasks that no built-in weight has seen
FRAMES = range(0, 900, 45)


@pytest.fixture(scope="module")
def network() -> TinyDepth:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_tiny_depth()  # pyright: ignore[reportReturnType]
    torch.set_num_threads(threads)


def recorded(camera: str) -> tuple[np.ndarray, np.ndarray]:
    """RGB [n, H, W, 3] and metres [n, H, W] of a bundled camera."""
    videos = bundled(RECORDINGS) / "videos"
    rgb = read_rgb(videos / f"observation.images.{camera}" / "chunk-000" / "file-000.mp4", FRAMES)
    codes = read_gray16(videos / f"observation.images.{camera}_depth" / "chunk-000" / "file-000.mp4", FRAMES)
    return rgb, lerobot_log12(codes)


@pytest.mark.parametrize(("camera", "most"), [("corner", 0.15), ("corner3", 0.15)])
def test_metres_are_near_the_simulators_without_any_fitted_scale(network: TinyDepth, camera: str, most: float) -> None:
    rgb, metres = recorded(camera)
    valid = (metres > NEAREST) & (metres < 4.0)
    found = network.metres(rgb)
    assert float(np.mean(np.abs(found - metres)[valid] / metres[valid])) < most
    # Better than the one depth that fits best everywhere: it has looked at the picture.
    flat = np.median(metres[valid])
    assert np.mean(np.abs(found - metres)[valid] / metres[valid]) < 0.5 * np.mean(np.abs(flat / metres[valid] - 1))


@pytest.mark.parametrize("size", [(96, 128), (480, 640), (50, 70), (240, 320)])
def test_pictures_of_any_size_get_depth_at_that_size(network: TinyDepth, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    found = network.metres(rng.integers(0, 256, (2, *size, 3), dtype=np.uint8))
    assert found.shape == (2, *size)
    assert np.all((found >= NEAREST * 0.999) & (found <= FARTHEST * 1.001))


def test_a_picture_enlarged_keeps_its_depth(network: TinyDepth) -> None:
    rgb, _ = recorded("corner")
    large = rgb[:3].repeat(4, axis=1).repeat(4, axis=2)
    ratio = network.metres(large)[:, 2::4, 2::4] / network.metres(rgb[:3])
    assert float(np.median(np.abs(np.log(ratio)))) < 0.05


def test_a_picture_s_depth_does_not_depend_on_those_beside_it(network: TinyDepth) -> None:
    rgb, _ = recorded("corner3")
    alone = np.concatenate([network.metres(picture[None]) for picture in rgb[:4]])
    np.testing.assert_allclose(network.metres(rgb[:4]), alone, rtol=1e-4)


@pytest.mark.slow
def test_prepare_stores_the_estimate_and_says_what_it_is(network: TinyDepth, tmp_path: Path) -> None:
    said = io.StringIO()
    options: dict[str, Any] = {
        "embodiment": bundled("recipes/embodiments/metaworld_sawyer.yaml"),
        "depth": "tiny",
        "workers": 0,
        "strict": True,
        "urdf_dirs": [],
        "console": Console(file=said, width=200),
    }
    shutil.copytree(bundled(RECORDINGS), tmp_path / "recordings")
    prepare([tmp_path / "recordings"], tmp_path / "shards", **options)
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("depth: tiny (")]
    assert "demonstration" in line
    assert "Depth-Anything" in line
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.contract.depth.source == "tiny"
    clip = shards.read_clip(shards.clips("train", 1)[30])
    assert clip.depth is not None
    for view, camera in enumerate(shards.contract.cameras):
        code = shards.contract.depth_of(camera)
        assert code.near is not None
        assert code.far is not None
        stored = to_metres(clip.depth[view], code)
        wanted = network.metres(clip.rgb[view]).clip(code.near, code.far)
        # Shards keep RGB as video, so the estimate is taken here from slightly other pixels.
        assert float(np.nanmedian(np.abs(stored / wanted - 1))) < 0.03, camera.name
