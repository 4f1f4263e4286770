"""Units of recorded numbers, and servo readings with the calibration file LeRobot writes.

Every unit is a line: SI value = scale * recorded + offset. Servo units need a calibration, a JSON object by motor with
`range_min` and `range_max` in ticks and `drive_mode`; in LeRobot's definitions
    ticks            raw positions, 4096 a turn unless `resolution` says otherwise; 0 rad is the middle of the range
    range_m100_100   -100 and 100 are range_min and range_max (turned round where drive_mode is set)
    range_0_100      likewise from 0 to 100
and its degrees, (ticks - middle) * 360 / (resolution - 1), share that zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.files import read_json

UNITS = {
    "rad": 1.0,
    "deg": math.pi / 180.0,
    "m": 1.0,
    "mm": 1e-3,
    "1": 1.0,
    "rad/s": 1.0,
    "deg/s": math.pi / 180.0,
    "m/s": 1.0,
    "mm/s": 1e-3,
}
SERVO = ("ticks", "range_m100_100", "range_0_100")
SI = {unit: unit.replace("deg", "rad").replace("mm", "m") for unit in UNITS} | dict.fromkeys(SERVO, "rad")
RESOLUTION = 4096  # positions a turn of Feetech STS and Dynamixel X servos


@dataclass(frozen=True)
class Line:
    """SI value = scale * recorded + offset."""

    scale: float
    offset: float = 0.0


@dataclass(frozen=True)
class Motor:
    """One servo of a calibration file; ticks."""

    range_min: float
    range_max: float
    reversed: bool
    resolution: int = RESOLUTION

    def line(self, unit: str) -> Line:
        """From `unit` (one of SERVO) to radians from the middle of the range."""
        tick = 2.0 * math.pi / (self.resolution - 1)
        half = (self.range_max - self.range_min) / 2.0 * tick
        sign = -1.0 if self.reversed else 1.0
        if unit == "ticks":
            return Line(tick, -(self.range_min + self.range_max) / 2.0 * tick)
        if unit == "range_m100_100":
            return Line(sign * half / 100.0)
        return Line(sign * half / 50.0, -sign * half)


def line_of(unit: str, motor: Motor | None = None, *, sign: float = 1.0, zero: float | None = None) -> Line:
    """The line of one column.

    Args:
        motor: for the units in SERVO.
        sign: 1, or -1 where the joint counts the other way round.
        zero: the recorded value at which the joint stands at 0; None: where the unit has it.
    """
    found = Line(UNITS[unit]) if motor is None else motor.line(unit)
    offset = found.offset if zero is None else -found.scale * zero
    return Line(sign * found.scale, sign * offset)


def read_calibration(path: Path) -> dict[str, Motor]:
    """The motors of a calibration file by name.

    Raises:
        UserError: absent, not JSON, or not such a file; names the motor and the value.
    """
    if not path.exists():
        raise UserError(
            "LeRobot's calibration of this arm is not there",
            path,
            "copy it there (LeRobot keeps it under ~/.cache/huggingface/lerobot/calibration), or give its place: --set "
            "slots.SLOT.calibration=FILE",
        )
    tree: Any = read_json(path)
    remedy = "give the file LeRobot's `calibrate` wrote for this arm"
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, dict) for value in tree.values()):
        raise UserError("holds no table of motors", path, remedy)
    motors: dict[str, Motor] = {}
    for name, entry in tree.items():
        numbers = [entry.get(key) for key in ("range_min", "range_max")]
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise UserError(f"motor {name!r} has range_min and range_max {numbers}, not two numbers", path, remedy)
        if numbers[0] >= numbers[1]:
            what = f"motor {name!r} has the empty range {numbers[0]} to {numbers[1]}"
            raise UserError(what, path, "calibrate it again")
        resolution = entry.get("resolution", RESOLUTION)
        if not isinstance(resolution, int) or resolution < 2:
            raise UserError(f"motor {name!r} has the resolution {resolution!r}", path, "write its positions a turn")
        motors[str(name)] = Motor(float(numbers[0]), float(numbers[1]), bool(entry.get("drive_mode")), resolution)
    return motors


def motor_of(name: str, motors: dict[str, Motor], path: Path) -> Motor:
    """The motor a column is of: its own name, with or without LeRobot's ending `.pos`."""
    for known in (name, name.removesuffix(".pos")):
        if known in motors:
            return motors[known]
    raise UserError(
        f"there is no motor {name!r}{did_you_mean(name, motors)}", path, f"name one of: {listed(motors)} in `motors`"
    )
