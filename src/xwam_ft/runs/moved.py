"""Where a run's shards lie: its recipe says it, and what it said before they were moved is tried where they are not.

moved.json    of a run folder: the earlier places, oldest first, each the folders of all its shard sets in order.

Which of them is meant is no question: shards are known by their content, which is compared before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xwam_ft.files import read_json, write_json_atomic
from xwam_ft.remote import url_of

if TYPE_CHECKING:
    from xwam_ft.recipe import DataSpec, Recipe

MOVED_FILE = "moved.json"


def places(data: DataSpec) -> list[str]:
    return [source.path for source in data.sources]


def moved_to(recipe: Recipe, folders: list[str]) -> Recipe:
    """The recipe with its shard sets in other folders."""
    data = recipe.data
    sources = [source.model_copy(update={"path": path}) for source, path in zip(data.sources, folders, strict=True)]
    shards = folders[0] if isinstance(data.shards, str) else sources
    return recipe.model_copy(update={"data": data.model_copy(update={"shards": shards})})


def found_again(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with the latest of its run's earlier places that are there, where its own are not."""
    if all(_there(place) for place in places(recipe.data)):
        return recipe
    for earlier in reversed(_earlier(run)):
        if len(earlier) == len(recipe.data.sources) and all(_there(place) for place in earlier):
            return moved_to(recipe, earlier)
    return recipe


def _there(place: str) -> bool:
    return url_of(place) is not None or Path(place).is_dir()


def remember(run: Path, left: list[str]) -> None:
    """Note the place that a run's shards were moved from."""
    write_json_atomic(run / MOVED_FILE, [*(place for place in _earlier(run) if place != left), left])


def _earlier(run: Path) -> list[list[str]]:
    return read_json(run / MOVED_FILE) if (run / MOVED_FILE).is_file() else []
