"""LPIPS: how unlike two pictures are to a network that has learned to see (Zhang et al. 2018, AlexNet, version 0.1).

torchmetrics holds the code and what weighs the channels; AlexNet's own weights are a file that somebody names, and
nothing is fetched. Features at five depths are scaled to length 1, their squared differences weighted by channel, and
the means over the picture added: 0 of equal pictures, and rarely above 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from xwam_ft.errors import UserError
from xwam_ft.files import sha256
from xwam_ft.model.tensor_files.source import open_checkpoint

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray

VARIABLE = "XWAM_FT_LPIPS"
BATCH = 16  # pictures at a time
MAKE = (
    'make it once, where there is a network: python -c "from torchvision.models import alexnet; '
    "from safetensors.torch import save_file; save_file(alexnet(weights='DEFAULT').features.state_dict(), "
    "'alexnet.safetensors')\""
)

Measure: TypeAlias = Callable[["UInt8[ndarray, 't h w 3']", "UInt8[ndarray, 't h w 3']"], "Float[ndarray, ' t']"]


@dataclass(frozen=True)
class Lpips:
    """The network with weights of a file; called with imagined and recorded pictures, gives a number of each pair."""

    network: Any
    path: Path
    sha256: str

    @torch.inference_mode()
    def __call__(
        self, imagined: UInt8[ndarray, "t h w 3"], recorded: UInt8[ndarray, "t h w 3"]
    ) -> Float[ndarray, " t"]:
        values: list[np.ndarray] = []
        for first in range(0, len(imagined), BATCH):
            pair = (_as_input(pictures[first : first + BATCH]) for pictures in (imagined, recorded))
            values.append(self.network(*pair, normalize=True).flatten().double().numpy())
        return np.concatenate([*values, np.zeros(0)])


def read_lpips(path: Path | None) -> Lpips | None:
    """LPIPS with AlexNet's weights from a file; None where neither `path` nor $XWAM_FT_LPIPS names one.

    Raises:
        UserError: no such file, or one that holds no such weights.
    """
    named = os.environ.get(VARIABLE, "")
    place = path or (Path(named) if named else None)
    if place is None:
        return None
    where = f"--lpips {place}" if path is not None else f"{VARIABLE}={place}"
    if not place.is_file():
        raise UserError("no such file of AlexNet's weights", where, MAKE)
    from torchmetrics.functional.image.lpips import _LPIPS  # pyright: ignore[reportPrivateUsage]

    # Its public forms fetch AlexNet's weights. This one is made without, and is given ours.
    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    stored = open_checkpoint(place).tensors
    own = {name.removeprefix("features."): name for name in stored}
    state: dict[str, torch.Tensor] = {}
    for name, parameter in network.net.state_dict().items():
        short = name.partition(".")[2]
        found = stored.get(own.get(short, ""))
        if found is None or tuple(found.shape) != tuple(parameter.shape):
            raise UserError(f"holds no AlexNet (its features.{short} is missing or of another shape)", where, MAKE)
        state[name] = found.read().float()
        if not bool(torch.isfinite(state[name]).all()):
            raise UserError(f"is damaged (features.{short} is not finite)", where, MAKE)
    network.net.load_state_dict(state)
    return Lpips(network.eval(), place, sha256(place))


def _as_input(pictures: UInt8[ndarray, "t h w 3"]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(3, 1).float() / 255.0
