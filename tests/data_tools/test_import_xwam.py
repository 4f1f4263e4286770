"""The import script: what it prints, and its exit codes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]

import foreign  # noqa: E402


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    spec = importlib.util.spec_from_file_location("import_xwam", ROOT / "data_tools" / "import_xwam.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    app = typer.Typer()
    app.command()(script.main)
    return app


def test_the_script_says_what_it_did(app: typer.Typer, tmp_path: Path) -> None:
    weights = foreign.module(frozen=True)
    source = foreign.save_deepspeed(tmp_path, weights, lr_scheduler=torch.nn.Identity())
    vae_text = foreign.save_vae_text(tmp_path / "vae_text")
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(source), str(out), "--vae-text", str(vae_text), "--heads", "4"])
    assert result.exit_code == 0, result.output
    for line in (
        "ignored (training state, no weights): ds_config, global_steps, lr_scheduler, optimizer",
        "named in the file and not run: __builtin__.set, torch.nn.modules.linear.Identity",
        "no contract: no config.yaml beside the checkpoint",
        f"next: a recipe with backbone.path: {out}",
    ):
        assert line in result.output, result.output
    assert "joint" in result.output
    again = CliRunner().invoke(app, [str(source), str(out), "--vae-text", str(vae_text), "--heads", "4"])
    assert again.exit_code == 2
    assert "exists already and is not an empty folder" in again.output
    assert "Traceback" not in again.output
