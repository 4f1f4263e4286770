"""Raw recordings -> shards: readers, checks, embodiment, depth, statistics, pipeline, report."""

from xwam_ft.verb import callable_room

callable_room(__name__)
