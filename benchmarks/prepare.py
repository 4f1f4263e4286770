#!/usr/bin/env python3
"""What `xwam-ft prepare` costs beside bare decoding, scaling and encoding of the same files, and how it grows.

The bare work decodes every video, scales it and encodes it with the settings of prepare, and does nothing else: by
the ffmpeg binary where there is one, else by PyAV, on one thread like prepare with one process. Without RECORDINGS
synthetic ones are made, 640x480. `--growth` prepares 10 times as many episodes a row, small and synthetic ones.

    python benchmarks/prepare.py RECORDINGS --embodiment FILE --depth none
    python benchmarks/prepare.py --growth 4,40,400
"""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import av
import typer
from av.codec.context import Flags

from _recordings import Shape, write_embodiment, write_recordings
from xwam_ft.decoding import VideoInfo
from xwam_ft.media import FFV1, H264, count_frames, probe
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.episode import VideoView
from xwam_ft.prepare.sources import open_source

SMALL = Shape(episodes=0, frames=40, cameras=1, height=96, width=128)

PREPARE = """
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from rich.console import Console
from xwam_ft.prepare import pipeline
raw, out, embodiment, depth, urdf, workers = sys.argv[1:]

def used(*whose):
    parts = [resource.getrusage(one) for one in whose]
    return sum(part.ru_utime + part.ru_stime for part in parts)

def begin(*given, take_up=pipeline._take_up):
    begun.append((time.perf_counter() - started, used(resource.RUSAGE_SELF)))
    take_up(*given)

begun = []
pipeline._take_up = begin  # the last thing before the episodes
report = pipeline.prepare(
    [Path(raw)], Path(out), embodiment=Path(embodiment), depth=depth, workers=int(workers), strict=True,
    urdf_dirs=[Path(urdf)] if urdf else [], console=Console(stderr=True, quiet=True),
)
print(json.dumps({
    "stages": report.seconds, "frames": report.frames, "wall": time.perf_counter() - started,
    "cpu": used(resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "start": begun[0],
}))
"""


