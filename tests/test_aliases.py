"""A robot's own names and units: LeRobot's and openpi's forms of an observation become the contract's, and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xwam_ft.alias_table import Aliases, Reported
from xwam_ft.aliases import resolved, robot_command
from xwam_ft.contract import Contract, Quantiles, Slot
from xwam_ft.errors import UserError
from xwam_ft.observation import encode
from xwam_ft.policy.request import command_columns

from .conftest import HEIGHT, WIDTH, make_contract

DEGREE = math.pi / 180
MOTORS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PICTURE[:, ::2] = 200
VALUES = {"shoulder_pan.pos": 30.0, "elbow_flex.pos": -20.0, "gripper.pos": 55.0}
SI = {"arm": [30 * DEGREE, 20 * DEGREE + 0.1], "gripper": [55.0]}


@pytest.fixture(scope="module")
def contract() -> Contract:
    """Two joints in degrees at the robot, the second counted the other way round and off by 0.1 rad; a gripper."""
    arm = Slot(
        name="arm",
        kind="joints",
        columns=MOTORS[:2],
        elements=MOTORS[:2],
        units=("rad", "rad"),
        convention="relative_to_chunk_start",
    )
    gripper = Slot(
        name="gripper",
        kind="gripper",
        columns=MOTORS[2:],
        elements=("open",),
        units=("1",),
        convention="absolute",
    )
    numbers = {
        MOTORS[0]: Reported(slot="arm", column=0, scale=DEGREE),
        MOTORS[1]: Reported(slot="arm", column=1, scale=-DEGREE, offset=0.1),
        MOTORS[2]: Reported(slot="gripper", column=0),
    }
    ends = {"low": (-2.0, -2.0, 0.0), "high": (2.0, 2.0, 100.0)}
    cameras = tuple(camera.model_copy(update={"mount": None, "pose": None}) for camera in make_contract().cameras)
    return make_contract(
        cameras=cameras,
        slots=(arm, gripper),
        quantiles=Quantiles(**{f"{part}_{end}": ends[end] for part in ("proprio", "action") for end in ends}),  # pyright: ignore[reportArgumentType]
        aliases=Aliases(
            images={"observation.images.front": "front", "observation.images.wrist": "wrist"},
            numbers=numbers,
            vectors={"observation.state": (*MOTORS, "battery")},
            unused=("observation.images.top",),
        ),
    )


LEROBOT_ROBOT: dict[str, Any] = {"front": PICTURE, "wrist": PICTURE, **VALUES, "task": "pick up the cube"}
LEROBOT_SET: dict[str, Any] = {
    "observation.images.front": PICTURE,
    "observation.images.wrist": PICTURE,
    "observation.images.top": PICTURE,
    "observation.state": np.array([*VALUES.values(), 0.7], np.float32),
    "task": "pick up the cube",
}
OPENPI = {key.replace(".", "/").replace("task", "prompt"): value for key, value in LEROBOT_SET.items()}


@pytest.mark.parametrize("given", [LEROBOT_ROBOT, LEROBOT_SET, OPENPI], ids=["robot", "data set", "openpi"])
def test_it_is_read_as_the_contract_s_own_form(contract: Contract, given: dict[str, Any]) -> None:
    own = {"images": {"front": PICTURE, "wrist": PICTURE}, "state": SI, "prompt": "pick up the cube"}
    ours, theirs = encode(contract, own), encode(contract, given)
    np.testing.assert_allclose(theirs.state, ours.state, rtol=1e-6)
    np.testing.assert_array_equal(theirs.pictures, ours.pictures)
    assert theirs.prompt == ours.prompt
    assert resolved(contract, own) is own
    assert resolved(contract, {**given, "options": {"seed": 1}})["options"] == {"seed": 1}


def test_commands_go_back_into_the_robot_s_names_and_units(contract: Contract) -> None:
    row = [*SI["arm"], *SI["gripper"]]
    assert len(row) == len(command_columns(contract))
    assert robot_command(contract, row) == pytest.approx(VALUES)
    with pytest.raises(UserError, match=r"what the robot calls arm.shoulder_pan.pos.*prepare the recordings again"):
        robot_command(contract.model_copy(update={"aliases": None}), row)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shoulder_pan.pos": 1.0}, "'shoulder_pan.pos' and 'observation.state' both give number arm 0"),
        ({"images": {"front": PICTURE}}, "'images.front' and 'observation.images.front' both give images front"),
        ({"state": {"arm": SI["arm"]}}, "both give state arm"),
        ({"prompt": "x"}, "'task' and 'prompt' both give prompt"),
        ({"observation.state": [1.0, 2.0, 3.0]}, r"has shape \[3\].*give the 4 numbers that were recorded: shoulder"),
        ({"observation.images.fornt": PICTURE}, r"did you mean 'observation.images.front'\?"),
        ({"observation.images.front": None}, "camera 'front' is missing. Fix: give it as 'observation.images.front'"),
        (
            {"observation.state": None},
            "slot 'arm' lacks shoulder_pan.pos, elbow_flex.pos. Fix: give state.arm or 'observation.state' or each of",
        ),
        ({"task": None}, "has no prompt. Fix: give the task in words as 'prompt' or 'task'"),
    ],
)
def test_what_is_missing_or_twice_there_is_one_sentence(
    contract: Contract, change: dict[str, Any], sentence: str
) -> None:
    given = {"task": LEROBOT_SET["task"], **{k: v for k, v in change.items() if k == "shoulder_pan.pos"}}
    given |= LEROBOT_SET | change
    with pytest.raises(UserError, match=sentence):
        encode(contract, {key: value for key, value in given.items() if value is not None})


def test_aliases_of_things_that_are_not_there_are_refused(contract: Contract) -> None:
    for wrong in (Aliases(images={"a": "top"}), Aliases(numbers={"a": Reported(slot="arm", column=2)})):
        with pytest.raises(ValueError, match="which there is not"):
            Contract.model_validate(contract.model_dump() | {"aliases": wrong.model_dump()})


def test_a_contract_without_aliases_keeps_its_bytes() -> None:
    assert b"aliases" not in make_contract().to_bytes()
    assert b"prompt_form" not in make_contract().to_bytes()
