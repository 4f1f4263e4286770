"""The policy in LeRobot's own hands: found, loaded, asked, rolled out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors
from lerobot.policies.rtc.action_queue import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import RTCInferenceEngine
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins
from so101_env import HEIGHT, NUMBERS, WIDTH, So101Sim, So101SimEnv
from xwam_ft import Policy, UserError
from xwam_ft.aliases import robot_command
from xwam_ft.policy.request import command_table

MOTORS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
STEPS, HOLD = 8, 2


@pytest.fixture(scope="module", autouse=True)
def found() -> None:
    register_third_party_plugins()


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Any:
    return get_policy_class("xwam").from_pretrained(bundle)


@pytest.fixture(scope="module")
def saved(policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "so101"
    policy.save_pretrained(folder)
    return folder


def seen(task: str, *seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A batch as LeRobot gives it, and the same as single observations in numpy."""
    environments = [So101Sim(task, 10) for _ in seeds]
    one = [env.reset(seed=seed)[0] for env, seed in zip(environments, seeds, strict=True)]
    pictures = {
        f"observation.images.{name}": torch.stack(
            [torch.from_numpy(o["pixels"][name]).movedim(-1, 0) / 255 for o in one]
        )
        for name in ("front", "wrist")
    }
    state = torch.stack([torch.from_numpy(o["agent_pos"]).float() for o in one])
    return {**pictures, "observation.state": state, "task": [task] * len(seeds)}, one


def task_of(policy: Any) -> str:
    return policy.bundle.contract.prompts[0]


def test_lerobot_finds_the_type_by_the_distribution(bundle: Path) -> None:
    assert "xwam" in PreTrainedConfig.get_known_choices()
    assert get_policy_class("xwam").name == "xwam"


def test_a_chunk_is_the_bundle_s_own_in_degrees_one_a_tick(policy: Any, bundle: Path) -> None:
    batch, single = seen(task_of(policy), 1, 2)
    policy.bundle.calls = 0
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (2, STEPS * HOLD, NUMBERS)
    assert torch.equal(chunk[:, ::HOLD], chunk[:, 1::HOLD])
    plain = Policy.load(bundle, "cpu")
    for index, one in enumerate(single):
        state = {
            "arm": np.deg2rad(one["agent_pos"][:5].astype(np.float32).astype(float)),
            "gripper": one["agent_pos"][5:].astype(np.float32).astype(float),
        }
        out = plain.infer({"images": one["pixels"], "state": state, "prompt": task_of(policy)}, seed=index)
        for row, ours in zip(command_table(plain.contract, out.commands.slots), chunk[index, ::HOLD], strict=True):
            told = robot_command(plain.contract, row)
            assert ours.tolist() == pytest.approx([told[f"{name}.pos"] for name in MOTORS], rel=1e-5, abs=1e-3)


