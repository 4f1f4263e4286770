#!/usr/bin/env python3
"""Training clips a second of one process: from shards, and decoded from the recordings they were made of.

Clips are drawn at random, and the same ones are read from both. From the recordings only decoding is counted: each
video is opened, sought and decoded by PyAV, and by decord where it reads the codec, at the recorded size; resizing,
numbers and masks, which shards give too, are not done. Depth videos are always PyAV's. Without RECORDINGS
synthetic ones are made: 640x480 H.264, 3 cameras and their depth.

    python benchmarks/loading.py RECORDINGS --embodiment FILE --depth none
    python benchmarks/loading.py --cameras 3
"""

from __future__ import annotations

import bisect
import functools
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer
from rich.console import Console

from _measure import machine, print_table
from _recordings import Shape, write_embodiment, write_recordings
from xwam_ft.decoding import DECORD_CODECS
from xwam_ft.media import probe
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.episode import Episode, VideoView
from xwam_ft.prepare.pipeline import prepare
from xwam_ft.prepare.sources import open_source
from xwam_ft.shards import ClipRef, ShardSet


def main(
    recordings: Annotated[Path | None, typer.Argument(help="what `prepare` reads; default: synthetic")] = None,
    embodiment: Annotated[Path | None, typer.Option(help="the embodiment file of RECORDINGS")] = None,
    depth: Annotated[str, typer.Option(help="sensor or none")] = "sensor",
    urdf_dir: Annotated[Path | None, typer.Option(help="where the embodiment's URDF is")] = None,
    clips: Annotated[int, typer.Option(min=1, help="clips to read each way")] = 40,
    frames: Annotated[int, typer.Option(min=40, help="an episode of the synthetic recordings")] = 120,
    cameras: Annotated[int, typer.Option(min=1, help="of the synthetic recordings")] = 3,
    height: Annotated[int, typer.Option(min=32, help="of the synthetic recordings; 4/3 as wide")] = 480,
    folder: Annotated[Path | None, typer.Option(help="where to work (default: the system's)")] = None,
) -> None:
    """Print clips/s from shards, and from the recordings by PyAV and decord, with their ratios."""
    typer.echo("python " + shlex.join(["benchmarks/loading.py", *sys.argv[1:]]))
    typer.echo(f"{machine('cpu')}, PyAV {av.__version__}")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if recordings is None:
            sizes = {"height": height, "width": height * 4 // 3}
            shape = Shape(2, frames, cameras=cameras, depth=depth == "sensor", **sizes)
            recordings = write_recordings(Path(place) / "recordings", shape)
            embodiment = write_embodiment(Path(place) / "synthetic.yaml", shape, min(256, height), min(320, height))
        if embodiment is None:
            raise typer.BadParameter("give --embodiment with RECORDINGS")
        out, urdfs = Path(place) / "out", [urdf_dir] if urdf_dir else []
        options: dict[str, Any] = {"embodiment": embodiment, "depth": depth, "urdf_dirs": urdfs}
        prepare([recordings], out, workers=0, strict=True, console=Console(quiet=True), **options)
        _compare(ShardSet.open(out), recordings, embodiment, clips)


def _compare(shards: ShardSet, recordings: Path, embodiment: Path, count: int) -> None:
    found = shards.clips(None, 1)
    chosen = [found[i] for i in np.random.default_rng(0).integers(0, len(found), count)]
    source = open_source(recordings)
    episodes = dict(enumerate(source.episodes()))
    plans = plan_cameras(load_embodiment(embodiment), source.info, embodiment)
    names = [plan.source for plan in plans]
    depths = [plan.depth.source for plan in plans if plan.depth] if shards.contract.depth.kind != "none" else []
    ways: dict[str, Callable[[ClipRef], object]] = {"shards": shards.read_clip}

    def decode(ref: ClipRef, read: Callable[[Path, list[int]], object]) -> None:
        episode, rows = episodes[ref.entry.episode], _rows(shards, ref)
        for name in names:
            _read(episode, name, rows, read)
        for name in depths:
            _read(episode, name, rows, read_by_av)

    ways["recordings, PyAV"] = functools.partial(decode, read=read_by_av)
    views = [episodes[0].views[name] for name in names]
    by_decord = all(isinstance(v, VideoView) and probe(v.path).codec in DECORD_CODECS for v in views)
    if by_decord:
        ways["recordings, decord"] = functools.partial(decode, read=read_by_decord)
    spent = seconds_of(ways, chosen)
    rows = [
        [name, f"{count / wall:.2f}", f"{count / cpu:.2f}", f"{wall / spent['shards'][0]:.2f}"]
        for name, (wall, cpu) in spent.items()
    ]
    if not by_decord:
        rows.append(["recordings, decord", "cannot read it", "-", "-"])
    size = f"{len(names)} RGB and {len(depths)} depth views, {shards.contract.timing.clip_frames} frames"
    title = f"{count} clips of {recordings.name}: {size}, stored at {shards.contract.image.height}x"
    title += f"{shards.contract.image.width}"
    print_table(title, ("from", "clips/s", "clips a CPU second", "time / shards"), rows)


def seconds_of(
    ways: dict[str, Callable[[ClipRef], object]], chosen: Sequence[ClipRef]
) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of each way over all clips, taken in turn so that other load falls on all of them."""
    spent = {name: [0.0, 0.0] for name in ways}
    for read in ways.values():
        read(chosen[0])  # libraries are loaded and files are in memory
    for ref in chosen:
        for name, read in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            read(ref)
            spent[name][0] += time.perf_counter() - wall
            spent[name][1] += time.process_time() - cpu
    return {name: (wall, cpu) for name, (wall, cpu) in spent.items()}


def read_by_av(path: Path, rows: list[int]) -> np.ndarray:
    """Pictures by index, rising, as an RGB or 16-bit gray array: seek to the key frame before, decode, convert."""
    pictures: list[np.ndarray] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.average_rate is not None
        assert stream.time_base is not None
        times = [round(row / stream.average_rate / stream.time_base) for row in rows]
        gray = (stream.codec_context.pix_fmt or "").startswith("gray")
        container.seek(times[0], stream=stream, backward=True)
        for frame in container.decode(stream):
            assert frame.pts is not None
            if bisect.bisect_left(times, frame.pts - 1) != bisect.bisect_right(times, frame.pts + 1):
                pictures.append(frame.to_ndarray(format="gray16le" if gray else "rgb24"))
            if frame.pts + 1 >= times[-1]:
                break
    if len(pictures) != len(set(rows)):
        raise RuntimeError(f"{path}: {len(pictures)} of {len(set(rows))} pictures found")
    return np.stack(pictures)


def read_by_decord(path: Path, rows: list[int]) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), num_threads=1).get_batch(rows).asnumpy()


def _rows(shards: ShardSet, ref: ClipRef) -> list[int]:
    """The episode frames a clip shows."""
    timing = shards.contract.timing
    last = ref.entry.first_frame + ref.entry.num_frames - 1
    wanted = ref.start + np.arange(timing.clip_frames) * timing.frame_skip
    return np.unique(np.minimum(wanted, last)).tolist()


def _read(episode: Episode, name: str, rows: list[int], read: Callable[[Path, list[int]], object]) -> None:
    view = episode.views[name]
    if not isinstance(view, VideoView):
        raise typer.BadParameter(f"{view.path} is no video, so there is nothing to decode")
    read(view.path, [view.first + row for row in rows])


if __name__ == "__main__":
    typer.run(main)
