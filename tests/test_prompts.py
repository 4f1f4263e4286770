"""Instructions are cleaned as the reference cleans them, by the same function wherever they pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwam_ft.prompts import clean_prompt


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
def test_cases(raw: str, clean: str) -> None:
    assert clean_prompt(raw) == clean
    assert clean_prompt(clean) == clean


@given(st.text(max_size=40))
def test_equals_diffusers_own_cleaning(text: str) -> None:
    """diffusers' Wan pipeline cleans as the reference does, where ftfy is installed."""
    from diffusers.pipelines.wan import pipeline_wan

    assert clean_prompt(text) == pipeline_wan.prompt_clean(text)
