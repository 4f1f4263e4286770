"""Sets prepared apart and merged are the set prepared in one call; what cannot be one is refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shared import files_in, members_in
from xwam_ft import sets
from xwam_ft.errors import UserError
from xwam_ft.locks import sole_writer
from xwam_ft.prepare.findings import numbers_text
from xwam_ft.shards import ShardSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Days


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_merge_of_two_halves_is_prepare_of_the_whole(days: Days, tmp_path: Path) -> None:
    """Byte for byte: tars, index and contract, its ranges and limits among them."""
    made = sets.merge([days.monday, days.friday], tmp_path / "out", held_out=0.3)
    assert (made.episodes, made.frames) == (7, 207)
    ours, whole = files_in(tmp_path / "out"), files_in(days.whole)
    for name in ("contract.json", "index.json", "rejected.jsonl", "shard-000000.tar"):
        assert ours[name] == whole[name], name
    assert set(whole) - set(ours) == {"report.html"}
    depth = [json.loads(files["depth.json"])["cameras"]["front"] for files in (ours, whole)]
    assert depth[0] == pytest.approx(depth[1])
    assert depth[0]["valid"] == 1
    ShardSet.open(tmp_path / "out").verify()
    record = json.loads(ours["prepared.json"])
    assert record["recordings"] == json.loads(whole["prepared.json"])["recordings"]
    assert record["embodiment"] == json.loads(whole["prepared.json"])["embodiment"]
    assert [one["name"] for one in record["made"]["from"]] == ["monday", "friday"]


def test_splits_identities_and_findings_are_kept(days: Days, tmp_path: Path) -> None:
    sets.merge([days.monday, days.friday], tmp_path / "out")
    out, parts = ShardSet.open(tmp_path / "out"), [ShardSet.open(each) for each in (days.monday, days.friday)]
    before = [episode for part in parts for episode in part.index.episodes]
    assert [episode.index for episode in out.index.episodes] == list(range(7))
    for kept, episode in zip(out.index.episodes, before, strict=True):
        assert (kept.source, kept.split, kept.frames) == (episode.source, episode.split, episode.frames)
        assert (kept.instruction, kept.success) == (episode.instruction, episode.success)
    assert {entry.split for entry in out.segments() if entry.episode == 0} == {out.index.episodes[0].split}
    found = [
        (line["dataset"], line["dataset_episode"], line["check"]) for line in lines(tmp_path / "out", "findings.jsonl")
    ]
    expected = [
        (line["dataset"], line["dataset_episode"], line["check"])
        for each in (days.monday, days.friday)
        for line in lines(each, "findings.jsonl")
    ]
    assert found == expected
    assert found
    videos, stored = members_in(tmp_path / "out"), [members_in(each) for each in (days.monday, days.friday)]
    assert videos["episode-000003-000000.rgb.front.mp4"] == stored[1]["episode-000000-000000.rgb.front.mp4"]
    assert videos["episode-000002-000000.motion.npz"] == stored[0]["episode-000002-000000.motion.npz"]


def test_a_merge_taken_apart_again_is_what_it_was_made_of(days: Days, tmp_path: Path) -> None:
    sets.merge([days.monday, days.friday], tmp_path / "all")
    sets.subset(tmp_path / "all", tmp_path / "monday", episodes="0-2")
    ours, theirs = files_in(tmp_path / "monday"), files_in(days.monday)
    for name in ("contract.json", "index.json", "shard-000000.tar", "findings.jsonl"):
        assert ours[name] == theirs[name], name


def test_ranges_are_those_prepare_counts_with_that_split(days: Days, tmp_path: Path) -> None:
    """Splits kept: not the whole's, so against counting over exactly these training episodes."""
    from xwam_ft import quantiles
    from xwam_ft.sets.stored import StoredMotions

    sets.merge([days.monday, days.friday], tmp_path / "out")
    out, whole = ShardSet.open(tmp_path / "out"), ShardSet.open(days.whole)
    train = {episode.index for episode in out.index.episodes if episode.split == "train"}
    chosen = [(whole, episode) for episode in whole.index.episodes if episode.index in train]
    assert out.contract.quantiles == quantiles.quantiles(whole.contract, StoredMotions(chosen))
    assert out.contract.quantiles != whole.contract.quantiles


