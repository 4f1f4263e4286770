"""The benchmarks of preparation and loading run on tiny recordings, and what they compare is the same work."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from xwam_ft.media import probe, read_gray16, read_rgb

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


def script(name: str) -> Any:
    """A benchmark by its file: `prepare` is the name of a folder of tests too."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made, loading, prepare = importlib.import_module("_recordings"), script("loading"), script("prepare")
encoder, quick = importlib.import_module("encoder"), importlib.import_module("quick")
SHAPE = made.Shape(episodes=2, frames=40, cameras=1, height=96, width=128, depth=True, drawn=1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_recordings(tmp_path_factory.mktemp("recordings") / "raw", SHAPE)


@pytest.fixture(scope="module")
def embodiment(recordings: Path) -> Path:
    return made.write_embodiment(recordings.parent / "synthetic.yaml", SHAPE, 48, 64)


def run(script: Any, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_bare_work_is_on_the_same_files_with_the_same_settings(
    recordings: Path, embodiment: Path, tmp_path: Path
) -> None:
    colours = prepare.videos(recordings, embodiment, depth=False)
    every = prepare.videos(recordings, embodiment, depth=True)
    assert len(colours) == SHAPE.episodes
    assert set(colours) < set(every)
    depths = [path for path in every if path not in colours]
    assert len(depths) == SHAPE.episodes
    for path, codec in ((colours[0], "h264"), (depths[0], "ffv1")):
        prepare.recode_by_av(path, tmp_path / codec, 48, 64)
        found = probe(tmp_path / f"{codec}.mkv")
        assert (found.codec, found.height, found.width) == (codec, 48, 64)


def test_clips_decoded_from_the_recordings_are_the_pictures_asked_for(recordings: Path) -> None:
    colour, depth = (next(recordings.glob(f"videos/*/*{name}/episode_000000.mkv")) for name in ("camera0", "_depth"))
    rows = [3, 7, 11, 30]
    np.testing.assert_array_equal(loading.read_by_av(colour, rows), read_rgb(colour, rows))
    np.testing.assert_array_equal(loading.read_by_decord(colour, rows), read_rgb(colour, rows))
    np.testing.assert_array_equal(loading.read_by_av(depth, rows), read_gray16(depth, rows))


@pytest.mark.slow
def test_loading_prints_its_table(recordings: Path, embodiment: Path) -> None:
    said = run(loading, str(recordings), "--embodiment", str(embodiment), "--clips", "2")
    rows = [line.split("  ")[0] for line in said.splitlines()]
    assert {"shards", "recordings, PyAV", "recordings, decord"} <= set(rows)


@pytest.mark.slow
def test_prepare_prints_its_tables(recordings: Path, embodiment: Path) -> None:
    said = run(prepare, str(recordings), "--embodiment", str(embodiment), "--depth", "sensor")
    assert "80 frames, 160 pictures in 4 files" in said
    ratio = next(line for line in said.splitlines() if line.startswith("prepare / bare")).split()[3]
    assert float(ratio) > 0.5
    apart = next(ratio for ratio in quick.RATIOS if ratio.command == quick.PREPARE)
    assert 0 < quick.ratio_of(apart, said) < float(said.split("prepare / bare ")[1].split()[1])


def test_the_encoder_is_measured_on_what_prepare_would_store(recordings: Path, embodiment: Path) -> None:
    settings = "medium 18 16,ultrafast 40 16,veryfast 16 4 fastdecode bframes=0"
    said = run(
        encoder, str(recordings), "--embodiment", str(embodiment), "--frames", "40", "--clips", "1",
        "--settings", settings,
    )  # fmt: skip
    assert "40 pictures of raw, 48x64" in said
    rows = {name: next(line for line in said.splitlines() if line.startswith(name)) for name in settings.split(",")}
    size, quality = ({name: float(row.removeprefix(name).split()[n]) for name, row in rows.items()} for n in (0, 1))
    assert size["ultrafast 40 16"] < size["medium 18 16"]
    assert quality["ultrafast 40 16"] < quality["medium 18 16"] - 3


def test_quick_finds_its_ratios_in_what_commands_print(recordings: Path, embodiment: Path) -> None:
    """Of the encoder's own table, and of rows as the others print them; what is not there is no number."""
    said = run(
        encoder, str(recordings), "--embodiment", str(embodiment), "--frames", "40", "--clips", "1",
        "--settings", quick.shlex.split(quick.ENCODER)[-1],
    )  # fmt: skip
    table = {ratio.what: ratio for ratio in quick.RATIOS}
    for ratio in quick.RATIOS:
        assert (quick.ratio_of(ratio, said) is not None) == (ratio.command == quick.ENCODER), ratio.what
    grown = "4   2.8  2.2  253   -    -    -\n40  9.1  5.8  262  3.2  2.6  260.1"
    assert quick.ratio_of(table["prepare of 40 episodes / of 4, CPU"], grown) == 2.6
    told = "import                     2.4 s\nplain copy, synced         1.2 s of the checkpoint's bytes"
    assert quick.ratio_of(table["an import / a plain copy, time"], told) == 2.0


@pytest.mark.slow
def test_the_cache_s_table_is_of_clips_that_are_what_they_say() -> None:
    said = run(script("cached"), "--clips", "100,200", "--batches", "2", "--no-depth")
    rows = [line.split() for line in said.splitlines() if line.startswith(("100 ", "200 "))]
    assert [len(row) for row in rows] == [6, 6]
    assert all(float(row[-1]) > 0 for row in rows)
    assert "batches of 16 clips, 279 kB a clip" in said  # rgb of 48 x 3 x 3 x 16 x 20, and motion, at two bytes each
