"""Loader and trainers over the shard format. Nothing is here yet: shards are read by plain `webdataset`."""
