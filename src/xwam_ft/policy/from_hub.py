"""A bundle by its name on the Hub: looked at by its manifest before its gigabytes are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft import hub
from xwam_ft.errors import UserError, listed
from xwam_ft.files import read_json
from xwam_ft.policy.bundle import MANIFEST

if TYPE_CHECKING:
    from rich.console import Console


def bundle_at(place: str | Path, console: Console | None = None) -> Path:
    """Where a bundle lies: `place` itself, or the Hub's cache, where it names a model of the Hub (hub.py).

    Raises:
        UserError: no such model, or one that holds no bundle or a part of one; no network.
    """
    repo = hub.repo_of(place, "model")
    if repo is None:
        return Path(place)
    repo = hub.pinned(repo, console)
    there = hub.files(repo)
    if MANIFEST not in there:
        fix = "give a model that was made by `xwam-ft export ... --push`"
        raise UserError(f"holds no bundle (no {MANIFEST})", repo.page, fix)
    manifest: Any = read_json(hub.fetch(repo, console, allow=[MANIFEST]) / MANIFEST)
    wanted = list(manifest.get("files", ())) if isinstance(manifest, dict) else []
    if absent := sorted(set(wanted) - {*there, "README.md"}):
        fix = f"upload them: hf upload {repo.id} FOLDER"
        raise UserError(f"holds a part of a bundle: there is no {listed(absent)}", repo.page, fix)
    return hub.fetch(repo, console, allow=[MANIFEST, *wanted])
