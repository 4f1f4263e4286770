"""What a loader's workers hand over goes through shared memory, which a container may have very little of."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from xwam_ft.contract import Contract
    from xwam_ft.recipe import Recipe

PLACE = Path("/dev/shm")
AHEAD = 3
"""Batches of a worker that lie there at a time: two fetched ahead, one being taken."""


def require_shared_memory(recipe: Recipe, contract: Contract, latents: tuple[int, ...], *, depth: bool) -> None:
    """Raise a `UserError` where the batches that workers hold ready cannot lie in /dev/shm; elsewhere there is none.

    Text is no part of them (encode/batch.py).

    Args:
        latents: [C, Tl, V, h, w] of a clip.
    """
    spec, timing, image = recipe.trainer, contract.timing, contract.image
    if not spec.workers or not PLACE.is_dir():
        return
    pixels = len(contract.cameras) * timing.clip_frames * image.height * image.width
    if recipe.data.cache == "none":
        clip = pixels * (3 + (4 if depth else 0))
    else:
        clip = 4 * math.prod(latents) * (2 if depth else 1)
    wanted, free = clip * spec.batch_size * spec.workers * AHEAD, shutil.disk_usage(PLACE).free
    if wanted > free:
        raise UserError(
            f"has {free / 1e6:,.0f} MB free, and {spec.workers} workers hold batches of {wanted / 1e6:,.0f} MB ready "
            "there",
            PLACE,
            "set trainer.workers=0, or give the container more (docker run --shm-size=8g, or --ipc=host)",
        )
