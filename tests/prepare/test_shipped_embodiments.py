"""The embodiment files that ship, met with columns as their recordings have them and with the makers' URDFs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from xwam_ft.kinematics import Chain
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import Embodiment, load_embodiment
from xwam_ft.prepare.embodiment.slots import SlotPlan, motion, plan_slots
from xwam_ft.prepare.episode import Table
from xwam_ft.prepare.sources import CameraInfo, SourceInfo

SHIPPED = Path(__file__).parents[2] / "recipes" / "embodiments"
DATA = os.environ.get("XWAM_FT_TEST_DATA")
WITH_URDF = ["so101_poses", "franka_panda_poses", "piper_poses", "unitree_g1_inspire_poses"]
WITHOUT = [
    "aloha_viperx_joints",
    "ur5_poses",
    "xarm7_poses",
    "so101_normalized_joints",
    "so101_joints",
    "unitree_g1_inspire_joints",
]
ALSO_IN_THE_FILES = [  # what their heads say of joints instead of poses: file, base, tip, joints
    ("ur5_robot.urdf", "base_link", "tool0", 6),
    ("xarm7.urdf", "link_base", "link_eef", 7),
]


def recorded(spec: Embodiment) -> SourceInfo:
    """A recording with the columns a file names, as state and as command."""
    names = [name for slot in spec.slots.values() for name in slot.columns]
    columns = [f"{feature}/{name}" for feature in ("observation.state", "action") for name in names]
    cameras = {camera.source: CameraInfo(camera.source) for camera in spec.cameras.values()}
    return SourceInfo(Path("set"), "LeRobot v3.0", 30.0, "robot", cameras, tuple(columns))


def planned(name: str, urdf_dirs: list[Path], where: Path | None = None) -> list[SlotPlan]:
    path = where or SHIPPED / f"{name}.yaml"
    spec = load_embodiment(path)
    plan_cameras(spec, recorded(spec), path)
    return plan_slots(spec, recorded(spec), path, urdf_dirs)


def rows(plans: list[SlotPlan], value: float) -> Table:
    columns = {name: np.full(8, value) for plan in plans for r in (plan.state, plan.command) if r for name in r.columns}
    return Table(columns, None, None)


@pytest.mark.parametrize("name", WITHOUT)
def test_files_without_a_urdf_resolve(name: str, tmp_path: Path) -> None:
    where = tmp_path / f"{name}.yaml"
    where.write_text((SHIPPED / f"{name}.yaml").read_text())
    motors = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
    ranges = {motor: {"id": i, "drive_mode": 0, "range_min": 1024, "range_max": 3072} for i, motor in enumerate(motors)}
    (tmp_path / "so101_calibration.json").write_text(json.dumps(ranges))
    plans = planned(name, [], where)
    state, mask, command, command_mask = motion(plans, rows(plans, 0.5), 1)
    assert np.isfinite(state).all()
    assert np.isfinite(command).all()
    assert mask.all()
    assert command_mask.all()
    if name == "so101_normalized_joints":  # half of a hundredth of a quarter turn, over 4095 steps
        np.testing.assert_allclose(state[0, :5], 0.5 / 100 * 1024 * 2 * np.pi / 4095)
    if name == "so101_joints":
        np.testing.assert_allclose(state[0], [*[np.radians(0.5)] * 5, 0.5])
    if name == "xarm7_poses":
        np.testing.assert_allclose(state[0, :3], 0.0005)


@pytest.mark.skipif(DATA is None, reason="XWAM_FT_TEST_DATA does not name the folder of real recordings")
@pytest.mark.parametrize("name", WITH_URDF)
def test_files_with_a_urdf_resolve_to_chains_within_limits(name: str) -> None:
    plans = planned(name, [Path(str(DATA)) / "urdf"])
    chains = [plan.slot.chain for plan in plans if plan.slot.chain is not None]
    assert chains
    for chain in chains:
        check_chain(chain)
    state, _, command, _ = motion(plans, rows(plans, 0.01), 1)
    np.testing.assert_allclose(state, command)  # equal numbers are equal poses


def check_chain(chain: Chain) -> None:
    """The tip moves with every joint, and inverse kinematics from nearby stays inside the limits."""
    low, high = chain._limits()
    assert np.all(low < high)
    middle = np.clip(np.where(np.isfinite(low + high), (low + high) / 2, 0.0), -1.0, 1.0)
    middle = np.clip(middle + 0.15, low, high)
    home = chain.forward(middle)
    for joint in range(len(middle)):
        moved = middle.copy()
        moved[joint] += 0.05 if moved[joint] + 0.05 < high[joint] else -0.05
        assert np.abs(chain.forward(moved) - home).max() > 1e-3
    found, metres, radians = chain.inverse(home, np.clip(middle + 0.02, low, high))
    assert max(metres, radians) < 1e-6
    assert np.all((found >= low) & (found <= high))


@pytest.mark.skipif(DATA is None, reason="XWAM_FT_TEST_DATA does not name the folder of real recordings")
@pytest.mark.parametrize(("urdf", "base", "tip", "count"), ALSO_IN_THE_FILES)
def test_the_chains_their_heads_name_resolve(urdf: str, base: str, tip: str, count: int) -> None:
    from xwam_ft.kinematics import load_chain

    chain = load_chain(Path(str(DATA)) / "urdf" / urdf, base, tip)
    assert len(chain.movable) == count
    check_chain(chain)


def test_every_file_that_ships_is_tested() -> None:
    elsewhere = {"metaworld_sawyer", "metaworld_sawyer_rgb", "bridge_widowx_rlds"}  # test_rlds, test_bundled_recordings
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {*WITH_URDF, *WITHOUT, *elsewhere}


def test_every_urdf_a_file_names_is_one_whose_origin_is_told(tmp_path: Path) -> None:
    """Without --urdf-dir the error says where to get it."""
    from xwam_ft.errors import UserError

    for name in WITH_URDF:
        with pytest.raises(UserError, match=r"the URDF '.*\.urdf' is in none of .*get it from (https|the pip package)"):
            planned(name, [tmp_path])
