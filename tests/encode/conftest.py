"""The recipe, shards and cache of the training tests: a set of their own, since tests add caches to it."""

from tests.train.conftest import (  # noqa: F401
    _one_thread,  # pyright: ignore[reportPrivateUsage]
    cache,
    changed,
    console,
    finished,
    recipe,
    recipe_file,
    shard_set,
)
