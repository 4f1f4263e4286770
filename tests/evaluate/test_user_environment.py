"""Environments of a user's own: every mistake in them is one sentence with the user's file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft import conventions
from xwam_ft.contract import Contract
from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import closed_loop
from xwam_ft.evaluate.doubts import doubts, side_by_side
from xwam_ft.evaluate.environments import environment_maker
from xwam_ft.evaluate.late import LateAnswers
from xwam_ft.policy.policy import Settings

OWN = """\
import numpy as np
from xwam_ft.evaluate.environment import GymnasiumEnvironment, Outcome

class Own:
    instruction, period, max_steps = "pick up the cube", 0.1, 4
    def __init__(self, contract):
        pass
    def reset(self, seed):
        self.steps = 0
    def observe(self):
        picture = np.zeros((32, 64, 3), np.uint8)
        state = {"tool": [0, 0, 0, 1, 0, 0, 0], "gripper": [0.04]}
        return {"images": {"front": picture, "wrist": picture}, "state": state, "prompt": self.instruction}
    def step(self, command):
        self.steps += 1
        return Outcome.GOES_ON
    def close(self):
        pass

class Gym:
    last = (0, 0.0, True, False, {"task_success": True})
    first = (0, {})
    def reset(self, seed):
        return self.first
    def step(self, action):
        return self.last
    def close(self):
        pass

def gym(contract, **fields):
    env = Gym()
    vars(env).update({key: fields.pop(key) for key in ("last", "first") if key in fields})
    seen = Own(contract).observe()
    seen.pop("prompt")
    return GymnasiumEnvironment(env, lambda _: seen, lambda command: command["tool"], Own.instruction, 0.1, 4, **fields)

