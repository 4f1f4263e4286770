"""What makes a site of pages that are written for GitHub: nothing is written twice.

- Sections of README.md are pages of their own, and so are CONTRIBUTING.md, CHANGELOG.md and others that pages link to.
- The recipes that ship are a page, and so are the docstrings of what `import xwam_ft` gives.
- A link is followed as GitHub follows it, then turned to where its target stands on the site; files that are no pages
  come along.
- Lists and tables that follow a line of text, and lists indented by two, are read as GitHub reads them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
SECTIONS = {  # of the README, by the pages they become
    "install.md": "Install",
    "first_hour.md": "Your first hour, with your own robot",
    "what_is_read.md": "What is read",
    "does_it_learn.md": "Does it learn?",
    "words.md": "Words",
    "questions.md": "Questions",
    "verbs.md": "The verbs",
    "map.md": "Map",
}
OTHERS = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "tiny.md": "src/xwam_ft/bundled/tiny/README.md",
    "lerobot.md": "plugins/lerobot_policy_xwam/README.md",
}
FENCE = re.compile(r"^\s*```")
ITEM = re.compile(r"^(?:[-*]|\d+\.) ")
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"]+)(\)|\")")
slug: Callable[[str, str], str] = slugify(case="lower")
origins: dict[str, str] = {}
"""Page of the site -> the file of the repository that it is written in."""
readme_pages: dict[str, str] = {}
"""Heading of the README, as it stands in a link -> the page that has it."""
brought: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of other files."""
    pages = dict(_readme_pages())
    pages |= {page: (ROOT / place).read_text() for page, place in OTHERS.items()}
    pages |= {"recipes.md": _recipes(), "reference.md": _reference()}
    for page, text in pages.items():
        origins[page] = OTHERS.get(page, "README.md")
        files.append(File.generated(config, page, content=text))
    for file in files.documentation_pages():
        origins.setdefault(file.src_uri, f"docs/{file.src_uri}")
    for path in sorted(_linked()):
        brought[path] = f"files/{path}"
        files.append(File.generated(config, brought[path], abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them, and what GitHub reads otherwise than python-markdown does."""
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        return match[1] + _on_site(match[2], here, ending=match[1] != "](") + match[3]

    lines = [line if fenced else LINK.sub(turned, line) for line, fenced in _lines(markdown)]
    return "\n".join(_as_github(lines))


def _readme_pages() -> Iterator[tuple[str, str]]:
    text = (ROOT / "README.md").read_text()
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    home = {"Try it": sections["Try it"]}
    yield "index.md", parts[0] + "".join(f"## {name}\n{body}" for name, body in home.items()) + _front()
    readme_pages.update(dict.fromkeys((slug(name, "-") for name in home), "index.md"))
    for page, name in SECTIONS.items():
        readme_pages[slug(name, "-")] = page
        yield page, f"# {name}\n{sections[name]}"


def _front() -> str:
    return (
        "\n## From here\n\n"
        "[Is it right for me?](docs/right_for_me.md) · [What it costs](docs/costs.md) · [Install](#install) · "
        "[Your first hour](#your-first-hour-with-your-own-robot) · [How it works](docs/how_it_works.md) · "
        "[Troubleshooting](docs/troubleshooting.md)\n"
    )


def _recipes() -> str:
    """Every recipe with its own head: purpose, command, hardware."""
    text = "# Recipes that ship\n\nEach goes by its name: `xwam-ft train NAME`. `--set a.b=c` changes any value "
    text += "([every key](docs/recipe.md)); `xwam-ft plan NAME` counts what it takes.\n"
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        text += f"\n## {path.stem}\n\n```yaml\n{path.read_text().rstrip()}\n```\n"
    robots = ", ".join(f"`{path.stem}`" for path in sorted((ROOT / "recipes" / "embodiments").glob("*.yaml")))
    return f"{text}\n## Robots\n\nEmbodiment files that ship, for `--embodiment NAME`: {robots}.\n"


def _reference() -> str:
    """What `__all__` names, each where it is defined."""
    source = (ROOT / "src/xwam_ft/__init__.py").read_text()
    imported = re.findall(r"^    from (xwam_ft\S*) import (?:\(([^)]*)\)|(.+))$", source, flags=re.MULTILINE)
    homes = {
        name.strip(): module for module, many, one in imported for name in (many or one).split(",") if name.strip()
    }
    halves = {"xwam_ft.api": "xwam_ft.api_use"}  # the verbs of api_use.py, which api.py has too
    text = "# Python reference\n\nHow they go together: [From Python](docs/python.md).\n"
    for title, chosen in (("Functions", str.islower), ("Classes", lambda name: name[0].isupper())):
        text += f"\n## {title}\n"
        for name in sorted(name for name in homes if chosen(name.replace("_", ""))):
            home = homes[name]
            if home in halves and f"\ndef {name}(" not in (ROOT / "src/xwam_ft/api.py").read_text():
                home = halves[home]
            text += f"\n::: {home}.{name}\n"
    return text


def _linked() -> set[str]:
    """Files outside docs/ that pages link to and that are no pages."""
    found: set[str] = set()
    for page, origin in origins.items():
        if page in ("recipes.md", "reference.md"):
            continue
        for line, fenced in _lines((ROOT / origin).read_text()):
            for _, target, _ in [] if fenced else LINK.findall(line):
                path = _path(target, origin)
                if path and not path.startswith("docs/") and path not in {"README.md", *OTHERS.values()}:
                    found.add(path)
    return {path for path in found if (ROOT / path).is_file()}


def _path(target: str, origin: str) -> str | None:
    """The file of the repository that a link leads to; None where it leads out, or to a heading."""
    target = target.partition("#")[0]
    if not target or re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _on_site(target: str, here: str, *, ending: bool) -> str:
    origin, (_, mark, anchor) = origins[here], target.partition("#")
    path = _path(target, origin)
    if re.match(r"[a-z]+:", target) or (path is None and origin != "README.md"):
        return target
    if path in (None, "README.md"):  # a heading of the README
        page = readme_pages.get(anchor, "index.md")
        own_heading = slug(SECTIONS.get(page, ""), "-") == anchor
        mark, anchor = ("", "") if own_heading else (mark, anchor)
    else:
        assert path is not None
        names = {place: page for page, place in OTHERS.items()} | brought
        page = names.get(path) or path.removeprefix("docs/")
    if ending:  # HTML, which mkdocs leaves as it is
        page = re.sub(r"\.md$", ".html", page)
    return posixpath.relpath(page, posixpath.dirname(here) or ".") + mark + anchor


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Every line, and whether it stands in a code block."""
    fenced = False
    for line in text.split("\n"):
        edge = FENCE.match(line) is not None
        yield line, fenced or edge
        fenced ^= edge


def _as_github(lines: list[str]) -> Iterator[str]:
    """A blank line before a list or table that follows text; two spaces of a list's inside become four."""
    inside, before = False, ""
    for line, fenced in _lines("\n".join(lines)):
        item = not fenced and ITEM.match(line) is not None
        row = not fenced and line.startswith("|")
        if inside and line and not line.startswith(" ") and not item and not before:
            inside = False
        starts = (item and not inside) or (row and not before.startswith("|"))
        if starts and before and not before.startswith("#"):
            yield ""
        inside = inside or item
        indent = len(line) - len(line.lstrip(" "))
        yield " " * indent + line if inside and indent else line
        before = line
