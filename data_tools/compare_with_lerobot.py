#!/usr/bin/env python3
"""Compare how we read a LeRobot dataset with LeRobot's own loader, number for number and frame for frame.

Runs where `lerobot` is installed (an environment of its own: its pins differ from ours) with this package's sources on
the path; a release of 0.4 or later reads v3.0, one of 0.2 or 0.3 reads v2.1:

    python3 -m venv /tmp/lerobot && /tmp/lerobot/bin/pip install lerobot scipy
    PYTHONPATH=src /tmp/lerobot/bin/python data_tools/compare_with_lerobot.py RECORDINGS

Numbers (float32 and integers) must be equal to the bit, instructions equal. A picture must be nearest to LeRobot's
picture of the same frame among its neighbours, where these differ from it, and is equal to the bit where both decode
with the same library (`--backend pyav`). Depth videos are left out. Exit code
0: all agree; 1: something does not; 2: it cannot be compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from xwam_ft.errors import EXIT_CODE, UserError
from xwam_ft.prepare.sources import Source, open_source

if TYPE_CHECKING:
    from xwam_ft.prepare.episode import Episode

BLOCK = 64  # frames decoded at once
LIBRARIES = ("lerobot", "torch", "torchcodec", "av", "pyarrow", "numpy")


@dataclass
class Tally:
    """What one camera's pictures, or one column's numbers, came to."""

    compared: int = 0
    equal: int = 0  # to the bit
    misplaced: list[str] = field(default_factory=list[str])
    largest: int = 0  # difference of a pixel, of 255
    total: float = 0.0  # mean differences, summed over pictures


def main(
    recordings: Annotated[Path, typer.Argument(help="a LeRobot dataset", metavar="RECORDINGS")],
    backend: Annotated[str, typer.Option(help="LeRobot's video backend: pyav or torchcodec")] = "pyav",
    stride: Annotated[int, typer.Option(min=1, help="compare the pictures of every STRIDE-th frame")] = 1,
) -> None:
    """Compare every number, and the pictures, of RECORDINGS."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        source = open_source(recordings)
        if not source.info.format.startswith("LeRobot"):
            raise UserError(f"is {source.info.format}, not LeRobot", recordings, "give a LeRobot dataset")
        depth = [camera.feature for camera in source.info.cameras.values() if camera.depth]
        theirs = _their_dataset(recordings, backend, depth)
        failures = compare(source, theirs, stride)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    raise typer.Exit(1 if failures else 0)


def compare(source: Source, theirs: Any, stride: int) -> int:
    """Print what agrees and what does not; returns how many columns, instructions and pictures do not."""
    found = [f"{name} {_version(name)}" for name in LIBRARIES]
    typer.echo(f"{source.info.path.name}, {source.info.format}; {', '.join(found)}")
    plain = theirs.hf_dataset.with_format("numpy")
    whose, order = np.asarray(plain["episode_index"]), np.asarray(plain["frame_index"])
    cameras = [camera.feature for camera in source.info.cameras.values() if not camera.depth]
    columns = {name: Tally() for name in source.info.columns}
    pictures = {name: Tally() for name in cameras}
    failures: list[str] = []
    episodes = source.episodes()
    if len(episodes) != theirs.num_episodes:
        failures.append(f"{len(episodes)} episodes, LeRobot has {theirs.num_episodes}")
    for episode in episodes:
        rows = np.flatnonzero(whose == episode.index)
        rows = rows[np.argsort(order[rows])]
        if len(rows) != episode.length:
            failures.append(f"episode {episode.index}: {episode.length} frames, LeRobot has {len(rows)}")
            continue
        failures += _compare_numbers(episode, plain.select(rows), columns)
        failures += _compare_pictures(episode, theirs, rows, pictures, stride)
    for name, tally in columns.items():
        if tally.equal != tally.compared or not tally.compared:
            failures.append(f"column {name}: {tally.compared - tally.equal} of {tally.compared} numbers differ")
    equal, compared = (sum(getattr(tally, name) for tally in columns.values()) for name in ("equal", "compared"))
    typer.echo(f"numbers: {equal} of {compared} equal to the bit, {len(columns)} columns in {len(episodes)} episodes")
    for name, tally in pictures.items():
        failures += tally.misplaced
        if not tally.compared:
            failures.append(f"camera {name}: no pictures compared")
            continue
        typer.echo(
            f"pictures of {name}: {tally.compared} compared, {tally.equal} equal to the bit, "
            f"{len(tally.misplaced)} at another frame; difference mean {tally.total / tally.compared:.4f}, "
            f"largest {tally.largest} of 255"
        )
    for failure in failures[:20]:
        typer.echo(f"DIFFERS: {failure}")
    typer.echo("all agree" if not failures else f"{len(failures)} differences")
    return len(failures)


