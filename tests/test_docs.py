"""The pages in docs/ say what is so: their embodiment file loads, and they leave no finding, option or key out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from xwam_ft.prepare.embodiment.schema import CameraSpec, Embodiment, LimitsSpec, Section, SlotSpec, load_embodiment
from xwam_ft.prepare.findings import CHECKS
from xwam_ft.recipe import AugmentSpec, DataSpec, EpisodeWeight, Recipe, ShardSource

DOCS = Path(__file__).parents[1] / "docs"
ROOT = DOCS.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def test_the_embodiment_page_shows_a_file_that_loads(tmp_path: Path) -> None:
    block = re.findall(r"```yaml\n(.*?)```", (DOCS / "embodiment.md").read_text(), re.DOTALL)[0]
    (tmp_path / "my_robot.yaml").write_text(block)
    assert load_embodiment(tmp_path / "my_robot.yaml").name == "my_robot"


def test_the_data_page_shows_a_section_that_parses_and_names_every_key() -> None:
    page = (DOCS / "data.md").read_text()
    data = DataSpec.model_validate(yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])["data"])
    assert [source.weight for source in data.sources] == [3, 1]
    pages = page + (DOCS / "encode.md").read_text()
    sections = (DataSpec, AugmentSpec, EpisodeWeight, ShardSource)
    keys = {name for section in sections for name in section.model_fields}
    assert {key for key in keys if not re.search(rf"\b{key}\b", pages)} == set()


@pytest.mark.parametrize("section", [Embodiment, CameraSpec, SlotSpec, LimitsSpec])
def test_the_embodiment_page_names_every_key(section: type[Section]) -> None:
    page = (DOCS / "embodiment.md").read_text()
    keys = {field.alias or name for name, field in section.model_fields.items()}
    assert {key for key in keys if not re.search(rf"\b{key}\b", page)} == set()


def test_the_prepare_page_names_every_finding() -> None:
    page = (DOCS / "prepare.md").read_text()
    assert {name for name in CHECKS if f"`{name}`" not in page} == set()


def values(section: type[BaseModel], place: str = "") -> dict[str, object]:
    """Every key of a section and those below it, dotted, with its default."""
    found: dict[str, object] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= values(field.annotation, f"{place}{name}.")
        else:
            default = "required" if field.is_required() else field.get_default(call_default_factory=True)
            found[place + name] = list(default) if isinstance(default, tuple) else default
    return found


def test_the_recipe_page_has_every_key_with_its_default_and_an_example_that_parses() -> None:
    page = (DOCS / "recipe.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) == len({key for key, _ in rows})
    assert {key: yaml.safe_load(default.strip("`")) for key, default in rows} == values(Recipe)
    example = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    assert Recipe.model_validate(yaml.safe_load(example)).trainer.accumulate == 32


def prose(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page: small letters, no punctuation, a hyphen a space."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_anchor_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page)):
        if re.match(r"https?:", target):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(found), f"{target}#{anchor} is no heading"


def test_every_page_of_the_docs_is_on_the_site_and_has_one_title() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in nav, page
        assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)) == 1
