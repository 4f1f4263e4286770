"""The whole of `prepare` on small recordings: the bytes depend on the inputs alone, and nothing is dropped silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shared import QUIET, files_in, members_in
from xwam_ft import observation, shard_writer
from xwam_ft.depth_code import code_to_metres
from xwam_ft.errors import UserError
from xwam_ft.media import rgb_bytes
from xwam_ft.prepare import pipeline, report
from xwam_ft.prepare.assemble import held_out
from xwam_ft.prepare.embodiment.schema import load_embodiment
from xwam_ft.prepare.episode_work import run
from xwam_ft.prepare.sources import open_source
from xwam_ft.shards import ShardSet


def prepared(raws: Path | list[Path], out: Path, embodiment: Path, **more: Any) -> Any:
    options = {"depth": None, "workers": 0, "strict": False, "urdf_dirs": [], "console": QUIET, **more}
    return pipeline.prepare([raws] if isinstance(raws, Path) else raws, out, embodiment=embodiment, **options)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a small preparation is matplotlib; test_report.py looks at the plots."""
    monkeypatch.setattr(report, "plots", lambda *_: {"distributions": "data:,", "paths": None, "timing": "data:,"})


def test_what_comes_out_is_what_was_recorded(v21: Path, toy: Path, tmp_path: Path, made: Any) -> None:
    outcome = prepared(v21, tmp_path / "out", toy)
    assert (outcome.episodes, outcome.frames, outcome.rejected) == (3, 37, [])
    shards = ShardSet.open(tmp_path / "out")
    shards.verify()
    assert shards.contract.prompts == ("close the drawer", "open the drawer")
    assert (shards.contract.depth.kind, shards.contract.depth.source) == ("metric", "sensor")
    assert (shards.contract.cameras[0].source_height, shards.contract.cameras[0].source_width) == (32, 48)
    for entry in shards.segments():
        segment = shards.read(entry)
        state, action = made.states[segment.episode], made.actions[segment.episode]
        np.testing.assert_array_equal(segment.proprio, state.astype(np.float64))
        np.testing.assert_array_equal(segment.action, action.astype(np.float64))
        assert segment.instruction == made.tasks[segment.episode]
        assert segment.depth is not None
        columns = ((np.arange(32) + 0.5) * 48 / 32).astype(int)  # 48 wide recorded, 32 stored
        metres = made.depths[segment.episode][:, :, columns] / 1000
        decoded = code_to_metres(segment.depth[0], 0.1, 10.0)
        np.testing.assert_array_equal(np.isnan(decoded), metres == 0)
        np.testing.assert_allclose(decoded[metres > 0], metres[metres > 0], rtol=2e-4)
    splits = [episode.split for episode in shards.index.episodes]
    assert sorted(splits) == ["held_out", "train", "train"]
    assert {entry.split for entry in shards.segments() if entry.episode == splits.index("held_out")} == {"held_out"}


