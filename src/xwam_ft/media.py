"""Video files and pictures; the one place that knows decord and PyAV.

The decoder is chosen by what file and packets say, never by trial: decord for 8-bit H.264, HEVC, MPEG-4 and VP9 where
it is installed and every group of pictures is closed, PyAV for everything else (decord cannot open AV1, returns wrong
bytes above 8 bits and other pictures than asked for from open groups, which x265 makes by default). Frames are
addressed by their index in presentation order and come exactly, also from files that several episodes share.

Pictures are uint8 RGB, depth codes uint16. What is written is byte-reproducible for equal library versions: one
encoder thread, no dates, no random identifiers. Resizing and cropping: pictures.py.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.files import atomic_path, stand_in, write_bytes_atomic

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt16
    from numpy import ndarray

Source = Path | bytes
DECORD_CODECS = {"h264", "hevc", "mpeg4", "vp9"}
# One packet is one picture in these; elsewhere (VP8's hidden frames, packed MPEG-4 in AVI) pictures are counted.
PACKET_CODECS = {"h264", "hevc", "av1", "vp9", "mpeg4", "ffv1", "mjpeg", "png"}
PACKET_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
# x264's macroblock tree reads memory nobody wrote, so with it equal pictures give unequal bytes even on one thread.
REPRODUCIBLE = {"threads": "1", "x264-params": "mbtree=0"}
Frames = Sequence[int] | slice | None


@dataclass(frozen=True)
class VideoInfo:
    codec: str
    pixel_format: str
    bits: int  # a component
    width: int
    height: int
    fps: float
    frames: int | None  # as the container declares; trust `count_frames` alone


@dataclass(frozen=True)
class PacketIndex:
    """Where the pictures of a file are, from its packets alone: one packet, one picture."""

    times: list[int]  # presentation times in order: picture i is the one shown at times[i]
    keys: list[int]  # indices of the key frames
    closed: bool  # no picture is coded after a key frame and shown before it


def probe(source: Source) -> VideoInfo:
    """What a video file says of itself.

    Raises:
        UserError: absent, not a video, or without a video stream.
    """
    with _open(source) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        return VideoInfo(
            codec=_codec_name(context),
            pixel_format=context.pix_fmt or "none",
            bits=context.format.components[0].bits if context.format else 0,
            width=context.width,
            height=context.height,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            frames=stream.frames or None,
        )


def decoder(source: Source) -> Literal["decord", "av"]:
    """Which library reads this file; see the module's head."""
    info, packets = probe(source), _packets(source)
    # decord loses count where a group of pictures is open, and takes the padding of a row for pixels at some widths
    # (48, 72), which whole 32s do not have.
    fits = info.codec in DECORD_CODECS and info.bits == 8 and info.width % 32 == 0
    fits = fits and packets is not None and packets.closed
    return "decord" if fits and importlib.util.find_spec("decord") is not None else "av"


def count_frames(source: Source) -> int:
    """Exact number of pictures: by counting packets where one packet is one picture, else by decoding."""
    if (packets := _packets(source)) is not None:
        return len(packets.times)
    with _open(source) as container:
        return sum(1 for _ in _decode(container, source))


def read_rgb(source: Source, frames: Frames = None) -> UInt8[ndarray, "n h w 3"]:
    """Decode pictures by index.

    Args:
        frames: indices in any order (repeats allowed), a slice, or None for all.

    Raises:
        UserError: unreadable, or an index past the end.
    """
    if decoder(source) == "av":
        return _read_av(source, frames, "rgb24")
    import decord

    wanted = _indices(frames, count_frames(source), source)
    unique, inverse = np.unique(wanted, return_inverse=True)
    try:
        reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
        if not len(unique) or len(reader) != count_frames(source):
            return _read_av(source, frames, "rgb24")
        pictures: np.ndarray = reader.get_batch(unique).asnumpy()
    except decord.DECORDError as error:
        raise _unreadable(source, str(error).splitlines()[0]) from None
    return pictures if np.array_equal(unique, wanted) else pictures[inverse]


