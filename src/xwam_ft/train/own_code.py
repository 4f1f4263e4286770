"""Code of the user's own: Lightning callbacks and loggers that a recipe names by import path. Making them runs it."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwam_ft.errors import UserError

if TYPE_CHECKING:
    from xwam_ft.recipe import Recipe


@dataclass(frozen=True)
class OwnCode:
    """What `trainer.callbacks` and `trainer.loggers` of a recipe name, made."""

    callbacks: tuple[Any, ...] = ()
    loggers: tuple[Any, ...] = ()


def own_code(recipe: Recipe) -> OwnCode:
    """Import and make what a recipe names; the working folder is looked in as well as what is installed.

    Raises:
        UserError: a name of another form, whose import or call fails, or that gives something else.
    """
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    spec = recipe.trainer
    return OwnCode(
        tuple(_made(name, "trainer.callbacks", Callback) for name in spec.callbacks),
        tuple(_made(name, "trainer.loggers", Logger) for name in spec.loggers),
    )


def _made(path: str, key: str, kind: type) -> Any:
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise UserError(f"{path!r} is not of the form my.module:Name", key, "name a class or function of a module")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever a user's own code may raise
        raise UserError(
            f"{path} cannot be made ({type(error).__name__}: {error})",
            key,
            f"try it: python -c 'from {module} import {name}; {name}()'",
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(made, kind):
        raise UserError(
            f"{path}() gives a {type(made).__name__}, not a Lightning {kind.__name__.lower()}",
            key,
            f"name a subclass of lightning.pytorch's {kind.__name__}, or a function that returns one of it",
        )
    return made
