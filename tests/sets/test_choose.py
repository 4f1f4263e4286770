"""Which episodes stay: by number, instruction, finding, split, share; what is counted anew; what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import files_in, members_in
from so101 import TASKS
from xwam_ft import quantiles, sets
from xwam_ft.errors import UserError
from xwam_ft.prepare.assemble import held_out
from xwam_ft.prepare.findings import numbers_text
from xwam_ft.sets.choose import parse_numbers
from xwam_ft.sets.stored import StoredMotions
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from conftest import Days


def numbers(folder: Path) -> list[int]:
    return [episode.index for episode in ShardSet.open(folder).index.episodes]


def held(folder: Path) -> set[int]:
    return {episode.index for episode in ShardSet.open(folder).index.episodes if episode.split == "held_out"}


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12))
def test_numbers_are_read_as_they_are_told(chosen: set[int]) -> None:
    assert parse_numbers(numbers_text(sorted(chosen), limit=99)) == chosen


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "1-", "-3", "0-99999999999"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is no episode or range of them.*write it like 0-9,14"):
        parse_numbers(text)


def test_a_subset_keeps_numbers_bytes_and_splits_and_counts_anew(days: Days, tmp_path: Path) -> None:
    made = sets.subset(days.whole, tmp_path / "out", episodes="1-3,6")
    assert (made.episodes, made.left_out) == (4, (0, 4, 5))
    out, whole = ShardSet.open(tmp_path / "out"), ShardSet.open(days.whole)
    assert numbers(tmp_path / "out") == [1, 2, 3, 6]
    before = {episode.index: episode for episode in whole.index.episodes}
    assert all(episode == before[episode.index] for episode in out.index.episodes)
    stored = members_in(days.whole)
    assert all(stored[name] == data for name, data in members_in(tmp_path / "out").items())
    train = [(whole, episode) for episode in out.index.episodes if episode.split == "train"]
    assert out.contract.quantiles == quantiles.quantiles(whole.contract, StoredMotions(train))
    out.verify()


def test_drop_is_the_rest_of_a_subset_and_split_is_both(days: Days, tmp_path: Path) -> None:
    sets.subset(days.whole, tmp_path / "some", episodes=[0, 2, 5, 6])
    sets.drop(days.whole, tmp_path / "others", episodes="1,3,4")
    one, rest = sets.split(days.whole, tmp_path / "one", tmp_path / "rest", episodes="0,2,5-6")
    for left, right in (("some", "others"), ("some", "one")):
        ours, theirs = files_in(tmp_path / left), files_in(tmp_path / right)
        assert ours.keys() == theirs.keys()
        assert {name for name in ours if ours[name] != theirs[name]} == {"prepared.json"}  # which says how
    assert one.left_out == ()
    assert (one.episodes, rest.episodes) == (4, 3)
    assert sorted(numbers(tmp_path / "one") + numbers(tmp_path / "rest")) == list(range(7))
    sets.split(days.whole, tmp_path / "one", tmp_path / "rest", episodes="0,2,5-6")  # done already


def test_parts_merged_again_are_the_set_they_were(marked: Path, tmp_path: Path) -> None:
    """With its findings, and the rejected episode that both parts know of, once."""
    sets.split(marked, tmp_path / "one", tmp_path / "rest", episodes="0-2")
    sets.merge([tmp_path / "one", tmp_path / "rest"], tmp_path / "all")
    ours, theirs = files_in(tmp_path / "all"), files_in(marked)
    for name in ("contract.json", "index.json", "shard-000000.tar", "rejected.jsonl"):
        assert ours[name] == theirs[name], name
    assert sorted(ours["findings.jsonl"].splitlines()) == sorted(theirs["findings.jsonl"].splitlines())


def test_by_instruction(days: Days, tmp_path: Path) -> None:
    made = sets.subset(days.whole, tmp_path / "out", instruction="put THE red *")
    shards = ShardSet.open(made.path)
    assert {episode.instruction for episode in shards.index.episodes} == {TASKS[0]}
    assert shards.contract.prompts == (TASKS[0],)
    assert made.episodes == 4
    both = sets.subset(days.whole, tmp_path / "both", instruction=["put *", "push *"], dry_run=True)
    assert both.episodes == 7


def test_by_split(days: Days, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A test set of its own has no training episode, and keeps the ranges it is to be judged by."""
    sets.subset(days.whole, tmp_path / "test", split="held_out", progress=True)
    assert "it keeps the ranges of the set it comes from" in capsys.readouterr().out
    whole, test = ShardSet.open(days.whole).contract, ShardSet.open(tmp_path / "test").contract
    assert test.quantiles == whole.quantiles
    assert set(numbers(tmp_path / "test")) == held(days.whole) != set()
    sets.drop(days.whole, tmp_path / "train", split="held_out")
    assert ShardSet.open(tmp_path / "train").contract.quantiles == whole.quantiles
    sets.subset(days.monday, tmp_path / "monday_test", split="held_out")
    sets.subset(days.friday, tmp_path / "friday_test", split="held_out")
    with pytest.raises(UserError, match="no training episode is among them"):
        sets.merge([tmp_path / "monday_test", tmp_path / "friday_test"], tmp_path / "merged")


