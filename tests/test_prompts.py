"""Prompts as people type them: one wording of what is the same, found however it is typed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xwam_ft
from xwam_ft.errors import UserError
from xwam_ft.prompts import canonical, clean_prompt, find, in_style, nearest, plain

from . import so101

KNOWN = ["Pick up the cube.", "Open the drawer", ""]


@pytest.mark.parametrize(
    "typed", ["Pick up the cube.", "pick up the cube", "  PICK  up the\tcube . ", "pick up the cube..."]
)
def test_case_period_and_spaces_do_not_matter(typed: str) -> None:
    assert find(typed, KNOWN) == "Pick up the cube."
    assert plain(typed) == "pick up the cube"


@pytest.mark.parametrize("typed", ["", " . ", "pick up the cubes", "pick up, the cube"])
def test_another_text_is_another_prompt(typed: str) -> None:
    assert find(typed, [known for known in KNOWN if known]) is None


def test_the_prompt_that_stands_there_wins_over_one_that_is_the_same() -> None:
    known = ["pick up the cube", "Pick up the cube."]  # an old contract may hold both
    assert [find(text, known) for text in known] == known
    assert find("PICK UP THE CUBE", known) == "Pick up the cube."


def test_recordings_are_written_in_their_most_usual_wording() -> None:
    found = canonical(["pick up.", "Pick up", "Pick up", "open  it", "open it."])
    assert found == {"pick up.": "Pick up", "Pick up": "Pick up", "open it": "open it", "open it.": "open it"}
    assert {find(text, set(found.values())) for text in found} == {"Pick up", "open it"}


def test_prepare_writes_one_wording_and_the_robot_s_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(so101, "TASKS", ("push the cube.", "Push the cube", "Push  the cube", "Wave."))
    raw = so101.write_so101(tmp_path / "raw", episodes=4, frames=30, size=(32, 64))
    short = {"timing.frame_skip": 2, "timing.action_skip": 1, "timing.clip_frames": 5}
    short |= {"image.height": 32, "image.width": 64}
    extra = {"aliases": {"observation/image": "front", "observation/joints": "arm", "say": "prompt"}}
    made = xwam_ft.prepare(  # pyright: ignore[reportCallIssue]
        raw, tmp_path / "set", embodiment="so101_joints", depth="none", workers=0, **short, **extra
    )
    shards = made.shards
    assert shards.contract.prompts == ("Push the cube", "Wave.")
    assert shards.contract.prompt_form == "plain"
    assert [episode.instruction for episode in shards.index.episodes] == ["Push the cube"] * 3 + ["Wave."]
    assert {segment.instruction for segment in shards} == {"Push the cube", "Wave."}
    aliases = shards.contract.aliases
    assert aliases is not None
    assert aliases.images["observation.images.wrist"] == "wrist"
    assert aliases.images["observation/image"] == aliases.images["front"] == "front"
    assert aliases.vectors["observation.state"] == tuple(so101.NAMES)
    assert aliases.vectors["observation/joints"] == tuple(so101.NAMES[:5])
    assert "say" in aliases.prompts
    degrees = aliases.numbers["elbow_flex.pos"]
    assert (degrees.slot, degrees.column, degrees.offset) == ("arm", 2, 0.0)
    assert degrees.scale == pytest.approx(math.pi / 180)
    with pytest.raises(UserError, match=r"aliases.x: means 'hand', which there is not. Fix: name one of: front"):
        xwam_ft.prepare(  # pyright: ignore[reportCallIssue]
            raw, tmp_path / "b", embodiment="so101_joints", depth="none", workers=0, **short, aliases={"x": "hand"}
        )


def test_a_text_nobody_recorded_is_written_as_the_others_are() -> None:
    assert in_style("put the LED  away", ["Pick up the cube.", "Open it."]) == "Put the led away."
    assert in_style("Put it away.", ["pick up", "open it"]) == "put it away"
    assert len({in_style(text, KNOWN) for text in ("Wave.", "wave", " WAVE ")}) == 1


def test_the_nearest_are_named() -> None:
    assert nearest("pick the cube", KNOWN)[:1] == ["Pick up the cube."]
    assert nearest("zzz", KNOWN) == []


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  pick\tup \n the cube ", "pick up the cube"),
        ("put the cup in the box &amp; close it", "put the cup in the box & close it"),
        ("a &amp;lt;b&amp;gt; c", "a <b> c"),
        ("the robot\u2019s \u201cred\u201d cup", 'the robot\'s "red" cup'),
        ("caf\u00c3\u00a9 table", "caf\u00e9 table"),  # UTF-8 read as Latin-1
        ("\ufb01ne \uff21\uff22", "fine AB"),
        ("", ""),
    ],
)
def test_cleaned(raw: str, clean: str) -> None:
    assert clean_prompt(raw) == clean
    assert clean_prompt(clean) == clean


@given(st.text(max_size=40))
def test_equals_diffusers_own_cleaning(text: str) -> None:
    """diffusers' Wan pipeline cleans as the reference does, where ftfy is installed."""
    from diffusers.pipelines.wan import pipeline_wan

    assert clean_prompt(text) == pipeline_wan.prompt_clean(text)
