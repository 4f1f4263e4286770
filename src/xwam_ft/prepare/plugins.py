"""What other distributions add through entry points: readers (group `xwam_ft.sources`), depth estimators
(`xwam_ft.depth`).

A distribution names a module or object under a name of its own in its pyproject.toml:

    [project.entry-points."xwam_ft.sources"]
    my_logger = "my_package.reader"

What that must offer is the protocol of the group: `Reader` in sources/__init__.py, an estimator in depth/__init__.py.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from xwam_ft.errors import UserError, listed

SOURCES = "xwam_ft.sources"
DEPTH = "xwam_ft.depth"


def plugins(group: str) -> dict[str, EntryPoint]:
    """The entry points of `group` by name, sorted by it.

    Raises:
        UserError: two distributions give the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in _entries(group, tuple(sys.path)):
        if entry.name in found and found[entry.name].value != entry.value:
            raise UserError(
                f"is given twice, as {found[entry.name].value} and {entry.value}",
                f"entry point {group}: {entry.name}",
                "uninstall one of the two packages",
            )
        found[entry.name] = entry
    return found


@cache
def _entries(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    # Looked up once a search path: every distribution's file is read for it.
    return sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value))


def load_plugin(entry: EntryPoint, needs: tuple[str, ...]) -> Any:
    """Import what an entry point names, and check that it has the attributes `needs`.

    Raises:
        UserError: it does not import, or lacks one of them.
    """
    where = f"entry point {entry.group}: {entry.name}"
    try:
        loaded = entry.load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise UserError(
            f"{entry.value} cannot be imported ({type(error).__name__}: {error})",
            where,
            "mend or uninstall the package that brings it",
        ) from None
    if absent := [name for name in needs if not hasattr(loaded, name)]:
        raise UserError(f"{entry.value} lacks {listed(absent)}", where, f"give it {listed(needs)}")
    return loaded