def test_by_share_takes_of_each_split_and_the_same_every_time(days: Days, tmp_path: Path) -> None:
    made = sets.subset(days.whole, tmp_path / "out", share=0.5)
    again = sets.subset(days.whole, tmp_path / "again", share=0.5, dry_run=True)
    assert made.left_out == again.left_out
    train, out = 7 - len(held(days.whole)), len(held(days.whole))
    assert (made.train, made.held_out) == (round(train / 2), round(out / 2))
    for wrong in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="--share"):
            sets.subset(days.whole, tmp_path / "no", share=wrong)


@pytest.fixture
def marked(days: Days, tmp_path: Path) -> Path:
    """The whole with a warning on two episodes and a rejected one."""
    folder = Path(shutil.copytree(days.whole, tmp_path / "marked"))
    rows = [
        {"episode": number, "dataset": "x", "dataset_episode": number, "check": check, "severity": "warning"}
        for number, check in ((1, "jump"), (4, "jump"), (4, "still"), (0, "not-read"))
    ]
    old = (folder / "findings.jsonl").read_text()
    (folder / "findings.jsonl").write_text(old + "".join(json.dumps(row) + "\n" for row in rows))
    rejected = {"episode": 7, "dataset": "x", "dataset_episode": 7, "reason": "too short"}
    (folder / "rejected.jsonl").write_text(json.dumps(rejected) + "\n")
    return folder


def test_by_finding(marked: Path, tmp_path: Path) -> None:
    made = sets.drop(marked, tmp_path / "out", finding="jump")
    assert made.left_out == (1, 4)
    lines = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert not any(line["episode"] in (1, 4) for line in lines)
    assert any(line["check"] == "not-read" for line in lines), "of the recordings as a whole, so it stays"
    assert json.loads((tmp_path / "out" / "rejected.jsonl").read_text())["episode"] == 7
    with pytest.raises(UserError, match=r"there is no finding 'jmup' \(did you mean 'jump'\?\)"):
        sets.drop(marked, tmp_path / "no", finding="jmup")
    with pytest.raises(UserError, match=r"no episode has the finding 'still-gripper'.*found here: .*jump"):
        sets.drop(marked, tmp_path / "no", finding="still-gripper")
    with pytest.raises(UserError, match="'not-read' is about the recordings' files"):
        sets.drop(marked, tmp_path / "no", finding="not-read")


