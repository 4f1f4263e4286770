"""An episode's pictures as one video: a segment's own bytes, or several segments joined without any loss.

Neighbouring segments overlap, so that their videos cannot be put one behind the other as they are. They are decoded and
written again losslessly, in the pixels that were stored: no picture changes, the file grows.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from xwam_ft import depth_code, media
from xwam_ft.media import REPRODUCIBLE

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import UInt16
    from numpy import ndarray

    from xwam_ft.shard_index import SegmentEntry

DEPTH_STEPS = 4095  # LeRobot's depth code has 12 bits; 0 is kept for "no depth"
# One thread of each kind, so that equal pictures give equal bytes.
LOSSLESS_DEPTH = "lossless=1:open-gop=0:bframes=0:pools=none:frame-threads=1:wpp=0:log-level=none:info=0"


def own_rows(entries: Sequence[SegmentEntry]) -> list[range]:
    """Of each segment, the rows that stand in no later one."""
    ends = [*(entry.first_frame for entry in entries[1:]), entries[-1].first_frame + entries[-1].num_frames]
    return [range(end - entry.first_frame) for entry, end in zip(entries, ends, strict=True)]


def write_joined(path: Path, videos: Sequence[bytes], rows: Sequence[range], fps: float) -> None:
    """Write the first rows of several videos behind each other, lossless H.264."""
    options = {"qp": "0", "preset": "medium", "g": "16", **REPRODUCIBLE}
    frames = (frame for data, wanted in zip(videos, rows, strict=True) for frame in _stored(data, len(wanted)))
    _write(path, frames, fps, "libx264", "yuv420p", options)


def write_depth(path: Path, codes: Sequence[UInt16[ndarray, "f h w"]], near: float, far: float, fps: float) -> None:
    """Write depth codes of an episode as LeRobot's 12-bit depth video: logarithmic from `near` to `far`, no shift."""
    import av

    # 65536 codes: the conversion is a table.
    metres = depth_code.code_to_metres(np.arange(65536, dtype=np.uint16), near, far)
    unit = np.log(np.where(np.isfinite(metres), metres, near) / near) / np.log(far / near)
    table = np.where(np.isfinite(metres), np.clip(np.rint(unit * DEPTH_STEPS), 1, DEPTH_STEPS), 0).astype(np.uint16)
    frames = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(table[frame]), format="gray12le")
        for part in codes
        for frame in part
    )
    options = {"x265-params": LOSSLESS_DEPTH, "preset": "medium", "g": "16"}
    _write(path, frames, fps, "libx265", "gray12le", options)


def _stored(data: bytes, count: int) -> Iterator[Any]:
    """The first pictures of a video, in the pixels that it stores."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number == count:
                return
            yield av.VideoFrame.from_ndarray(frame.to_ndarray(format="yuv420p"), format="yuv420p")


def _write(path: Path, frames: Iterator[Any], fps: float, codec: str, pixels: str, options: dict[str, str]) -> None:
    import av
    from av.codec.context import Flags

    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pixels
                stream.codec_context.thread_count = 1
                stream.codec_context.flags |= Flags.bitexact
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def require_frames(path: Path, frames: int) -> None:
    """Assert that a video that was written holds as many pictures as its episode."""
    assert media.count_frames(path) == frames, f"{path} has {media.count_frames(path)} pictures, not {frames}"
