"""LeRobot's policies in our environment: what goes in and out, counted, with stand-ins for both."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from xwam_ft.contract import Contract, Slot
from xwam_ft.errors import UserError
from xwam_ft.evaluate.closed_loop import success_interval
from xwam_ft.evaluate.environment import Outcome
from xwam_ft.evaluate.metaworld import STATE

sys.path.append(str(Path(__file__).parents[2] / "data_tools"))
import lerobot_closed_loop as tool


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"type": "act"}')
    return tmp_path


class Room:
    """Done with the third command of an episode whose seed is even."""

    def __init__(self, task: str, contract: Contract) -> None:
        self.contract, self.commands, self.closed = contract, list[dict[str, np.ndarray]](), False

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def observe(self) -> dict[str, Any]:
        numbers = dict(zip(STATE, range(8), strict=True))
        picture = np.full((4, 6, 3), 51, np.uint8)
        picture[0, 0] = (255, 0, 0)
        state = {slot.name: [numbers[column] for column in slot.columns] for slot in self.contract.slots}
        return {"images": {"corner": picture}, "state": state, "prompt": "push it"}

    def step(self, command: dict[str, np.ndarray]) -> Outcome:
        self.commands.append(command)
        self.steps += 1
        return Outcome.SUCCESS if self.steps == 3 and self.seed % 2 == 0 else Outcome.GOES_ON

    def close(self) -> None:
        self.closed = True


class Teacher:
    """Commands a tenth of the state; keeps what it saw."""

    width = 8

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def reset(self) -> None: ...

    def select_action(self, batch: dict[str, Any]) -> torch.Tensor:
        self.seen.append(batch)
        return batch["observation.state"][:, : self.width] / 10


@pytest.fixture
def sawyer() -> Any:
    """What the tool asks of a contract: its slots, with the columns of Meta-World's recordings."""
    common: dict[str, Any] = {"units": ("1",), "convention": "absolute"}
    arm = Slot(name="arm", kind="joints", columns=STATE[:7], elements=STATE[:7], **common | {"units": ("1",) * 7})
    gripper = Slot(name="gripper", kind="gripper", columns=STATE[7:], elements=STATE[7:], **common)
    return SimpleNamespace(slots=[arm, gripper])


def test_numbers_go_in_and_out_in_the_recordings_order(
    sawyer: Contract, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, teacher = Room("push", sawyer), Teacher()
    monkeypatch.setattr(tool, "MetaWorld", lambda task, contract: room)
    monkeypatch.setattr(tool, "_policy", lambda path, device: (teacher, lambda batch: batch, lambda action: action))
    monkeypatch.setattr(tool, "version", lambda name: "1")
    told = tool.closed_loop(pretrained, sawyer, "push", [2, 3, 4], 5)
    assert [(run["seed"], run["success"], run["steps"]) for run in told["runs"]] == [
        (2, True, 3), (3, False, 5), (4, True, 3),
    ]  # fmt: skip
    assert (told["successes"], told["of"], told["interval_95"]) == (2, 3, list(success_interval(2, 3)))
    assert told["policy"] == {"type": "act"}
    batch = teacher.seen[0]
    assert batch["observation.state"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    picture = batch["observation.images.corner"]
    assert (picture.shape, picture[0, :, 0, 0].tolist(), picture[0, 1, 2, 2].item()) == (
        (1, 3, 4, 6), [1, 0, 0], pytest.approx(0.2),
    )  # fmt: skip
    assert batch["task"] == ["push it"]
    np.testing.assert_allclose(room.commands[0]["arm"], np.arange(7) / 10)
    np.testing.assert_allclose(room.commands[0]["gripper"], [0.7])
    assert room.closed
    teacher.width = 4
    with pytest.raises(UserError, match="commands 4 numbers, and the recordings' `action` has 8"):
        tool.closed_loop(pretrained, sawyer, "push", [2], 5)


def test_without_lerobot_it_says_so(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(UserError, match="cannot be imported") as refused:
        tool._policy(pretrained, "cpu")
    assert refused.value.where == "lerobot"
