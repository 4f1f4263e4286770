"""The LeRobot plug-in as it is installed: its name is what LeRobot looks for. What runs in LeRobot is its own suite."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import xwam_ft

PLUGIN = Path(__file__).parents[2] / "plugins" / "lerobot_policy_xwam"
SUITE = "LeRobot (Python 3.12 or newer) is not installed here; plugins/lerobot_policy_xwam/README.md says how"


@pytest.mark.slow
def test_its_wheel_is_named_as_lerobot_looks_for_it(tmp_path: Path) -> None:
    built = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-requires-python",
    ]
    subprocess.run(
        [*built, "--ignore-requires-python", "-w", tmp_path, PLUGIN], check=True, capture_output=True, timeout=300
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith("METADATA")]
        told = Parser().parsestr(archive.read(metadata).decode())
    # LeRobot takes distributions by the beginning of this name, underscores and all, and imports the module so called.
    assert told["Name"] == "lerobot_policy_xwam"
    assert f"{told['Name']}/__init__.py" in names
    for part in ("configuration", "modeling", "processor"):  # LeRobot goes from one to the others by these names
        assert f"{told['Name']}/{part}_xwam.py" in names
    assert not any("test" in name for name in names)
    wanted = {one.name: one.specifier for one in map(Requirement, told.get_all("Requires-Dist") or [])}
    assert wanted["xwam-ft"].contains(xwam_ft.__version__)
    assert wanted["lerobot"].contains("0.6.0")


def test_it_registers_itself_in_lerobot() -> None:
    if find_spec("lerobot") is None or find_spec("lerobot_policy_xwam") is None:
        pytest.skip(SUITE)
    from lerobot.configs import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    assert "xwam" in PreTrainedConfig.get_known_choices()
