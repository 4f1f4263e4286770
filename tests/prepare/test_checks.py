"""The linter, one episode: files, columns, time and numbers; each check fires on its fault and only on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xwam_ft.media import write_rgb
from xwam_ft.prepare.checks.files import check_files
from xwam_ft.prepare.checks.numbers import check_numbers
from xwam_ft.prepare.checks.table import MOST_WORDINGS, check_table, instructions_of
from xwam_ft.prepare.checks.timing import check_time
from xwam_ft.prepare.embodiment.cameras import plan_cameras
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.embodiment.slots import motion, plan_slots
from xwam_ft.prepare.episode import Table
from xwam_ft.prepare.findings import Finding, Rejected, grouped, numbers_text, reject_errors
from xwam_ft.prepare.sources import open_source


@pytest.fixture
def parts(v21: Path, toy: Path) -> Any:
    source, spec = open_source(v21), load_embodiment(toy)
    return source, spec, plan_cameras(spec, source.info, toy), plan_slots(spec, source.info, toy, [])


def files(parts: Any, number: int, *, depth: bool = True) -> None:
    source, spec, cameras, _ = parts
    reject_errors(check_files(source.episodes()[number], cameras, spec.timing.timing(10), depth=depth))


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
    with pytest.raises(Rejected, match=side):
        files(parts, 1)


def test_only_videos_that_are_used_matter(parts: Any, v21: Path, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.depth / "episode_000000.mp4").unlink()
    with pytest.raises(Rejected, match="listed in meta and not there"):
        files(parts, 0)
    files(parts, 0, depth=False)


def test_an_unreadable_video_rejects(parts: Any, v21: Path, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000000.mp4").write_bytes(b"not a film")
    with pytest.raises(Rejected, match="cannot be read as video"):
        files(parts, 0)


def test_two_frames_are_too_short(tmp_path: Path, toy: Path, lerobot: Any) -> None:
    source = open_source(lerobot.v21(tmp_path / "short", lerobot.recording([2, 3])))
    spec = load_embodiment(toy)
    whole = (source, spec, plan_cameras(spec, source.info, toy), None)
    files(whole, 1)
    with pytest.raises(Rejected, match="2 frames are too short: two pictures of a clip are 3 frames"):
        files(whole, 0)


def test_every_error_of_a_kind_is_told(parts: Any) -> None:
    from dataclasses import replace

    source, spec, cameras, _ = parts
    episode = replace(source.episodes()[0], views={})
    found = check_files(episode, cameras, spec.timing.timing(10), depth=True)
    assert [(finding.check, finding.severity) for finding in found] == [("missing-camera", "error")] * 2
    with pytest.raises(Rejected, match=r"Front View' was not recorded; camera .*front_depth' was not recorded"):
        reject_errors(found)


def test_nan_in_a_used_column_rejects_and_elsewhere_does_not(parts: Any) -> None:
    source, _, _, slots = parts
    table = source.episodes()[0].table.read()
    table.columns["unused"] = np.full(14, np.nan)
    assert check_table(table, slots) == []
    table.columns["action/j2"][5] = np.nan
    (found,) = check_table(table, slots)
    assert (found.check, found.severity, found.frame) == ("not-a-number", "error", 5)
    assert found.text == "column 'action/j2' of slot 'arm' holds nan at frame 5 (1 of 14 frames)"
    del table.columns["action/j2"]
    assert check_table(table, slots)[0].text == "column 'action/j2' of slot 'arm' was not recorded"


def named(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings]


TIME = np.arange(200) / 10


@pytest.mark.parametrize(
    ("times", "check", "text"),
    [
        (None, "time-missing", "no timestamps"),
        (np.ones(200), "time-missing", "all timestamps are equal"),
        (np.where(np.arange(200) == 9, np.nan, TIME), "time-missing", "some timestamps are no numbers"),
        (np.where(np.arange(200) == 7, 0.1, TIME), "time-backwards", "time runs backwards at frame 7"),
        (TIME + (np.arange(200) > 4) * 0.5, "dropped-frames", "5 frames are missing in 1 gaps; 0.60 s pass"),
        (np.delete(np.arange(240) / 10, [30, 31, 90]), "dropped-frames", "3 frames are missing in 2 gaps"),
        (TIME * 1.5, "wrong-rate", "a frame lasts 150 ms, and 10 fps are declared (100 ms)"),
        (TIME * 1000, "wrong-rate", "the timestamps look like milliseconds"),
        (TIME + np.random.default_rng(0).uniform(-0.03, 0.03, 200), "jittered-time", "frames come unevenly"),
    ],
    ids=["none", "equal", "nan", "backwards", "gap", "dropped", "rate", "milliseconds", "jitter"],
)
def test_oddities_of_time(times: Any, check: str, text: str) -> None:
    (found,) = check_time(times, 10)
    assert found.check == check
    assert text in found.text


def test_a_steady_clock_is_silent_also_where_it_is_coarse() -> None:
    assert check_time(TIME, 10) == []
    assert check_time(TIME.astype(np.float32).astype(np.float64), 10) == []
    assert check_time(np.round(np.arange(300) / 240, 3), 240) == []  # a clock of milliseconds at 240 Hz
    assert check_time(np.floor(np.arange(301) * 1.5) / 1000, 2000 / 3) == []  # steps of 1 and of 2 ms in turn
    assert check_time(TIME + np.random.default_rng(0).normal(0, 0.004, 200), 10) == []


def numbers(
    parts: Any, fps: float = 10.0, speed: tuple[float | None, ...] = (), **columns: np.ndarray
) -> list[Finding]:
    """Check the first episode, with columns replaced by their last names."""
    from dataclasses import replace

    source, _, _, slots = parts
    slots = [replace(plan, speed=speed) if plan.slot.name == "arm" else plan for plan in slots]
    table = source.episodes()[0].table.read()
    given = {name.replace("__", "/"): values for name, values in columns.items()}
    length = len(next(iter(given.values()))) if given else 14
    changed = {name: np.resize(values, length) for name, values in table.columns.items()} | {
        f"observation.{name}" if name.startswith("state") else name: values for name, values in given.items()
    }
    table = Table(changed, None, None)
    state, _, command, _ = motion(slots, table, 1)
    return check_numbers(table, slots, state, command, 10.0)


def test_a_sound_episode_has_no_findings(parts: Any) -> None:
    assert numbers(parts) == []


def smooth(frames: int = 120) -> np.ndarray:
    return 0.8 * np.sin(np.arange(frames) / 12.0)


def test_what_never_moves_and_failed_reads(parts: Any) -> None:
    (still,) = numbers(parts, state__grip=np.full(14, 0.4))
    assert (still.check, still.subject) == ("still-gripper", "hand")
    assert named(numbers(parts, state__j1=np.full(14, 0.4), state__j2=np.full(14, 0.1))) == ["still"]
    faulty = parts[0].episodes()[0].table.read().columns["observation.state/j1"].copy()
    faulty[[3, 9]] = -1.0
    found = {finding.check: finding for finding in numbers(parts, state__j1=faulty)}
    assert "'arm' reads exactly -1 in 2 frames" in found["failed-reads"].text
    assert found["failed-reads"].frame == 3


def arm(j1: np.ndarray) -> dict[str, np.ndarray]:
    other = 0.3 * smooth(len(j1))
    return {"state__j1": j1, "state__j2": other, "action__j1": smooth(len(j1)), "action__j2": other}


def test_jumps_by_the_episode_itself(parts: Any) -> None:
    def checks(**columns: np.ndarray) -> list[Finding]:
        found = numbers(parts, **columns, state__grip=smooth())
        return [finding for finding in found if finding.subject == "arm"]

    assert checks(**arm(smooth())) == []
    spike = smooth()
    spike[50] += 1.5
    (found,) = checks(**arm(spike))
    assert (found.check, found.frame) in {("jump", 50), ("jump", 51)}
    assert "'j1' of 'arm' jumps by 1." in found.text
    shifted = smooth() + 1.4 * (np.arange(120) >= 60)
    assert [(f.check, f.frame) for f in checks(**arm(shifted))] == [("jump", 60)]
    turned = smooth() + 2 * np.pi * (np.arange(120) >= 60)
    assert named(checks(**arm(turned))) == ["angle-wrap"]
    assert named(checks(**arm(smooth() + 4.0 * (np.arange(120) >= 60)))) == ["jump"]  # two thirds of a turn are none
    columns = arm(smooth()) | {"action__j1": spike}
    (found,) = checks(**columns)
    assert found.text.startswith("the command of 'j1' of 'arm' jumps")


@pytest.mark.parametrize(("size", "fires"), [(0.3, False), (0.5, True)])
def test_a_small_spike_there_and_back_counts_where_a_step_would_not(parts: Any, size: float, fires: bool) -> None:
    """12 times the usual step of 0.067 rad is 0.8: a step of 0.5 is none that far, and a spike of 0.5 is half of it."""
    at = 19  # where the wave stands still
    step, spike = smooth(), smooth()
    step[at:] += size
    spike[at] += size

    def jumps(j1: np.ndarray) -> list[Finding]:
        return [f for f in numbers(parts, **arm(j1), state__grip=smooth()) if f.subject == "arm" and "'j1'" in f.text]

    assert jumps(step) == []
    assert [finding.check for finding in jumps(spike)] == (["jump"] if fires else [])


def test_jumps_beyond_the_urdfs_speed(parts: Any, tmp_path: Path, lerobot: Any) -> None:
    from xwam_ft.kinematics import velocity_limits

    urdf = tmp_path / "two.urdf"
    urdf.write_text(lerobot.urdf.replace('lower="-3" upper="3"', 'lower="-3" upper="3" velocity="2"', 1))
    assert velocity_limits(urdf, ["shoulder", "elbow", "none"]) == (2.0, None, None)
    fast = smooth() + 0.3 * (np.arange(120) >= 60)  # 3 rad/s in one step at 10 fps, too little to stand out by itself

    def checks(j1: np.ndarray) -> list[Finding]:
        return [f for f in numbers(parts, speed=(2.0, None), **arm(j1), state__grip=smooth()) if f.subject == "arm"]

    assert checks(smooth()) == []
    (found,) = checks(fast)
    assert (found.check, found.frame) == ("jump", 60)
    assert "between frames 59 and 60; its URDF allows 2" in found.text


def test_joints_where_their_urdf_has_none(parts: Any, tmp_path: Path, lerobot: Any) -> None:
    """A sign or a zero that is wrong gives poses of another place, each of which looks like one."""
    from dataclasses import replace

    from xwam_ft.kinematics import load_chain

    urdf = tmp_path / "two.urdf"
    urdf.write_text(lerobot.urdf.replace('lower="-3" upper="3"', 'lower="-0.1" upper="1.5"', 1))
    chain = load_chain(urdf, "base", "hand")
    source, _, _, (plan, *_) = parts
    table = source.episodes()[0].table.read()

    def found(j1: np.ndarray) -> list[Finding]:
        columns = {**table.columns, "observation.state/j1": j1, "observation.state/j2": 0.1 * smooth(len(j1))}
        slot = plan.slot.model_copy(update={"chain": chain})
        state = np.stack([j1, columns["observation.state/j2"]], axis=1)
        told = check_numbers(replace(table, columns=columns), [replace(plan, slot=slot)], state, state, 10)
        return [finding for finding in told if finding.check == "outside-limits"]

    rising = np.linspace(0.0, 1.6, 14)  # 0.1 rad over: what a calibration is off by
    assert found(rising) == []
    (told,) = found(-rising)
    assert told.text == "joint 'shoulder' of 'arm' is at -1.6; its URDF allows -0.1 to 1.5"
    assert told.frame == 13


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"low": -0.4, "high": 0.4}, "% of the recorded commands of 'j1' of 'arm' are outside `low` to `high`"),
        ({"speed": 0.1}, "% of the recorded commands of 'j1' of 'arm' are faster than `speed`"),
        ({"low": -1, "high": 1, "speed": 3}, ""),
    ],
)
def test_stated_limits_that_would_hold_what_was_recorded(parts: Any, limits: dict[str, float], said: str) -> None:
    from dataclasses import replace

    from xwam_ft.contract import Limits

    slot = parts[3][0].slot
    stated = Limits(**{name: (value, value) for name, value in limits.items()})
    held = (*parts[:3], [replace(parts[3][0], slot=slot.model_copy(update={"limits": stated})), *parts[3][1:]])
    told = [f for f in numbers(held, **arm(smooth()), state__grip=smooth()) if f.check == "outside-limits"]
    assert [said in finding.sentence and "widen `limits`" in finding.sentence for finding in told] == [True] * bool(
        said
    )


def test_the_instruction_is_found_by_value_then_listed_then_given(parts: Any) -> None:
    from dataclasses import replace

    episode = parts[0].episodes()[1]
    table = episode.table.read()
    assert instructions_of(episode, table, None) == (("close the drawer",), [])
    moved = Table(table.columns, None, np.full(11, 7))  # as after a merge that kept the old numbers
    texts, notes = instructions_of(episode, moved, None)
    assert (texts, named(notes)) == (("open the drawer",), ["other-instruction"])
    assert "the list of episodes 'close the drawer'" in notes[0].text
    mixed = Table(table.columns, None, np.array([7] * 3 + [8] * 8))
    texts, notes = instructions_of(episode, mixed, None)
    assert texts == ("close the drawer",)
    assert "2 instructions in one episode" in notes[0].text
    none = Table(table.columns, None, None)
    assert instructions_of(episode, none, None)[0] == ("close the drawer",)
    bare = replace(episode, instructions=(), tasks={})
    assert instructions_of(bare, none, "do it") == (("do it",), [])
    assert named(instructions_of(bare, none, None)[1]) == ["missing-instruction"]


@pytest.mark.parametrize("text", ["task", "TODO", "None", "Describe the task here.", "dummy task", "17", "..."])
def test_an_instruction_that_nobody_wrote_is_told_and_gives_way_to_the_embodiments(parts: Any, text: str) -> None:
    from dataclasses import replace

    bare = replace(parts[0].episodes()[1], tasks={}, instructions=(text,))
    table = Table(bare.table.read().columns, None, None)
    for episode, rows in ((bare, table), (replace(bare, tasks={7: text}), replace(table, task_index=np.full(11, 7)))):
        texts, found = instructions_of(episode, rows, None)
        assert (len(texts), named(found)) == (1, ["placeholder-instruction"])
        assert instructions_of(episode, rows, "open the drawer") == (("open the drawer",), [])
    for right in ("lift", "pick_place_v2", "Test the battery", "把杯子放到盘子里"):
        assert instructions_of(replace(bare, instructions=(right,)), table, "else") == ((right,), [])


def test_wordings_of_one_instruction_are_kept_up_to_a_number(parts: Any) -> None:
    from dataclasses import replace

    bare = replace(parts[0].episodes()[1], tasks={})
    table = Table(bare.table.read().columns, None, None)
    two = replace(bare, instructions=(" close it", "shut it ", "close it", ""))
    assert instructions_of(two, table, "else") == (("close it", "shut it"), [])
    many = replace(bare, instructions=tuple(f"close it {number}" for number in range(100)))
    texts, notes = instructions_of(many, table, None)
    assert len(set(texts)) == MOST_WORDINGS
    assert texts[0] == "close it 0"
    assert named(notes) == ["many-wordings"]


def test_findings_are_grouped_over_episodes_errors_first() -> None:
    still = Finding("still", "warning", "'arm' never moves", "arm")
    dark = Finding("black-camera", "error", "camera 'a' is black", "a")
    groups = grouped([(4, still), (1, dark), (0, still), (1, Finding("jump", "warning", "x jumps by 1", "arm"))])
    assert [(g.severity, g.check, g.episodes) for g in groups] == [
        ("error", "black-camera", [1]),
        ("warning", "jump", [1]),
        ("warning", "still", [0, 4]),
    ]
    assert groups[2].summary == "'arm' never moves"
    several = grouped([(0, Finding("jump", "warning", "a", "s")), (1, Finding("jump", "warning", "b", "s"))])
    assert several[0].summary == "a (and 1 like it)"
    assert numbers_text([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    with pytest.raises(AssertionError):
        Finding("no-such-check", "note", "")