def _compare_numbers(episode: Episode, rows: Any, columns: dict[str, Tally]) -> list[str]:
    table = episode.table.read()
    failures: list[str] = []
    names: dict[str, list[str]] = {}
    for name in columns:
        names.setdefault(name.split("/", 1)[0], []).append(name)
    for feature, members in names.items():
        values: np.ndarray = np.stack([np.asarray(cell).reshape(-1) for cell in rows[feature]])
        if values.shape[1] != len(members):
            failures.append(f"{feature}: {len(members)} numbers a frame, LeRobot has {values.shape[1]}")
            continue
        for place, name in enumerate(members):
            ours, theirs = table.columns[name], values[:, place]
            same = ours.astype(np.float64) == theirs.astype(np.float64)
            same |= np.isnan(ours.astype(np.float64)) & np.isnan(theirs.astype(np.float64))
            columns[name].compared += len(ours)
            columns[name].equal += int(np.count_nonzero(same))
    if table.timestamps is not None and not np.array_equal(
        table.timestamps, np.asarray(rows["timestamp"], dtype=np.float64).reshape(-1)
    ):
        failures.append(f"episode {episode.index}: timestamps differ")
    return failures


def _compare_pictures(
    episode: Episode, theirs: Any, rows: np.ndarray, pictures: dict[str, Tally], stride: int
) -> list[str]:
    failures: list[str] = []
    task = None
    for first in range(0, episode.length, BLOCK):
        stop = min(first + BLOCK, episode.length)
        before, after = max(first - 1, 0), min(stop + 1, episode.length)
        ours = {camera: episode.views[camera].read_rgb(range(before, after)) for camera in pictures}
        for frame in range(-(-first // stride) * stride, stop, stride):
            item = theirs[int(rows[frame])]
            task = item["task"]
            near = range(max(frame - 1, before), min(frame + 2, after))
            for camera, tally in pictures.items():
                seen = np.rint(item[camera].numpy().transpose(1, 2, 0) * 255.0).astype(np.int16)
                around = ours[camera][near.start - before : near.stop - before].astype(np.int16)
                if around.shape[1:] != seen.shape:
                    failures.append(f"{camera}: {list(around.shape[1:])}, LeRobot has {list(seen.shape)}")
                    continue
                _count(tally, np.abs(around - seen), near.index(frame), f"episode {episode.index}, frame {frame}")
    told = episode.instructions[0] if episode.instructions else ""
    if task is not None and told != task:
        failures.append(f"episode {episode.index}: instruction {told!r}, LeRobot has {task!r}")
    return failures


def _count(tally: Tally, apart: np.ndarray, own: int, where: str) -> None:
    """Add one picture: `apart` are the differences to ours of the frame and its neighbours, `own` its place."""
    means = apart.mean(axis=(1, 2, 3))
    tally.compared += 1
    tally.equal += int(not apart[own].any())
    tally.largest = max(tally.largest, int(apart[own].max()))
    tally.total += float(means[own])
    if means[own] > means.min():
        tally.misplaced.append(f"{where} is nearer to a neighbour of ours ({', '.join(f'{m:.3f}' for m in means)})")


def _their_dataset(folder: Path, backend: str, depth: list[str]) -> Any:
    """LeRobot's dataset without the depth videos, which its loader gives as colours or not at all."""
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"LeRobot cannot be imported ({error})", "lerobot", "pip install lerobot") from None
    try:
        dataset = LeRobotDataset("local/recordings", root=folder, video_backend=backend)
        for name in depth:
            dataset.meta.info["features"].pop(name, None)
        len(dataset[0])  # a backend that does not work says so here
        return dataset
    except Exception as error:  # whatever a release says of a version it does not read
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        fix = "use a release that reads this version of the format: 0.4 for v3.0, 0.3 for v2.1"
        raise UserError(f"LeRobot {_version('lerobot')} does not open it ({reason})", folder, fix) from None


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"


if __name__ == "__main__":
    typer.run(main)
