"""Execution: work units, run in this process, in worker processes, or where Ray places them.

Callers describe their work as `WorkUnit`s and read results in order of finish; where the units run
is the executor's business. A new executor is one class with the methods of `Executor`, a section
of `ScaleConfig`, and a line in `executor_for`.
"""

from cropi.execution.executor_choice import executor_for
from cropi.execution.processes import (
    Processes,
    requested_threads,
    require_bearable,
    usable_cores,
)
from cropi.execution.program import Program
from cropi.execution.units import (
    Executor,
    Finished,
    Inline,
    WorkUnit,
    run_all,
    run_units,
    showing_workers,
)

__all__ = [
    "Executor",
    "Finished",
    "Inline",
    "Processes",
    "Program",
    "WorkUnit",
    "executor_for",
    "requested_threads",
    "require_bearable",
    "run_all",
    "run_units",
    "showing_workers",
    "usable_cores",
]
