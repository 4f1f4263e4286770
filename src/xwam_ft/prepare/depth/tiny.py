"""The built-in `tiny` depth estimator: a small U-Net trained on Meta-World renders, shipped with the package.

It needs no download and is what the demo uses. On anything but such renders it is a demonstration, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from xwam_ft.bundled import bundled
from xwam_ft.errors import UserError
from xwam_ft.files import sha256
from xwam_ft.prepare.depth.estimated import pick_device
from xwam_ft.prepare.depth.estimator import Description, Estimator

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8
    from numpy import ndarray
    from torch import Tensor

WEIGHTS = "tiny/depth.safetensors"
WIDTHS = (24, 48, 80, 112, 112)
NEAREST, FARTHEST = 0.03, 10.0  # metres it was trained to tell apart
HEIGHT = 96  # of the pictures it was trained on
MULTIPLE = 32  # of what the U-Net can halve
BATCH = 16
BETTER = "transformers:depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf or transformers:apple/DepthPro-hf"
NOTE = f"tiny is a demonstration trained on Meta-World renders alone; for other scenes: {BETTER}"


class Block(nn.Module):
    """Two normed 3x3 convolutions beside a 1x1 one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.past = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        inside = self.conv1(F.silu(self.norm1(x)))
        return self.past(x) + self.conv2(F.silu(self.norm2(inside)))


class TinyDepth(nn.Module):
    """Picture -> logarithm of depth. The pixel's place is an input: it says much about a table-top's depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, WIDTHS[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            Block(inputs, outputs) for inputs, outputs in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.whole = nn.Sequential(nn.Linear(WIDTHS[-1], WIDTHS[-1]), nn.SiLU(), nn.Linear(WIDTHS[-1], WIDTHS[-1]))
        self.up = nn.ModuleList(
            Block(inputs + skip, skip) for inputs, skip in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], 4, 3, padding=1)

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Pictures in [-1, 1], sides multiples of 32 -> natural logarithm of metres along the optical axis."""
        batch, _, height, width = pictures.shape
        rows = torch.linspace(-1, 1, height, device=pictures.device).view(1, 1, -1, 1)
        columns = torch.linspace(-1, 1, width, device=pictures.device).view(1, 1, 1, -1) * (width / height)
        x = self.stem(
            torch.cat([pictures, rows.expand(batch, 1, height, width), columns.expand_as(pictures[:, :1])], 1)
        )
        seen: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool2d(x, 2))
            seen.append(x)
        x = x + self.whole(x.mean(dim=(2, 3)))[:, :, None, None]
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return F.pixel_shuffle(self.head(x), 2)[:, 0]

    @torch.inference_mode()
    def metres(self, pictures: UInt8[ndarray, "n h w 3"]) -> Float[ndarray, "n h w"]:
        """Depth of pictures of any size, at that size."""
        device = self.head.weight.device
        height, width = pictures.shape[1:3]
        inner = HEIGHT, max(MULTIPLE, MULTIPLE * round(HEIGHT * width / height / MULTIPLE))
        found: list[np.ndarray] = []
        for first in range(0, len(pictures), BATCH):
            rgb = torch.from_numpy(pictures[first : first + BATCH]).to(device).movedim(-1, 1).float() / 127.5 - 1
            if (height, width) != inner:
                rgb = F.interpolate(rgb, size=inner, mode="bilinear", antialias=True)
            log = self(rgb).clamp(float(np.log(NEAREST)), float(np.log(FARTHEST)))
            if (height, width) != inner:
                log = F.interpolate(log[:, None], size=(height, width), mode="bilinear")[:, 0]
            found.append(log.exp().cpu().numpy())
        return np.concatenate(found)


def describe(argument: str) -> Description:
    """Metres, at any rate of what it was trained on.

    Raises:
        UserError: an argument, which it does not take, or the installation lacks the weights.
    """
    if argument:
        raise UserError(f"is 'tiny:{argument}', and tiny takes nothing after it", "--depth", "write tiny")
    return Description(True, NOTE, f"tiny {sha256(bundled(WEIGHTS))} torch {torch.__version__}")


def open_estimator(argument: str) -> Estimator:
    return TinyEstimator()


def load_tiny_depth() -> TinyDepth:
    """The shipped network, in float32 on the CPU."""
    from safetensors.torch import load_file

    network = TinyDepth()
    network.load_state_dict({name: value.float() for name, value in load_file(bundled(WEIGHTS)).items()})
    return network.eval().requires_grad_(False)


class TinyEstimator(Estimator):
    def __init__(self) -> None:
        self.device = pick_device()
        self.network: Any = load_tiny_depth().to(self.device)

    def estimate(
        self, pictures: UInt8[ndarray, "n h w 3"], focal: float | None, prompt: ndarray | None
    ) -> Float[ndarray, "n h w"]:
        return self.network.metres(pictures)
