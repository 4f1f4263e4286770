"""The one resize and crop rule for pictures, depth codes and intrinsics.

The pixel with index i has its centre at i. A resize by s takes x to (x + 0.5) s - 0.5 (half-pixel centres); pictures
are interpolated bilinearly without antialiasing, clamped at the edges, rounded half up; depth codes take the nearest
pixel, since a mean of two codes (or of one with "invalid") is no depth. Computed elementwise with numpy in float32, or
to the same numbers in whole ones of 16 bits, so that prepare, training and the robot get the same bytes everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8, UInt16
    from numpy import ndarray

Intrinsics = tuple[float, float, float, float]  # fx fy cx cy in pixels
Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]
WHOLE_BITS = 8  # of both shares together: 255 times 2^8, and a half, are 16-bit numbers


def resize_pictures(pictures: UInt8[ndarray, "n h w 3"], height: int, width: int) -> UInt8[ndarray, "n h2 w2 3"]:
    """Bilinear, half-pixel centres, no antialiasing, aspect not kept."""
    count, source, wide, channels = pictures.shape
    if (source, wide) == (height, width):
        return pictures
    rows, columns = _neighbours(source, height), _neighbours(wide, width)
    resized = np.empty((count, height, width, channels), dtype=np.uint8)
    bits = _bits(rows[2]), _bits(columns[2])
    if sum(bits) <= WHOLE_BITS and wide * channels % 2 == 0:
        _resize_whole(np.ascontiguousarray(pictures), resized, rows, columns, bits)
    else:
        _resize_real(pictures, resized, rows, columns)
    return resized


def resize_nearest(codes: UInt16[ndarray, "n h w"], height: int, width: int) -> UInt16[ndarray, "n h2 w2"]:
    """The code of the source pixel that the target pixel's centre falls into."""
    rows = ((np.arange(height) + 0.5) * (codes.shape[1] / height)).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * (codes.shape[2] / width)).astype(np.intp)
    return np.asarray(codes).take(rows, axis=1).take(columns, axis=2)


