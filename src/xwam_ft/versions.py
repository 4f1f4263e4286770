"""Versions of libraries: what is installed against what this package says it works with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from xwam_ft.errors import UserError, listed

NUMERIC = ("torch", "diffusers", "transformers", "peft", "lightning", "ftfy")
"""Those whose version decides about numbers, or whether weights are loaded at all."""


def require_supported() -> None:
    """Raise a `UserError` that names each of these libraries that is absent or of a version that was never tried.

    The bounds are the package's own (pyproject.toml); code that runs from a plain checkout without being installed has
    none, and is not held back.
    """
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in requires("xwam-ft") or ()]
    except PackageNotFoundError:
        return
    wrong = [found for one in asked if one.name in NUMERIC and (found := _trouble(one.name, one.specifier))]
    if wrong:
        raise UserError(
            listed(wrong, len(wrong)), "the installed libraries", "run `pip install -U xwam-ft` in this environment"
        )


def _trouble(name: str, wanted: object) -> str | None:
    from packaging.specifiers import SpecifierSet

    assert isinstance(wanted, SpecifierSet)
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    if wanted.contains(found, prereleases=True):
        return None
    return f"{name} is {found}, and {name}{wanted} was tried"
