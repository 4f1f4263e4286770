"""Video: the right decoder by probe, exact frames by index, lossless depth, equal bytes every time."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from xwam_ft import decoding, media
from xwam_ft.decoding import Frames, Video, VideoInfo, keep_open, opened
from xwam_ft.errors import UserError
from xwam_ft.files import FilePart
from xwam_ft.media import count_frames, gray16_bytes, iterate_rgb, probe, read_gray16, read_rgb, rgb_bytes

HEIGHT, WIDTH, BITS = 32, 64, 8
HAS_DECORD = importlib.util.find_spec("decord") is not None


def numbered(count: int) -> np.ndarray:
    """Pictures that carry their own index as a row of black and white squares."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pictures = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    for index in range(count):
        pictures[index, ..., 0] = (2 * x + 3 * index) % 200
        pictures[index, ..., 1] = 4 * y
        for bit in range(BITS):
            pictures[index, :8, 8 * bit : 8 * bit + 8] = 255 * (index >> bit & 1)
    return pictures


def numbers(pictures: np.ndarray) -> list[int]:
    return [sum(int(p[2:6, 8 * b + 2 : 8 * b + 6].mean() > 128) << b for b in range(BITS)) for p in pictures]


def read_by_av(source: Path | bytes, frames: Frames = None) -> np.ndarray:
    with opened(source) as video:
        return video.by_av(frames, "rgb24")


