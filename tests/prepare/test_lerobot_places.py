"""Where episodes begin in a shared mp4: stated times, sums of lengths and pictures, and which of them wins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xwam_ft.media import write_rgb
from xwam_ft.prepare.sources.lerobot_places import places

FPS, LENGTHS = 10.0, [12, 15, 11]


def film(path: Path, counts: list[int], *, cuts: bool = True) -> Path:
    """A scene an episode, in which a bar walks; without `cuts` one scene throughout."""
    pictures = []
    for episode, count in enumerate(counts):
        random = np.random.default_rng(episode if cuts else 0)
        scene = random.integers(40, 200, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        for frame in range(count):
            picture = scene.copy()
            picture[:, frame % 60 : frame % 60 + 2] = 255
            pictures.append(picture)
    write_rgb(path, pictures, FPS)
    return path


def starts(found: list) -> list[int]:
    return [place.first for place in found]


def stated(*frames: float) -> list[float | None]:
    return [frame / FPS for frame in frames]


@pytest.mark.parametrize("extra", [1, 5, 20])
def test_more_pictures_than_rows_where_the_stated_times_say_so(tmp_path: Path, extra: int) -> None:
    file = film(tmp_path / "a.mp4", [12 + extra, 15, 11])
    found = places(file, LENGTHS, stated(0, 12 + extra, 27 + extra), 38 + extra, FPS)
    assert starts(found) == [0, 12 + extra, 27 + extra]
    assert not any(place.problem for place in found)
    assert "as from_timestamp says" in found[1].note


def test_more_pictures_than_rows_that_nothing_states_are_seen(tmp_path: Path) -> None:
    """Meta sums the rows, the film has two more pictures of the first episode."""
    file = film(tmp_path / "a.mp4", [14, 15, 11])
    for times in (stated(0, 12, 27), [None, None, None]):
        found = places(file, LENGTHS, times, 40, FPS)
        assert starts(found) == [0, 14, 29]
        assert "the scene changes at frame 14" in found[1].note
        assert not any(place.problem for place in found)


def test_pictures_after_the_last_episode_move_nothing(tmp_path: Path) -> None:
    found = places(film(tmp_path / "a.mp4", [12, 15, 15]), LENGTHS, stated(0, 12, 27), 42, FPS)
    assert starts(found) == [0, 12, 27]
    assert "holds 42 frames, its episodes add up to 38" in found[0].note


def test_pictures_prove_a_stated_time_wrong(tmp_path: Path) -> None:
    """The extra pictures lie at the end; the times say that they lie in the first episode."""
    found = places(film(tmp_path / "a.mp4", [12, 15, 13]), LENGTHS, stated(0, 14, 29), 40, FPS)
    assert starts(found) == [0, 12, 27]


@pytest.mark.parametrize("said", [True, False])
def test_an_episode_that_lacks_pictures_is_refused_alone(tmp_path: Path, said: bool) -> None:
    file = film(tmp_path / "a.mp4", [11, 15, 11])
    found = places(file, LENGTHS, stated(0, 11, 26) if said else stated(0, 12, 27), 37, FPS)
    assert starts(found) == [0, 11, 26]
    assert "needs frames 0 to 11, and at frame 11 the next one begins" in found[0].problem
    assert not found[1].problem
    assert not found[2].problem


def test_in_one_scene_the_stated_time_counts(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", [13, 15, 11], cuts=False)
    assert starts(places(file, LENGTHS, stated(0, 13, 28), 39, FPS)) == [0, 13, 28]


def test_a_lamp_in_the_middle_of_an_episode_proves_nothing(tmp_path: Path) -> None:
    from xwam_ft.media import read_rgb

    file = film(tmp_path / "a.mp4", [15, 15, 11])
    pictures = read_rgb(file).copy()
    pictures[:13] //= 3  # dark until frame 13 of the first episode
    write_rgb(file, pictures, FPS)
    assert starts(places(file, LENGTHS, stated(0, 15, 30), 41, FPS)) == [0, 15, 30]


def test_a_drifting_time_in_a_file_that_fits_is_drift(tmp_path: Path) -> None:
    found = places(film(tmp_path / "a.mp4", LENGTHS, cuts=False), LENGTHS, stated(0, 12.6, 27.9), 38, FPS)
    assert starts(found) == [0, 12, 27]
    assert not any(place.problem for place in found)
    wrong = places(film(tmp_path / "b.mp4", LENGTHS, cuts=False), LENGTHS, stated(0, 17, 30), 38, FPS)
    assert "from_timestamp 1.7 puts the episode at frame 17" in wrong[1].problem