def iterate_rgb(source: Source, start: int = 0, stop: int | None = None, block: int = 64) -> Iterator[np.ndarray]:
    """The pictures `start` .. `stop` - 1 one by one, [H, W, 3], at the memory of `block` of them."""
    stop = count_frames(source) if stop is None else stop
    for first in range(start, stop, block):
        yield from read_rgb(source, range(first, min(first + block, stop)))


def read_gray16(source: Source, frames: Frames = None) -> UInt16[ndarray, "n h w"]:
    """Decode single-channel 10- to 16-bit video (FFV1 gray16le, HEVC gray12le, ...) to its native values.

    Raises:
        UserError: unreadable, not such a video, or an index past the end.
    """
    info = probe(source)
    if info.bits <= 8 or not info.pixel_format.startswith("gray"):
        raise UserError(
            f"holds {info.codec} {info.pixel_format}, not 10- to 16-bit gray depth", _name(source), "give a depth video"
        )
    return _read_av(source, frames, "gray")


def write_rgb(
    path: Path, frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float, *, crf: int = 18, gop: int = 16
) -> None:
    """Write H.264 (yuv420p) atomically; height and width even. `gop` bounds what random access has to decode."""
    write_bytes_atomic(path, rgb_bytes(frames, fps, crf=crf, gop=gop))


def rgb_bytes(frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float, *, crf: int = 18, gop: int = 16) -> bytes:
    """An H.264 mp4 in memory; see `write_rgb`."""
    return encoded(frames, fps, "libx264", {"crf": str(crf), "preset": "medium", "g": str(gop), **REPRODUCIBLE})


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
    options = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "threads": "1"}
    buffer = io.BytesIO()
    _encode(buffer, frames, fps, "ffv1", "gray16le", "gray16le", "matroska", options, {})
    return buffer.getvalue()