def encoded(codec: str, pixel_format: str, suffix: str, path: Path, count: int = 40, **options: str) -> Path:
    """A numbered video of another make than ours."""
    target = path / f"{codec}.{suffix}"
    with av.open(str(target), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(30), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        for picture in numbered(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return target


@pytest.fixture(scope="module")
def movie() -> bytes:
    return rgb_bytes(numbered(60), 30.0)


@pytest.fixture
def movie_file(movie: bytes, tmp_path: Path) -> Path:
    (tmp_path / "movie.mp4").write_bytes(movie)
    return tmp_path / "movie.mp4"


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (9, 20, 30), dtype=np.uint16)


def test_probe_reads_the_head(movie: bytes, codes: np.ndarray) -> None:
    assert probe(movie) == VideoInfo("h264", "yuv420p", 8, WIDTH, HEIGHT, 30.0, 60)
    info = probe(gray16_bytes(codes, 12.5))
    assert (info.codec, info.pixel_format, info.bits, info.width, info.height) == ("ffv1", "gray16le", 16, 30, 20)
    assert info.fps == pytest.approx(12.5)


@pytest.mark.parametrize(
    "wanted", [None, slice(10, 30, 7), [0], [59], [59, 3, 3, 20, 4], range(14, 18), [], np.array([15, 16, 17])]
)
@pytest.mark.parametrize("place", ["file", "memory", "file, by PyAV"])
def test_frames_come_by_index(movie: bytes, movie_file: Path, wanted: object, place: str) -> None:
    read = read_by_av if place == "file, by PyAV" else read_rgb
    pictures = read(movie if place == "memory" else movie_file, wanted)  # pyright: ignore[reportArgumentType]
    every = list(range(60))
    expected = every if wanted is None else every[wanted] if isinstance(wanted, slice) else [int(i) for i in wanted]  # pyright: ignore
    assert pictures.shape == (len(expected), HEIGHT, WIDTH, 3)
    assert numbers(pictures) == expected


def test_both_decoders_give_the_same_pixels(movie: bytes, movie_file: Path) -> None:
    if not HAS_DECORD:
        pytest.skip("decord is not installed")
    part = FilePart(movie_file, 0, len(movie))
    assert [media.decoder(source) for source in (movie_file, part, movie)] == ["decord", "av", "av"]
    for source in (part, movie):
        np.testing.assert_array_equal(read_rgb(movie_file), read_rgb(source))


def test_pictures_far_apart_are_those_of_the_whole_and_some_between_are_not_decoded(
    movie: bytes, movie_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, decoded = read_rgb(movie), list[int]()
    decode = decoding._decode  # pyright: ignore[reportPrivateUsage]

    def counted(*given: Any) -> Iterator[Any]:
        for frame in decode(*given):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "_decode", counted)
    for source in (movie, FilePart(movie_file, 0, len(movie))):
        for step in (2, 3, 4, 8):
            for first in range(0, 60, 7):
                video = Video(source)
                # What was passed over is wanted next, one by one and all together.
                for wanted in (range(first, 60, step), [first], range(first + 1, 60, step), range(60), [59, 3, 20]):
                    np.testing.assert_array_equal(video.rgb(wanted), whole[list(wanted)])
                video.close()
        decoded.clear()
        read_rgb(source, range(0, 60, 4))
        assert 15 <= len(decoded) < 57


def test_pictures_survive_the_encoder(movie: bytes) -> None:
    error = np.abs(read_rgb(movie).astype(float) - numbered(60))
    assert error[..., 1].mean() < 3


def test_iterating_is_reading(movie: bytes) -> None:
    np.testing.assert_array_equal(np.stack(list(iterate_rgb(movie, 5, 50, block=16))), read_rgb(movie, range(5, 50)))
    assert len(list(iterate_rgb(movie))) == 60


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix", "name", "decoder", "options"),
    [
        ("libx264", "yuv420p", "mkv", "h264", "decord", {"g": "12", "bf": "3"}),
        ("libx264", "yuv420p10le", "mp4", "h264", "av", {"g": "12"}),
        ("libx265", "yuv420p", "mp4", "hevc", "av", {"x265-params": "log-level=none:keyint=10:open-gop=1:pools=1"}),
        ("libx265", "yuv420p", "mkv", "hevc", "decord", {"x265-params": "log-level=none:keyint=10:open-gop=0:pools=1"}),
        ("libsvtav1", "yuv420p", "mp4", "av1", "av", {"g": "12", "preset": "10"}),
        ("libvpx-vp9", "yuv420p", "webm", "vp9", "decord", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("libvpx", "yuv420p", "webm", "vp8", "av", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("mpeg4", "yuv420p", "mp4", "mpeg4", "av", {"g": "12", "bf": "2", "qscale": "2"}),
        ("mpeg4", "yuv420p", "mp4", "mpeg4", "decord", {"g": "12", "qscale": "2"}),
        ("mpeg4", "yuv420p", "avi", "mpeg4", "av", {"g": "12", "bf": "2", "qscale": "2"}),
        ("mjpeg", "yuvj420p", "avi", "mjpeg", "av", {}),
    ],
)
def test_other_makes_come_by_index_too(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str, name: str, decoder: str, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = encoded(codec, pixel_format, suffix, tmp_path, **options)
    assert probe(path).codec == name
    assert media.decoder(path) == (decoder if HAS_DECORD else "av")
    assert count_frames(path) == 40
    wanted = [0, 11, 12, 13, 39, 25, 24, 5]
    assert numbers(read_rgb(path, wanted)) == wanted
    assert numbers(read_by_av(path, wanted)) == wanted
    assert numbers(read_rgb(path)) == list(range(40))


def test_a_video_that_stays_open_gives_the_same_pictures(tmp_path: Path, codes: np.ndarray) -> None:
    """Forward, back, again, past the end of what was decoded: by both decoders, and files changed in between."""
    colour, depth = tmp_path / "a.mp4", tmp_path / "a.mkv"
    media.write_rgb(colour, numbered(60), 30.0)
    media.write_gray16(depth, codes, 30.0)
    parts = [range(8), range(8, 16), [15], [15, 16], [59], [3, 40], range(52, 60), [2, 1], []]
    with keep_open(), opened(colour) as video:
        assert read_rgb(colour, [1]).shape == (1, HEIGHT, WIDTH, 3)
        for wanted in parts:
            assert numbers(read_rgb(colour, wanted)) == list(wanted)
            assert numbers(video.by_av(wanted, "rgb24")) == list(wanted)
            some = [index % len(codes) for index in wanted]
            np.testing.assert_array_equal(read_gray16(depth, some), codes[some])
        with opened(colour) as again:
            assert again is video
    media.write_rgb(colour, numbered(9), 30.0)
    with opened(colour) as one, opened(colour) as other:
        assert one is not other
        assert one.count == 9


def test_pictures_in_a_row_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded = tmp_path / "a.mp4", [0]
    media.write_rgb(path, numbered(60), 30.0)
    plain = decoding._decode  # pyright: ignore[reportPrivateUsage]

    def counting(*given: Any) -> Iterator[object]:
        for frame in plain(*given):
            decoded[0] += 1
            yield frame

    monkeypatch.setattr(decoding, "_decode", counting)
    with keep_open(), opened(path) as video:
        for first in range(0, 60, 7):
            wanted = range(first, min(first + 7, 60))
            assert numbers(video.by_av(wanted, "rgb24")) == list(wanted)
    assert decoded == [60]


def cut_by_edit_list(path: Path, first: int) -> Path:
    """A video of which an edit list hides the pictures before `first`, as a cut without encoding anew makes it."""
    source = encoded("libx264", "yuv420p", "mp4", path, g="12", bf="2")
    target = path / "cut.mp4"
    with av.open(str(source)) as whole, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.dts is not None and packet.pts is not None:
                shift = round(first / 30 / float(packet.time_base))
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                container.mux(packet)
    return target


@pytest.mark.parametrize("first", [3, 12, 17])
def test_pictures_that_an_edit_list_hides_are_not_counted(tmp_path: Path, first: int) -> None:
    path = cut_by_edit_list(tmp_path, first)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert numbers(np.stack(shown)) == list(range(first, 40))
    assert count_frames(path) == 40 - first
    assert numbers(read_rgb(path)) == list(range(first, 40))
    wanted = [0, 5, 39 - first, 13, 1]
    assert numbers(read_rgb(path, wanted)) == [first + index for index in wanted]
    assert numbers(read_by_av(path, wanted)) == [first + index for index in wanted]


def test_depth_is_lossless_and_exact_by_index(codes: np.ndarray) -> None:
    data = gray16_bytes(codes, 30.0)
    np.testing.assert_array_equal(read_gray16(data), codes)
    np.testing.assert_array_equal(read_gray16(data, [7, 1, 1]), codes[[7, 1, 1]])
    assert count_frames(data) == len(codes)


def test_twelve_bit_hevc_keeps_its_native_values(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265")
    values = np.random.default_rng(1).integers(0, 4096, (5, 64, 96), dtype=np.uint16)
    path = tmp_path / "depth.mp4"
    options = {"x265-params": "lossless=1:log-level=none:pools=1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "gray12le"
        for picture in values:
            frame = av.VideoFrame(96, 64, "gray12le")
            plane = frame.planes[0]
            rows = np.zeros((64, plane.line_size // 2), "<u2")
            rows[:, :96] = picture
            plane.update(rows.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path).pixel_format == "gray12le"
    np.testing.assert_array_equal(read_gray16(path), values)


def test_equal_pictures_give_equal_bytes(codes: np.ndarray) -> None:
    """Repeated with the memory in another state each time, and across a second, where a date would change."""
    rng = np.random.default_rng(0)
    wander = np.cumsum(rng.integers(-2, 3, (16, 32, 48, 3)), axis=0) + 128
    pictures = wander.astype(np.uint8)
    began = time.time()
    movies, depths = set(), set()
    while time.time() - began < 1.1 or len(movies) == 0:
        junk = [np.full(int(rng.integers(1, 300_000)), int(rng.integers(256)), np.uint8) for _ in range(10)]
        del junk
        movies.add(rgb_bytes(pictures, 30.0))
        depths.add(gray16_bytes(codes, 30.0))
    assert len(movies) == 1
    assert len(depths) == 1


def test_widths_decord_cannot_take_are_read_all_the_same(tmp_path: Path) -> None:
    for width in (24, 48, 72, 100):
        narrow = np.ascontiguousarray(numbered(6).repeat(2, axis=2)[:, :, :width])
        media.write_rgb(path := tmp_path / f"{width}.mp4", narrow, 30.0)
        assert media.decoder(path) == "av"
        assert np.abs(read_rgb(path)[..., 1].astype(float) - narrow[..., 1]).mean() < 6


def test_a_file_replaced_under_its_name_is_scanned_again(tmp_path: Path) -> None:
    media.write_rgb(tmp_path / "a.mp4", numbered(5), 30.0)
    assert count_frames(tmp_path / "a.mp4") == 5
    media.write_rgb(tmp_path / "a.mp4", numbered(9), 30.0)
    assert numbers(read_rgb(tmp_path / "a.mp4")) == list(range(9))


def test_files_are_what_the_bytes_are(tmp_path: Path, movie: bytes, codes: np.ndarray) -> None:
    media.write_rgb(tmp_path / "a.mp4", numbered(60), 30.0)
    media.write_gray16(tmp_path / "a.mkv", codes, 30.0)
    assert (tmp_path / "a.mp4").read_bytes() == movie
    np.testing.assert_array_equal(read_gray16(tmp_path / "a.mkv"), codes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "a.mp4"]


def test_a_preview_plays_from_the_first_byte(tmp_path: Path) -> None:
    odd = numbered(12)[:, : HEIGHT - 1, : WIDTH - 1]
    media.write_preview(tmp_path / "p.mp4", odd, 10.0)
    data = (tmp_path / "p.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    info = probe(tmp_path / "p.mp4")
    assert (info.codec, info.pixel_format, info.height, info.width) == ("h264", "yuv420p", HEIGHT, WIDTH)
    assert numbers(read_rgb(tmp_path / "p.mp4")) == list(range(12))


def test_what_cannot_be_read_is_named(tmp_path: Path, movie: bytes) -> None:
    with pytest.raises(UserError, match=r"none\.mp4: the video file does not exist"):
        read_rgb(tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all" * 100)
    for use in (probe, count_frames, read_rgb):
        with pytest.raises(UserError, match=r"broken\.mp4: cannot be read as video"):
            use(broken)
    broken.write_bytes(movie[: len(movie) // 2])  # the index stands at the end, so a cut file has none
    with pytest.raises(UserError, match=r"broken\.mp4: cannot be read as video"):
        read_rgb(broken)
    with pytest.raises(UserError, match="a video of 3 bytes in memory: cannot be read"):
        read_rgb(b"abc")


@pytest.mark.parametrize("frame", [60, -1])
def test_a_frame_that_is_not_there_is_named(movie: bytes, frame: int) -> None:
    with pytest.raises(UserError, match=f"frame {frame} is wanted and it has 60"):
        read_rgb(movie, [0, frame])


def test_colour_video_is_no_depth(movie: bytes) -> None:
    with pytest.raises(UserError, match="holds h264 yuv420p, not 10- to 16-bit gray depth"):
        read_gray16(movie)


def test_a_video_has_a_frame() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        rgb_bytes([], 30.0)


def real_videos(real_data: Path) -> tuple[list[Path], list[Path]]:
    return (
        sorted((real_data / "lerobot_v21_g1" / "videos").rglob("*.mp4")),
        sorted((real_data / "lerobot_v30_g1" / "videos").rglob("*.mp4")),
    )


def test_real_frames_are_found_in_shared_files(real_data: Path) -> None:
    """AV1 of four episodes, one file each and two a file: counts agree, and single frames are the same pictures."""
    single, shared = real_videos(real_data)
    counts = [count_frames(path) for path in single]
    assert counts == [221, 277, 267, 280]
    assert [count_frames(path) for path in shared] == [counts[0] + counts[1], counts[2] + counts[3]]
    for episode, path in enumerate(single):
        earlier = counts[episode - 1] if episode % 2 else 0
        wanted = [0, counts[episode] // 2 + 1, counts[episode] - 1]
        found = read_rgb(shared[episode // 2], [earlier + index for index in wanted])
        np.testing.assert_array_equal(found, read_rgb(path, wanted))


@pytest.mark.slow
def test_all_real_frames_are_bit_identical(real_data: Path) -> None:
    single, shared = real_videos(real_data)
    joined = (frame for path in shared for frame in iterate_rgb(path))
    apart = (frame for path in single for frame in iterate_rgb(path))
    compared = 0
    for left, right in zip(joined, apart, strict=True):
        assert np.array_equal(left, right)
        compared += 1
    assert compared == 1045


def test_a_lossy_codec_errs_more_the_worse_it_is_and_keeps_odd_sizes() -> None:
    rows, columns = np.mgrid[:63, :97]
    still = np.stack([columns * 2, rows * 3, (rows + columns) % 64 * 4], axis=-1).astype(np.uint8)
    frames = np.stack([np.roll(still, step, axis=1) for step in range(4)])
    qualities: dict[media.Codec, tuple[int, ...]] = {"h264": (18, 28, 38), "jpeg": (95, 60, 30)}
    for codec, falling in qualities.items():
        read = [media.compressed(frames, codec, quality) for quality in falling]
        assert {(back.shape, back.dtype.name) for back in read} == {(frames.shape, "uint8")}
        errors = [np.abs(back.astype(int) - frames).mean() for back in read]
        assert errors == sorted(errors)
        assert 0 < errors[0] < errors[2] < 40
