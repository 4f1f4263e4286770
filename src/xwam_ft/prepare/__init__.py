"""Raw recordings -> shards: readers, checks, embodiment, depth, statistics, pipeline, report."""
