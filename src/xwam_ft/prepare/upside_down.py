"""Sources whose pictures are known to stand on their head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xwam_ft.errors import listed

if TYPE_CHECKING:
    from xwam_ft.prepare.sources import SourceInfo

# robosuite's renderer gives rows from the bottom up unless told otherwise, and these record what it gives.
RENDERED = re.compile(r"libero|robosuite|robomimic|robocasa", re.IGNORECASE)


def upside_down(info: SourceInfo) -> str | None:
    """A sentence where the recordings' cameras are known to be upside down; None elsewhere."""
    named = RENDERED.search(" ".join([*info.path.parts[-2:], info.format, info.robot]))
    cameras = [name for name, camera in info.cameras.items() if not camera.depth]
    if named is None or not cameras:
        return None
    return (
        f"{named[0]} renders pictures with their rows from the bottom up: look at {listed(cameras)}, and where one "
        "stands on its head write `rotate: 180, mirror: true` for it (`rotate: 180` alone where others turned it)"
    )
