"""One of the processes that `cropi.training.launcher` starts for a stage of TRL.

All of them run this file; the first judges, records and reports for all.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cropi.errors import InputError
from cropi.execution.program import end_with_parent
from cropi.store.files import atomic_write
from cropi.training.launcher import JOB, OUTCOME, REFUSED, STEPS, StageJob, StageReport
from cropi.training.stage import Row, StepProgress, ascii_path
from cropi.training.trl_stage import TrlTrainer
from cropi.verifiers import Judge


def run(folder: Path) -> None:
    """Train the stage in `folder` together with the other processes."""
    job: StageJob = pickle.loads((folder / JOB).read_bytes())
    if int(os.environ.get("WORLD_SIZE", "1")) != job.processes:
        raise InputError(
            f"training.engine.launch.processes = {job.processes}, and accelerate started "
            f"{os.environ.get('WORLD_SIZE', 1)} with training.engine.launch.config; correct it"
        )
    first = os.environ.get("RANK", "0") == "0"
    progress = _writer(folder / STEPS) if first else None
    base = job.verifier_folders[0] if job.verifier_folders else None
    with Judge(job.verifiers, base) as judge, ascii_path(job.out) as place:
        trainer = TrlTrainer(job.grpo, job.processes)
        outcome = trainer.train(job.plan, judge, place, None, progress)
        if first:
            report = StageReport(outcome, judge.counts, judge.reasons)
            with atomic_write(folder / OUTCOME) as part:
                part.write_bytes(pickle.dumps(report))


def _restore_to_numbered_cpus() -> None:
    """Let torch load what is asked for on `cpu:0`.

    transformers 5.10 loads the optimizer of several processes on CPUs there, a place that torch has
    tensors on but restores none to.
    """

    def restored(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(11, lambda _: None, restored)


def _writer(file: Path) -> StepProgress:
    def write(done: int, row: Row) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([done, row]) + "\n")

    return write


def main(arguments: Sequence[str]) -> None:
    """Run; a refusal is left in a file for the process that launched this one."""
    # torch's launcher starts every process in a session of its own.
    end_with_parent(signal.SIGKILL)
    _restore_to_numbered_cpus()
    folder = Path(arguments[0])
    try:
        run(folder)
    except InputError as error:
        with atomic_write(folder / REFUSED) as part:
            part.write_text(str(error), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
