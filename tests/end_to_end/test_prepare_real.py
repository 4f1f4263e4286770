"""`prepare` of real teleoperation (Unitree G1, 4 episodes, AV1) in LeRobot v2.1 and v3.0: the same bits from both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from shared import QUIET, members_in, save_tiny_dpt
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.shards import ShardSet

DATA = os.environ.get("XWAM_FT_TEST_DATA")
EMBODIMENTS = Path(__file__).parents[2] / "recipes" / "embodiments"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="XWAM_FT_TEST_DATA does not name the folder of real recordings"),
]


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_dpt(tmp_path_factory.mktemp("models") / "tiny_dpt")


@pytest.mark.parametrize("space", ["poses", "joints"])
def test_both_versions_of_the_g1_recordings_give_the_same_bits(space: str, estimator: Path, tmp_path: Path) -> None:
    assert DATA is not None
    sets: list[ShardSet] = []
    for version, workers in (("v21", 2), ("v30", 0)):
        outcome = prepare(
            [Path(DATA) / f"lerobot_{version}_g1"],
            tmp_path / version,
            embodiment=EMBODIMENTS / f"unitree_g1_inspire_{space}.yaml",
            depth=f"transformers:{estimator}" if space == "poses" else "none",  # depth knows nothing of slots
            workers=workers,
            strict=True,
            urdf_dirs=[Path(DATA) / "urdf"],
            console=QUIET,
        )
        assert (outcome.episodes, outcome.frames, outcome.rejected) == (4, 1045, [])
        sets.append(ShardSet.open(tmp_path / version))
    old, new = members_in(tmp_path / "v21"), members_in(tmp_path / "v30")
    kinds = {name.split(".", 1)[1] for name in old}
    depth = {"depth.cam_high.mkv"} if space == "poses" else set()
    assert kinds == {"meta.json", "motion.npz", "rgb.cam_high.mp4"} | depth
    assert old == new
    assert sets[0].contract.sha256 == sets[1].contract.sha256
    assert [episode.frames for episode in sets[0].index.episodes] == [221, 277, 267, 280]
    assert sets[0].contract.prompts == ("Pick up the yellow bottle on the table.",)

    first = sets[0].read(sets[0].segments()[0])
    arm = sets[0].contract.slot("left_arm")
    if space == "poses":
        # Commands go back to joints by inverse kinematics, near the recorded ones.
        assert arm.chain is not None
        import pyarrow.parquet as pq

        table = pq.read_table(Path(DATA) / "lerobot_v21_g1" / "data" / "chunk-000" / "episode_000000.parquet")
        joints = np.array(table.column("action").to_pylist())[0, :7]
        from xwam_ft.poses import pose_matrix

        solved, metres, radians = arm.chain.inverse(pose_matrix(first.action[0, :7]), joints + 0.01)
        assert max(metres, radians) < 1e-6
        np.testing.assert_allclose(arm.chain.forward(solved), pose_matrix(first.action[0, :7]), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(first.proprio[:, 3:7], axis=1), 1, atol=1e-12)
    else:
        assert arm.columns[3] == "kLeftElbow"
        assert first.proprio[0, 3] == pytest.approx(1.2257, abs=1e-4)