@pytest.mark.parametrize("width", [32, 48, 24, 28])  # by 1.5, by 1, by 2, and by what takes real numbers
def test_a_live_picture_is_resized_as_prepare_resized_it(
    v21: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """To the bit: what the encoder was given is what the policy's side makes of the recorded picture."""
    given: list[np.ndarray] = []

    def noted(pictures: np.ndarray, fps: float) -> bytes:
        given.append(np.array(pictures))
        return rgb_bytes(pictures, fps)

    monkeypatch.setattr(shard_writer, "rgb_bytes", noted)
    near = toy.with_name("other.yaml")
    near.write_text(toy.read_text().replace("width: 32", f"width: {width}"))
    prepared(v21, tmp_path / "out", near, depth="none")
    contract = ShardSet.open(tmp_path / "out").contract
    jobs, _ = pipeline.plan_jobs([open_source(v21)], load_embodiment(near), near, "none", [], tmp_path / "staging")
    for job, pictures in zip(jobs, given, strict=True):
        view = job.episode.views[job.cameras[0].source]
        for row in (0, 7, view.frames - 1):
            live = view.read_rgb([row])[0]
            state = {"arm": [0.0, 0.0], "hand": [0.0]}
            seen = observation.encode(contract, {"images": {"front": live}, "state": state, "prompt": "open"})
            np.testing.assert_array_equal(seen.pictures[0], pictures[row])


@pytest.mark.slow
def test_versions_and_worker_counts_give_the_same_bytes(v21: Path, v30: Path, toy: Path, tmp_path: Path) -> None:
    prepared(v21, tmp_path / "a", toy)
    prepared(v21, tmp_path / "b", toy, workers=2)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
    prepared(v30, tmp_path / "c", toy)
    a, c = members_in(tmp_path / "a"), members_in(tmp_path / "c")
    # One mp4 of three episodes is other bytes than three mp4s, so the decoded pictures of these lossy toys differ.
    exact = [name for name in a if ".rgb." not in name]
    assert len(exact) == 9
    assert {name: a[name] for name in exact} == {name: c[name] for name in exact}
    assert (tmp_path / "a" / "contract.json").read_bytes() == (tmp_path / "c" / "contract.json").read_bytes()
    assert not list(tmp_path.glob(".*.preparing"))


class Killed(Exception):
    """Stands for a kill: nothing of ours catches it."""


def test_a_killed_run_is_taken_up_and_ends_with_the_same_bytes(
    v21: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(v21, tmp_path / "whole", toy)
    done: list[int] = []

    def dying(job: Any) -> Any:
        if done:
            raise Killed
        done.append(job.number)
        return run(job)

    def counting(job: Any) -> Any:
        done.append(job.number)
        return run(job)

    monkeypatch.setattr(pipeline, "run", dying)
    with pytest.raises(Killed):
        prepared(v21, tmp_path / "killed", toy)
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(pipeline, "run", counting)
    prepared(v21, tmp_path / "killed", toy)
    assert done == [0, 1, 2]
    assert files_in(tmp_path / "killed") == files_in(tmp_path / "whole")


def test_a_stopped_run_with_other_inputs_is_not_taken_up(
    v21: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_finish", _killed)
        with pytest.raises(Killed):
            prepared(v21, out, toy, depth="none")
    other = tmp_path / "other.yaml"
    other.write_text(toy.read_text().replace("width: 32", "width: 64"))
    prepared(v21, out, other, depth="none")
    assert ShardSet.open(out).read(ShardSet.open(out).segments()[0]).rgb.shape[2:] == (32, 64, 3)


def _killed(*_: Any) -> Any:
    raise Killed


def test_a_finished_set_is_recognised_and_never_written_over(v21: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared(v21, out, toy)
    before = files_in(out)
    copied = shutil.copytree(v21, tmp_path / "elsewhere" / "v21")
    assert prepared(copied, out, toy).already_prepared
    with pytest.raises(UserError, match="was prepared from other inputs"):
        prepared(v21, out, toy, depth="none")
    assert files_in(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        prepared(v21, tmp_path / "mine", toy)


def damaged(v21: Path, lerobot: Any) -> None:
    (v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000001.mp4").unlink()


def test_rejected_episodes_are_named_and_the_others_go_on(v21: Path, toy: Path, tmp_path: Path, lerobot: Any) -> None:
    damaged(v21, lerobot)
    console = Console(width=400, record=True, quiet=False, file=(tmp_path / "log").open("w"))
    outcome = prepared(v21, tmp_path / "out", toy, console=console)
    assert (outcome.episodes, [result.index for result in outcome.rejected]) == (2, [1])
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert line["dataset_episode"] == 1
    assert "episode_000001.mp4 is listed in meta and not there" in line["reason"]
    assert "rejected v21 episode 1" in console.export_text()
    assert "episode_000001.mp4" in (tmp_path / "out" / "report.html").read_text()
    # The others keep their numbers, so that their keys stay.
    assert [episode.index for episode in ShardSet.open(tmp_path / "out").index.episodes] == [0, 2]


def test_strict_stops_and_nothing_left_is_an_error(v21: Path, toy: Path, tmp_path: Path, lerobot: Any) -> None:
    damaged(v21, lerobot)
    with pytest.raises(UserError, match=r"v21 episode 1: .*not there.*leave --strict out"):
        prepared(v21, tmp_path / "out", toy, strict=True)
    for number in (0, 2):
        (v21 / "data" / "chunk-000" / f"episode_{number:06d}.parquet").unlink()
    with pytest.raises(UserError, match=r"all 3 episodes are rejected .*Fix: bring the file back from where"):
        prepared(v21, tmp_path / "out", toy)
    assert not (tmp_path / "out").exists()


def test_several_datasets_are_one_set_and_rates_must_agree(v21: Path, v30: Path, toy: Path, tmp_path: Path) -> None:
    prepared([v21, v30], tmp_path / "out", toy, depth="none")
    index = ShardSet.open(tmp_path / "out").index
    assert [episode.source for episode in index.episodes][2:4] == ["v21 episode 2", "v30 episode 0"]
    info = v30 / "meta" / "info.json"
    info.write_text(info.read_text().replace('"fps": 10', '"fps": 20'))
    with pytest.raises(UserError, match="was recorded at 20 fps"):
        prepared([v21, v30], tmp_path / "out2", toy)


def test_relative_depth_spans_its_range_per_episode(v21: Path, toy: Path, tmp_path: Path, made: Any) -> None:
    for number, depth in enumerate(made.depths):
        np.save(tmp_path / f"{number}_front.npy", 1.0 / np.maximum(depth, 300).astype(np.float64))
    pattern = f"files:{tmp_path}/{{episode}}_{{camera}}.npy?unit=relative"
    prepared(v21, tmp_path / "out", toy, depth=pattern)
    shards = ShardSet.open(tmp_path / "out")
    assert shards.contract.depth.clip_normalised
    for entry in shards.segments():
        codes = shards.read(entry).depth
        assert codes is not None
        assert (codes.min(), codes.max()) == (1, 65535)
    # Depth files are inputs too: without one, its episode is rejected and the set is another.
    (tmp_path / "1_front.npy").unlink()
    outcome = prepared(v21, tmp_path / "out2", toy, depth=pattern)
    assert "1_front.npy: the depth file is not there" in (outcome.rejected[0].reason or "")


def test_a_camera_may_have_its_own_depth_range(v21: Path, toy: Path, tmp_path: Path, made: Any) -> None:
    near = tmp_path / "near.yaml"
    near.write_text(toy.read_text().replace("unit: mm}", "unit: mm}, depth_range: {near: 0.4, far: 2.0}"))
    prepared(v21, tmp_path / "out", near)
    shards = ShardSet.open(tmp_path / "out")
    code = shards.contract.depth_of(shards.contract.cameras[0])
    assert (code.near, code.far, shards.contract.depth.near) == (0.4, 2.0, 0.1)
    segment = shards.read(shards.segments()[0])
    assert segment.depth is not None
    metres = made.depths[segment.episode][:, :, ((np.arange(32) + 0.5) * 1.5).astype(int)] / 1000
    decoded = code_to_metres(segment.depth[0], 0.4, 2.0)
    np.testing.assert_allclose(decoded[metres > 0], metres[metres > 0], rtol=1e-4)


def test_long_episodes_are_cut_and_put_together_again(
    tmp_path: Path, toy: Path, lerobot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xwam_ft.prepare import episode_work

    monkeypatch.setattr(episode_work, "SEGMENT_FRAMES", 0)  # the shortest: four clips
    monkeypatch.setattr(episode_work, "BLOCK", 16)
    made = lerobot.recording([90, 12])
    prepared(lerobot.v21(tmp_path / "long", made), tmp_path / "out", toy)
    shards = ShardSet.open(tmp_path / "out")
    entries = [entry for entry in shards.segments() if entry.episode == 0]
    assert len(entries) > 2
    starts = [s for entry in entries for s in range(entry.first_start, entry.first_start + entry.num_starts)]
    assert starts == list(range(90))
    for entry in entries:
        part = slice(entry.first_frame, entry.first_frame + entry.num_frames)
        np.testing.assert_array_equal(shards.read(entry).proprio, made.states[0][part].astype(np.float64))


def test_padded_starts_are_those_that_reach_past_the_end(toy: Path) -> None:
    from xwam_ft.contract import Timing

    timing = Timing(fps=10, frame_skip=2, action_skip=1, clip_frames=5)  # spans 9 frames

    def by_hand(frames: int) -> int:
        return sum(start + 8 > frames - 1 for start in range(max(0, frames - 2)))

    for frames in range(3, 40):
        assert timing.padded_starts(frames) == by_hand(frames)


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(1, 0.5, 0), (2, 0.01, 1), (2, 1.0, 1), (50, 0.1, 5), (9, 0.0, 0)]
)
def test_the_held_out_share(count: int, share: float, expected: int) -> None:
    assert len(held_out(range(count), share)) == expected


def test_what_is_printed_keeps_brackets_and_warns_before_the_work(v21: Path, toy: Path, tmp_path: Path) -> None:
    toy.write_text(toy.read_text().replace("height: 32, width: 32", "height: 32, width: 48"))
    with (tmp_path / "log").open("w") as log:
        prepared(v21, tmp_path / "out [lab]", toy, depth="none", console=Console(width=60, file=log))
        prepared(v21, tmp_path / "out [lab]", toy, depth="none", console=Console(width=60, file=log))
    text = (tmp_path / "log").read_text()
    assert "warning image: 32x48 is refused by the built-in backbone and by Wan2.2-TI2V" in text
    assert "write `image: {height: 32, width: 64}` in the embodiment file" in text
    assert text.count("32x48") == 1
    assert f"{tmp_path}/out [lab]: 3 episodes" in text
    assert f"see {tmp_path}/out [lab]/report.html" in text
    assert f"{tmp_path}/out [lab]: already prepared" in text


def test_the_report_says_what_recorded_changes_were_added_to(v21: Path, toy: Path, tmp_path: Path) -> None:
    told = {"state": "changes added to the state", "command": "changes added to the command before"}
    for to, sentence in told.items():
        text = toy.read_text().replace("units: rad}", f"units: rad, command: delta, delta: {{to: {to}}}}}")
        (tmp_path / f"{to}.yaml").write_text(text)
        prepared(v21, tmp_path / to, tmp_path / f"{to}.yaml", depth="none")
        page = (tmp_path / to / "report.html").read_text()
        assert f"commanded relative to chunk start,\n  {sentence}" in page
        assert page.count("as recorded") == 1  # the gripper's


def test_clips_longer_than_the_episodes_are_warned_of(v21: Path, toy: Path, tmp_path: Path) -> None:
    toy.write_text(
        toy.read_text().replace(
            "frame_skip: 2, action_skip: 1, clip_frames: 5", "frame_skip: 2, action_skip: 1, clip_frames: 9"
        )
    )
    found = prepared(v21, tmp_path / "out", toy, depth="none").findings
    (group,) = [group for group in found if group.check == "mostly-padded"]
    assert (group.severity, group.episodes) == ("warning", [0, 1, 2])
    assert "choose a smaller clip_frames or frame_skip" in group.fix


def test_held_out_episodes_leave_the_statistics_alone(v21: Path, toy: Path, tmp_path: Path, made: Any) -> None:
    prepared(v21, tmp_path / "out", toy, depth="none")
    shards = ShardSet.open(tmp_path / "out")
    train = [made.states[e.index][:, 0] for e in shards.index.episodes if e.split == "train"]
    low, high = np.quantile(np.concatenate(train).astype(np.float64), [0.01, 0.99])
    assert (shards.contract.quantiles.proprio_low[0], shards.contract.quantiles.proprio_high[0]) == (low, high)
