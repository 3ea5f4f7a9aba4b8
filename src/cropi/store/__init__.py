"""Files of runs and studies.

`files` writes whole files or none, `cached` decides whether one may be used again, `lock` keeps
other processes out, `run_directory` knows where everything is, `tables` are scores and selections,
`metrics` the typed rows of metrics.jsonl and timings.jsonl, `ledger` lists what is finished,
`remote` fetches places by URL from an `object_store`, and `mirror` keeps a run in one under a
`lease`.
"""
