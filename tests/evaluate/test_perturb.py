"""What --perturb takes, and what each axis does to what a policy sees."""

from __future__ import annotations

import pytest

from xwam_ft.errors import UserError
from xwam_ft.evaluate.environments import environment_maker
from xwam_ft.evaluate.perturb import as_words, read_perturbations


def test_strengths_are_read_by_axis() -> None:
    found = read_perturbations(["light=0.5", "delay=4"])
    assert found == {"light": 0.5, "delay": 4.0}
    assert as_words(found) == ["light=0.5", "delay=4"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["ligth=0.5"], r"is no AXIS=STRENGTH \(did you mean 'light'\?\)"),
        (["light"], "is no AXIS=STRENGTH"),
        (["light=dark"], "'dark' is not a number from 0 to 4. Fix: light is the brightness"),
        (["light=nan"], "'nan' is not a number"),
        (["noise=1.5"], "'1.5' is not a number from 0 to 1"),
        (["delay=0.5"], "'0.5' is not a whole number"),
        (["light=1", "light=2"], "gives light twice"),
    ],
)
def test_what_is_wrong_is_one_sentence(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_perturbations(texts)


def test_another_environment_cannot_be_perturbed() -> None:
    with pytest.raises(UserError, match=r"goes with --env metaworld:TASK, not with mine.py:make"):
        environment_maker("mine.py:make", {"light": 0.5})
