"""report.html: one page, no network, everything that went wrong on it, equal bytes for equal sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from xwam_ft.media import write_rgb
from xwam_ft.prepare.pipeline import prepare


def test_the_report_needs_no_network_and_shows_warnings(
    v21: Path, toy: Path, tmp_path: Path, made: Any, lerobot: Any
) -> None:
    path = v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000000.mp4"
    write_rgb(path, np.zeros_like(made.pictures[0]), lerobot.fps)
    outcome = prepare(
        [v21],
        tmp_path / "out",
        embodiment=toy,
        depth=None,
        workers=0,
        strict=False,
        urdf_dirs=[],
        console=Console(quiet=True),
    )
    assert outcome.warnings == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "camera &#39;front&#39; is black" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/jpeg") == 3