"""
BELOW = len(OWN.splitlines())


class Still:
    """A policy that commands what is observed."""

    trained = True

    def __init__(self, contract: Contract) -> None:
        self.contract, self.settings = contract, Settings(seed=3)

    def infer_batch(self, inputs: Any, seeds: Any) -> np.ndarray:
        steps = self.contract.timing.action_steps
        actions = [
            conventions.encode_actions(self.contract, np.tile(item.state, (steps, 1)), item.state, None)
            for item in inputs
        ]
        return np.stack([conventions.normalise_action(self.contract, action) for action in actions])

    def infer(self, request: Any, *, seed: int) -> None:
        pass


def evaluated(contract: Contract, tmp_path: Path, lines: str, name: str = "make") -> Any:
    file = tmp_path / "own.py"
    file.write_text(OWN + lines)
    environment = environment_maker(f"{file}:{name}")(contract)
    environment.reset(0)
    policy: Any = Still(contract)
    found = closed_loop(policy, [environment], [0, 1], execute=3)
    environment.close()
    return found


def method(name: str, body: str) -> str:
    return f"class Mine(Own):\n    def {name}:\n        {body}\ndef make(contract):\n    return Mine(contract)\n"


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        (
            method("step(self, command)", "return True"),
            2,
            r"step returned True, not an Outcome.*return Outcome.GOES_ON",
        ),
        (method("step(self, command)", "return False"), 2, "step returned False, not an Outcome"),
        (method("step(self, command)", "pass"), 2, "step returned None, not an Outcome"),
        (
            method("step(self, command)", "return 0, 1.0, True, False, {}"),
            2,
            r"step returned \(0, 1.0, True, False, {}\)",
        ),
        (method("step(self, command)", "raise RuntimeError('e-stop')"), 3, r"step failed \(RuntimeError: e-stop\)"),
        (
            method("step(self, command)", "command['left_arm']"),
            3,
            r"KeyError: 'left_arm'.*holds the slots tool, gripper",
        ),
        (method("step(self)", "pass"), 2, r"step failed \(TypeError: .*def step\(self, command\):"),
        (method("reset(self)", "pass"), 2, r"reset failed \(TypeError"),
        (method("reset(self, seed)", "1 / 0"), 3, r"reset failed \(ZeroDivisionError"),
        (method("observe(self)", "return None"), 2, "observe returned None, not a dict"),
        (
            method("observe(self)", "return {'image': {}, 'state': {}}"),
            2,
            r"observation: unknown key 'image' \(did you mean 'images'",
        ),
        (method("observe(self)", "return super().observe() | {'images': {}}"), 2, r"observation.images: .*front"),
        (method("observe(self)", "return [][1]"), 3, r"observe failed \(IndexError"),
        (method("close(self)", "raise OSError('busy')"), 3, r"close failed \(OSError: busy\)"),
        ("def make():\n    pass\n", 1, r"cannot be called with the contract alone .*write `def make\(contract\):`"),
        ("def make(contract):\n    pass\n", 1, "returned None, not an environment"),
        ("def make(contract):\n    return Own\n", 1, r"returned the class Own.*`return Own\(contract\)`"),
        ("def make(contract):\n    return Onw(contract)\n", 2, r"make failed \(NameError: name 'Onw' is not defined"),
        ("def make(contract):\n    return Gym()\n", 1, "a Gymnasium environment by its looks.*GymnasiumEnvironment"),
        ("def make(contract):\n    return object()\n", 1, "which has no reset, observe, step, close"),
        ("def make(contract):\n    return gym(contract)\n", 0, r"never held 'success' or 'is_success'.*task_success"),
        (
            "def make(contract):\n    return gym(contract, last=(0, 0.0, False, False, {}))\n",
            0,
            "never held 'success'",  # it never ends by itself
        ),
        (
            "def make(contract):\n    return gym(contract, last=(0, 0.0, True, {}))\n",
            0,
            r"step returned 4 values .*old `gym`",
        ),
        ("def make(contract):\n    return gym(contract, last=None)\n", 0, "step returned nothing"),
        (
            "def make(contract):\n    return gym(contract, first=0)\n",
            0,
            r"reset returned a int, not \(observation, info\)",
        ),
        (
            "def make(contract):\n    return gym(contract, success=lambda t, i: i['done'])\n",
            2,
            r"step failed \(KeyError: 'done'",
        ),
    ],
)
def test_a_mistake_is_a_sentence_with_file_and_line(
    contract: Contract, tmp_path: Path, lines: str, line: int, said: str
) -> None:
    with pytest.raises(UserError, match=said) as told:
        evaluated(contract, tmp_path, lines)
    where = str(told.value)
    assert where.startswith(f"{tmp_path / 'own.py'}:"), where
    if line:
        assert where.startswith(f"{tmp_path / 'own.py'}:{BELOW + line}"), where


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("period = 'fast'", "period 'fast'"),
        ("period = float('nan')", "period nan"),
        ("period = True", "period True"),
        ("max_steps = 0", "max_steps 0"),
        ("max_steps = 4.5", "max_steps 4.5"),
        ("instruction = None", "no instruction"),
    ],
)
def test_a_field_that_means_nothing_is_named(contract: Contract, tmp_path: Path, field: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"makes a Mine with .*{said}.*give it `{field.split()[0]}`"):
        evaluated(
            contract, tmp_path, f"class Mine(Own):\n    {field}\ndef make(contract):\n    return Mine(contract)\n"
        )


@pytest.mark.parametrize(
    ("lines", "name", "said"),
    [
        (
            "import not_there\n",
            "make",
            rf"ModuleNotFoundError: No module named 'not_there'; own.py:{BELOW + 1}\).*install",
        ),
        ("def make(contract)\n", "make", rf"SyntaxError: .*own.py:{BELOW + 1}"),
        ("raise SystemExit(0)\n", "make", r"cannot be loaded \(SystemExit.*__main__"),
        ("def make(contract):\n    pass\n", "mkae", r"has no function 'mkae' \(did you mean 'make'\?\)"),
        ("make = 3\n", "make", "has 'make', which is 3 and no function"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(
    contract: Contract, tmp_path: Path, lines: str, name: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        evaluated(contract, tmp_path, lines, name)


def test_what_is_right_runs_and_counts(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("STEPS = 2\n")
    lines = (
        "from beside_it import STEPS\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Mine(Own):\n    contract: object\n"
        "    def step(self, command):\n        super().step(command)\n"
        "        return Outcome.SUCCESS if self.steps == STEPS else Outcome.GOES_ON\n"
    )
    found = evaluated(contract, tmp_path, lines, "Mine")  # a class is a function of the contract
    assert [(run.success, run.steps) for run in found.episodes] == [(True, 2), (True, 2)]
    lines = "def make(contract):\n    return gym(contract, last=(0, 0.0, True, False, {'is_success': np.True_}))\n"
    assert evaluated(contract, tmp_path, lines).rate == 1.0
    lines = "def make(contract):\n    return gym(contract, success=lambda terminated, info: info['task_success'])\n"
    assert evaluated(contract, tmp_path, lines).rate == 1.0
    lines = "def make(contract):\n    return gym(contract, last=(0, 0.0, False, False, {'success': False}))\n"
    assert [(run.success, run.steps) for run in evaluated(contract, tmp_path, lines).episodes] == [(False, 4)] * 2


@pytest.mark.parametrize(
    ("said", "done"),
    [
        ("True", True),
        ("np.bool_(False)", False),
        ("1.0", True),
        ("np.array([False])", False),
        ("'False'", None),
        ("0.3", None),
        ("float('nan')", None),
        ("np.array([False, True])", None),
    ],
)
def test_success_is_a_yes_or_a_no(contract: Contract, tmp_path: Path, said: str, done: bool | None) -> None:
    """A text or a share of success is true to Python, and would make a rate of 100 %."""
    last = f"(0, 0.0, True, False, {{'success': {said}}})"
    by_info = f"def make(contract):\n    return gym(contract, last={last})\n"
    by_function = f"def make(contract):\n    return gym(contract, success=lambda t, i: {said})\n"
    for lines in (by_info, by_function):
        if done is None:
            with pytest.raises(UserError, match=r"which is neither true nor false.*returns True or False"):
                evaluated(contract, tmp_path, lines)
        else:
            assert evaluated(contract, tmp_path, lines).successes == 2 * done


SCENE = """\
SCENE = {}
class Scene(Own):
    where = SCENE
    def reset(self, seed):
        self.where["x"], self.done = seed % 97 / 100, False
    def observe(self):
        seen = super().observe()
        seen["state"]["tool"][0] = self.where["x"]
        return seen
    def step(self, command):
        self.where["x"] = command["tool"][0] + 0.001
        return Outcome.GOES_ON