def test_a_merge_numbers_on_after_rejected_episodes_as_prepare_does(marked: Path, days: Days, tmp_path: Path) -> None:
    sets.merge([marked, days.monday], tmp_path / "out", duplicates="keep")
    assert numbers(tmp_path / "out") == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "does not say which episodes are meant.*give --episodes"),
        ({"episodes": "3,99"}, "there is no episode 99.*its episodes are 0-6"),
        ({"episodes": "7"}, r"there is no episode 7 \(7 was rejected when it was prepared: too short\)"),
        ({"instruction": "fold *"}, r"no episode fits instructions \['fold \*'\].*Push the cube"),
        ({"split": "test"}, "there is no split 'test'.*write train or held_out"),
        ({"episodes": "1", "split": "train", "instruction": "put *"}, "no episode fits"),
    ],
)
def test_what_fits_nothing_is_refused(marked: Path, tmp_path: Path, choice: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sets.subset(marked, tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_refused(days: Days, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no episode would be left \(instructions"):
        sets.drop(days.whole, tmp_path / "out", instruction="*")
    with pytest.raises(UserError, match="no episode would be left"):
        sets.split(days.whole, tmp_path / "out", tmp_path / "rest", episodes="0-6")
    with pytest.raises(UserError, match="is given for both parts"):
        sets.split(days.whole, tmp_path / "out", tmp_path / "out", episodes="0")
    assert not (tmp_path / "out").exists()


def test_a_second_part_that_is_taken_stops_both(days: Days, tmp_path: Path) -> None:
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="rest: exists and is not an empty folder"):
        sets.split(days.whole, tmp_path / "one", tmp_path / "rest", episodes="0")
    assert not (tmp_path / "one").exists()
    assert (tmp_path / "rest" / "mine.txt").read_text() == "mine"


def test_other_held_out_episodes_as_prepare_chooses_them(days: Days, tmp_path: Path) -> None:
    """A set made with another share is what `prepare` with that share makes, but for its report and records."""
    sets.resplit(days.whole, tmp_path / "half", held_out=0.5)
    assert held(tmp_path / "half") == held_out(range(7), 0.5) != held(days.whole)
    sets.resplit(tmp_path / "half", tmp_path / "back", held_out=0.3)
    ours, theirs = files_in(tmp_path / "back"), files_in(days.whole)
    for name in ("contract.json", "index.json", "shard-000000.tar", "findings.jsonl", "depth.json"):
        assert ours[name] == theirs[name], name
    sets.resplit(days.whole, tmp_path / "exact", episodes=[3, 6])
    exact = ShardSet.open(tmp_path / "exact")
    assert held(tmp_path / "exact") == {3, 6}
    assert {entry.episode for entry in exact.segments("held_out")} == {3, 6}
    assert {exact.read_motion(entry).split for entry in exact.segments("held_out")} == {"held_out"}
    sets.resplit(days.whole, tmp_path / "none", held_out=0.0)
    assert held(tmp_path / "none") == set()
    for wrong, said in (
        ({}, "wants one of two"),
        ({"episodes": "0-6"}, "no training episode"),
        ({"episodes": "9"}, "no episode 9"),
    ):
        with pytest.raises(UserError, match=said):
            sets.resplit(days.whole, tmp_path / "no", **wrong)


def test_a_dry_run_tells_and_writes_nothing(days: Days, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = sets.drop(days.whole, tmp_path / "out", episodes="2,5", dry_run=True, progress=True)
    told = capsys.readouterr().out
    assert "2 of 7 episodes go: 2, 5" in told
    assert "monday_raw episode 2" in told
    assert "would hold 5 episodes" in told
    assert made.left_out == (2, 5)
    assert list(tmp_path.iterdir()) == []


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xwam_ft.cli", "shards", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_command_line_does_the_same(days: Days, tmp_path: Path) -> None:
    (tmp_path / "monday").symlink_to(days.monday)
    (tmp_path / "friday").symlink_to(days.friday)
    done = run("merge", "monday", "friday", "all", "--held-out", "0.3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next: xwam-ft plan wan22_5b_lora --set data.shards=all" in done.stdout
    assert (tmp_path / "all/index.json").read_bytes() == (days.whole / "index.json").read_bytes()
    for words in (
        ["subset", "all", "some", "--episodes", "0-3", "--instruction", "put *", "--instruction", "push *"],
        ["drop", "all", "fewer", "--split", "held_out"],
        ["split", "all", "a", "b", "--share", "0.5"],
        ["resplit", "all", "other", "--episodes", "1,2"],
        ["export", "all", "lerobot", "--no-depth"],
        ["drop", "all", "nothing", "--episodes", "1", "--dry-run"],
    ):
        done = run(*words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
    assert not (tmp_path / "nothing").exists()
    assert (tmp_path / "lerobot/meta/info.json").is_file()
    for words, said in (
        (["merge", "monday", "out"], "got fewer than two sets"),
        (["drop", "all", "out", "--finding", "jmup"], "did you mean 'jump'?"),
        (["export", "all", "out", "--format", "lerobott"], "did you mean 'lerobot'?"),
    ):
        done = run(*words, cwd=tmp_path)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr
