"""An open video: what it says of itself, and its pictures by index, decoded forward where they follow one another.

The decoder is chosen by what source, file and packets say, never by trial. Both give the same bytes. decord decodes on
a thread of its own, which suits recordings, read from their first picture to their last: it takes files of 8-bit
H.264, HEVC, MPEG-4 and VP9 whose groups of pictures are all closed, where it is installed (it cannot open AV1, returns
wrong bytes above 8 bits and other pictures than asked for from open groups, which x265 makes by default). PyAV takes
everything else, and what lies within shards or in memory: a few pictures of a video at a time, for two thirds of
decord's CPU time. Frames are addressed by their index in presentation order and come exactly, also from files that
several episodes share.

media.py has the functions that open a video for one reading; within `keep_open` they leave it open for the next.
"""

from __future__ import annotations

import bisect
import importlib.util
import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xwam_ft.errors import UserError
from xwam_ft.files import FilePart, PartReader, stand_in

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from numpy import ndarray


Source = Path | FilePart | bytes
DECORD_CODECS = {"h264", "hevc", "mpeg4", "vp9"}
# One packet is one picture in these; elsewhere (VP8's hidden frames, packed MPEG-4 in AVI) pictures are counted.
PACKET_CODECS = {"h264", "hevc", "av1", "vp9", "mpeg4", "ffv1", "mjpeg", "png"}
PACKET_CONTAINERS = {"mov", "mp4", "matroska", "webm"}
Frames = Sequence[int] | slice | None
Layout = Literal["rgb24", "gray"]


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


class Video:
    """A video for one thread, opened once, and only where what is asked for is not known of it yet.

    Raises:
        UserError: absent, not a video, or without a video stream; of a method, also where decoding fails.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._told = _told_of(source)
        if not self._told:
            _ = self._container  # opening it says what is wrong
        self._decoding: Iterator[Any] | None = None
        self._position = -1  # index of the last picture PyAV decoded
        self._sparse = False  # and it passed over others

    def close(self) -> None:
        self._decoding = None
        if "_container" in self.__dict__:
            self._container.close()

    @cached_property
    def _container(self) -> Any:
        container = _open(self.source)
        container.streams.video[0].codec_context.thread_count = 1
        return container

    @property
    def _stream(self) -> Any:
        return self._container.streams.video[0]

    @property
    def info(self) -> VideoInfo:
        if "info" not in self._told:
            context = self._stream.codec_context
            self._told["info"] = VideoInfo(
                codec=_codec_name(context),
                pixel_format=context.pix_fmt or "none",
                bits=context.format.components[0].bits if context.format else 0,
                width=context.width,
                height=context.height,
                fps=float(self._stream.average_rate or self._stream.guessed_rate or 0),
                frames=self._stream.frames or None,
            )
        return self._told["info"]

    @property
    def packets(self) -> PacketIndex | None:
        """The index of the file, None where its packets do not tell."""
        if "packets" not in self._told:
            self._told["packets"] = self._scan()
        return self._told["packets"]

    @cached_property
    def decoder(self) -> Literal["decord", "av"]:
        """Which library reads its pictures; see the module's head."""
        if not isinstance(self.source, Path):
            return "av"
        info, packets = self.info, self.packets
        # decord loses count where a group of pictures is open, and takes the padding of a row for pixels at some
        # widths (48, 72), which whole 32s do not have.
        fits = info.codec in DECORD_CODECS and info.bits == 8 and info.width % 32 == 0
        fits = fits and packets is not None and packets.closed
        return "decord" if fits and importlib.util.find_spec("decord") is not None else "av"

    @cached_property
    def count(self) -> int:
        """Exact number of pictures: by counting packets where one packet is one picture, else by decoding."""
        if self.packets is not None:
            return len(self.packets.times)
        with _open(self.source) as container:
            return sum(1 for _ in _decode(container, self.source))

    def rgb(self, frames: Frames = None) -> UInt8[ndarray, "n h w 3"]:
        """Pictures by index, by the decoder that fits."""
        if self.decoder == "av":
            return self.by_av(frames, "rgb24")
        import decord

        wanted = _chosen(frames, self.count, self.source)
        unique, inverse = np.unique(wanted, return_inverse=True)
        try:
            if not len(unique) or len(self._reader) != self.count:
                return self.by_av(frames, "rgb24")
            pictures: np.ndarray = self._reader.get_batch(unique).asnumpy()
        except decord.DECORDError as error:
            raise unreadable(self.source, str(error).splitlines()[0]) from None
        return pictures if np.array_equal(unique, wanted) else pictures[inverse]

    def by_av(self, frames: Frames, layout: Layout) -> np.ndarray:
        """Pictures [n, h, w, 3] or native gray values [n, h, w] by index, by PyAV."""
        wanted = _chosen(frames, self.count, self.source)
        unique, inverse = np.unique(wanted, return_inverse=True)
        if self.packets is None:  # decode from the start and count
            chosen = set(unique.tolist())
            with _open(self.source) as container:
                decoded = itertools.islice(_decode(container, self.source), max(chosen, default=-1) + 1)
                pictures = (self._array(frame, layout) for index, frame in enumerate(decoded) if index in chosen)
                return self._stack(pictures, len(unique), inverse, layout)
        return self._stack(self._seek_and_decode(self.packets, unique.tolist(), layout), len(unique), inverse, layout)

    @cached_property
    def _reader(self) -> Any:
        """decord's own, which goes on where it is when the next pictures are asked for."""
        import decord

        return decord.VideoReader(str(self.source), num_threads=1)

    def _seek_and_decode(self, packets: PacketIndex, chosen: list[int], layout: Layout) -> Iterator[np.ndarray]:
        """The pictures with these indices, in rising order."""
        times, keys = packets.times, packets.keys
        # Of the shards' H.264, every fourth picture say does not need all of those between.
        sparse = not isinstance(self.source, Path) and self.info.codec == "h264"
        sparse = sparse and len(chosen) > 1 and len(chosen) <= chosen[-1] - chosen[0]
        if sparse or self._sparse:
            self._decoding = None  # pictures were passed over that may be wanted now
        self._sparse, wanted = sparse, {times[index] for index in chosen} if sparse else None
        for index in chosen:
            # Before the first key frame that is shown, an edit list hides the one that pictures depend on.
            key = keys[before - 1] if (before := bisect.bisect_right(keys, index)) else 0
            if self._decoding is None or key > self._position + 1 or index <= self._position:
                self._container.seek(times[key], stream=self._stream, backward=True)
                self._decoding = _decode(self._container, self.source, wanted)
            for frame in self._decoding:
                if frame.pts >= times[index]:
                    break
            else:
                raise unreadable(self.source, f"picture {index} does not decode")
            self._position = bisect.bisect_left(times, frame.pts)
            if frame.pts != times[index]:
                raise unreadable(self.source, f"picture {index} does not decode")
            yield self._array(frame, layout)

    def _array(self, frame: Any, layout: Layout) -> np.ndarray:
        """A picture's numbers, in the frame's own memory where no padding stands between them."""
        frame = self._converter.reformat(frame, format="rgb24") if layout == "rgb24" else frame
        plane = frame.planes[0]
        if layout == "rgb24":
            rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
            return rows[: frame.height, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        rows = np.frombuffer(plane, dtype="<u2").reshape(-1, plane.line_size // 2)
        return rows[: frame.height, : frame.width].astype(np.uint16, copy=False)

    @cached_property
    def _converter(self) -> Any:
        """Kept for the next picture, as setting it up takes longer than using it."""
        from av.video.reformatter import VideoReformatter

        return VideoReformatter()

    def _stack(self, pictures: Iterator[np.ndarray], count: int, inverse: np.ndarray, layout: Layout) -> np.ndarray:
        """`count` pictures as one array, filled as they come, in the order that `inverse` says."""
        first = next(pictures, None)
        if first is None:
            shape = (0, self.info.height, self.info.width, *((3,) if layout == "rgb24" else ()))
            return np.zeros(shape, dtype=np.uint8 if layout == "rgb24" else np.uint16)
        stacked = np.empty((count, *first.shape), first.dtype)
        stacked[0] = first
        for place, picture in enumerate(pictures, start=1):
            stacked[place] = picture
        return stacked if np.array_equal(inverse, np.arange(len(stacked))) else stacked[inverse]

    def _scan(self) -> PacketIndex | None:
        import av

        if _codec_name(self._stream.codec_context) not in PACKET_CODECS:
            return None
        if not PACKET_CONTAINERS & set(self._container.format.name.split(",")):
            return None
        coded: list[tuple[int, bool]] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    if packet.pts is None:
                        return None
                    coded.append((packet.pts, packet.is_keyframe))
        except av.FFmpegError as error:
            raise unreadable(self.source, str(error)) from None
        key_time, closed = None, True
        for time, key in coded:
            key_time = time if key else key_time
            closed = closed and (key_time is None or time >= key_time)
        shown = sorted(coded)
        times = [time for time, _ in shown]
        keys = [index for index, (_, key) in enumerate(shown) if key]
        return PacketIndex(times, keys, closed) if keys and len(set(times)) == len(times) else None


class _Kept(threading.local):
    """The videos that this thread keeps open; None where none are to be."""

    videos: dict[Path, Video] | None = None


_kept = _Kept()


@contextmanager
def keep_open() -> Generator[None]:
    """Within it, video files that this thread reads stay open from one reading to the next; they must not change."""
    before, _kept.videos = _kept.videos, {}
    try:
        yield
    finally:
        for video in _kept.videos.values():
            video.close()
        _kept.videos = before


@contextmanager
def opened(source: Source) -> Generator[Video]:
    """A video for one reading, or the one that is open already (`keep_open`)."""
    if not isinstance(source, Path) or _kept.videos is None:
        video = Video(source)
        try:
            yield video
        finally:
            video.close()
        return
    if source not in _kept.videos:
        _kept.videos[source] = Video(source)
    yield _kept.videos[source]


TOLD = 1024
# What the last files said of themselves (`info`, `packets`), by what tells a file from another under its name.
_told: OrderedDict[tuple[Path, int, int, int], dict[str, Any]] = OrderedDict()


def _told_of(source: Source) -> dict[str, Any]:
    """What is known of a video, to be added to; empty of one that was not looked at, or is in memory."""
    if isinstance(source, bytes):
        return {}
    path, offset = (source.path, source.offset) if isinstance(source, FilePart) else (source, 0)
    try:
        stat = path.stat()
    except OSError:
        return {}
    found = _told.setdefault((path, stat.st_mtime_ns, stat.st_size, offset), {})
    while len(_told) > TOLD:
        _told.popitem(last=False)
    return found


def _open(source: Source) -> Any:
    import av

    if isinstance(source, Path) and not source.is_file():
        what, fix = stand_in(source) or ("the video file does not exist", "restore it, or leave its episode out")
        raise UserError(what, source, fix)
    try:
        if isinstance(source, FilePart):
            container = av.open(PartReader(source))
        else:
            container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (av.FFmpegError, OSError) as error:
        raise unreadable(source, str(error)) from None
    if not container.streams.video:
        container.close()
        raise unreadable(source, "no video stream")
    return container


def _decode(container: Any, source: Source, wanted: Collection[int] | None = None) -> Iterator[Any]:
    """Its pictures from here on; with the times that are wanted, without others that no picture depends on."""
    import av

    context, skipping = container.streams.video[0].codec_context, "DEFAULT"
    context.skip_frame = skipping
    try:
        for packet in container.demux(video=0):
            if wanted is not None and (skip := "DEFAULT" if packet.pts in wanted else "NONREF") != skipping:
                context.skip_frame = skipping = skip
            yield from packet.decode()
    except av.FFmpegError as error:
        raise unreadable(source, str(error)) from None


def _chosen(frames: Frames, count: int, source: Source) -> np.ndarray:
    if frames is None:
        return np.arange(count)
    wanted = np.arange(count)[frames] if isinstance(frames, slice) else np.asarray(frames, dtype=np.int64).reshape(-1)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= count):
        worst = int(wanted.max() if wanted.max() >= count else wanted.min())
        raise UserError(
            f"frame {worst} is wanted and it has {count}", name_of(source), "check that table and video belong together"
        )
    return wanted


def _codec_name(context: Any) -> str:
    """The codec's own name, not that of the library that decodes it (libdav1d -> av1)."""
    return str(context.codec.canonical_name)


def name_of(source: Source) -> str:
    if isinstance(source, FilePart):
        return f"a video of {source.size} bytes in {source.path}"
    return f"a video of {len(source)} bytes in memory" if isinstance(source, bytes) else str(source)


def unreadable(source: Source, reason: str) -> UserError:
    if isinstance(source, Path) and (found := stand_in(source)) is not None:
        return UserError(found[0], source, found[1])
    return UserError(
        f"cannot be read as video ({reason})", name_of(source), "restore the file, or leave its episode out"
    )
