"""report.html: one page, no network, everything that went wrong on it, equal bytes for equal sets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared import QUIET
from xwam_ft.bundled import bundled
from xwam_ft.media import write_rgb
from xwam_ft.prepare.pipeline import prepare

EMBODIMENTS = Path(__file__).parents[2] / "recipes" / "embodiments"


def test_the_report_needs_no_network_and_shows_warnings(
    v21: Path, toy: Path, tmp_path: Path, made: Any, lerobot: Any
) -> None:
    path = v21 / "videos" / "chunk-000" / lerobot.camera / "episode_000000.mp4"
    dark = made.pictures[0].copy()
    dark[3:6] = 0
    write_rgb(path, dark, lerobot.fps)
    outcome = prepare(
        [v21],
        tmp_path / "out",
        embodiment=toy,
        depth=None,
        workers=0,
        strict=False,
        urdf_dirs=[],
        console=QUIET,
    )
    warned = [group.check for group in outcome.findings if group.severity == "warning"]
    assert warned == ["mostly-padded", "black-camera"]  # clips of 9 frames of episodes of 11 to 14
    page = (tmp_path / "out" / "report.html").read_text()
    assert "camera &#39;front&#39; is black in 3 of 14 pictures, first in frame 3" in page
    assert "episode 0, front, frame 3" in page
    assert "of relative actions\nfrom −M to M" in page
    assert "of quaternions −1 to 1" in page
    assert "commanded absolute,\n  as recorded" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/jpeg") == 3 + 1  # contact sheets, and the black frame
    assert page.count("data:image/svg+xml") == 2  # distributions and timing; there is no pose to draw paths of


BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
FLAGS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_a_browser_shows_the_report_without_errors_or_requests(tmp_path: Path) -> None:
    """In chromium: every picture is decoded, nothing is fetched, the console stays empty, the text is not cut off."""
    shards = tmp_path / "out"
    prepare(
        [bundled("recordings/metaworld_demo")],
        shards,
        embodiment=EMBODIMENTS / "metaworld_sawyer.yaml",
        depth="sensor",
        workers=0,
        strict=False,
        urdf_dirs=[],
        console=QUIET,
    )
    page = shards / "report.html"
    probe = """<script>addEventListener("load", () => {
      const broken = [...document.images].filter(image => !image.naturalWidth).length;
      const fetched = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
      const wide = document.documentElement.scrollWidth > innerWidth ? 1 : 0;
      document.title = `seen ${document.images.length} broken ${broken} fetched ${fetched} wide ${wide}`;
    });</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text() + probe)
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--window-size=1200,2000", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    plots = 2 + 1 + 3 * 12  # with paths, and the contact sheets of three cameras; then what findings show
    count = page.read_text().count("<img ")
    assert count == plots + 2 * 6  # two notes about depth, each with the pictures of six episodes
    [title] = re.findall("<title>(seen.*?)</title>", done.stdout)
    assert title == f"seen {count} broken 0 fetched 0 wide 0"
