"""The documentation as a site: builds strictly, opens from disk, asks no network; what its pages say to type runs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"week.md"}  # whose blocks have tests of their own, as the README's have
RUN = sorted(page for page in (ROOT / "docs").rglob("*.md") if "```sh\n" in page.read_text())

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page loads, leads to and can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.names |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.leads.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("needs the [docs] extra")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_pages_load_nothing_from_a_network_and_lead_nowhere_in_vain(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    for path, page in pages.items():
        for target in page.loads:
            assert not re.match(r"(https?:)?//", target), f"{path.name} loads {target}"
            assert (path.parent / target).exists(), f"{path.name} loads {target}"
        for target in page.leads:
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = unquote(target).partition("#")
            found = (path.parent / file).resolve() if file else path
            found = found / "index.html" if found.is_dir() else found
            assert found.is_file(), f"{path.name} leads to {target}"
            assert not anchor or found not in pages or anchor in pages[found].names, f"{path.name} leads to {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", style.read_text()), style


def test_what_is_written_once_is_on_the_site(site: Path) -> None:
    for name, said in {
        "index": "Teach a video model to drive",
        "install": "python3.11 -m venv",
        "recipes": "wan22_5b_lora_24gb",
        "reference": "action error on recorded episodes",
        "contributing": "make unit",
        "security": "unpickled",
        "verbs": "xwam-ft doctor",
    }.items():
        text = re.sub(r"<[^>]+>", "", (site / f"{name}.html").read_text())
        assert said in re.sub(r"\s+", " ", text), name
    assert "__index" in (site / "search" / "search_index.js").read_text(), "a search that needs a server"


@pytest.mark.parametrize("page", [page for page in RUN if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_the_sh_blocks_of_a_page_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", "set -eu\n" + "".join(blocks)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
