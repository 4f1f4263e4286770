"""Files that ship with the package: recordings for the demo, and recipes and embodiments by name.

In a checkout the recipes lie in the repository's `recipes/`; a wheel carries a copy in here.
"""

from __future__ import annotations

from pathlib import Path

from xwam_ft.errors import UserError, did_you_mean, listed
from xwam_ft.files import require_local

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[2]


def bundled(name: str) -> Path:
    """Path of a shipped file or folder, such as "recordings/metaworld_demo" or "recipes/tiny_cpu.yaml".

    Raises:
        UserError: the installation lacks it.
    """
    for root in (_HERE, _CHECKOUT):
        if (root / name).exists():
            return root / name
    raise UserError(f"{name!r} is not part of this installation", _HERE, "install xwam-ft again from its wheel")


def shipped_names(kind: str) -> list[str]:
    """Names of the YAML files that ship under a folder ("recipes", "recipes/embodiments"), folders below it included.

    What lies in a folder of its own has two names: `metaworld/lora_prior` is `lora_prior` as well.
    """
    root = bundled(kind)
    found = [path.relative_to(root).with_suffix("").as_posix() for path in sorted(root.rglob("*.yaml"))]
    return [name for name in found if kind != "recipes" or not name.startswith("embodiments/")]


def named_file(given: Path, kind: str) -> Path:
    """The file that a path or the name of a shipped YAML file means.

    A file that exists is itself. Otherwise `tiny_cpu`, `tiny_cpu.yaml` and `recipes/tiny_cpu.yaml` are the file that
    ships, wherever one stands.

    Args:
        given: as typed.
        kind: "recipes" or "recipes/embodiments".

    Raises:
        UserError: neither a file nor a name.
    """
    require_local(given, "a recipe or embodiment file")
    if given.is_file() or given.is_absolute():
        return given
    names = shipped_names(kind)
    asked = given.with_suffix("").as_posix() if given.suffix in (".yaml", ".yml") else given.as_posix()
    asked = asked.removeprefix("recipes/").removeprefix("embodiments/")
    for name in names:
        if asked in (name, name.rpartition("/")[2]):
            return bundled(f"{kind}/{name}.yaml")
    if given.is_dir():
        return given  # its reader says that it is a folder
    what = kind.rpartition("/")[2]
    hint = did_you_mean(asked, [*names, *(name.rpartition("/")[2] for name in names)])
    raise UserError(
        f"is neither a file ({given.absolute()}) nor one of the {what} that ship{hint}",
        given,
        f"give a path, or a name: {listed(names, 20)}",
    )
