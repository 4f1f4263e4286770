"""A small bundle of an SO-101, trained for one step on made recordings (or the one that XWAM_FT_TEST_BUNDLE names)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
sys.path[:0] = [str(REPOSITORY / "tests"), str(Path(__file__).parent)]

SHORT = {
    "timing.frame_skip": 4,
    "timing.action_skip": 2,
    "timing.clip_frames": 5,
    "image.height": 32,
    "image.width": 64,
}
QUICK = {
    "trainer.max_steps": 1,
    "trainer.batch_size": 1,
    "trainer.threads": 1,
    "trainer.accelerator": "cpu",
    "optim.warmup_steps": 0,
    "optim.lr_lora": 0.01,
    "data.clip_stride": 25,
    "model.depth.branch": "none",
    "noise.action_prefix.max": 3,
    "validation.clips": 1,
    "validation.every_steps": 0,
    "validation.imagine_clips": 0,
    "validation.action_steps": 2,
    "validation.video_steps": 2,
    "logging.to": [],
}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if named := os.environ.get("XWAM_FT_TEST_BUNDLE"):
        return Path(named)
    import xwam_ft
    from so101 import write_so101

    folder = tmp_path_factory.mktemp("made")
    write_so101(folder / "recordings", episodes=2, frames=40, size=(32, 64))
    xwam_ft.prepare(
        folder / "recordings", folder / "shards", embodiment="so101_joints", depth="none", workers=0, **SHORT
    )
    run = xwam_ft.train("tiny_cpu", folder / "run", **{"data.shards": str(folder / "shards"), **QUICK})
    return xwam_ft.export(run, folder / "bundle").path


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    from hub_server import at_this_hub

    local = at_this_hub(monkeypatch, tmp_path / "hf")
    yield local
    local.stop()
