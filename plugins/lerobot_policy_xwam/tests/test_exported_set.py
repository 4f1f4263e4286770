"""A shard set that `xwam-ft shards export` wrote, read by LeRobot's own loader: every frame, number and depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xwam_ft
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from so101 import NAMES, write_so101
from xwam_ft.sets.joined_video import own_rows

SMALL = {
    "timing.frame_skip": 4,
    "timing.action_skip": 2,
    "timing.clip_frames": 5,
    "image.height": 32,
    "image.width": 64,
}


@pytest.mark.parametrize(("frames", "segments"), [(40, 1), (430, 2)], ids=["copied", "joined"])
def test_lerobot_gives_the_sets_own_pictures_and_the_robots_own_numbers(
    frames: int, segments: int, tmp_path: Path
) -> None:
    write_so101(tmp_path / "recordings", episodes=2, frames=frames, size=(32, 64))
    made = xwam_ft.prepare(
        tmp_path / "recordings", tmp_path / "shards", embodiment="so101_joints", depth="none", workers=0, **SMALL
    )
    exported = xwam_ft.sets.export_lerobot(made, tmp_path / "dataset")
    theirs = LeRobotDataset("local/exported", root=exported.path, video_backend="pyav", return_uint8=True)
    recorded = LeRobotDataset("local/recorded", root=tmp_path / "recordings", video_backend="pyav")
    assert (theirs.num_episodes, len(theirs), theirs.meta.robot_type) == (2, 2 * frames, "so101_joints")
    assert theirs.meta.features["action"]["names"] == NAMES
    shards = xwam_ft.ShardSet.open(made.path)
    for episode in shards.index.episodes:
        entries = [entry for entry in shards.index.segments if entry.episode == episode.index]
        assert len(entries) == segments
        frame = episode.index * frames
        for entry, rows in zip(entries, own_rows(entries), strict=True):
            segment = shards.read(entry)
            for row in rows:
                item = theirs[frame]
                assert item["task"] == episode.instruction
                for view, camera in enumerate(shards.contract.camera_names):
                    shown = item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0)
                    np.testing.assert_array_equal(shown, segment.rgb[view, row])
                for name in ("observation.state", "action"):
                    before = recorded.hf_dataset[frame][name].numpy()
                    np.testing.assert_array_equal(item[name].numpy(), before)
                frame += 1
    assert set(theirs.meta.stats["observation.images.front"]) >= {"mean", "std", "min", "max", "q01", "q99", "count"}