def test_the_same_again_does_nothing_and_another_is_refused(
    days: Days, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sets.merge([days.monday, days.friday], out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    sets.merge([days.monday, days.friday], out, progress=True)
    assert "already made from these inputs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match="out: was made from other inputs"):
        sets.merge([days.friday, days.monday], out)
    with pytest.raises(UserError, match="is a set that is read, or lies in one"):
        sets.merge([days.friday, days.monday], days.monday / "inner")


def test_inputs_are_never_changed(days: Days, tmp_path: Path) -> None:
    before = files_in(days.monday)
    sets.merge([days.monday, days.friday], tmp_path / "out")
    sets.drop(days.monday, tmp_path / "less", episodes=[0])
    assert files_in(days.monday) == before


def test_an_episode_of_both_sets_is_refused_unless_asked(days: Days, tmp_path: Path) -> None:
    both = [days.monday, days.whole]
    with pytest.raises(UserError, match=r"whole: episode 0 is episode 0 of .*monday \(3 such in all\).*skip") as told:
        sets.merge(both, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "keep" in told.value.fix
    made = sets.merge(both, tmp_path / "out", duplicates="skip")
    assert (made.episodes, len(made.left_out)) == (7, 3)
    assert sets.merge(both, tmp_path / "twice", duplicates="keep").episodes == 10
    with pytest.raises(UserError, match=r"'skipp' is not a way \(did you mean 'skip'\?\)"):
        sets.merge(both, tmp_path / "no", duplicates="skipp")


@pytest.mark.slow
def test_an_episode_that_is_kept_twice_and_held_out_once_is_told(days: Days, tmp_path: Path) -> None:
    held = next(episode.index for episode in ShardSet.open(days.monday).index.episodes if episode.split == "held_out")
    other = next(number for number in range(3) if number != held)
    sets.resplit(days.monday, tmp_path / "again", episodes=[other])
    kept = sets.merge([days.monday, tmp_path / "again"], tmp_path / "kept", duplicates="keep")
    [said] = [text for text in kept.warnings if "held-out episodes" in text]
    assert said.startswith(f"held-out episodes {numbers_text([held, 3 + other])} are training episodes too")
    whole = sets.merge([days.monday, days.friday], tmp_path / "whole", duplicates="keep")
    assert not [text for text in whole.warnings if "held-out episodes" in text]


def test_sets_of_other_contracts_are_refused_by_name(
    days: Days, tmp_path: Path, prepare_small: Callable[..., Path]
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"timing.clip_frames": 9}, r"`timing.clip_frames` is 9, and 5 in .*monday"),
        ({"image.width": 96}, r"`image.width` is 96, and 64"),
        ({"cameras.wrist.kind": "static"}, r"`kind` of camera 'wrist' is 'static', and 'wrist'"),
        ({"slots.gripper.convention": "relative_to_chunk_start"}, r"`convention` of slot 'gripper' is"),
        ({"name": "other"}, r"`embodiment` is 'other', and"),
    ]
    for number, (value, said) in enumerate(cases):
        other = prepare_small([days.raw[1]], tmp_path / f"other{number}", **value)
        with pytest.raises(UserError, match=said):
            sets.merge([days.monday, other], tmp_path / "out")


def changed(days: Days, tmp_path: Path, **update: Any) -> Path:
    """Friday's set under a contract in which something else is changed."""
    folder = Path(shutil.copytree(days.friday, tmp_path / "other"))
    contract = ShardSet.open(folder).contract.model_copy(update=update)
    contract.save(folder / "contract.json")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "contract_sha256": contract.sha256}))
    return folder


def test_another_rate_other_cameras_and_other_dimensions_are_called_that(days: Days, tmp_path: Path) -> None:
    from xwam_ft.sets.same import difference

    contract = ShardSet.open(days.friday).contract
    other = changed(days, tmp_path, timing=contract.timing.model_copy(update={"fps": 25.0}))
    with pytest.raises(UserError, match=r"other: the frame rate is 25, and 30 in .*monday"):
        sets.merge([days.monday, other], tmp_path / "out")
    cameras = (contract.cameras[0].model_copy(update={"name": "top"}), contract.cameras[1])
    found = difference(contract, contract.model_copy(update={"cameras": cameras}))
    assert found == ("the list of cameras", "front, wrist", "top, wrist")
    arm = contract.slots[0]
    short = arm.model_copy(update={"elements": arm.elements[:-1], "units": arm.units[:-1]})
    found = difference(contract, contract.model_copy(update={"slots": (short, *contract.slots[1:])}))
    assert found is not None
    assert found[0] == "the dimension of slot 'arm'"
    assert difference(contract, contract.model_copy(update={"prompts": ("other",)})) is None