def test_half_a_chunk_is_carried_out_and_a_reset_forgets_it(policy: Any) -> None:
    batch, _ = seen(task_of(policy), 1)
    policy.reset()
    policy.bundle.calls = 0
    chunk = policy.predict_action_chunk(batch)
    policy.bundle.calls = 0
    told = [policy.select_action(batch) for _ in range(STEPS // 2 * HOLD)]
    assert torch.equal(torch.stack(told, dim=1), chunk[:, : STEPS // 2 * HOLD])
    assert policy.bundle.calls == 1
    policy.select_action(batch)
    assert policy.bundle.calls == 2
    policy.reset()
    policy.select_action(batch)
    assert policy.bundle.calls == 3


def test_lerobot_s_own_rollout_moves_the_arm(saved: Path) -> None:
    config = PreTrainedConfig.from_pretrained(saved)
    config.pretrained_path = saved
    environment = So101SimEnv(episode_length=10)
    made = make_policy(config, env_cfg=environment)
    environment.task = task_of(made)
    before, after = make_pre_post_processors(
        made.config, str(saved), preprocessor_overrides={"device_processor": {"device": str(made.config.device)}}
    )
    [envs] = [group[0] for group in environment.create_envs(2).values()]
    told = rollout(envs, made, *environment.get_env_processors(), before, after, seeds=[1, 2])
    assert told["action"].shape == (2, 10, NUMBERS)
    arm = told["action"][..., :5]
    assert 1.0 < arm.abs().max() <= 200, "degrees, not radians"
    assert torch.equal(told["action"][:, 0], told["action"][:, 1]), "a command lasts two ticks"
    assert made.bundle.calls == 2 * 2, "two looks of two environments"


def test_lerobot_eval_on_the_command_line(saved: Path, policy: Any, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-c",
        "import so101_env; from lerobot.scripts.lerobot_eval import main; main()",
        f"--policy.path={saved}",
        "--policy.device=cpu",
        "--env.type=so101_sim",
        f"--env.task={task_of(policy)}",
        "--env.episode_length=6",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'out'}",
    ]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 1


def test_a_chunk_goes_on_from_the_actions_under_way(policy: Any) -> None:
    batch, _ = seen(task_of(policy), 1)
    queue = ActionQueue(RTCConfig(enabled=True, execution_horizon=8))
    first = policy.predict_action_chunk(batch)[0]
    queue.merge(first, first, 0, 0)
    for _ in range(2 * HOLD):
        queue.get()
    left = queue.get_left_over()
    assert left is not None
    second = policy.predict_action_chunk(batch, inference_delay=2 * HOLD, prev_chunk_left_over=left)[0]
    assert second[: 2 * HOLD].numpy() == pytest.approx(left[: 2 * HOLD].numpy(), rel=1e-4, abs=1e-2)
    without = policy.predict_action_chunk(batch)[0]
    assert not np.allclose(without[: 2 * HOLD], left[: 2 * HOLD], atol=1e-2)


def test_rows_that_lerobot_fills_up_with_zeros_are_no_commands(policy: Any) -> None:
    batch, _ = seen(task_of(policy), 1)
    policy.bundle.calls = 0
    plain = policy.predict_action_chunk(batch)
    policy.bundle.calls = 0
    filled = policy.predict_action_chunk(batch, inference_delay=4, prev_chunk_left_over=torch.zeros(8, NUMBERS))
    assert torch.equal(filled, plain)


def test_real_time_chunking_in_lerobot_s_engine(policy: Any) -> None:
    names = [f"{name}.pos" for name in MOTORS]
    features = {
        "observation.state": {"dtype": "float32", "shape": (NUMBERS,), "names": names},
        **{
            f"observation.images.{name}": {
                "dtype": "image",
                "shape": (HEIGHT, WIDTH, 3),
                "names": ["height", "width", "channels"],
            }
            for name in ("front", "wrist")
        },
    }
    env = So101Sim(task_of(policy), 100)
    observation, _ = env.reset(seed=3)
    engine = RTCInferenceEngine(
        policy,
        *make_pre_post_processors(policy.config),
        robot_wrapper=SimpleNamespace(robot_type="so101", action_features=dict.fromkeys(names, float)),  # type: ignore[arg-type]
        rtc_config=RTCConfig(enabled=True, execution_horizon=8),
        hw_features=features,
        task=task_of(policy),
        fps=5,  # so that a slow machine's answer is not older than its chunk is long
        device="cpu",
        rtc_queue_threshold=4,
    )
    policy.reset()
    policy.bundle.calls = 0
    engine.resume()
    engine.start()
    told: list[torch.Tensor] = []
    until = time.monotonic() + 120
    try:
        while (policy.bundle.calls < 3 or not told) and time.monotonic() < until and not engine.failed:
            joints = dict(zip(names, observation["agent_pos"].tolist(), strict=True))
            engine.notify_observation({**joints, **observation["pixels"]})
            action = engine.get_action(None)
            if action is not None:
                told.append(action)
                observation, *_ = env.step(action.numpy())
            time.sleep(1 / 5)
    finally:
        engine.stop()
    assert not engine.failed
    assert policy.bundle.calls >= 3
    assert told
    assert told[0].shape == (NUMBERS,)


def test_by_its_name_on_the_hub(bundle: Path, saved: Path, local_hub: Any, policy: Any) -> None:
    sha = local_hub.add("models/org/bundle", bundle)
    local_hub.add("models/org/saved", saved)
    batch, _ = seen(task_of(policy), 5)
    policy.bundle.calls = 0
    here = policy.predict_action_chunk(batch)
    for name in ("org/bundle", f"org/bundle@{sha}", "org/saved"):
        there = get_policy_class("xwam").from_pretrained(name)
        assert torch.equal(there.predict_action_chunk(batch), here), name
    with pytest.raises(UserError, match="org/none: is not there"):
        get_policy_class("xwam").from_pretrained("org/none")


def test_what_it_is_not_for_is_said(policy: Any, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="xwam-ft train"):
        policy.forward({})
    with pytest.raises(UserError, match="is not there"):
        get_policy_class("xwam").from_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match=r"policy.bundle: names no bundle"):
        get_policy_class("xwam")(PreTrainedConfig.get_choice_class("xwam")())
    with pytest.raises(ValueError, match=r"policy.hold is 0"):
        PreTrainedConfig.get_choice_class("xwam")(hold=0)
    batch, _ = seen(task_of(policy), 1)
    del batch["observation.images.wrist"]
    with pytest.raises(UserError, match=r"camera 'wrist' is missing.*observation.images.wrist"):
        policy.predict_action_chunk(batch)


@pytest.mark.parametrize(
    ("change", "told"),
    [(lambda p: p * 255, r"is from \d+ to \d\d+"), (lambda p: (p - 0.45) / 0.22, "is from -2.05 to")],
)
def test_pictures_that_are_not_from_0_to_1_are_refused(policy: Any, change: Any, told: str) -> None:
    """As white, or as black and white, they would pass for pictures."""
    batch, _ = seen(task_of(policy), 1)
    batch["observation.images.wrist"] = change(batch["observation.images.wrist"])
    with pytest.raises(UserError, match=rf"observation.images.wrist: {told}.*floats from 0 to 1"):
        policy.predict_action_chunk(batch)


def test_what_an_answer_warns_of_is_in_the_log_once_an_episode(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """LeRobot takes actions alone, so a state in another unit would pass in silence."""
    batch, _ = seen(task_of(policy), 1, 2)
    batch["observation.state"][1] *= 1000
    for _ in range(2):
        policy.reset()
        caplog.clear()
        for _ in range(3):
            policy.predict_action_chunk(batch)
        units = [record.getMessage() for record in caplog.records if "is it in that unit?" in record.getMessage()]
        assert units
        assert len(set(units)) == len(units)
