"""`examples/so101_loop.py`: LeRobot's names and degrees in and out, at 30 commands a second, chunk after chunk."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import xwam_ft
from xwam_ft.errors import UserError
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.server import serving

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples")]

import so101_loop
from so101 import CENTRE, NAMES, SWING, TASKS, write_so101
from so101_loop import Dummy, So101Loop, dummy, require_motors

OVERRIDES: dict[str, Any] = {
    "timing.frame_skip": 2,
    "timing.action_skip": 1,
    "timing.clip_frames": 5,
    "image.height": 32,
    "image.width": 64,
}
TYPED = "put the red cube  into the box"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes in degrees, 30 commands a second, chunks of eight."""
    folder = tmp_path_factory.mktemp("so101")
    recordings = write_so101(folder / "recordings", episodes=3, frames=60, size=(32, 64))
    made = xwam_ft.prepare(  # pyright: ignore[reportCallIssue]
        recordings, folder / "shards", embodiment="so101_joints", depth="none", workers=0, **OVERRIDES
    )
    return made.path


def in_range(sent: list[dict[str, float]]) -> np.ndarray:
    """Rows [n, 6] in LeRobot's order, held against what the recordings move in, in degrees."""
    assert all(list(command) == NAMES for command in sent)
    rows = np.array([list(command.values()) for command in sent])
    assert np.all(np.abs(rows - CENTRE) <= 1.3 * SWING + 3), "not in the recordings' units"
    return rows


def test_degrees_go_in_and_come_out(shards: Path) -> None:
    replay, answers = ReplayPolicy(shards, 0), list[Any]()
    answered = replay.infer
    replay.infer = lambda request, **options: answers.append(request) or answered(request, **options)  # pyright: ignore[reportAttributeAccessIssue]
    assert replay.contract.timing.action_period == pytest.approx(1 / 30)
    state = [*np.rad2deg(replay.states[0, :5]).tolist(), float(replay.states[0, 5])]
    with serving(replay) as address, PolicyClient(address) as client:
        robot = dummy(client)
        robot.now |= dict(zip(NAMES, state, strict=True))
        loop = So101Loop(client, robot, TYPED, execute=4, late=5.0)
        require_motors(robot, loop)
        began = time.monotonic()
        assert loop.run(1.0) == "done"
        took = time.monotonic() - began
    rows = in_range(robot.sent)
    # A chunk that arrives between two commands begins at once: one command more, for each of them.
    assert 0.7 * 30 * took <= len(rows) <= 30 * took + 1 + len(answers)
    recorded = replay.commands.copy()
    recorded[:, :5] = np.rad2deg(recorded[:, :5])
    nearest = np.abs(rows[:, None] - recorded[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-3, "something was sent that was never recorded"
    assert robot.held == 1


def test_a_robot_of_other_names_is_told_before_anything_moves(shards: Path) -> None:
    with serving(ReplayPolicy(shards, 0)) as address, PolicyClient(address) as client:
        robot = dummy(client)
        loop = So101Loop(client, robot, TYPED, execute=4, late=5.0)
        del robot.now["elbow_flex.pos"]
        with pytest.raises(UserError, match=r"slot 'arm' lacks elbow_flex.pos. Fix: give state.arm or"):
            require_motors(robot, loop)
        other = Dummy({name.replace("front", "top"): value for name, value in dummy(client).now.items()})
        with pytest.raises(UserError, match="unknown key 'top'"):
            require_motors(other, loop)
        assert robot.sent == other.sent == []


@pytest.mark.slow
def test_a_trained_bundle_acts_and_its_chunks_go_on_from_one_another(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two steps teach nothing: its commands are wild, and a prefix of them would be refused.
    monkeypatch.setattr("xwam_ft.policy.request.FAR", float("inf"))
    tree = {
        "backbone": {"path": "tiny", "dtype": "float32"},
        "data": {"shards": str(shards), "clip_stride": 20},
        "model": {"lora": {"rank": 2, "alpha": 2}, "depth": {"branch": "none"}},
        "noise": {"action_prefix": {"max": 4}},
        "optim": {"lr_lora": 1e-3, "lr_heads": 1e-3, "warmup_steps": 0},
        "trainer": {"max_steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
        "validation": {"every_steps": 0, "clips": 1, "action_steps": 1, "video_steps": 2, "imagine_clips": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    run = xwam_ft.train(tmp_path / "recipe.yaml", tmp_path / "run")  # pyright: ignore[reportCallIssue]
    bundle = xwam_ft.export(run, tmp_path / "bundle", progress=Console(file=io.StringIO()))  # pyright: ignore[reportCallIssue]
    policy = Policy.load(bundle.path, "cpu")
    # Thirty times slower than the arm: on busy cores an answer takes longer than eight commands at 30 a second last.
    slower = policy.contract.timing.model_copy(update={"fps": 1.0})
    policy.contract = policy.contract.model_copy(update={"timing": slower})
    asked: list[Any] = []
    infer = policy.infer

    def listens(request: Any, **options: Any) -> Any:
        asked.append(request.get("options", {}).get("prefix"))
        return infer(request, **options)

    policy.infer = listens  # pyright: ignore[reportAttributeAccessIssue]
    with serving(policy) as address, PolicyClient(address) as client:
        asked.clear()
        robot = dummy(client)
        assert So101Loop(client, robot, TYPED, execute=2, late=20.0).run(9.0) == "done"
        assert client.delay is not None
        with PolicyClient(address, timeout=60.0) as other:  # the loop's own may still wait for what it asked last
            first = other.follow(_seen(robot), None)
            second = other.follow(_seen(robot), first, seen=first.start + 2 * first.period)
        code = subprocess.run(
            [sys.executable, so101_loop.__file__, address, TYPED, "--dummy", "--seconds", "3", "--late", "30"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    in_range(robot.sent)
    prefixes = [len(rows) for rows in asked if rows is not None]
    assert prefixes, "no chunk went on from the one under way"
    assert max(prefixes) <= 4
    assert second.prefix > 0
    np.testing.assert_allclose(second.actions[: second.prefix], first.actions[2 : 2 + second.prefix], atol=2e-3)
    assert second.start == pytest.approx(first.start + 2 * first.period)
    assert (code.returncode, code.stdout) == (0, "done\n"), code.stderr
    assert "did you mean" not in code.stderr


def _seen(robot: Dummy) -> dict[str, Any]:
    return {**robot.get_observation(), "task": TYPED}


def test_the_page_of_the_script_names_the_options_it_has() -> None:
    head = so101_loop.__doc__ or ""
    done = subprocess.run([sys.executable, so101_loop.__file__, "--help"], capture_output=True, text=True, check=True)
    assert set(re.findall(r"(--[a-z]+)", head)) - {"--port"} <= set(re.findall(r"--[a-z]+", done.stdout))
    assert TASKS[0] in head