class Apart(Scene):
    def __init__(self, contract):
        self.where = {}
ONE = []
def shared(contract):
    return Scene(contract)
def apart(contract):
    return Apart(contract)
def same(contract):
    ONE.append(Scene(contract))
    return ONE[0]
class Repeated(Apart):
    def reset(self, seed):
        super().reset(3)
class Deaf(Apart):
    def step(self, command):
        return Outcome.GOES_ON
class Done(Apart):
    def step(self, command):
        return Outcome.SUCCESS
class Converts(Apart):
    sent = []
    def step(self, command):
        self.sent.append(float(command["tool"][0]))
        command["tool"] *= 1000
        return Outcome.GOES_ON
"""


def test_environments_in_one_scene_are_refused_and_the_same_one_acts_alone(contract: Contract, tmp_path: Path) -> None:
    file = tmp_path / "scene.py"
    file.write_text(OWN + SCENE)

    def made(name: str) -> int:
        make = environment_maker(f"{file}:{name}")
        return len(side_by_side(lambda: make(contract), 3, [4, 5, 6], contract))

    assert made("apart") == 3
    assert made("same") == 1
    with pytest.raises(UserError, match=r"scene.py:\d+ \(reset\): two environments that shared made share one scene"):
        made("shared")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Apart", []),
        ("Repeated", ["all 4 episodes began with the same observation"]),
        ("Deaf", ["never changed after its start"]),
        ("Done", ["4 of 4 episodes succeeded with their first command"]),
    ],
)
def test_a_rate_that_means_nothing_is_doubted(contract: Contract, tmp_path: Path, name: str, said: list[str]) -> None:
    file = tmp_path / "scene.py"
    file.write_text(OWN + SCENE + f"def make(contract):\n    return {name}(contract)\n")
    make = environment_maker(f"{file}:make")
    policy: Any = Still(contract)
    found = closed_loop(policy, [make(contract), make(contract)], [0, 1, 2, 3], execute=2)
    told = doubts(found.episodes)
    assert [start in text for start, text in zip(said, told, strict=True)] == [True] * len(said)


def test_a_command_that_is_converted_in_place_is_sent_as_it_was(contract: Contract, tmp_path: Path) -> None:
    """`hold` sends the last command of a chunk again."""
    file = tmp_path / "scene.py"
    file.write_text(OWN + SCENE + "def make(contract):\n    return Converts(contract)\n")
    environment: Any = environment_maker(f"{file}:make")(contract)
    policy: Any = Still(contract)
    closed_loop(policy, [environment], [50], execute=1, late=LateAnswers(2, "hold"))
    assert len(environment.made.sent) == 4
    np.testing.assert_allclose(environment.made.sent, 0.5, atol=1e-6)
