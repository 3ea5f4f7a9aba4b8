"""Influence in shards: the same scores, from passes that workers make wherever they are.

`shard_files` cuts prompts into runs and keeps arrays in files, `shard_work` is what a worker does,
and `sharded_scorer` hands out the work and joins what was measured.
"""
