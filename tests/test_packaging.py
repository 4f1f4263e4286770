"""Files that only other machines run: workflows and issue forms by GitHub's schemas, the Dockerfile by its linter."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
BY_SCHEMA = {
    "vendor.github-workflows": ".github/workflows/*.yml",
    "custom.github-workflows-require-timeout": ".github/workflows/*.yml",
    "vendor.github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "vendor.github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "vendor.dependabot": ".github/dependabot.yml",
    "vendor.citation-file-format": "CITATION.cff",
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("check_jsonschema") is None, reason="needs the [dev] extra")
@pytest.mark.parametrize("schema", BY_SCHEMA)
def test_files_for_github_are_valid(schema: str) -> None:
    files = sorted(ROOT.glob(BY_SCHEMA[schema]))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(HADOLINT is None, reason="needs the [dev] extra (hadolint)")
def test_the_dockerfile_is_linted() -> None:
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_others_run_fits_the_package() -> None:
    package = (ROOT / "pyproject.toml").read_text()
    docker = (ROOT / "Dockerfile").read_text()
    [extras] = re.findall(r"^ARG EXTRAS=(.+)$", docker, re.MULTILINE)
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", package, re.MULTILINE), f"the image asks for [{extra}]"
    json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for target in re.findall(r"\bmake ([a-z-]+)", workflow.read_text()):
            assert target in targets | {"unit"}, f"{workflow.name} makes {target}"
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        assert "xwam-ft doctor" in form.read_text()
    [version] = re.findall(r'^version = "(.+)"', package, re.MULTILINE)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