def turn_pictures(pictures: Any, rotate: int, *, mirror: bool) -> Any:
    """Pictures [.., h, w, 3] or depth [.., h, w] turned by `rotate` degrees clockwise, then mirrored left to right."""
    rows = pictures.ndim - (3 if pictures.shape[-1] == 3 and pictures.dtype == np.uint8 else 2)
    turned = np.rot90(pictures, -rotate // 90, axes=(rows, rows + 1)) if rotate else pictures
    return np.ascontiguousarray(np.flip(turned, rows + 1)) if mirror else np.ascontiguousarray(turned)


def turn_back(pictures: Any, rotate: int, *, mirror: bool) -> Any:
    """The inverse of `turn_pictures`: mirrored turns undo themselves."""
    return turn_pictures(pictures, rotate if mirror else -rotate % 360, mirror=mirror)


def turn_intrinsics(intrinsics: Intrinsics, size: tuple[int, int], rotate: int, *, mirror: bool) -> Intrinsics:
    """Intrinsics after `turn_pictures` of pictures of `size` (height, width); fx is negative after mirroring."""
    fx, fy, cx, cy = intrinsics
    height, width = size
    for _ in range(rotate // 90):
        fx, fy, cx, cy = fy, fx, height - 1 - cy, cx
        height, width = width, height
    return (-fx, fy, width - 1 - cx, cy) if mirror else (fx, fy, cx, cy)


def turned_axes(rotate: int) -> Float[ndarray, "3 3"]:
    """Axes of the camera whose picture was turned (x right, y down), as columns in those of the camera before.

    Mirroring changes no axis: it is in the sign of fx.
    """
    quarter = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return np.linalg.matrix_power(quarter, rotate // 90)


def crop_size(height: int, width: int, fraction: float) -> tuple[int, int]:
    """Size of a crop of `fraction` of each side, in whole pixels."""
    return max(1, round(height * fraction)), max(1, round(width * fraction))


def centre_crop_box(height: int, width: int, fraction: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the centre crop."""
    inner_height, inner_width = crop_size(height, width, fraction)
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


def centre_crop(pictures: UInt8[ndarray, "n h w 3"], fraction: float) -> UInt8[ndarray, "n h w 3"]:
    """Crop the centre and resize it back to the same size, by the rule of `resize_pictures`."""
    height, width = pictures.shape[1:3]
    top, left, inner_height, inner_width = centre_crop_box(height, width, fraction)
    return resize_pictures(pictures[:, top : top + inner_height, left : left + inner_width], height, width)


def centre_crop_nearest(codes: UInt16[ndarray, "n h w"], fraction: float) -> UInt16[ndarray, "n h w"]:
    """`centre_crop` for depth codes."""
    height, width = codes.shape[1:3]
    top, left, inner_height, inner_width = centre_crop_box(height, width, fraction)
    return resize_nearest(codes[:, top : top + inner_height, left : left + inner_width], height, width)


def resize_intrinsics(intrinsics: Intrinsics, source: tuple[int, int], target: tuple[int, int]) -> Intrinsics:
    """Intrinsics after a resize from `source` to `target`, both (height, width)."""
    fx, fy, cx, cy = intrinsics
    across, down = target[1] / source[1], target[0] / source[0]
    return fx * across, fy * down, (cx + 0.5) * across - 0.5, (cy + 0.5) * down - 0.5


def crop_intrinsics(intrinsics: Intrinsics, top: float, left: float) -> Intrinsics:
    """Intrinsics after cutting `top` rows and `left` columns away."""
    fx, fy, cx, cy = intrinsics
    return fx, fy, cx - left, cy - top


def centre_crop_intrinsics(intrinsics: Intrinsics, height: int, width: int, fraction: float) -> Intrinsics:
    """Intrinsics after `centre_crop` of a picture of height x width."""
    top, left, inner_height, inner_width = centre_crop_box(height, width, fraction)
    return resize_intrinsics(crop_intrinsics(intrinsics, top, left), (inner_height, inner_width), (height, width))


def _neighbours(source: int, target: int) -> Neighbours:
    """For each target pixel its two source pixels and the weight of the second, float32."""
    scale = np.float32(source) / np.float32(target)
    centre = np.maximum(scale * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(centre.astype(np.intp), source - 1)
    second = np.minimum(first + 1, source - 1)
    return first, second, np.clip(centre - first.astype(np.float32), 0, 1).astype(np.float32)


def _bits(shares: np.ndarray) -> int:
    """The least k for which all of these are whole multiples of 2^-k; more than can be used where there is none."""
    scaled = (shares * np.float32(2**k) for k in range(WHOLE_BITS + 1))
    return next((k for k, share in enumerate(scaled) if np.array_equal(share, np.floor(share))), WHOLE_BITS + 1)


def _resize_real(pictures: np.ndarray, resized: np.ndarray, rows: Neighbours, columns: Neighbours) -> None:
    """The rule in float32, for any size."""
    _, source, wide, channels = pictures.shape
    height, width = resized.shape[1:3]
    (top, bottom, down), (left, right, across) = rows, columns
    used, places = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    top, bottom = places[:height], places[height:]
    # Rows of numbers instead of pixels, and the same few arrays for every picture: a quarter of the plain form's time.
    left, right = (_spread(column, channels) for column in (left, right))
    across, down = np.repeat(across, channels), down[:, None]
    mixed, other = (np.empty((len(used), width * channels), np.float32) for _ in range(2))
    above, below = (np.empty((height, width * channels), np.float32) for _ in range(2))
    for picture, target in zip(pictures, resized, strict=True):
        flat = picture.reshape(source, wide * channels)[used]
        np.multiply(flat.take(left, axis=1, mode="clip"), 1 - across, out=mixed)
        np.multiply(flat.take(right, axis=1, mode="clip"), across, out=other)
        mixed += other
        mixed.take(top, axis=0, out=above, mode="clip")
        mixed.take(bottom, axis=0, out=below, mode="clip")
        above *= 1 - down
        below *= down
        above += below
        above += np.float32(0.5)
        np.copyto(target.reshape(height, width * channels), above, casting="unsafe")  # truncates


def _resize_whole(
    pictures: np.ndarray, resized: np.ndarray, rows: Neighbours, columns: Neighbours, bits: tuple[int, int]
) -> None:
    """The same in whole numbers of 16 bits, where shares are multiples of 2^-k: nothing is lost, three times faster.

    Two numbers of a row are read as one of 16 bits, and its halves are worked on apart: `even` has those at 0, 2, ...
    """
    _, source, wide, channels = pictures.shape
    height, width = resized.shape[1:3]
    (top, bottom, down), (left, right, across) = rows, columns
    lower = _weights(down, bits[0])[:, None]
    upper = np.uint16(1 << bits[0]) - lower
    step, first = wide // width, int(left[0])
    # Every picture's pair of columns stands alike when `step` is even, and then no column has to be looked up.
    even_steps = step % 2 == 0 and np.array_equal(left, first + step * np.arange(width)) and (across == 0.5).all()
    below, even, odd, other = (np.empty((height, wide * channels // 2), np.uint16) for _ in range(4))
    half, shift = np.uint16(1 << sum(bits) >> 1), np.uint16(sum(bits))
    later = np.repeat(_weights(across, bits[1]), channels)
    left, right = (_spread(column, channels) for column in (left, right))
    for picture, target in zip(pictures, resized, strict=True):
        pairs = picture.reshape(source, wide * channels).view("<u2")
        pairs.take(top, axis=0, out=other, mode="clip")
        pairs.take(bottom, axis=0, out=below, mode="clip")
        for part, read, number in ((even, np.bitwise_and, 255), (odd, np.right_shift, 8)):
            read(other, np.uint16(number), out=part)
            part *= upper
        for part, read, number in ((even, np.bitwise_and, 255), (odd, np.right_shift, 8)):
            read(below, np.uint16(number), out=other)
            other *= lower
            part += other
        if even_steps:
            for channel in range(channels):
                at = [first * channels + channel, (first + 1) * channels + channel]
                one, two = ((odd if place % 2 else even)[:, place // 2 :: step * channels // 2] for place in at)
                sums = one + two
                sums += half
                sums >>= shift
                np.copyto(target[..., channel], sums, casting="unsafe")
            continue
        mixed = np.stack([even, odd], axis=-1).reshape(height, wide * channels)
        sums = mixed.take(left, axis=1, mode="clip")
        sums *= np.uint16(1 << bits[1]) - later
        sums += mixed.take(right, axis=1, mode="clip") * later
        sums += half
        sums >>= shift
        np.copyto(target.reshape(height, width * channels), sums, casting="unsafe")


def _weights(shares: np.ndarray, bits: int) -> np.ndarray:
    return (shares * np.float32(1 << bits)).astype(np.uint16)


def _spread(columns: np.ndarray, channels: int) -> np.ndarray:
    """Places of pixels in a row -> those of their numbers."""
    return (columns[:, None] * channels + np.arange(channels)).reshape(-1)
