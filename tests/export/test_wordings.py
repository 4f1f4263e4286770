"""Instructions in several wordings, from an outsider's recording to the robot: what training told, a policy follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import so101
import xwam_ft
from shared import QUIET
from xwam_ft.encode.cache import LatentCache
from xwam_ft.errors import UserError
from xwam_ft.export.checkpoint import policy_source
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.request import example_observation

TASKS = ("Push the cube", "Move the cube with the gripper.", "Shove it")
SHORT = {"timing.frame_skip": 2, "timing.action_skip": 1, "timing.clip_frames": 5}


def recordings(folder: Path) -> Path:
    """A LeRobot set whose episodes list three wordings of their task, and whose rows do not say which was told."""
    raw = so101.write_so101(folder, episodes=3, frames=30, size=(32, 64))
    for path in raw.glob("data/**/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["task_index"]), path)
    for path in raw.glob("meta/episodes/**/*.parquet"):
        table = pq.read_table(path)
        column = pa.array([list(TASKS)] * len(table))
        pq.write_table(table.set_column(table.column_names.index("tasks"), "tasks", column), path)
    return raw


@pytest.mark.slow
def test_every_wording_that_training_told_is_known_to_the_policy(tmp_path: Path) -> None:
    raw = recordings(tmp_path / "raw")
    made = xwam_ft.prepare(  # pyright: ignore[reportCallIssue]
        raw, tmp_path / "set", embodiment="so101_joints", depth="none", workers=0, **SHORT,
        **{"image.height": 32, "image.width": 64},
    )  # fmt: skip
    assert made.shards.contract.prompts == tuple(sorted(TASKS))
    tree = {
        "backbone": {"path": "tiny", "dtype": "float32"},
        "data": {"shards": str(tmp_path / "set"), "clip_stride": 7},
        "model": {"lora": {"rank": 2, "alpha": 2}, "depth": {"branch": "none"}},
        "optim": {"warmup_steps": 0, "lr_lora": 1e-2, "lr_heads": 1e-2},
        "trainer": {"max_steps": 1, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
        "validation": {"every_steps": 0, "clips": 1, "action_steps": 2, "video_steps": 2, "imagine_clips": 0},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
    run = xwam_ft.train(tmp_path / "toy.yaml", tmp_path / "run")  # pyright: ignore[reportCallIssue]
    cache = LatentCache.open(next((tmp_path / "set").glob("latents-*")))
    told = {text for clip in cache.clips if clip.split == "train" for text in clip.wordings}
    assert told == set(TASKS)
    bundle = xwam_ft.export(run, tmp_path / "bundle")  # pyright: ignore[reportCallIssue]
    policies = Policy.load(str(bundle.path)), policy_source(Path(f"{run.path}@1"), QUIET).load()
    for policy in policies:
        chunks = []
        for text in TASKS:
            assert (policy.prompts[text] == cache.prompt_embeddings[cache.prompt_index[text]]).all()
            asked = example_observation(policy.contract, text.lower())  # as it is typed
            chunks.append(policy.infer(asked, seed=0).action)
        assert not np.array_equal(chunks[0], chunks[1])
        with pytest.raises(UserError, match="Shove it"):
            policy.infer(example_observation(policy.contract, "Shove her"))
