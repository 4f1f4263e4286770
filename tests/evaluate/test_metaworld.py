"""Meta-World as a policy's environment: commands as recorded do what the expert did; needs the [sim] extra and GL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import QUIET
from xwam_ft.bundled import bundled
from xwam_ft.contract import Contract, Timing
from xwam_ft.errors import UserError
from xwam_ft.evaluate import metaworld
from xwam_ft.evaluate.environment import Outcome
from xwam_ft.evaluate.metaworld import MetaWorld, Simulator
from xwam_ft.evaluate.perturb import AS_RECORDED

SIMULATED = importlib.util.find_spec("metaworld") is not None
needs_simulator = pytest.mark.skipif(not SIMULATED, reason="Meta-World is not installed: pip install 'xwam-ft[sim]'")


@pytest.fixture(scope="module")
def sawyer(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    """The contract of the bundled recordings."""

    from xwam_ft.prepare.pipeline import prepare
    from xwam_ft.shards import ShardSet

    out = tmp_path_factory.mktemp("sawyer") / "shards"
    embodiment = bundled("recipes/embodiments/metaworld_sawyer_rgb.yaml")
    options: dict[str, Any] = {"depth": "none", "workers": 0, "strict": True, "urdf_dirs": []}
    prepare([bundled("recordings/metaworld_demo")], out, embodiment=embodiment, console=QUIET, **options)
    return ShardSet.open(out).contract


@pytest.fixture
def environment(sawyer: Contract) -> Any:
    try:
        made = MetaWorld("button-press-topdown", sawyer)
    except UserError as error:
        if "no picture" in str(error):
            pytest.skip(f"no renderer: {error}")
        raise
    yield made
    made.close()


@pytest.mark.sim
@needs_simulator
def test_commanding_the_experts_targets_does_what_the_expert_did(environment: MetaWorld) -> None:
    expert = Simulator("button-press-topdown", ["corner"], 32, 32)
    seen = expert.reset(5)
    environment.reset(5)
    success = False
    while not success:
        action = np.clip(expert.expert.get_action(seen), -1, 1).astype(np.float32)
        seen, _, _, _, info = expert.environment.step(action)
        success = environment.step({"arm": expert.target(), "gripper": action[3:]}) is Outcome.SUCCESS
        assert success == bool(info["success"])
        np.testing.assert_allclose(environment.simulator.hand(), expert.hand(), atol=1e-5)
    expert.close()


@pytest.mark.sim
@needs_simulator
def test_an_observation_holds_the_robot_and_its_pictures_and_nothing_else(environment: MetaWorld) -> None:
    environment.reset(1)
    first = environment.observe()
    environment.reset(2)
    second = environment.observe()
    assert set(first) == {"images", "state", "prompt"}
    assert {name: len(numbers) for name, numbers in first["state"].items()} == {"arm": 7, "gripper": 1}
    # Another goal: the robot starts alike, and only pictures tell.
    np.testing.assert_allclose(first["state"]["arm"], second["state"]["arm"], atol=1e-3)
    assert any(np.any(first["images"][name] != second["images"][name]) for name in first["images"])


@pytest.mark.sim
@needs_simulator
def test_a_goal_follows_from_the_seed_alone(environment: MetaWorld) -> None:
    pictures = []
    for seed in (3, 4, 3):
        environment.reset(seed)
        pictures.append(np.stack(list(environment.observe()["images"].values())))
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert np.any(pictures[0] != pictures[1])


def seen(sawyer: Contract, seed: int = 3, **perturbed: float) -> Any:
    """Pictures of a start [V, H, W, 3], and of where two commands lead."""
    made = MetaWorld("button-press-topdown", sawyer, perturbed)
    made.reset(seed)
    first = np.stack(list(made.observe()["images"].values()))
    target = made.simulator.target() + np.array([0.0, 0.1, 0.0, 0, 0, 0, 0])
    for _ in range(2):
        made.step({"arm": target, "gripper": np.array([-1.0])})
    later = made.observe()
    made.close()
    return first.astype(int), np.stack(list(later["images"].values())).astype(int), later["state"]["arm"]


@pytest.mark.sim
@needs_simulator
def test_each_perturbation_changes_what_it_says_and_nothing_else(environment: MetaWorld, sawyer: Contract) -> None:
    first, later, arm = seen(sawyer)
    again, *_ = seen(sawyer, **AS_RECORDED)
    np.testing.assert_array_equal(again, first)
    dim = seen(sawyer, light=0.5)[0]
    assert dim.mean() < 0.8 * first.mean()
    for axis, strength in (("colour", 0.3), ("camera", 0.02), ("turn", 3.0), ("things", 8.0), ("jpeg", 10.0)):
        changed, _, moved = seen(sawyer, **{axis: strength})
        assert all(np.abs(a - b).mean() > 0.5 for a, b in zip(changed, first, strict=True)), axis
        np.testing.assert_array_equal(moved, arm)
        np.testing.assert_array_equal(seen(sawyer, **{axis: strength})[0], changed)  # by the episode's seed alone
    noisy = seen(sawyer, noise=0.05)[0]
    inside = (first > 60) & (first < 195)  # where nothing is clipped
    assert (noisy - first)[inside].std() == pytest.approx(0.05 * 255, rel=0.02)
    late = seen(sawyer, delay=2)
    np.testing.assert_array_equal(late[1], first)  # two commands ago, the start; the state is of now
    np.testing.assert_array_equal(late[2], arm)
    assert np.any(late[1] != later)


@pytest.mark.sim
@needs_simulator
def test_an_unknown_task_is_named(sawyer: Contract) -> None:
    with pytest.raises(UserError, match=r"unknown Meta-World task 'pusch' \(did you mean 'push'\?\)"):
        MetaWorld("pusch", sawyer)


@pytest.mark.slow
def test_a_contract_of_another_robot_is_refused_in_one_sentence(contract: Contract, sawyer: Contract) -> None:
    fit = metaworld._require_fit  # pyright: ignore[reportPrivateUsage]
    fit("push", sawyer)
    with pytest.raises(UserError, match="camera 'front'"):
        fit("push", contract)
    slow = sawyer.model_copy(update={"timing": Timing(fps=40.0, frame_skip=4, action_skip=1, clip_frames=5)})
    with pytest.raises(UserError, match=r"commands every 0.025 s, and it steps every 0.0125 s"):
        fit("push", slow)
    slots = tuple(
        slot.model_copy(update={"columns": ("width",)}) if slot.name == "gripper" else slot for slot in sawyer.slots
    )
    with pytest.raises(UserError, match="slot 'gripper' reads width"):
        fit("push", sawyer.model_copy(update={"slots": slots}))
    with pytest.raises(UserError, match="commands pose, and it takes one pose and one gripper"):
        fit("push", sawyer.model_copy(update={"slots": sawyer.slots[:1]}))


def test_without_meta_world_the_pip_line_is_named() -> None:
    code = (
        "import sys; sys.modules['mujoco'] = None\n"
        "from xwam_ft.evaluate.metaworld import benchmark\n"
        "from xwam_ft.errors import UserError\n"
        "try: benchmark(['push'])\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert "pip install 'xwam-ft[sim]'" in done.stdout, done.stderr
