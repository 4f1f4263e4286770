"""The wheel works away from the repository: what ships is in it, goes by name, and nothing else is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2, which Debian 12 has, knows none

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    [built] = out.glob("xwam_ft-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment where the wheel is installed and the repository is not: libraries lie behind it on the path."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    # Folders of PYTHONPATH run no .pth files, so the editable installation that may lie there is not seen.
    libraries = sysconfig.get_paths()["purelib"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), libraries]), "COLUMNS": "200"}


def run(installed: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-m", "xwam_ft.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=installed, capture_output=True, text=True, timeout=300)


def test_it_holds_recipes_weights_and_recordings_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in (
        "xwam_ft/bundled/recipes/tiny_cpu.yaml",
        "xwam_ft/bundled/recipes/embodiments/so101_joints.yaml",
        "xwam_ft/bundled/tiny/vae/config.json",
        "xwam_ft/bundled/recordings/metaworld_demo/meta/info.json",
        "xwam_ft/prepare/report.html.jinja",
        "xwam_ft/view/page/index.html",
        "xwam_ft/view/page/main.js",
    ):
        assert name in names
    assert all(name.startswith("xwam_ft") for name in names)
    assert not any({"tests", "golden"} & {*Path(name).parts} or Path(name).name.startswith("test_") for name in names)


def test_the_sdist_holds_what_builds_the_same_wheel_and_no_tests(wheel: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), "-t", "sdist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    [source] = tmp_path.glob("xwam_ft-*.tar.gz")
    with tarfile.open(source) as tar:
        names = [name.partition("/")[2] for name in tar.getnames()]
        tar.extractall(tmp_path, **FILTER)
    tops = {name.partition("/")[0] for name in names}
    assert {"src", "recipes", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not {"tests", "docs", "benchmarks"} & tops
    [folder] = (path for path in tmp_path.iterdir() if path.is_dir())
    again = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "again"), "-t", "wheel"]
    subprocess.run(again, cwd=folder, check=True, capture_output=True, timeout=300)
    with zipfile.ZipFile(wheel) as here, zipfile.ZipFile(next((tmp_path / "again").glob("*.whl"))) as there:
        assert {one.filename: one.CRC for one in here.infolist()} == {one.filename: one.CRC for one in there.infolist()}


def test_what_ships_goes_by_name_from_an_installed_wheel(installed: dict[str, str], tmp_path: Path) -> None:
    where = "import xwam_ft; print(xwam_ft.__file__)"
    command = [sys.executable, "-S", "-c", where]
    found = subprocess.run(command, env=installed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert str(ROOT) not in found, "the repository itself was imported"
    assert run(installed, tmp_path, "--version").stdout.startswith("xwam-ft ")
    recordings = Path(found.strip()).parent / "bundled" / "recordings" / "metaworld_demo"
    prepared = run(
        installed,
        tmp_path,
        "prepare",
        str(recordings),
        "shards",
        "--embodiment",
        "metaworld_sawyer_rgb",
        "--depth",
        "none",
    )
    assert prepared.returncode == 0, prepared.stderr
    planned = run(installed, tmp_path, "plan", "tiny_cpu", "--set", "data.shards=shards")
    assert planned.returncode == 0, planned.stderr
    assert "no depth branch is trained" in planned.stdout
