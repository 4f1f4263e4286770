"""Servo units against LeRobot's published formulas, and calibration files that are wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwam_ft.errors import UserError
from xwam_ft.prepare.embodiment.joint_units import Motor, line_of, motor_of, read_calibration

GOOD: dict[str, Any] = {
    "shoulder_pan": {"id": 1, "drive_mode": 0, "homing_offset": 7, "range_min": 900, "range_max": 3100}
}


@given(st.integers(0, 2000), st.integers(1, 2095), st.integers(0, 4095), st.booleans())
def test_all_units_of_one_servo_position_are_the_same_angle(low: int, span: int, ticks: int, flipped: bool) -> None:
    """A position in ticks, in degrees, from -100 to 100 and from 0 to 100, as LeRobot computes each from the ticks."""
    motor = Motor(low, low + span, flipped)
    degrees = (ticks - (low + low + span) / 2) * 360 / 4095
    share = (ticks - low) / span
    recorded = {
        "ticks": ticks,
        "range_m100_100": (share * 200 - 100) * (-1 if flipped else 1),
        "range_0_100": 100 - share * 100 if flipped else share * 100,
    }
    for unit, value in recorded.items():
        line = line_of(unit, motor)
        assert math.degrees(line.scale * value + line.offset) == pytest.approx(degrees, abs=1e-8)


def test_signs_and_zeros_in_closed_form() -> None:
    line = line_of("deg", sign=-1.0, zero=30.0)
    assert [line.scale * v + line.offset for v in (30.0, 120.0)] == pytest.approx([0.0, -math.pi / 2])
    motor = Motor(1000, 3000, False)
    line = line_of("ticks", motor, zero=2048)
    assert line.scale * 2048 + line.offset == pytest.approx(0.0)
    assert line_of("mm/s").scale == 1e-3


def test_a_motor_is_found_by_its_column(tmp_path: Path) -> None:
    path = tmp_path / "arm.json"
    path.write_text(json.dumps(GOOD))
    motors = read_calibration(path)
    assert (
        motor_of("shoulder_pan.pos", motors, path) == motor_of("shoulder_pan", motors, path) == Motor(900, 3100, False)
    )
    with pytest.raises(UserError, match=r"there is no motor 'shoulder_pn' \(did you mean 'shoulder_pan'\?\)"):
        motor_of("shoulder_pn", motors, path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "holds no table of motors"),
        ("{", "is not valid JSON"),
        ('{"a": {"range_min": 1}}', r"motor 'a' has range_min and range_max \[1, None\], not two numbers"),
        ('{"a": {"range_min": 5, "range_max": 5}}', "motor 'a' has the empty range 5 to 5"),
        ('{"a": {"range_min": 1, "range_max": 5, "resolution": 0}}', "motor 'a' has the resolution 0"),
    ],
)
def test_a_wrong_calibration_file_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "arm.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_calibration(path)