def main(
    recordings: Annotated[Path | None, typer.Argument(help="what `prepare` reads; default: synthetic")] = None,
    embodiment: Annotated[Path | None, typer.Option(help="the embodiment file of RECORDINGS")] = None,
    depth: Annotated[str, typer.Option(help="none, or sensor where depth was recorded as video")] = "none",
    urdf_dir: Annotated[Path | None, typer.Option(help="where the embodiment's URDF is")] = None,
    frames: Annotated[int, typer.Option(min=10, help="an episode of the synthetic recordings")] = 100,
    growth: Annotated[str, typer.Option(help="numbers of episodes, separated by commas, instead")] = "",
    episodes: Annotated[int, typer.Option(min=2, help="of the synthetic recordings")] = 2,
    workers: Annotated[int, typer.Option(min=0, help="prepare again with so many processes, and compare")] = 0,
    folder: Annotated[Path | None, typer.Option(help="where to work (default: the system's)")] = None,
) -> None:
    """Print wall and CPU seconds and frames/s of prepare, by stage, and of the bare work; or how prepare grows."""
    typer.echo("python " + shlex.join(["benchmarks/prepare.py", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if growth:
            _growth(Path(place), [int(count) for count in growth.split(",")])
            return
        if recordings is None:
            shape = Shape(episodes=episodes, frames=frames, depth=depth == "sensor")
            recordings = write_recordings(Path(place) / "recordings", shape)
            embodiment = write_embodiment(Path(place) / "synthetic.yaml", shape, 256, 320)
        if embodiment is None:
            raise typer.BadParameter("give --embodiment with RECORDINGS")
        _compare(Path(place), recordings, embodiment, depth, urdf_dir, workers)


def _compare(place: Path, recordings: Path, embodiment: Path, depth: str, urdf_dir: Path | None, workers: int) -> None:
    files = videos(recordings, embodiment, depth == "sensor")
    image = load_embodiment(embodiment).image_rule
    by_ffmpeg = shutil.which("ffmpeg")
    bare = {"wall": 0.0, "cpu": 0.0}
    pictures = 0
    for number, path in enumerate(files):  # before prepare, so that what is read from a cold disk is read here
        wall, cpu = time.perf_counter(), _cpu()
        recode = _recode_by_ffmpeg if by_ffmpeg else recode_by_av
        recode(path, place / f"bare-{number}", image.height, image.width)
        bare["wall"] += time.perf_counter() - wall
        bare["cpu"] += _cpu() - cpu
        pictures += count_frames(path)
    done = run_prepare(recordings, place / "out", embodiment, depth, urdf_dir)
    stages, (start_wall, start_cpu) = done["stages"], done["start"]
    inside = ("read", "decode", "depth", "encode", "assemble")
    rows = [[f"bare, by {'ffmpeg' if by_ffmpeg else 'PyAV'}", *_cells(bare["wall"], bare["cpu"], pictures)]]
    rows.append(["prepare, libraries' loading too", *_cells(done["wall"], done["cpu"], pictures)])
    rows.append(["  of it prepare alone", *_cells(stages["all"], None, pictures)])
    rows += [[f"    {name}", *_cells(stages[name], None, pictures)] for name in inside if name in stages]
    rows.append(["  start-up, to the first episode", *_cells(start_wall, start_cpu, 0)])
    ratio = f"{done['wall'] / bare['wall']:.2f}", f"{done['cpu'] / bare['cpu']:.2f}"
    rows.append(["prepare / bare", *ratio, None])
    apart = [(done[kind] - start) / bare[kind] for kind, start in (("wall", start_wall), ("cpu", start_cpu))]
    rows.append(["prepare / bare, start-up apart", *(f"{value:.2f}" for value in apart), None])
    if workers:
        many = run_prepare(recordings, place / "many", embodiment, depth, urdf_dir, workers)
        rows.append([f"prepare with {workers} processes", *_cells(many["wall"], many["cpu"], pictures)])
        faster = [f"{done[kind] / many[kind]:.2f}" for kind in ("wall", "cpu")]
        rows.append([f"one process / {workers} processes", *faster, None])
    from _measure import machine, print_table  # torch, which a child would be charged with

    typer.echo(f"{machine('cpu')}, PyAV {av.__version__}; peak memory of prepare {done['peak'] / 1e6:.0f} MB")
    title = f"{recordings.name}: {done['frames']} frames, {pictures} pictures in {len(files)} files"
    print_table(title, ("work", "wall s", "CPU s", "pictures/s"), rows)


def _growth(place: Path, counts: Sequence[int]) -> None:
    drawn = write_recordings(place / "drawn", _small(SMALL.drawn))
    embodiment = write_embodiment(place / "synthetic.yaml", SMALL, 96, 128)
    rows: list[list[str | None]] = []
    before: dict[str, Any] | None = None
    for count in counts:
        raw = write_recordings(place / f"raw-{count}", _small(count), videos=drawn)
        done = run_prepare(raw, place / f"out-{count}", embodiment, "none", None)
        row = [str(count), f"{done['wall']:.1f}", f"{done['cpu']:.1f}", f"{done['peak'] / 1e6:.0f}"]
        if before is not None:
            grown = done["peak"] - before["peak"]
            row += [f"{done['wall'] / before['wall']:.1f}", f"{done['cpu'] / before['cpu']:.1f}"]
            row.append(f"{grown / (count - before['count']) / 1e3:.1f}")
        rows.append([*row, *[None] * (7 - len(row))])
        before = done | {"count": count}
        for made in (raw, place / f"out-{count}"):
            shutil.rmtree(made)
    from _measure import machine, print_table

    typer.echo(machine("cpu"))
    header = ("episodes", "wall s", "CPU s", "peak MB", "wall ratio", "CPU ratio", "kB an episode")
    print_table(f"prepare of episodes of {SMALL.frames} frames, 96x128, 1 camera, no depth", header, rows)


def videos(recordings: Path, embodiment: Path, depth: bool) -> list[Path]:
    """The video files that a preparation decodes, each once."""
    spec, source = load_embodiment(embodiment), open_source(recordings)
    found: dict[Path, None] = {}
    for camera in plan_cameras(spec, source.info, embodiment):
        for name in [camera.source, *([camera.depth.source] if depth and camera.depth else [])]:
            for episode in source.episodes():
                view = episode.views[name]
                if not isinstance(view, VideoView):
                    raise typer.BadParameter(f"{recordings} holds no videos of {name}, so there is no bare work")
                found[view.path] = None
    return list(found)


def run_prepare(
    raw: Path, out: Path, embodiment: Path, depth: str, urdf_dir: Path | None, workers: int = 0
) -> dict[str, Any]:
    """Prepare in a process of its own: seconds by stage, wall and CPU seconds, of them those of the start; memory."""
    arguments = [str(raw), str(out), str(embodiment), depth, str(urdf_dir or ""), str(workers)]
    done = subprocess.run([sys.executable, "-c", PREPARE, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def recode_by_av(path: Path, target: Path, height: int, width: int) -> None:
    """Decode, scale and encode one video with the settings of prepare, one thread each."""
    gray = _is_depth(probe(path))
    codec, options, pixels = ("ffv1", FFV1, "gray16le") if gray else ("libx264", H264, "yuv420p")
    with av.open(str(path)) as source, av.open(str(target.with_suffix(".mkv")), "w") as sink:
        reading = source.streams.video[0]
        reading.codec_context.thread_count = 1
        writing: Any = sink.add_stream(codec, rate=reading.average_rate, options=options)
        writing.height, writing.width, writing.pix_fmt = height, width, pixels
        writing.codec_context.thread_count = 1
        writing.codec_context.flags |= Flags.bitexact
        for frame in source.decode(reading):
            scaled = frame.reformat(width, height, pixels, interpolation="POINT" if gray else "BILINEAR")
            scaled.pts = None
            sink.mux(writing.encode(scaled))
        sink.mux(writing.encode(None))


def _recode_by_ffmpeg(path: Path, target: Path, height: int, width: int) -> None:
    gray = _is_depth(probe(path))
    codec, options, pixels = ("ffv1", FFV1, "gray16le") if gray else ("libx264", H264, "yuv420p")
    coded = [part for name, value in options.items() for part in (f"-{name}", value)]
    scale = f"scale={width}:{height}:flags={'neighbor' if gray else 'bilinear'}"
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-vf", scale, "-c:v", codec, *coded]
    subprocess.run([*command, "-pix_fmt", pixels, "-an", str(target.with_suffix(".mkv"))], check=True)


def _is_depth(info: VideoInfo) -> bool:
    return info.pixel_format.startswith("gray") and info.bits > 8


def _small(episodes: int) -> Shape:
    return Shape(episodes, SMALL.frames, SMALL.cameras, SMALL.height, SMALL.width)


def _cells(wall: float, cpu: float | None, pictures: int) -> list[str | None]:
    return [
        f"{wall:.2f}",
        None if cpu is None else f"{cpu:.2f}",
        f"{pictures / wall:.0f}" if wall > 0.005 and pictures else None,
    ]


def _cpu() -> float:
    """CPU seconds of this process and of those it waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


if __name__ == "__main__":
    typer.run(main)
