"""The structure of the package, checked against the rules CONTRIBUTING.md states."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xwam_ft

SOURCE = Path(xwam_ft.__file__).parent
REPOSITORY = SOURCE.parents[1]
ROOMS = [
    "prepare",
    "sets",
    "inspect",
    "model",
    "convert",
    "encode",
    "policy",
    "evaluate",
    "runs",
    "learn",
    "plan",
    "train",
    "export",
    "view",
]
FRONT_DOORS = {"api", "api_use", "cli", "cli_shards", "cli_use", "demo", "results"}
MAY_NOT = {room: set(ROOMS[ROOMS.index(room) + 1 :]) for room in ROOMS}
MAY_NOT["model"] |= {"prepare", "sets", "inspect"}
WRITES_PICKLES = SOURCE / "export" / "torch_file.py"  # X-WAM's own format, for X-WAM's own code
READS_PICKLES = SOURCE / "model" / "tensor_files" / "torch_zip.py"
"""Released X-WAM weights come as pickles and in no other form: this one file reads them, and runs nothing in them."""
FILES = sorted(SOURCE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    """Every `xwam_ft.x` a file imports, at any depth of nesting, as "x"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "xwam_ft":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("xwam_ft."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("xwam_ft.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(SOURCE).parts
    imports = imported_modules(path)
    if place[0] in ROOMS:
        assert not imports & MAY_NOT[place[0]]
        assert not imports & FRONT_DOORS
    elif path.stem not in FRONT_DOORS | {"__init__"}:
        assert not imports & (set(ROOMS) | FRONT_DOORS), "a noun of the hall imports a room"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_map_names_every_file_and_room() -> None:
    assert xwam_ft.__doc__ is not None
    named = set(re.findall(r"^    ([a-z_]+(?:\.py|/))", xwam_ft.__doc__, flags=re.M))
    present = {p.name for p in SOURCE.glob("*.py") if p.name != "__init__.py"}
    present |= {p.parent.name + "/" for p in SOURCE.glob("*/__init__.py")}
    assert named == present


def test_light_imports_load_no_torch() -> None:
    """One after another in one process: the first that loads something heavy is named."""
    light = ["xwam_ft", "xwam_ft.cli", "xwam_ft.contract", "xwam_ft.recipe", *(f"xwam_ft.{room}" for room in ROOMS)]
    code = (
        f"import importlib, sys\nfor module in {light}:\n    importlib.import_module(module)\n"
        "    heavy = {'torch', 'lightning', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "    assert not heavy, (module, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_is_pickled() -> None:
    forbidden = re.compile(r"\b(pickle|torch\.load|torch\.save|allow_pickle\s*=\s*True|joblib|cloudpickle)\b")
    spoken_of = [p for p in FILES if forbidden.search(p.read_text())]  # parsing every file takes seconds
    assert [p for p in spoken_of if forbidden.search(_code(p))] == [WRITES_PICKLES, READS_PICKLES]
    assert re.findall(r"\bpickle\.\w+|\btorch\.(?:load|save)\b", _code(WRITES_PICKLES)) == ["pickle.Pickler"]
    runs_or_writes = re.compile(r"\bpickle\.(dumps?|loads?|Pickler)\b|\btorch\.(load|save)\(")
    assert not runs_or_writes.search(_code(READS_PICKLES))


def test_class_variables_say_their_type() -> None:
    """Pydantic cannot read a bare ClassVar where annotations are strings: on Python 3.10 nothing would be imported."""
    bare = re.compile(r":\s*ClassVar\b(?!\[)")
    assert [str(path) for path in FILES if bare.search(path.read_text())] == []


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_verbs_stay_short() -> None:
    tree = ast.parse((SOURCE / "cli.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name


def _code(path: Path) -> str:
    """The file without docstrings and comments."""
    return ast.unparse(_strip(ast.parse(path.read_text())))


def _strip(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return tree
