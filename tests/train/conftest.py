"""What the tests of the rooms that train share; one CPU thread."""

from __future__ import annotations

from tiny_training import cache, changed, console, finished, imported, one_thread, recipe, recipe_file, shard_set

__all__ = ["cache", "changed", "console", "finished", "imported", "one_thread", "recipe", "recipe_file", "shard_set"]
