"""Turn a data set on disk into shards, one per site."""
