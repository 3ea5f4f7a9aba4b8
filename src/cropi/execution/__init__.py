"""Execution: work units, run in this process or in worker processes.

Callers describe their work as `WorkUnit`s and read results in order of finish; where the units run
is the executor's business. A new executor (a cluster, for instance) is one class with the methods
of `Executor`.
"""

from cropi.execution.processes import Processes, requested_threads, usable_cores
from cropi.execution.program import Program
from cropi.execution.units import Executor, Finished, Inline, WorkUnit, run_units

__all__ = [
    "Executor",
    "Finished",
    "Inline",
    "Processes",
    "Program",
    "WorkUnit",
    "requested_threads",
    "run_units",
    "usable_cores",
]
