"""What one robot's observations show over time: each sentence is right and comes once; a good one has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import GatedPolicy, example

from xwam_ft import observation
from xwam_ft.contract import Contract
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.novelty import Novelty, fit
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.request import PolicyOutput
from xwam_ft.policy.server import serving
from xwam_ft.policy.watch import STILL, ObservationWatch
from xwam_ft.shards import ShardSet

HEIGHT, WIDTH = 16, 24


def scenes(count: int, seed: int, colour: tuple[float, float, float], corner: int) -> np.ndarray:
    """Pictures [n, h, w, 3] of a camera: a colour that is its own, a bright corner, and noise."""
    rng = np.random.default_rng(seed)
    pictures = np.full((count, HEIGHT, WIDTH, 3), colour) + rng.normal(0, 6, (count, 1, 1, 3))
    high, wide = divmod(corner, 2)
    pictures[:, high * 8 : high * 8 + 8, wide * 12 : wide * 12 + 12] += 90
    return np.clip(pictures + rng.normal(0, 4, pictures.shape), 0, 255).astype(np.uint8)


def both(count: int, seed: int) -> np.ndarray:
    """Of a front and a wrist camera [n, 2, h, w, 3]."""
    return np.stack([scenes(count, seed, (120, 60, 30), 0), scenes(count, seed + 1, (40, 90, 140), 3)], axis=1)


def condition(pictures: np.ndarray) -> Any:
    """Pictures as latents of three channels."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pictures)).float().movedim(-1, 1)


@pytest.fixture(scope="module")
def novelty() -> Novelty:
    from xwam_ft.policy.novelty import features

    return fit(features(condition(both(120, 0))), [index // 6 for index in range(120)], ["front", "wrist"])


@pytest.fixture
def looked(contract: Contract, novelty: Novelty) -> Callable[[np.ndarray], list[str]]:
    """What a first observation with these pictures leads to."""

    def look(pictures: np.ndarray) -> list[str]:
        seen = replace(observation.encode(contract, example(contract)), pictures=np.ascontiguousarray(pictures))
        output = PolicyOutput(still(contract, seen), np.zeros((8, 7)), {}, seen=seen)
        return ObservationWatch(contract, novelty, condition).sentences(output)

    return look


def still(contract: Contract, seen: observation.EncodedObservation, by: float = 0.0) -> observation.Commands:
    """Commands that end `by` metres beside the state."""
    table = np.repeat(seen.state[None], 8, axis=0)
    table[-1, 0] += by
    return observation.Commands(table, {})


def test_pictures_as_recorded_say_nothing(looked: Callable[[np.ndarray], list[str]]) -> None:
    for pictures in both(40, 7):
        assert looked(pictures) == []
    for pictures in np.random.default_rng(0).integers(0, 256, (10, 2, HEIGHT, WIDTH, 3), dtype=np.uint8):
        assert looked(pictures) == []  # nothing like the recordings, and no reading of it is


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (lambda p: p[..., ::-1], "with red and blue exchanged .*: does it send BGR?"),
        (lambda p: p[..., ::-1, ::-1, :], "turned by 180 degrees .*upside down?"),
        (lambda p: p[..., ::-1, :], "mirrored .*: is its picture mirrored?"),
    ],
)
def test_a_picture_that_fits_read_otherwise_is_told(
    looked: Callable[[np.ndarray], list[str]], change: Callable[[np.ndarray], np.ndarray], asked: str
) -> None:
    import re

    said = looked(change(both(1, 7)[0]))
    assert [sentence.split("'")[1] for sentence in said] == ["front", "wrist"]
    assert all(re.search(asked.replace("?", r"\?"), sentence) for sentence in said)


def test_exchanged_cameras_are_told_by_name(looked: Callable[[np.ndarray], list[str]]) -> None:
    (said,) = looked(both(1, 7)[0][::-1])
    assert "'front' looks like 'wrist'; 'wrist' looks like 'front'. Are they exchanged?" in said


def test_a_camera_that_stands_still_while_the_robot_moves(contract: Contract) -> None:
    watch, random = ObservationWatch(contract), np.random.default_rng(0)
    begin = example(contract)

    def step(metres: float, *, live: bool) -> list[str]:
        request = {**begin, "images": dict(begin["images"]), "state": dict(begin["state"])}
        request["state"]["tool"] = request["state"]["tool"] + np.array([metres, 0, 0, 0, 0, 0, 0])
        if live:
            request["images"]["front"] = random.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        request["images"]["wrist"] = random.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        seen = observation.encode(contract, request)
        return watch.sentences(PolicyOutput(still(contract, seen), np.zeros((8, 7)), {}, seen=seen))

    assert [step(0.0, live=False) for _ in range(3 * STILL)] == [[]] * 3 * STILL  # nothing moves: it may be so
    assert step(0.05, live=False) == []  # a twentieth of a metre of one
    (said,) = step(0.2, live=False)
    assert "camera 'front' gave the very same picture" in said
    assert step(0.3, live=False) == []  # once
    assert step(0.3, live=True) == []
    moving = [step(0.3 - 0.05 * index, live=False) for index in range(3 * STILL)]
    assert sum(map(len, moving)) == 1  # again, after it had gone on


def test_a_state_that_stands_still_while_commands_do_not(contract: Contract) -> None:
    seen = observation.encode(contract, example(contract))

    def said(by: float, count: int) -> list[list[str]]:
        watch = ObservationWatch(contract)
        asked = PolicyOutput(still(contract, seen, by), np.zeros((8, 7)), {}, seen=seen)
        return [[s for s in watch.sentences(asked) if "state" in s] for _ in range(count)]

    assert said(0.05, 20) == [[]] * 20  # it is asked to stay about where it is
    told = said(0.3, 20)
    assert [len(each) for each in told] == [0] * STILL + [1] + [0] * (19 - STILL)
    assert "commands asked for movement: is it read anew, and are commands carried out?" in told[STILL][0]


def test_the_log_names_each_kind_of_warning_once_a_client(
    shard_set: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    """openpi's clients look at `actions` alone: what an answer warns of must be somewhere that a person reads."""
    policy = GatedPolicy(ReplayPolicy(shard_set, 0))
    request = example(policy.contract)
    request["state"]["tool"] = request["state"]["tool"] * np.array([1000, 1000, 1000, 1, 1, 1, 1]) + np.array(
        [100.0, 0, 0, 0, 0, 0, 0]
    )
    with serving(policy) as address:
        for _ in range(2):
            with PolicyClient(address, patience=5) as client:
                for metres in (0.0, 5.0, 7.0):
                    request["state"]["tool"] = request["state"]["tool"] + np.array([metres, 0, 0, 0, 0, 0, 0])
                    answer = client.infer(request)
                    assert any("is it in that unit?" in said for said in answer["warnings"])
    lines = [record.getMessage() for record in caplog.records if "tool.x is" in record.getMessage()]
    assert len(lines) == 2
    assert all(line.startswith("127.0.0.1:") for line in lines)


def test_a_policy_in_process_watches_its_one_robot(bundle: Path) -> None:
    policy = Policy.load(bundle, selfcheck=False)
    request = example(policy.contract)
    policy.warm_up()
    first = policy.infer(request, seed=0).warnings
    assert any("farther from the training pictures" in said for said in first)
    assert not any("farther from the training pictures" in said for said in policy.infer(request, seed=0).warnings)
    with serving(policy):
        assert policy.watch is None  # every client of a server has its own
