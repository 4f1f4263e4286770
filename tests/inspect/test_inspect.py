"""`inspect`: the timing it proposes, and a starter file that asks for units and then prepares."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shared import QUIET
from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError
from xwam_ft.inspect.evidence import Evidence, Group, gather, slot_columns
from xwam_ft.inspect.inspect import inspect
from xwam_ft.inspect.starter import _cameras, _slot  # pyright: ignore[reportPrivateUsage]
from xwam_ft.inspect.timing import propose_timing
from xwam_ft.prepare.camera_kind import edge_change, guess_kind, guess_mount
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.sources import open_source
from xwam_ft.prepare.unit_guess import UnitGuess, guess_units


@pytest.mark.parametrize(
    ("fps", "length", "expected"),
    [
        (15, 500, (4, 1, 9)),  # X-WAM's own setting
        (30, 250, (8, 2, 9)),
        (50, 400, (12, 3, 9)),
        (10, 200, (3, 1, 9)),  # too slow for 4 actions a picture of whole frames
        (80, 70, (8, 2, 5)),  # 9 pictures at 3.75 a second do not fit into 70 frames, and 5 would fill them
        (5, 100, (1, 1, 9)),
    ],
)
def test_timing_follows_the_rate_of_pretraining(fps: float, length: int, expected: tuple[int, int, int]) -> None:
    found = propose_timing(fps, np.full(7, length))
    assert (found.frame_skip, found.action_skip, found.clip_frames) == expected
    assert 2 * ((found.clip_frames - 1) * found.frame_skip + 1) <= length
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
    inspect(v21, target, QUIET)
    text = target.read_text()
    with pytest.raises(UserError, match="`units` is still TODO"):
        load_embodiment(target)
    assert "units: TODO  # rad? unsure: values of up to" in text  # small numbers of two joints may be anything
    assert "command: recorded  # unsure: targets, 0 frames ahead of the state" in text  # 37 frames are few
    target.write_text(text.replace("unit: TODO", "unit: mm").replace("units: TODO", "units: rad"))
    spec = load_embodiment(target)
    assert list(spec.cameras) == ["front_view"]
    assert spec.slots["state_joints"].columns == ["j1", "j2"]
    assert spec.slots["state_gripper"].kind == "gripper"
    with pytest.raises(UserError, match="exists already"):
        inspect(v21, target, QUIET)


ARM = np.sin(np.arange(400)[:, None] / 40 + np.arange(6)) * np.array([1.9, 1.2, 0.9, 0.5, 0.4, 2.4])


@pytest.mark.parametrize(
    ("kind", "values", "unit", "sure"),
    [
        ("joints", ARM, "rad", "sure"),
        ("joints", np.degrees(ARM), "deg", "sure"),
        ("joints", np.degrees(ARM) / 2, "deg", "unsure"),  # or percentages
        ("joints", 2 * ARM, None, "unsure"),  # degrees of a small motion look the same
        ("joints", np.clip(ARM * 60, -100, 100), None, "likely"),  # LeRobot's percentages stop at 100
        ("joints", np.round(2048 + 600 * ARM), None, "sure"),  # servo ticks
        ("joints", ARM / 5, "rad", "unsure"),  # or normalised numbers
        ("joints", 0 * ARM, None, "unsure"),
        ("pose", ARM[:, :3] / 4, "m", "sure"),
        ("pose", 250 * ARM[:, :3], "mm", "sure"),
        ("gripper", 0.04 + 0.04 * ARM[:, :1] / 1.9, "m", "likely"),
        ("gripper", 0.5 + 0.5 * ARM[:, :1] / 1.9, "1", "likely"),
        ("gripper", 50 + 50 * ARM[:, :1], None, "unsure"),
    ],
)
def test_units_are_guessed_from_ranges(kind: str, values: np.ndarray, unit: str | None, sure: str) -> None:
    found = guess_units(kind, values)
    assert (found.unit, found.sure) == (unit, sure)


def shots(moving_camera: bool) -> list[float]:
    """Edge changes of pairs of pictures: a room of random boxes, an arm that covers a part of it."""
    random = np.random.default_rng(0)
    room = random.integers(0, 255, (1, 12, 24, 3)).repeat(16, 1).repeat(16, 2)[0].astype(np.uint8)
    changes = []
    for pair in range(8):
        views = []
        for side in range(2):
            left = (7 * pair + 11 * side) % 100 if moving_camera else 40
            view = room[20:140, left : left + 160].copy()
            view[60:, 30 + 40 * side : 60 + 40 * side] = 128  # the arm
            views.append(view)
        changes.append(edge_change(views[0], views[1]))
    return changes


def test_a_camera_that_moves_with_the_arm_is_told_from_one_that_does_not() -> None:
    assert (guess_kind(shots(False)).kind, guess_kind(shots(False)).sure) == ("static", "sure")
    assert (guess_kind(shots(True)).kind, guess_kind(shots(True)).sure) == ("wrist", "sure")
    assert guess_kind([]).sure == "unsure"
    assert np.isnan(edge_change(*np.full((2, 48, 64, 3), 90, np.uint8)))  # nothing to see
    moved = {"left": list(range(8)), "right": [3, 1, 4, 1, 5, 9, 2, 6]}
    assert guess_mount([value / 10 for value in range(8)], moved) == "left"
    assert guess_mount([0.5] * 8, moved) is None


def guesses(raw: Path) -> Any:
    source = open_source(raw)
    episodes = source.episodes()
    return gather(source.info, episodes, {0: episodes[0].table.read(), 3: episodes[3].table.read()})


def test_the_bundled_recordings_are_seen_through() -> None:
    """Two static cameras, one at the wrist; positions in metres; targets a few frames ahead."""
    found = guesses(bundled("recordings/metaworld_demo"))
    kinds = {name.rsplit(".", 1)[-1]: guess.kind for name, guess in found.kinds.items()}
    assert kinds == {"corner": "static", "corner3": "static", "gripper": "wrist"}
    assert found.mounts == {"observation.images.gripper": "state_pose"}
    arm, hand = found.groups
    assert (arm.units.unit, arm.units.sure, arm.action.kind, arm.action.sure) == ("m", "sure", "target", "sure")
    assert arm.action.lead > 0
    assert (hand.units.unit, hand.action) == ("1", None)


def test_the_g1_recordings_are_seen_through(real_data: Path) -> None:
    found = guesses(real_data / "lerobot_v21_g1")
    (kind,) = found.kinds.values()
    assert kind.kind == "static"  # unsure: arms and hands fill much of what the head sees
    arms = {group.name: group for group in found.groups if group.kind == "joints"}
    assert set(arms) == {"left_arm", "right_arm"}
    assert (arms["right_arm"].units.unit, arms["right_arm"].action.kind) == ("rad", "target")
    assert arms["right_arm"].action.lead > 0


@pytest.mark.parametrize(("names", "order"), [("qx qy qz qw", "xyzw"), ("qw qx qy qz", "wxyz"), ("x y z w", "xyzw")])
def test_the_starter_says_the_order_of_a_quaternion(names: str, order: str) -> None:
    columns = tuple(f"observation.pose/{name}" for name in ["x", "y", "z", *names.split()])
    group = Group("arm", "pose", columns, (), UnitGuess("m", "sure", ""), None)
    lines = _slot(group, Counter(), [])
    assert f"    rotation: {order}  # by the columns' names" in lines
    assert "    command: next_state  # no command is recorded" in lines
    numbered = Group("arm", "pose", tuple(f"pose/{n}" for n in range(7)), (), UnitGuess("m", "sure", ""), None)
    lines = _slot(numbered, Counter(), ["action/0"])
    assert any(line.startswith("    rotation: TODO") for line in lines)
    assert any(line.startswith("    command: TODO") for line in lines)


def test_every_camera_of_the_starter_has_its_own_name_and_depth(v21: Path) -> None:
    info = open_source(v21).info
    [feature, *_] = [name for name, camera in info.cameras.items() if not camera.depth]
    rgb, depth = info.cameras[feature], replace(info.cameras[feature], depth=True)
    names = ["observation.images.left.rgb", "observation.images.right.rgb", "observation.images.0"]
    info = replace(info, cameras={**dict.fromkeys(names, rgb), "observation.images.right.rgb_depth": depth})
    guesses = dict.fromkeys(names, guess_kind([0.01]))
    left, right, number = _cameras(info, Evidence((), guesses, {}))[1:]
    assert left.startswith("  left_rgb: {source: observation.images.left.rgb, kind: ")
    assert right.startswith("  right_rgb: {source: observation.images.right.rgb, kind: ")
    assert number.startswith('  "0": {source: observation.images.0, kind: ')
    assert ["depth" in line for line in (left, right, number)] == [False, True, False]


def test_speeds_and_efforts_are_in_no_slot(v21: Path) -> None:
    info = open_source(v21).info
    moving = ["observation.qvel/0", "observation.state/elbow.velocity", "observation.effort/1", "observation.j.torque"]
    columns = slot_columns(replace(info, columns=("observation.state/elbow.pos", *moving, "observation.velvet/0")))
    assert columns == ["observation.state/elbow.pos", "observation.velvet/0"]