def test_names_and_units_of_their_own_are_dropped_where_they_differ(
    days: Days, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in degrees, one in radians: a merged contract must not say either of both."""
    own = ShardSet.open(days.friday).contract.aliases
    assert own is not None
    numbers = {name: number.model_copy(update={"scale": 1.0}) for name, number in own.numbers.items()}
    for number, (aliases, said) in enumerate(
        (
            (own.model_copy(update={"numbers": numbers}), True),
            (None, True),
            (own.model_copy(update={"unused": ("x",)}), False),
        )
    ):
        other = changed(days, tmp_path / str(number), aliases=aliases)
        sets.merge([days.monday, other], tmp_path / f"out{number}", progress=True)
        assert ("other names or units" in capsys.readouterr().out) == said
        assert (ShardSet.open(tmp_path / f"out{number}").contract.aliases is None) == said


def test_damage_is_never_copied(days: Days, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(days.friday, tmp_path / "damaged"))
    shard = folder / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"shard-000000.tar: is damaged"):
        sets.merge([days.monday, folder], tmp_path / "out", duplicates="keep")
    assert not (tmp_path / "out").exists()


def test_a_set_that_is_being_prepared_is_named(days: Days, tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path / "busy", "preparing it"),
        pytest.raises(UserError, match=r"busy: is in use: process \d+ on .* is preparing it since"),
    ):
        sets.merge([days.monday, tmp_path / "busy"], tmp_path / "out")
    (tmp_path / ".half.preparing").mkdir()
    with pytest.raises(UserError, match=r"half: its preparation was stopped before it was finished"):
        sets.merge([days.monday, tmp_path / "half"], tmp_path / "out")
    with sole_writer(tmp_path / "out", "writing it"), pytest.raises(UserError, match="out: is in use"):
        sets.merge([days.monday, days.friday], tmp_path / "out")


def test_a_full_disk_is_a_sentence(days: Days, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="are to be written and its disk has"):
        sets.merge([days.monday, days.friday], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_merge_run_again_gives_the_bytes_of_one_that_was_not(days: Days, tmp_path: Path) -> None:
    sets.merge([days.monday, days.friday], tmp_path / "whole" / "out")
    slow = (
        "import sys, time\nfrom xwam_ft import sets\nfrom xwam_ft.sets import derive\n"
        "members = derive.members_of\n"
        "derive.members_of = lambda *given: (time.sleep(0.2), members(*given))[1]\n"
        "sets.merge(sys.argv[1:3], sys.argv[3])\n"
    )
    command = [sys.executable, "-c", slow, str(days.monday), str(days.friday), str(tmp_path / "killed" / "out")]
    (tmp_path / "killed").mkdir()
    process = subprocess.Popen(command)
    until = time.monotonic() + 60
    while not list((tmp_path / "killed").glob(".out.*.tmp/.shard*")) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "out").exists()
    assert list((tmp_path / "killed").iterdir())
    sets.merge([days.monday, days.friday], tmp_path / "killed" / "out")
    assert files_in(tmp_path / "killed") == files_in(tmp_path / "whole")


def test_bad_numbers_of_sets(days: Days, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got fewer than two sets"):
        sets.merge([days.monday], tmp_path / "out")
    with pytest.raises(UserError, match="is given twice"):
        sets.merge([days.monday, days.friday, days.monday], tmp_path / "out")
    with pytest.raises(UserError, match="--held-out: is 1"):
        sets.merge([days.monday, days.friday], tmp_path / "out", held_out=1.0)
    with pytest.raises(UserError, match="nowhere: the folder does not exist"):
        sets.merge([days.monday, tmp_path / "nowhere"], tmp_path / "out")
