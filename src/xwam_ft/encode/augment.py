"""Random crops, colours and compression of training clips: functions of (clip, copy), of nothing else.

Every view of a clip has a crop of its own, one for all its frames and for its RGB and depth; one colour change holds
for all views and frames. A copy's numbers come from the clip's key and the copy's number, not from the run's seed, so
that runs of other seeds share a latent cache. X-WAM crops (0.95 of each side, per view) and leaves colours as they are.

Legend: V views, T frames, H x W the contract's picture, which every crop is resized back to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xwam_ft.media import compressed
from xwam_ft.pictures import (
    centre_crop_box,
    crop_intrinsics,
    crop_size,
    resize_intrinsics,
    resize_nearest,
    resize_pictures,
)

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

    from xwam_ft.media import Codec
    from xwam_ft.pictures import Intrinsics
    from xwam_ft.recipe import AugmentSpec

COLOUR = ("brightness", "contrast", "saturation", "hue")
Box = tuple[int, int, int, int]  # top, left, height, width
CRF, JPEG = (18, 38), (30, 95)  # from what can hardly be seen to what is plain to see


@dataclass(frozen=True)
class Augmentation:
    """What happens to one copy of one clip.

    Args:
        boxes: the crop of each view.
        colour: factors of brightness, contrast and saturation (1 changes nothing) and the turn of the hue (0 nothing,
            1 once around), applied in this order; None leaves the pictures' bytes as they are.
        codec: by what and how well every view is compressed before it is cropped.
    """

    boxes: tuple[Box, ...]
    colour: tuple[float, float, float, float] | None = None
    codec: tuple[Codec, int] | None = None

    def rgb(self, pictures: UInt8[ndarray, "v t h w 3"]) -> UInt8[ndarray, "v t h w 3"]:
        """Compress every view, crop it, resize it back, then change its colour."""
        height, width = pictures.shape[2:4]
        if self.codec is not None:
            pictures = np.stack([compressed(view, *self.codec) for view in pictures])
        cut = [resize_pictures(_cut(view, box), height, width) for view, box in zip(pictures, self.boxes, strict=True)]
        return np.stack([_coloured(view, self.colour) for view in cut] if self.colour is not None else cut)

    def depth(self, codes: UInt16[ndarray, "v t h w"]) -> UInt16[ndarray, "v t h w"]:
        """The same crops of depth codes, each pixel the nearest one: a mean of two codes is no depth."""
        height, width = codes.shape[2:4]
        return np.stack(
            [resize_nearest(_cut(view, box), height, width) for view, box in zip(codes, self.boxes, strict=True)]
        )

    def intrinsics(self, view: int, intrinsics: Intrinsics, height: int, width: int) -> Intrinsics:
        """Intrinsics (pixels of the H x W picture) of a view after its crop and the resize back to H x W."""
        top, left, inner_height, inner_width = self.boxes[view]
        return resize_intrinsics(crop_intrinsics(intrinsics, top, left), (inner_height, inner_width), (height, width))


def centred(views: int, height: int, width: int, fraction: float) -> Augmentation:
    """What deployment does: every view's centre crop, colours untouched."""
    return Augmentation((centre_crop_box(height, width, fraction),) * views)


def augmentation(
    spec: AugmentSpec, key: str, copy: int, views: int, height: int, width: int, fraction: float
) -> Augmentation:
    """Draw for copy `copy` of the clip `key`; without `spec.crop` the crops are the centre ones.

    Each quantity has its own stream of random numbers, so that switching one on moves no other.

    Args:
        fraction: of each side that a crop keeps, the contract's `image.crop`.
    """
    boxes = centred(views, height, width, fraction).boxes
    if spec.crop:
        shares = np.full((2, views), fraction)
        if spec.zoom:
            turns = _generator(key, copy, "zoom").uniform(-spec.zoom, spec.zoom, size=(2, views))
            shares = np.minimum(fraction * (1 + turns), 1.0)
        numbers = _generator(key, copy, "crop")
        tall = [crop_size(height, width, share)[0] for share in shares[0]]
        wide = [crop_size(height, width, share)[1] for share in shares[1]]
        tops = numbers.integers(0, [height - side for side in tall], endpoint=True)
        lefts = numbers.integers(0, [width - side for side in wide], endpoint=True)
        corners = zip(tops.tolist(), lefts.tolist(), strict=True)
        boxes = tuple((*corner, *size) for corner, size in zip(corners, zip(tall, wide, strict=True), strict=True))
    codec = _drawn_codec(_generator(key, copy, "codec"), spec.codec) if spec.codec else None
    if not spec.changes_colour:
        return Augmentation(boxes, codec=codec)
    turns = {name: float(_generator(key, copy, name).uniform(-1, 1)) * getattr(spec, name) for name in COLOUR}
    colour = (1 + turns["brightness"], 1 + turns["contrast"], 1 + turns["saturation"], turns["hue"])
    return Augmentation(boxes, colour, codec)


def _drawn_codec(numbers: np.random.Generator, share: float) -> tuple[Codec, int] | None:
    if numbers.uniform() >= share:
        return None
    if numbers.uniform() < 0.5:
        return "h264", int(numbers.integers(*CRF, endpoint=True))
    return "jpeg", int(numbers.integers(*JPEG, endpoint=True))


def _generator(key: str, copy: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{key}/{copy}/{purpose}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))


def _cut(frames: ndarray, box: Box) -> ndarray:
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


def _coloured(
    frames: UInt8[ndarray, "t h w 3"], colour: tuple[float, float, float, float]
) -> UInt8[ndarray, "t h w 3"]:
    """torchvision's colour functions; contrast turns about each frame's own mean."""
    import torch
    from torchvision.transforms.v2 import functional

    brightness, contrast, saturation, hue = colour
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1)  # t 3 h w
    tensor = functional.adjust_brightness(tensor, brightness)
    tensor = functional.adjust_contrast(tensor, contrast)
    tensor = functional.adjust_saturation(tensor, saturation)
    if hue != 0:
        tensor = functional.adjust_hue(tensor, hue)
    return tensor.movedim(1, -1).contiguous().numpy()
