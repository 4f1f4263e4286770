"""What a contract takes from recordings beside quantiles: signs of quaternions, and limits nobody stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.spatial.transform import Rotation

from xwam_ft import conventions, observation, poses
from xwam_ft.contract import Limits, load_contract
from xwam_ft.limits import Recorded
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.checks.quaternions import check_quaternions
from xwam_ft.prepare.recorded import hemispheres, proposed_limits, recorded_together, turns
from xwam_ft.quantiles import Motion


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def episode(turns: Rotation, seed: int = 0) -> Motion:
    """The standard slots, a pose and a gripper; commands are two frames ahead."""
    count, random = len(turns), np.random.default_rng(seed)
    state = np.zeros((count, 8))
    state[:, :3] = 0.2 * np.sin(np.arange(count)[:, None] * 0.05 + random.uniform(0, 6, 3))
    state[:, 3:7] = poses.canonical_quaternion(turns.as_quat(scalar_first=True))
    state[:, 7] = 0.04 + 0.03 * np.sin(np.arange(count) * 0.1)
    command = state[np.minimum(np.arange(count) + 2, count - 1)]
    return Motion(state, command, np.ones_like(command))


def down(count: int = 100, seed: int = 0) -> Rotation:
    """A tool that points straight down, to half a degree."""
    noise = np.random.default_rng(seed).normal(0, np.deg2rad(0.5), (count, 3))
    return Rotation.from_rotvec([np.pi, 0, 0]) * Rotation.from_rotvec(noise)


def test_a_tool_that_points_down_gets_a_half_of_its_own(contract: Any) -> None:
    motions = [episode(down(seed=seed), seed) for seed in range(2)]
    around = hemispheres(contract, motions)
    np.testing.assert_allclose(around["tool"], [0, 1, 0, 0], atol=0.01)
    shown = contract.model_copy(update={"recorded": Recorded(hemispheres=around)})
    for motion in motions:
        assert np.abs(np.diff(conventions.in_hemispheres(shown, motion.state)[:, 3:7], axis=0)).max() < 0.1
    said = check_quaternions(shown, dict(enumerate(motions)))
    assert [(f.severity, "passes w = 0" in f.text) for f in said[0]] == [("note", True)]
    assert hemispheres(contract, motions, keep=["tool"]) == {}
    (kept,) = check_quaternions(contract, {0: motions[0]})[0]
    assert (kept.severity, "which the model sees as jumps" in kept.text) == ("warning", True)


def test_what_orientations_were_recorded_is_kept(contract: Any) -> None:
    """Turned by 20 degrees at most about an axis across the one it points along; of several preparations, of all."""
    swung = Rotation.from_rotvec([np.pi, 0, 0]) * Rotation.from_rotvec(
        np.deg2rad(20) * np.sin(np.linspace(0, 12, 400))[:, None] * np.array([[0.0, 1.0, 0.0]])
    )
    found = turns(contract, [episode(swung)])["tool"]
    assert abs(np.dot(found.around, [0, 1, 0, 0])) == pytest.approx(1, abs=0.01)
    assert np.rad2deg(found.most) == pytest.approx(20, abs=1)
    known = Recorded(turns={"tool": found})
    both = recorded_together(contract, [known, known], [episode(swung), episode(down())])
    assert both is not None
    assert both.turns is not None
    assert np.rad2deg(both.turns["tool"].most) == pytest.approx(20, abs=2)
    old = recorded_together(contract, [known, Recorded()], [episode(swung)])  # its bytes stay what they were
    assert old is not None
    assert "turns" not in old.model_dump(mode="json")


def test_a_tool_that_stays_away_from_it_keeps_the_form_of_x_wam(contract: Any) -> None:
    turns = Rotation.from_rotvec(np.sin(np.arange(100)[:, None] * 0.05) * np.array([[1.0, 0.5, 0.0]]))
    motions = [episode(turns)]
    assert hemispheres(contract, motions) == {}
    assert check_quaternions(contract, dict(enumerate(motions))) == {}


def test_turns_that_no_half_holds_are_told(contract: Any) -> None:
    around = Rotation.from_rotvec(np.linspace(0, 4 * np.pi, 200)[:, None] * np.array([[0.0, 0.0, 1.0]]))
    motions = [episode(around)]
    shown = contract.model_copy(update={"recorded": Recorded(hemispheres=hemispheres(contract, motions))})
    (found,) = check_quaternions(shown, dict(enumerate(motions)))[0]
    assert (found.severity, "whichever half is chosen" in found.text) == ("warning", True)


def test_recorded_commands_pass_and_what_no_recording_held_does_not(contract: Any) -> None:
    turns = Rotation.from_rotvec(np.sin(np.arange(200)[:, None] * 0.05) * np.array([[1.0, 0.5, 0.0]]))
    motions = [episode(turns, seed) for seed in range(3)]
    limits = proposed_limits(contract, motions)
    known = contract.model_copy(update={"recorded": Recorded(limits=limits)})
    for motion in motions:
        for start in range(0, 180, 7):
            state, wanted = motion.state[start], motion.command[start : start + 8]
            action = conventions.normalise_action(known, conventions.encode_actions(known, wanted, state))
            assert observation.decode(known, action, state).clamped == {}
    low, high = limits["gripper"].low, limits["gripper"].high
    assert low is not None
    assert high is not None
    # 0.01 to 0.07 m were commanded; a tenth of it is 0.006, less than the least margin of a length.
    np.testing.assert_allclose([*low, *high], [0.01 - 0.02, 0.07 + 0.02], atol=1e-3)
    state = motions[0].state[0]
    far = np.tile([0, 0, 0, 0, 0, 0, 2.3], (4, 1))
    sent = observation.decode(known, conventions.normalise_action(known, far), state)
    assert sent.clamped["gripper"] == 4
    assert sent.table[:, 7].max() <= high[0]


def test_a_rare_outlier_does_not_widen_them(contract: Any) -> None:
    motion = episode(Rotation.identity(3000))
    motion.command[1500, 7] = 9.0
    high = proposed_limits(contract, [motion])["gripper"].high
    assert high is not None
    assert high[0] < 0.1


def test_several_sets_give_the_widest(contract: Any) -> None:
    one = Recorded(limits={"gripper": Limits(low=(0.0,), high=(0.05,), speed=(1.0,))})
    other = Recorded(limits={"gripper": Limits(low=(-0.1,), high=(0.04,), speed=(2.0,))})
    found = recorded_together(contract, [one, other], [])
    assert found is not None
    assert found.limits == {"gripper": Limits(low=(-0.1,), high=(0.05,), speed=(2.0,))}
    assert recorded_together(contract, [one, None], []) is None
    turned = Recorded(hemispheres={"tool": (0.0, 1.0, 0.0, 0.0)}, limits=one.limits)
    mixed = recorded_together(contract, [one, turned], [episode(down(seed=s), s) for s in range(2)])
    assert mixed is not None
    assert list(mixed.hemispheres) == ["tool"]


def test_prepare_writes_them_and_stated_ones_stay(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    raw = lerobot.v21(tmp_path / "raw", lerobot.recording([30, 30, 30]))
    (tmp_path / "toy.urdf").write_text(lerobot.urdf)
    made = tmp_path / "poses.yaml"
    text = toy.read_text().split("slots:")[0] + (
        "slots:\n  arm: {kind: pose, from: joints, columns: [j1, j2], units: rad, urdf: toy.urdf, base: base, "
        "tip: hand}\n"
        "  hand: {kind: gripper, columns: [grip], limits: {speed: 5}}\n"
    )
    made.write_text(text)
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "log").open("w"))
    options: Any = {"workers": 0, "strict": False, "urdf_dirs": [], "depth": "none"}
    pipeline.prepare([raw], tmp_path / "out", embodiment=made, console=console, **options)
    assert "limits: commands of arm, hand will be held in what was recorded" in console.export_text()
    contract = load_contract(tmp_path / "out" / "contract.json")
    arm, hand = contract.limits("arm"), contract.limits("hand")
    assert arm is not None
    assert hand is not None
    assert hand.speed == (5.0,)
    assert hand.low is not None
    assert arm.joints is not None
    assert arm.joints.low is not None
    assert len(arm.joints.low) == 2
    assert arm.joints.speed is not None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "recorded, with a margin" in page
    assert "in part recorded" in page
