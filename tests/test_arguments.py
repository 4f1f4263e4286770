"""The Python door says in a sentence what it was given and cannot mean, before anything is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xwam_ft as package
from xwam_ft import sets as rooms_sets
from xwam_ft.arguments import NOTHING, fitting, plain

xwam_ft: Any = package  # wrong types are what these tests give
sets: Any = rooms_sets


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        ("a", "str | Path", "a"),
        (Path("a"), "str | Path | None", Path("a")),
        (None, "str | Path", NOTHING),
        (b"a", "str | Path", NOTHING),
        (np.int64(3), "int | None", 3),
        (True, "int", NOTHING),
        ("3", "int", NOTHING),
        (1.0, "int", NOTHING),
        (1, "float | None", 1),
        (np.bool_(True), "bool", True),
        (0, "bool", NOTHING),
        ("lift the lid", "Sequence[str]", ["lift the lid"]),  # one text, not its letters
        (Path("a"), "str | Path | Sequence[str | Path]", Path("a")),
        (np.arange(3), "str | Sequence[int] | None", [0, 1, 2]),
        ([1.5], "str | Sequence[int] | None", NOTHING),
        (3, "Sequence[int]", NOTHING),
        (("a", "b"), "tuple[str | Path, str | Path] | None", ("a", "b")),
        ("ab", "tuple[str | Path, str | Path] | None", NOTHING),
        (SimpleNamespace(path=Path("a")), "str | Path | Made", SimpleNamespace(path=Path("a"))),
        (SimpleNamespace(path="a"), "str | Path | Made", NOTHING),
        (object, "Overrides | None", object),  # kinds that are not known take anything
    ],
)
def test_a_value_is_what_its_annotation_asks_for(value: Any, kind: str, found: Any) -> None:
    assert fitting(value, kind) is NOTHING if found is NOTHING else fitting(value, kind) == found


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: xwam_ft.inspect(None), "raw of inspect: is None. Fix: give a text or a path"),
        (lambda: xwam_ft.plan({"data": 1}), "recipe of plan: is {'data': 1}. Fix: give a text or a path or a Recipe"),
        (lambda: xwam_ft.prepare([], "out", embodiment="so101_joints"), "raws of prepare: got no recordings"),
        (lambda: xwam_ft.prepare("a", "b", embodiment="c", workers=-1), "workers of prepare: is -1. Fix: give 0 or"),
        (lambda: xwam_ft.evaluate("b", "s", clips=1.5), "clips of evaluate: is 1.5. Fix: give a whole number"),
        (lambda: xwam_ft.evaluate("b", env="e", execute=0), "execute of evaluate: is 0. Fix: give 1 or more"),
        (lambda: xwam_ft.evaluate("b", env="e", episodes=0), "episodes of evaluate: is 0. Fix: give 1 or more"),
        (lambda: xwam_ft.runs("runs", diff="a"), "diff of runs: is 'a'. Fix: give two, each"),
        (lambda: xwam_ft.export("run", "out", step="20"), "step of export: is '20'. Fix: give a whole number or None"),
        (lambda: xwam_ft.Policy.load(None), "bundle of Policy.load: is None"),
        (lambda: xwam_ft.ShardSet.open(3), "folder of ShardSet.open: is 3"),
        (lambda: xwam_ft.Run.open(None), "path of Run.open: is None"),
        (lambda: xwam_ft.load_recipe({}), "path of load_recipe: is {}"),
        (lambda: sets.subset("a", "b", episodes=3), "episodes of subset: is 3"),
        (lambda: sets.subset(None, "b", episodes=[3]), "a path: is None"),
    ],
)
def test_what_cannot_be_meant_is_told(call: Any, said: str) -> None:
    with pytest.raises(xwam_ft.UserError) as told:
        call()
    assert said in str(told.value)


def test_values_of_a_recipe_may_be_paths_and_what_was_made() -> None:
    made = SimpleNamespace(path=Path("sets/both"))
    given = [{"path": made, "weight": 2}, {"path": Path("b"), "weight": np.float32(1)}]
    assert plain(given) == [{"path": "sets/both", "weight": 2}, {"path": "b", "weight": 1}]
    assert plain(made) == "sets/both"
