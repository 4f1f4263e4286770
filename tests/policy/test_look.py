"""What a person is shown to compare: what a server expects, and what each client sends first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import GatedPolicy, example

from xwam_ft import observation
from xwam_ft.contract import Contract
from xwam_ft.policy import look
from xwam_ft.policy.client import PolicyClient
from xwam_ft.policy.policy import Policy
from xwam_ft.policy.replay import ReplayPolicy
from xwam_ft.policy.server import serving
from xwam_ft.shards import ShardSet


def test_it_says_names_units_ranges_sense_and_rate(contract: Contract) -> None:
    gripper = contract.slot("gripper").model_copy(update={"gripper_open": 0.08, "gripper_closed": 0.0})
    known = contract.model_copy(update={"slots": (contract.slot("tool"), gripper)})
    said = look.expected(known, ["", "lift it", "pick up the cube"])
    assert said[0] == "images: front (recorded 64x32), wrist (recorded 64x32); RGB"
    assert said[1].startswith("state tool: tool.x -0.5..0.5 m, tool.y -0.5..0.5 m, tool.z -0.5..0.5 m, ")
    assert said[2].endswith(" 0..0.08 m (0 closed, 0.08 open)")
    assert said[3] == "prompt: 'lift it', 'pick up the cube'"
    rate = f"{1 / contract.timing.action_period:.4g} a second"
    assert said[4] == f"commands: tool in m and a quaternion w x y z, gripper in m; {rate}"


def test_the_first_observation_is_logged_and_drawn_beside_a_recorded_one(
    shard_set: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "xwam_ft.serve")
    policy: Any = GatedPolicy(ReplayPolicy(shard_set, 0))
    request = example(policy.contract)
    policy.recorded = observation.encode(policy.contract, request)
    with serving(policy, looks=tmp_path / "looks") as address:
        for _ in range(2):
            with PolicyClient(address, patience=5) as client:
                client.infer(request)
                client.infer(request)
    said = [record.getMessage() for record in caplog.records if "first observation" in record.getMessage()]
    assert len(said) == 2
    assert "'pick up the cube'" in said[0]
    drawn = sorted((tmp_path / "looks").iterdir())
    assert len(drawn) == 2
    assert all(str(path) in " ".join(said) for path in drawn)
    page = np.asarray(Image.open(drawn[0]))
    look.picture(policy.contract, policy.recorded, None, tmp_path / "alone.png")
    assert page.shape[0] > np.asarray(Image.open(tmp_path / "alone.png")).shape[0] + 100  # recorded ones above


def test_a_bundle_brings_an_observation_of_its_recordings(bundle: Path) -> None:
    recorded = Policy.load(bundle).recorded
    assert recorded is not None
    assert recorded.pictures.std() > 0
