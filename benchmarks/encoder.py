#!/usr/bin/env python3
"""What the settings of the shards' H.264 encoder cost and give: size, quality, time to encode, time to read clips.

Pictures are those of the first episode's first camera, resized as prepare does. Quality is the PSNR of all numbers of
what is read back against what was encoded. Clips are of 9 pictures, 4 frames apart, at random places, each read from
the bytes of a whole file, as training reads them. Without RECORDINGS synthetic pictures are made.

    python benchmarks/encoder.py RECORDINGS --embodiment FILE
    python benchmarks/encoder.py --settings "veryfast 16 16 fastdecode,medium 18 16"
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from _measure import machine, print_table
from _recordings import Shape, write_embodiment, write_recordings
from xwam_ft.media import REPRODUCIBLE, encoded, read_rgb
from xwam_ft.pictures import resize_pictures
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.sources import open_source

SETTINGS = (
    "medium 18 16,medium 18 16 fastdecode,faster 18 16,veryfast 18 16,superfast 18 16,ultrafast 18 16,"
    "veryfast 16 16,veryfast 15 16 fastdecode,veryfast 17 16 fastdecode,veryfast 16 16 fastdecode,"
    "veryfast 16 8 fastdecode,"
    "veryfast 16 4 fastdecode,veryfast 16 1 fastdecode,veryfast 16 16 fastdecode bframes=0,"
    "superfast 16 16 fastdecode"
)
ROWS = np.arange(9) * 4


def main(
    recordings: Annotated[Path | None, typer.Argument(help="what `prepare` reads; default: synthetic")] = None,
    embodiment: Annotated[Path | None, typer.Option(help="the embodiment file of RECORDINGS")] = None,
    settings: Annotated[str, typer.Option(help="preset, crf, key-frame spacing, more; commas between")] = SETTINGS,
    frames: Annotated[int, typer.Option(min=34, help="pictures to encode")] = 200,
    clips: Annotated[int, typer.Option(min=1, help="clips to read")] = 20,
) -> None:
    """Print a row a setting."""
    typer.echo("python " + shlex.join(["benchmarks/encoder.py", *sys.argv[1:]]))
    with tempfile.TemporaryDirectory() as place:
        if recordings is None:
            shape = Shape(1, frames, cameras=1)
            recordings = write_recordings(Path(place) / "recordings", shape)
            embodiment = write_embodiment(Path(place) / "synthetic.yaml", shape, 256, 320)
        if embodiment is None:
            raise typer.BadParameter("give --embodiment with RECORDINGS")
        pictures = _pictures(recordings, embodiment, frames)
    rows: list[list[str]] = []
    for setting in settings.split(","):
        preset, crf, gop, *more = setting.split()
        options = {"preset": preset, "crf": crf, "g": gop, **REPRODUCIBLE}
        options |= {"tune": "fastdecode"} if "fastdecode" in more else {}
        options["x264-params"] = ":".join([options["x264-params"], *(part for part in more if "=" in part)])
        clock = time.process_time()
        data = encoded(pictures, 30.0, "libx264", options)
        encoding = time.process_time() - clock
        error = (read_rgb(data).astype(np.int16) - pictures).astype(np.float64)
        quality = 10 * np.log10(255**2 / np.mean(error**2))
        starts = np.random.default_rng(0).integers(0, len(pictures) - ROWS[-1], clips)
        clock = time.process_time()
        for start in starts:
            read_rgb(data, (start + ROWS).tolist())
        reading = time.process_time() - clock
        size = len(data) / len(pictures) / 1e3
        row = [f"{size:.2f}", f"{quality:.2f}", f"{1e3 * encoding / len(pictures):.2f}", f"{clips / reading:.0f}"]
        rows.append([setting, *row])
    typer.echo(machine("cpu"))
    header = ("setting", "kB a picture", "dB", "ms to encode one", "clips of a view a CPU second")
    print_table(f"{len(pictures)} pictures of {recordings.name}, {pictures.shape[1]}x{pictures.shape[2]}", header, rows)


def _pictures(recordings: Path, embodiment: Path, count: int) -> np.ndarray:
    """[n, h, w, 3] of the first camera of the first episode, at the embodiment's size."""
    spec, source = load_embodiment(embodiment), open_source(recordings)
    camera = plan_cameras(spec, source.info, embodiment)[0]
    view = next(iter(source.episodes())).views[camera.source]
    recorded = camera.turn(view.read_rgb(range(min(count, view.frames))))
    return resize_pictures(recorded, spec.image_rule.height, spec.image_rule.width)


if __name__ == "__main__":
    typer.run(main)
