"""`inspect`: the timing it proposes, and a starter file that asks for units and then prepares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xwam_ft.errors import UserError
from xwam_ft.prepare.embodiment import load_embodiment
from xwam_ft.prepare.inspect import inspect, propose_timing


@pytest.mark.parametrize(
    ("fps", "length", "expected"),
    [
        (15, 500, (4, 1, 9)),  # X-WAM's own setting
        (30, 250, (8, 2, 9)),
        (50, 400, (12, 3, 9)),
        (10, 200, (3, 1, 9)),  # too slow for 4 actions a picture of whole frames
        (80, 70, (16, 4, 5)),  # 9 pictures at 3.75 a second do not fit into 70 frames
        (5, 100, (1, 1, 9)),
    ],
)
def test_timing_follows_the_rate_of_pretraining(fps: float, length: int, expected: tuple[int, int, int]) -> None:
    found = propose_timing(fps, np.full(7, length))
    assert (found.frame_skip, found.action_skip, found.clip_frames) == expected
    assert (found.clip_frames - 1) * found.frame_skip + 1 <= length
    assert found.frame_skip % found.action_skip == 0


def test_the_tables_show_what_is_there(v30: Path, lerobot: Any) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    inspect(v30, None, console)
    text = console.export_text()
    for expected in ("LeRobot v3.0", "37 at 10 fps", "open the drawer", lerobot.camera, "48 x 32", "h264", "depth"):
        assert expected in text
    assert "observation.state/grip" in text


def test_the_starter_asks_for_units_and_then_loads(v21: Path, tmp_path: Path) -> None:
    target = tmp_path / "starter.yaml"
    inspect(v21, target, Console(quiet=True))
    text = target.read_text()
    with pytest.raises(UserError, match="`units` is still TODO"):
        load_embodiment(target)
    target.write_text(text.replace("unit: TODO", "unit: mm").replace("units: TODO", "units: rad"))
    spec = load_embodiment(target)
    assert list(spec.cameras) == ["front_view"]
    assert spec.slots["state_joints"].columns == ["j1", "j2"]
    assert spec.slots["state_gripper"].kind == "gripper"
    with pytest.raises(UserError, match="exists already"):
        inspect(v21, target, Console(quiet=True))
