"""The linter: each error rejects with its sentence, each warning goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft.media import write_rgb
from xwam_ft.prepare import checks
from xwam_ft.prepare.embodiment import load_embodiment
from xwam_ft.prepare.embodiment_slots import motion, plan_cameras, plan_slots
from xwam_ft.prepare.episode import EpisodeError, Table
from xwam_ft.prepare.sources import open_source


@pytest.fixture
def parts(v21: Path, toy: Path) -> Any:
    source, spec = open_source(v21), load_embodiment(toy)
    return source, spec, plan_cameras(spec, source.info, toy), plan_slots(spec, source.info, toy, [])


def files(parts: Any, number: int, *, depth: bool = True) -> None:
    source, spec, cameras, _ = parts
    checks.check_files(source.episodes()[number], cameras, spec.timing.timing(10), depth=depth)


@pytest.mark.parametrize(
    ("count", "side"), [(9, "holds 9 frames, the table of the episode has 11"), (13, "is unknown")]
)
def test_a_video_of_another_length_rejects(
    parts: Any, v21: Path, made: Any, lerobot: Any, count: int, side: str
) -> None:
    path = v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000001.mp4"
    pictures = np.concatenate([made.pictures[1], made.pictures[0]])
    write_rgb(path, pictures[:count], lerobot.fps)
    files(parts, 0)
    with pytest.raises(EpisodeError, match=side):
        files(parts, 1)


def test_only_videos_that_are_used_matter(parts: Any, v21: Path, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.depth / "episode_000000.mp4").unlink()
    with pytest.raises(EpisodeError, match="listed in meta and not there"):
        files(parts, 0)
    files(parts, 0, depth=False)


def test_an_unreadable_video_rejects(parts: Any, v21: Path, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000000.mp4").write_bytes(b"not a film")
    with pytest.raises(EpisodeError, match="cannot be read as video"):
        files(parts, 0)


def test_two_frames_are_too_short(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    source = open_source(lerobot.v21(tmp_path / "short", lerobot.recording([2, 3])))
    spec = load_embodiment(toy)
    whole = (source, spec, plan_cameras(spec, source.info, toy), None)
    files(whole, 1)
    with pytest.raises(EpisodeError, match="2 frames are too short: two pictures of a clip are 3 frames"):
        files(whole, 0)


def test_nan_in_a_used_column_rejects_and_elsewhere_does_not(parts: Any) -> None:
    source, _, _, slots = parts
    episode = source.episodes()[0]
    table = episode.table.read()
    table.columns["unused"] = np.full(14, np.nan)
    checks.check_table(episode, table, slots)
    table.columns["action/j2"][5] = np.nan
    with pytest.raises(EpisodeError, match=r"column 'action/j2' of slot 'arm' holds nan at frame 5 \(1 of 14 frames\)"):
        checks.check_table(episode, table, slots)
    del table.columns["action/j2"]
    with pytest.raises(EpisodeError, match="column 'action/j2' of slot 'arm' was not recorded"):
        checks.check_table(episode, table, slots)


def warnings(parts: Any, **changes: Any) -> str:
    source, _, _, slots = parts
    episode = source.episodes()[0]
    table = episode.table.read()
    changed = Table(
        changes.pop("columns", table.columns), **{"timestamps": table.timestamps, "task_index": None, **changes}
    )
    return "; ".join(checks.table_warnings(episode, changed, 10, slots, motion(slots, changed, 1)[0]))


def test_a_sound_episode_has_no_warnings(parts: Any) -> None:
    assert warnings(parts) == ""


def test_oddities_of_time_warn(parts: Any) -> None:
    time = np.arange(14) / 10
    assert "no timestamps" in warnings(parts, timestamps=None)
    assert "all timestamps are equal" in warnings(parts, timestamps=np.ones(14))
    assert "time runs backwards at frame 7" in warnings(parts, timestamps=np.where(np.arange(14) == 7, 0.1, time))
    gap = time + (np.arange(14) > 4) * 0.5
    assert "0.60 s pass between frames 4 and 5" in warnings(parts, timestamps=gap)


def test_oddities_of_numbers_warn(parts: Any) -> None:
    columns = parts[0].episodes()[0].table.read().columns
    still = {**columns, "observation.state/grip": np.full(14, 0.4)}
    assert warnings(parts, columns=still) == "gripper 'hand' never moves"
    faulty = columns["observation.state/j1"].copy()
    faulty[[3, 9]] = -1.0
    assert "'arm' reads exactly -1 in 2 frames" in warnings(parts, columns={**columns, "observation.state/j1": faulty})


def test_black_pictures_warn() -> None:
    assert checks.picture_warnings("front", [1.0, 2.0]) == ["camera 'front' is black"]
    assert checks.picture_warnings("front", [1.0, 90.0]) == ["camera 'front' is black in 1 of 2 sampled pictures"]
    assert checks.picture_warnings("front", [80.0, 90.0]) == []


def test_the_instruction_is_found_by_value_then_listed_then_given(parts: Any) -> None:
    episode = parts[0].episodes()[1]
    table = episode.table.read()
    assert checks.instruction_of(episode, table, None) == ("close the drawer", [])
    mixed = Table(table.columns, None, np.array([7] * 3 + [8] * 8))
    text, notes = checks.instruction_of(episode, mixed, None)
    assert text == "close the drawer"
    assert "2 instructions in one episode" in notes[0]
    none = Table(table.columns, None, None)
    assert checks.instruction_of(episode, none, None)[0] == "close the drawer"
    from dataclasses import replace

    bare = replace(episode, instructions=(), tasks={})
    assert checks.instruction_of(bare, none, "do it") == ("do it", [])
    assert "no instruction was recorded" in checks.instruction_of(bare, none, None)[1][0]
