"""A room that is a verb as well: `xwam_ft.train(...)` trains, and `xwam_ft.encode.cache` is still a module.

Importing a submodule binds it to its package's attribute, so a function of the same name would last only until then.
Instead the room's package itself can be called, which does not depend on what was imported first.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class VerbRoom(ModuleType):
    """A package whose call, signature and help are those of the function of its name in api.py."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _function(self)(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))

    @property
    def __doc__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        function, room = _function(self), self.__dict__.get("__doc__") or ""
        return f"{self.__name__}{inspect.signature(function)}\n\n{inspect.getdoc(function)}\n\nThe room: {room}"


def callable_room(name: str) -> None:
    """Let the package `name` be called; its `__init__` says so."""
    sys.modules[name].__class__ = VerbRoom


def _function(room: ModuleType) -> Any:
    return getattr(import_module("xwam_ft.api"), room.__name__.rpartition(".")[2])
