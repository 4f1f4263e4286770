"""The list of mutations fits the files it mutates; what does not is said, as a mutant that is none proves nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import mutants


def test_every_mutation_finds_its_text_and_its_tests() -> None:
    found = mutants.read()
    assert len(found) >= 60
    for mutation in found:
        compile(mutants.mutated(mutation, mutants.ROOT), mutation.file, "exec")
        assert mutation.old != mutation.new
        for test in mutation.tests:
            file = test.removeprefix("--deselect=").partition("::")[0]
            assert (mutants.ROOT / file).is_file(), f"mutations.txt, line {mutation.line}: {test}"
    assert len({(m.file, m.old, m.new) for m in found}) == len(found), "one is there twice"


def test_a_text_that_is_not_there_once_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    listed = tmp_path / "list.txt"
    listed.write_text(
        "# said\n@ a.py | tests/a.py tests/b.py\n- x = 1\n- y = 1\n+ y = 2\n- = 1\n+ = 2\n- z\n+\n\n"
        "@ b.py | t\n- x\n+ y\n"
    )
    both, twice, none, absent = mutants.read(listed)
    assert mutants.mutated(both, tmp_path) == "y = 2\n"
    assert (both.tests, none.new) == (("tests/a.py", "tests/b.py"), "")
    with pytest.raises(ValueError, match=r"line 6: '= 1' is to be mutated, and a\.py holds it 2 times"):
        mutants.mutated(twice, tmp_path)
    with pytest.raises(ValueError, match=r"line 8: 'z' is to be mutated, and a\.py holds it 0 times"):
        mutants.mutated(none, tmp_path)
    with pytest.raises(ValueError, match=r"b\.py is not there"):
        mutants.mutated(absent, tmp_path)
    for wrong in ("- x\n+ y\n", "@ a.py | t\n+ y\n", "@ a.py | t\n- x\n\n+ y\n", "@ a.py | t\n- x\n", "what\n"):
        listed.write_text(wrong)
        with pytest.raises(ValueError, match="is no mutation"):
            mutants.read(listed)