def write_preview(path: Path, frames: Iterable[UInt8[ndarray, "h w 3"]], fps: float) -> None:
    """Write an .mp4 every browser plays (H.264 yuv420p, index in front); an odd edge is repeated to make it even."""
    options = {"crf": "23", "preset": "medium", **REPRODUCIBLE}
    even = (np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge") for frame in frames)
    with atomic_path(path) as temporary:
        _encode(str(temporary), even, fps, "libx264", "yuv420p", "rgb24", "mp4", options, {"movflags": "+faststart"})


# --- decoding ---------------------------------------------------------------------------------------------------


def _open(source: Source) -> Any:
    import av

    if isinstance(source, Path) and not source.is_file():
        what, fix = stand_in(source) or ("the video file does not exist", "restore it, or leave its episode out")
        raise UserError(what, source, fix)
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(source, str(error)) from None
    if not container.streams.video:
        container.close()
        raise _unreadable(source, "no video stream")
    return container


def _decode(container: Any, source: Source) -> Iterator[Any]:
    import av

    try:
        yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise _unreadable(source, str(error)) from None


def _packets(source: Source) -> PacketIndex | None:
    """The index of a file, None where its packets do not tell. Kept for files, which are read a part at a time."""
    if isinstance(source, bytes):
        return _scan(source)
    try:
        stat = source.stat()
    except OSError:
        return _scan(source)  # opening it says what is wrong
    return _scan_file(source, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _scan_file(path: Path, modified: int, size: int) -> PacketIndex | None:
    del modified, size  # part of the key alone: another file under the same name is scanned again
    return _scan(path)


def _scan(source: Source) -> PacketIndex | None:
    import av

    coded: list[tuple[int, bool]] = []
    with _open(source) as container:
        stream = container.streams.video[0]
        if _codec_name(stream.codec_context) not in PACKET_CODECS:
            return None
        if not PACKET_CONTAINERS & set(container.format.name.split(",")):
            return None
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    if packet.pts is None:
                        return None
                    coded.append((packet.pts, packet.is_keyframe))
        except av.FFmpegError as error:
            raise _unreadable(source, str(error)) from None
    key_time, closed = None, True
    for time, key in coded:
        key_time = time if key else key_time
        closed = closed and (key_time is None or time >= key_time)
    shown = sorted(coded)
    times = [time for time, _ in shown]
    keys = [index for index, (_, key) in enumerate(shown) if key]
    return PacketIndex(times, keys, closed) if keys and len(set(times)) == len(times) else None


def _read_av(source: Source, frames: Frames, layout: str) -> np.ndarray:
    packets = _packets(source)
    if packets is None:
        return _read_by_counting(source, frames, layout)
    wanted = _indices(frames, len(packets.times), source)
    unique, inverse = np.unique(wanted, return_inverse=True)
    return _stack(_seek_and_decode(source, packets, unique.tolist(), layout), len(unique), inverse, source, layout)


def _seek_and_decode(source: Source, packets: PacketIndex, chosen: list[int], layout: str) -> Iterator[np.ndarray]:
    """The pictures with these indices, in rising order."""
    times, keys = packets.times, packets.keys
    index_at = {time: index for index, time in enumerate(times)}
    with _open(source) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        decoding: Iterator[Any] | None = None
        position = -1  # index of the last picture decoded
        for index in chosen:
            # Before the first key frame that is shown, an edit list hides the one that pictures depend on.
            key = keys[before - 1] if (before := bisect.bisect_right(keys, index)) else 0
            if decoding is None or key > position + 1:
                container.seek(times[key], stream=stream, backward=True)
                decoding = _decode(container, source)
            for frame in decoding:
                position = index_at.get(frame.pts, position)
                if frame.pts >= times[index]:
                    break
            else:
                raise _unreadable(source, f"picture {index} does not decode")
            if frame.pts != times[index]:
                raise _unreadable(source, f"picture {index} does not decode")
            yield _array(frame, layout)


def _read_by_counting(source: Source, frames: Frames, layout: str) -> np.ndarray:
    """For files whose packets do not tell: decode from the start and count."""
    wanted = _indices(frames, count_frames(source), source)
    unique, inverse = np.unique(wanted, return_inverse=True)
    chosen = set(unique.tolist())
    with _open(source) as container:
        decoded = itertools.islice(_decode(container, source), max(chosen, default=-1) + 1)
        pictures = (_array(frame, layout) for index, frame in enumerate(decoded) if index in chosen)
        return _stack(pictures, len(unique), inverse, source, layout)


def _stack(pictures: Iterator[np.ndarray], count: int, inverse: np.ndarray, source: Source, layout: str) -> np.ndarray:
    """`count` pictures as one array, filled as they come, in the order that `inverse` says."""
    first = next(pictures, None)
    if first is None:
        info = probe(source)
        shape = (0, info.height, info.width) + ((3,) if layout == "rgb24" else ())
        return np.zeros(shape, dtype=np.uint8 if layout == "rgb24" else np.uint16)
    stacked = np.empty((count, *first.shape), first.dtype)
    stacked[0] = first
    for place, picture in enumerate(pictures, start=1):
        stacked[place] = picture
    return stacked if np.array_equal(inverse, np.arange(len(stacked))) else stacked[inverse]


def _array(frame: Any, layout: str) -> np.ndarray:
    if layout == "rgb24":
        return frame.to_ndarray(format="rgb24")
    plane = frame.planes[0]
    rows = np.frombuffer(plane, dtype="<u2").reshape(-1, plane.line_size // 2)
    return rows[: frame.height, : frame.width].astype(np.uint16)


def _indices(frames: Frames, count: int, source: Source) -> np.ndarray:
    if frames is None:
        return np.arange(count)
    wanted = np.arange(count)[frames] if isinstance(frames, slice) else np.asarray(frames, dtype=np.int64).reshape(-1)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= count):
        worst = int(wanted.max() if wanted.max() >= count else wanted.min())
        raise UserError(
            f"frame {worst} is wanted and it has {count}", _name(source), "check that table and video belong together"
        )
    return wanted


def _codec_name(context: Any) -> str:
    """The codec's own name, not that of the library that decodes it (libdav1d -> av1)."""
    return str(context.codec.canonical_name)


def _name(source: Source) -> str:
    return f"a video of {len(source)} bytes in memory" if isinstance(source, bytes) else str(source)


def _unreadable(source: Source, reason: str) -> UserError:
    if isinstance(source, Path) and (found := stand_in(source)) is not None:
        return UserError(found[0], source, found[1])
    return UserError(f"cannot be read as video ({reason})", _name(source), "restore the file, or leave its episode out")


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
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=layout)
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))
