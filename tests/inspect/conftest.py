"""The small LeRobot sets of the tests of prepare."""

from tests.prepare.conftest import lerobot, made, v21, v30  # noqa: F401
