"""A robot's own names and units of what it observes, as a contract keeps them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import Field

from xwam_ft.limits import Part

PROMPTS = ("prompt", "task")


class Reported(Part):
    """One number of a slot under the robot's own name: SI value = scale * number + offset.

    `column`: its place in the slot's `columns`.
    """

    slot: str
    column: int
    scale: float = 1.0
    offset: float = 0.0


class Aliases(Part):
    """Names of what is observed.

    `images`: key -> camera. `numbers`: key -> the number it is. `vectors`: key -> the keys of its numbers in order, of
    which those that `numbers` lacks are not looked at. `prompts`: keys of the task in words. `unused`: keys that were
    recorded and are not looked at.
    """

    images: dict[str, str] = Field(default_factory=dict)
    numbers: dict[str, Reported] = Field(default_factory=dict)
    vectors: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    prompts: tuple[str, ...] = PROMPTS
    unused: tuple[str, ...] = ()

    def require_fitting(self, cameras: Collection[str], widths: Mapping[str, int]) -> None:
        """Raise a `ValueError` where one is of no camera, or of a column that its slot lacks (slot -> columns)."""
        for key, camera in self.images.items():
            if camera not in cameras:
                raise ValueError(f"alias {key!r} is of camera {camera!r}, which there is not")
        for key, number in self.numbers.items():
            if not 0 <= number.column < widths.get(number.slot, 0) or number.scale == 0:
                raise ValueError(f"alias {key!r} is of {number.slot!r} column {number.column}, which there is not")
