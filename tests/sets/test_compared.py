"""A lab's two days that contradict each other: `prepare` of both, `shards merge` and `train` say so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from xwam_ft import sets
from xwam_ft.files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Days


def test_two_days_that_contradict_each_other_are_told_and_mended_ones_are_not(
    days: Days, tuesday_raw: Path, prepare_small: Callable[..., Path], tmp_path: Path
) -> None:
    both = prepare_small([days.raw[0], tuesday_raw], tmp_path / "both")
    lines = [json.loads(line) for line in (both / "findings.jsonl").read_text().splitlines()]
    told = {(line["check"], line["subject"], line["dataset"]) for line in lines}
    pairs = {("other-pictures", "front"), ("other-pictures", "wrist"), ("exchanged-columns", "arm")}
    assert {(check, subject, "tuesday_raw") for check, subject in pairs} <= told
    assert not [line for line in lines if line["dataset"] == "monday_raw" and (line["check"], line["subject"]) in pairs]

    alone = prepare_small([tuesday_raw], tmp_path / "tuesday")
    made = sets.merge([days.monday, alone], tmp_path / "merged", dry_run=True)
    assert len(made.warnings) == 3
    assert all(str(days.monday) in sentence and str(alone) in sentence for sentence in made.warnings)

    # What the sentences say, followed.
    info = read_json(tuesday_raw / "meta/info.json")
    for name in ("observation.state", "action"):
        names = info["features"][name]["names"]
        names[1], names[2] = names[2], names[1]
    (tuesday_raw / "meta/info.json").write_text(json.dumps(info))
    channels = {f"cameras.{name}.channels": "bgr" for name in ("front", "wrist")}
    mended = prepare_small([tuesday_raw], tmp_path / "mended", **channels)
    assert sets.merge([days.monday, mended], tmp_path / "sound").warnings == ()


def test_sound_days_are_left_alone(days: Days, tmp_path: Path) -> None:
    assert sets.merge([days.monday, days.friday], tmp_path / "out", dry_run=True).warnings == ()
