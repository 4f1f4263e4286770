"""Prompts as people type them: one wording of what is the same, found however it is typed."""

from __future__ import annotations

import pytest

from xwam_ft.prompts import canonical, find, in_style, nearest, plain

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


def test_a_text_nobody_recorded_is_written_as_the_others_are() -> None:
    assert in_style("put the LED  away", ["Pick up the cube.", "Open it."]) == "Put the led away."
    assert in_style("Put it away.", ["pick up", "open it"]) == "put it away"
    assert len({in_style(text, KNOWN) for text in ("Wave.", "wave", " WAVE ")}) == 1


def test_the_nearest_are_named() -> None:
    assert nearest("pick the cube", KNOWN)[:1] == ["Pick up the cube."]
    assert nearest("zzz", KNOWN) == []
