"""The notebook's cells, run one after another in one namespace, without Jupyter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_goes_from_recordings_to_a_called_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    place: dict[str, Any] = {"__name__": "notebook"}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), place)
    import matplotlib.pyplot as plt

    assert len(plt.get_fignums()) == 3
    plt.close("all")
    assert place["run"].step == place["STEPS"]
    assert np.isfinite(place["predicted"]).all()
    assert place["imagined"].film.is_file()
    assert {path.name for path in (tmp_path / "out/notebook").iterdir()} == {"shards", "run", "bundle", "imagined"}
    said = capsys.readouterr().out
    assert "12 episodes, 950 frames" in said
    assert "arm (" in said
    assert "━" not in said.split("episodes,")[1]  # no bar, no table of ours


def test_the_notebook_ships_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")
