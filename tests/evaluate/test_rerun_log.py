"""An episode in Rerun: written to a .rrd and read back through rerun's own reader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xwam_ft
from xwam_ft.errors import UserError
from xwam_ft.shards import ShardSet

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None, reason="rerun is not installed: pip install 'xwam-ft[viz]'"
)


def chunks(path: Path) -> dict[str, list[Any]]:
    """Record batches of a .rrd by entity."""
    chunk = pytest.importorskip("rerun.chunk", reason="this rerun has no reader of .rrd files")
    found: dict[str, list[Any]] = {}
    for part in chunk.RrdReader(path).stream():
        found.setdefault(part.entity_path.lstrip("/"), []).append(part)
    return found


def column(parts: list[Any], component: str) -> tuple[np.ndarray, list[Any]]:
    """Frames and values of a component, in order of frames."""
    frames: list[int] = []
    values: list[Any] = []
    for part in parts:
        batch = part.to_record_batch()
        name = next((name for name in batch.schema.names if name.endswith(component)), None)
        if name is not None and "frame" in batch.schema.names:
            frames += batch.column("frame").cast("int64").to_pylist()
            values += batch.column(name).to_pylist()
    order = np.argsort(frames, kind="stable")
    return np.array(frames)[order], [values[i] for i in order]


@pytest.mark.slow
def test_every_frame_is_there_once_with_its_numbers(shard_set: ShardSet, tmp_path: Path) -> None:
    xwam_ft.view(shard_set.folder, episode=0, save=tmp_path / "episode.rrd")
    found = chunks(tmp_path / "episode.rrd")
    segments = [shard_set.read(entry) for entry in shard_set.segments() if entry.episode == 0]
    assert len(segments) > 1  # they overlap
    truth: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for segment in segments:
        for row in range(segment.num_frames):
            truth[segment.first_frame + row] = segment.proprio[row], segment.action[row]
    cameras = {"world/cameras/front", "world/cameras/wrist", "world/points/front", "world/points/wrist"}
    pictures = {f"world/cameras/{name}/{what}" for name in ("front", "wrist") for what in ("rgb", "depth")}
    motion = {"state/tool", "state/gripper", "command/tool", "command/gripper", "world/tool/now", "world/tool/state"}
    assert cameras | pictures | motion <= set(found)
    for entity in pictures:
        frames, _ = column(found[entity], "buffer" if entity.endswith("depth") else "blob")
        assert frames.tolist() == list(range(29)), entity
    for entity, which in (("state/tool", 0), ("command/tool", 1)):
        frames, values = column(found[entity], "scalars")
        assert frames.tolist() == list(range(29))
        expected = np.stack([truth[frame][which][:7] for frame in frames])
        np.testing.assert_allclose(np.array(values), expected, atol=1e-12)
    _, positions = column(found["world/tool/now"], "positions")
    np.testing.assert_allclose(np.array(positions)[:, 0], np.stack([truth[f][0][:3] for f in range(29)]), atol=1e-6)
    # Points of the static camera lie in front of it: beyond 0.5 m, the nearest thing in its pictures.
    _, clouds = column(found["world/points/front"], "positions")
    assert all(np.array(cloud)[:, 1].min() > -1.0 + 0.45 for cloud in clouds)


def test_it_says_what_is_wrong(shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no episode 9"):
        xwam_ft.view(shard_set.folder, episode=9, save=tmp_path / "a.rrd")
    with pytest.raises(UserError, match=r"got no episode.*one of 0, 1, 2"):
        xwam_ft.view(shard_set.folder, rerun=True)
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"pip install 'xwam-ft\[viz\]'"):
        xwam_ft.view(shard_set.folder, episode=0, save=tmp_path / "a.rrd")
    assert list(tmp_path.iterdir()) == []
