"""X-WAM's config.yaml as a contract: its conventions, quantiles, views and timing, and what it cannot say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import yaml

from xwam_ft import conventions, observation
from xwam_ft.contract import load_contract
from xwam_ft.convert.convert import ConvertOptions, import_checkpoint
from xwam_ft.convert.released import ACTION, PROPRIO, find_config, read_released, released_contract
from xwam_ft.errors import UserError
from xwam_ft.model.backbone import load_backbone
from xwam_ft.model.joint import Layout


def config(name: str, *, right: bool, raw: bool) -> dict[str, Any]:
    """A config.yaml with the keys of the published ones."""
    bound = 1 if raw else 0.018

    def side(sign: int) -> dict[str, list[float]]:
        arms = ("left", "right") if right else ("left",)
        of_arms = {
            f"{kind}_{arm}_ee_{part}": [sign * value] * 3
            for arm in arms
            for kind, part, value in (
                ("proprio", "xyz", 0.6), ("action", "xyz", bound), ("action", "axisangle", 0.45)
            )
        }  # fmt: skip
        return {**of_arms, "gripper_pos": [0.0 if sign < 0 else 1.0], "gripper_action": [sign * 0.08]}

    return {
        "num_extra_layers": 10, "action_dim": 14, "proprio_dim": 16, "use_depth": True, "lr": "1e-5",
        "dataset": {
            "dataset_path": f"./sft_datasets/{name}/", "sequence_length": 9, "frame_skip": 4, "action_skip": 1,
            "video_size": [256, 320], "crop_ratio": 0.95, "inverse_gripper": False,
            "normalize_depths_per_view": False, "statistics": {"q01": side(-1), "q99": side(1)},
        },
    }  # fmt: skip


def written(values: dict[str, Any], folder: Path) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder / "config.yaml"


def test_robocasa_speaks_to_its_controller(tmp_path: Path) -> None:
    released = read_released(written(config("RoboCasa", right=False, raw=True), tmp_path))
    contract, sentence = released_contract(released)
    assert contract is not None
    assert "xwam_robocasa_raw (in a controller's units, never metres" in sentence
    assert contract.camera_names == ["robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand"]
    assert (contract.timing.fps, contract.timing.actions_per_frame, contract.timing.action_steps) == (20.0, 4, 32)
    assert (contract.image.height, contract.image.width, contract.image.crop) == (256, 320, 0.95)
    assert (contract.state_dim, contract.action_dim) == (16, 14)
    assert [slot.present for slot in contract.slots] == [True, True, False, False]
    assert contract.depth.kind == "relative"
    assert (Layout.of(contract).proprio, Layout.of(contract).action) == (PROPRIO, ACTION)
    # What a controller is told comes back, its gripper negated and not normalised.
    model = np.zeros((32, 14))
    model[:, 0], model[:, 3], model[:, 6] = 0.5, -1.0, 0.25
    commands = observation.decode(contract, model, np.zeros(16)).slots
    np.testing.assert_allclose(commands["left_arm"][0], [0.5, 0, 0, -0.45, 0, 0], atol=1e-12)
    np.testing.assert_allclose(commands["left_gripper"], -0.25)
    assert set(commands) == {"left_arm", "left_gripper"}
    assert contract.slot("left_arm").command_units == ("1",) * 6
    proprio = conventions.normalise_proprio(contract, np.array([0.6, 0, 0, 1, 0, 0, 0, 1.0, *[0.0] * 8]))
    np.testing.assert_allclose(proprio, [1, 0, 0, 1, 0, 0, 0, 1, *[0.0] * 8], atol=1e-12)


def test_robotwin_has_two_arms_relative_to_the_measured_state(tmp_path: Path) -> None:
    released = read_released(written(config("RoboTwin", right=True, raw=False), tmp_path))
    contract, sentence = released_contract(released)
    assert contract is None
    assert sentence == "no contract: config.yaml does not say it, so give --fps"
    contract, _ = released_contract(released, fps=15.0)
    assert contract is not None
    assert contract.camera_names == ["head_camera", "left_camera", "right_camera"]
    assert {camera.name: camera.mount for camera in contract.cameras}["right_camera"] == "right_arm"
    assert {slot.convention for slot in contract.slots} == {"delta_to_state"}
    assert all(slot.present for slot in contract.slots)
    assert contract.slot("right_gripper").command_from == "next_state"
    assert contract.quantiles.action_high == pytest.approx((*[0.018] * 3, *[0.45] * 3, 0.08) * 2)


def test_an_own_data_set_names_its_cameras(tmp_path: Path) -> None:
    released = read_released(written(config("MyRobot", right=False, raw=False), tmp_path))
    assert released_contract(released)[1].endswith("so give --camera and --fps")
    contract, _ = released_contract(released, cameras=("wrist", "front"), fps=30.0)
    assert contract is not None
    assert contract.embodiment == "MyRobot"
    assert contract.camera_names == ["front", "wrist"]
    assert contract.cameras[0].source_width == 320


def spoil_statistics(values: dict[str, Any]) -> None:
    values["dataset"]["statistics"]["q99"].pop("gripper_pos")


def spoil_width(values: dict[str, Any]) -> None:
    values["dataset"]["statistics"]["q01"]["proprio_left_ee_xyz"] = [0.0]


def spoil_order(values: dict[str, Any]) -> None:
    values["dataset"]["statistics"]["q99"]["gripper_pos"] = [-3.0]


def spoil_gripper(values: dict[str, Any]) -> None:
    values["dataset"]["inverse_gripper"] = True


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_statistics, r"makes no contract \(no 'gripper_pos'\)"),
        (spoil_width, "statistics of the left arm have 6 numbers of proprio, not 8"),
        (spoil_order, "quantiles are not finite pairs with low < high"),
        (spoil_gripper, "dataset.inverse_gripper is true, which no contract can say"),
    ],
)
def test_a_config_that_makes_no_contract_is_one_sentence(tmp_path: Path, spoil, sentence: str) -> None:
    values = copy.deepcopy(config("RoboCasa", right=False, raw=True))
    spoil(values)
    with pytest.raises(UserError, match=sentence + r".*\. Fix: mend it, or leave it out with --config none"):
        released_contract(read_released(written(values, tmp_path)))


def test_several_data_sets_make_no_contract(tmp_path: Path) -> None:
    values = config("RoboCasa", right=False, raw=True)
    values["datasets"] = {"a": values.pop("dataset")}
    assert released_contract(read_released(written(values, tmp_path))) == (
        None,
        "no contract: config.yaml describes no single data set",
    )


def test_the_config_is_found_beside_a_checkpoint_and_goes_with_it(tmp_path: Path) -> None:
    foreign.save_vae_text(tmp_path / "vae_text")
    run = tmp_path / "robocasa_sft"
    last = foreign.save_deepspeed(run, foreign.module())
    place = written(config("RoboCasa", right=False, raw=True), run)
    states = last / "checkpoint" / "mp_rank_00_model_states.pt"
    assert [find_config(path) for path in (run, run / "checkpoints", last, states)] == [place] * 4
    assert find_config(tmp_path / "vae_text") is None
    options = ConvertOptions(vae_text=tmp_path / "vae_text", heads=foreign.HEADS)
    report = import_checkpoint(last, tmp_path / "out", options)
    assert report.notes[0].startswith("contract of RoboCasa: actions xwam_robocasa_raw")
    assert not any("assumed" in note for note in report.notes)
    contract = load_contract(tmp_path / "out" / "contract.json")
    joint = load_backbone(str(tmp_path / "out"), parts=("transformer",)).joint
    assert joint is not None
    assert joint.layout == Layout.of(contract)
    without = import_checkpoint(
        last, tmp_path / "none", ConvertOptions(options.vae_text, Path("none"), heads=foreign.HEADS)
    )
    assert not (tmp_path / "none" / "contract.json").exists()
    assert "4 actions a frame assumed, as in the released models" in without.notes
