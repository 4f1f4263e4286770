"""Video files and pictures: reading (by what decoding.py opens) and writing; these two alone know decord and PyAV.

Pictures are uint8 RGB, depth codes uint16. What is written is byte-reproducible for equal library versions: one
encoder thread, no dates, no random identifiers. Resizing and cropping: pictures.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xwam_ft.decoding import Frames, Source, Video, VideoInfo, name_of, opened
from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, write_bytes_atomic

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

# x264's macroblock tree reads memory nobody wrote, so with it equal pictures give unequal bytes even on one thread.
REPRODUCIBLE = {"threads": "1", "x264-params": "mbtree=0"}
# Of what training reads at random: a key frame every 16 pictures bounds what has to be decoded for one. What this costs
# and gives beside other choices: benchmarks/encoder.py.
H264 = {"preset": "veryfast", "tune": "fastdecode", "crf": "15", "g": "16", **REPRODUCIBLE}
Codec = Literal["h264", "jpeg"]
FFV1 = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "threads": "1"}


def probe(source: Source) -> VideoInfo:
    """What a video file says of itself.

    Raises:
        UserError: absent, not a video, or without a video stream.
    """
    with opened(source) as video:
        return video.info


def decoder(source: Source) -> Literal["decord", "av"]:
    """Which library reads this file; see decoding.py's head."""
    with opened(source) as video:
        return video.decoder


def count_frames(source: Source) -> int:
    """Exact number of pictures: by counting packets where one packet is one picture, else by decoding."""
    with opened(source) as video:
        return video.count


def read_rgb(source: Source, frames: Frames = None) -> UInt8[ndarray, "n h w 3"]:
    """Decode pictures by index.

    Args:
        frames: indices in any order (repeats allowed), a slice, or None for all.

    Raises:
        UserError: unreadable, or an index past the end.
    """
    with opened(source) as video:
        return video.rgb(frames)


def iterate_rgb(source: Source, start: int = 0, stop: int | None = None, block: int = 64) -> Iterator[np.ndarray]:
    """The pictures `start` .. `stop` - 1 one by one, [H, W, 3], at the memory of `block` of them."""
    video = Video(source)
    try:
        stop = video.count if stop is None else stop
        for first in range(start, stop, block):
            yield from video.rgb(range(first, min(first + block, stop)))
    finally:
        video.close()


def read_gray16(source: Source, frames: Frames = None) -> UInt16[ndarray, "n h w"]:
    """Decode single-channel 10- to 16-bit video (FFV1 gray16le, HEVC gray12le, ...) to its native values.

    Raises:
        UserError: unreadable, not such a video, or an index past the end.
    """
    with opened(source) as video:
        info = video.info
        if info.bits <= 8 or not info.pixel_format.startswith("gray"):
            what = f"holds {info.codec} {info.pixel_format}, not 10- to 16-bit gray depth"
            raise UserError(what, name_of(source), "give a depth video")
        return video.by_av(frames, "gray")


def write_rgb(path: Path, frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float) -> None:
    """Write H.264 (yuv420p) atomically; height and width even."""
    write_bytes_atomic(path, rgb_bytes(frames, fps))


def rgb_bytes(frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float) -> bytes:
    """An H.264 mp4 in memory; see `write_rgb`."""
    return encoded(frames, fps, "libx264", H264)


def encoded(frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float, codec: str, options: dict[str, str]) -> bytes:
    """An mp4 (yuv420p) in memory, by any of PyAV's encoders."""
    buffer = io.BytesIO()
    _encode(buffer, frames, fps, codec, "yuv420p", "rgb24", "mp4", options, {})
    return buffer.getvalue()


def write_gray16(path: Path, frames: Iterable[UInt16[ndarray, "h w"]], fps: float) -> None:
    """Write lossless FFV1 gray16le in Matroska (.mkv) atomically."""
    write_bytes_atomic(path, gray16_bytes(frames, fps))


def gray16_bytes(frames: Iterable[UInt16[ndarray, "h w"]], fps: float) -> bytes:
    """A lossless FFV1 .mkv in memory; see `write_gray16`."""
    buffer = io.BytesIO()
    _encode(buffer, frames, fps, "ffv1", "gray16le", "gray16le", "matroska", FFV1, {})
    return buffer.getvalue()


def write_preview(path: Path, frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float) -> None:
    """Write an .mp4 every browser plays (H.264 yuv420p, index in front); an odd edge is repeated to make it even."""
    options = {"crf": "23", "preset": "medium", **REPRODUCIBLE}
    even = (np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    with atomic_path(path) as temporary:
        _encode(str(temporary), even, fps, "libx264", "yuv420p", "rgb24", "mp4", options, {"movflags": "+faststart"})


def compressed(frames: UInt8[ndarray, "n h w 3"], codec: Codec, quality: int) -> UInt8[ndarray, "n h w 3"]:
    """Frames as they come back from a lossy codec: what a camera or a recorder does to them, to be borne by a policy.

    Args:
        codec: x264 at its `medium` preset (30 frames a second, yuv420p), or JPEG a frame (chroma halved).
        quality: H.264's crf (0 to 51, 0 the best), or JPEG's quality (1 to 100, 100 the best).
    """
    height, width = frames.shape[1:3]
    if codec == "h264":
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        video = encoded(frames, 30.0, "libx264", {"preset": "medium", "crf": str(quality), **REPRODUCIBLE})
        return np.ascontiguousarray(read_rgb(video)[:, :height, :width])
    from PIL import Image

    return np.stack([_as_jpeg(Image.fromarray(frame), quality) for frame in frames])


def _as_jpeg(picture: Any, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# --- encoding ---------------------------------------------------------------------------------------------------


def _encode(
    target: io.BytesIO | str,
    frames: Iterable[np.ndarray],
    fps: float,
    codec: str,
    pixel_format: str,
    layout: str,
    container_format: str,
    options: dict[str, str],
    muxing: dict[str, str],
) -> None:
    import av
    from av.codec.context import Flags

    rate = Fraction(fps).limit_denominator(1001)
    # bitexact: no encoder string, no date and, in Matroska, no random identifiers.
    with av.open(target, "w", format=container_format, options={"fflags": "+bitexact", **muxing}) as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options)
                stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], pixel_format
                stream.codec_context.thread_count = 1
                stream.codec_context.flags |= Flags.bitexact
            # The picture's own memory, not a copy: the encoder has taken what it needs before the next one comes.
            picture = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(frame), format=layout)
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))
