"""Parts of `benchmarks/gpu_check.py`: what only a GPU can check or measure.

`schedule` (the parts in order of worth), `running` (each in a process of its own), `record` (the
file of results), `bar` (what is asked), `place` (device, sizes, models), `wheels` (packages carried
along); one file a subject: `machine`, `parity`, `hashing`, `costs`, `memory`, `training`.
"""
