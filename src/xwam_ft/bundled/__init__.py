"""Files that ship with the package: recordings for the demo and the recipes.

In a checkout the recipes lie in the repository's `recipes/`; a wheel carries a copy in here.
"""

from __future__ import annotations

from pathlib import Path

from xwam_ft.errors import UserError

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
