"""The report's drawings: well-formed SVG whatever a slot is called, and ticks that a person would choose."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from xwam_ft.prepare.drawing import Drawing, step_outline, ticks


def test_a_drawing_is_svg_that_says_what_was_written() -> None:
    drawing = Drawing(100, 50)
    drawing.text(1, 2, 'arm <"left"> & co', turn=-25)
    drawing.line(0, 0, 1.005, -0.001, "red")
    [head, coded] = drawing.url().split(",")
    assert head == "data:image/svg+xml;base64"
    tree = ElementTree.fromstring(base64.b64decode(coded))
    assert (tree.get("width"), tree.get("height")) == ("100", "50")
    text, line = tree
    assert text.text == 'arm <"left"> & co'
    assert (line.get("x2"), line.get("y2")) == ("1", "0")


def test_a_path_draws_points_on_one_spot_once() -> None:
    drawing = Drawing(100, 50)
    drawing.path(np.array([[1.0, 2.0], [1.1, 2.1], [1.2, 1.9], [30.0, 40.0]]), "red")
    [line] = ElementTree.fromstring(drawing.svg())
    assert line.get("points") == "1,2 30,40"


@pytest.mark.parametrize(
    ("low", "high", "about", "said"),
    [
        (0.0, 1.06, 5, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (-0.3, 0.3, 6, ["−0.3", "−0.2", "−0.1", "0.0", "0.1", "0.2", "0.3"]),
        (0.3019, 0.3143, 6, ["0.3025", "0.3050", "0.3075", "0.3100", "0.3125"]),
        (0.0, 25.0, 5, ["0", "5", "10", "15", "20", "25"]),
        (1.0, 1.0, 5, []),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, about: int, said: list[str]) -> None:
    assert [words for _, words in ticks(low, high, about)] == said


@given(some.floats(-1e6, 1e6), some.floats(1e-6, 1e6), some.integers(1, 12))
def test_ticks_lie_within_the_axis_evenly_and_are_what_is_written(low: float, wide: float, about: int) -> None:
    found = ticks(low, low + wide, about)
    assert len(found) <= about + 1
    values = np.array([value for value, _ in found])
    near = 1e-6 * wide + 1e-12 * abs(low)
    assert np.all((values > low - near) & (values < low + wide + near))
    written = np.array([float(words.replace("−", "-")) for _, words in found])
    np.testing.assert_allclose(written, values, atol=near)
    np.testing.assert_allclose(np.diff(values, 2), 0, atol=near)


def test_an_outline_is_closed_and_as_wide_as_its_bars() -> None:
    assert step_outline(10, [5, 7], 2, [1, 3]) == "M10 5H11v2H13v2H7v-2H9v-2z"
