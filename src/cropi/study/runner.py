"""Running a study: its unfinished runs as work units, by default in worker processes.

What a seed's runs share is a unit of its own, which they wait for. Finished runs cost nothing; one
that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cropi.config import resolve_model_path, to_yaml
from cropi.curriculum.evaluator import accuracy_note
from cropi.curriculum.run_context import require_continuable
from cropi.errors import InputError
from cropi.execution import (
    Executor,
    Finished,
    Processes,
    WorkUnit,
    executor_for,
    requested_threads,
    require_bearable,
    run_units,
    usable_cores,
)
from cropi.progress import ProgressReporter
from cropi.store.files import atomic_write
from cropi.store.ledger import Ledger
from cropi.store.lock import exclusive_lock
from cropi.store.metrics import METRICS, EvaluationRow, read_rows
from cropi.study.cells import FINISHED, Draw, is_finished, prepare_shared, run_cell
from cropi.study.results import read_yaml_mapping
from cropi.study.study_plan import STUDY_FILE, StudyPlan, StudyRun


def run_study(
    plan: StudyPlan,
    base: Path | None = None,
    reporter: ProgressReporter | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    draw: Draw | None = None,
) -> Path:
    """Run every run of the study that is not finished; return the study's directory.

    `draw` writes the page of a finished run, given its directory (`cropi.report.write_run_report`).

    By default `jobs` runs at once, in processes of their own, each with its share of the CPU's
    cores (the number is fixed when the study begins), or with a GPU of its own where there are
    several; or in the workers that the config's `scale` asks for. An `executor` takes their
    place. Raises InputError naming the runs that failed, after
    the others are done, or at once if another process is working on the study.
    """
    with exclusive_lock(plan.root):
        _require_same_study(plan, base)
        executor = executor or study_workers(plan, jobs)
        threads = executor.threads or _recorded_threads(plan.root)
        study, ledger = plan.root / STUDY_FILE, Ledger(plan.root)
        ledger.repair()
        with atomic_write(study) as part:
            part.write_text(to_yaml(plan.as_config(threads)), encoding="utf-8")
        ledger.record(study, str(threads), [study])
        _run_unfinished(plan, base, reporter or ProgressReporter(), executor, draw)
    return plan.root


def _require_same_study(plan: StudyPlan, base: Path | None) -> None:
    """Raise InputError, before anything runs, if the folder holds a study of other settings.

    The seeds that this call does not ask for are looked at too: their runs would be compared with
    new ones.
    """
    for folder in sorted(plan.root.glob("shared/seed-*")):
        seed = folder.name.removeprefix("seed-")
        if seed.isdecimal():
            require_continuable(resolve_model_path(plan.shared(int(seed)), base))


def study_workers(plan: StudyPlan, jobs: int) -> Executor:
    """The workers that the config asks for, or `jobs` processes.

    Raises InputError for other threads than before.
    """
    placed = executor_for(plan.config.scale)
    if placed is None:
        require_bearable(jobs, "--jobs")
        return Processes(jobs, run_threads(plan, jobs))
    wanted = plan.config.compare.threads or _recorded_threads(plan.root)
    if wanted and placed.threads != wanted:
        raise InputError(
            f"scale gives each run {placed.threads} threads, and this study's runs have {wanted}: "
            f"all should be computed alike; give their workers {wanted} cpus"
        )
    return placed


def run_threads(plan: StudyPlan, jobs: int) -> int:
    """CPU threads of every run: as configured, else as when the study began, whatever `jobs` is.

    Floating-point sums depend on how they are divided among threads. Raises InputError if the
    configured number is not the one that the study began with.
    """
    configured = plan.config.compare.threads
    recorded = _recorded_threads(plan.root)
    if configured and recorded and configured != recorded:
        raise InputError(
            f"compare.threads {configured}: {plan.root} began with {recorded} threads per run, and "
            f"all its runs should be computed alike; leave it at {recorded}, or choose another name"
        )
    return configured or recorded or requested_threads() or max(1, usable_cores() // jobs)


def _recorded_threads(root: Path) -> int | None:
    """The threads that a study was begun with; None where that is not recorded."""
    listed = Ledger(root).inputs(root / STUDY_FILE)
    if listed is not None:
        return int(listed) if listed.isdigit() else None
    compare = read_yaml_mapping(root / STUDY_FILE).get("compare")
    threads = compare.get("threads") if isinstance(compare, dict) else None
    return threads if isinstance(threads, int) and threads > 0 else None


def _run_unfinished(
    plan: StudyPlan,
    base: Path | None,
    reporter: ProgressReporter,
    executor: Executor,
    draw: Draw | None,
) -> None:
    runs = plan.runs()
    unfinished = [run for run in runs if not is_finished(run.config, base)]
    if len(unfinished) < len(runs):
        done = len(runs) - len(unfinished)
        reporter.info(f"  {done} of {len(runs)} runs are finished", style="dim")
    if not unfinished:
        return
    units = _units(plan, base, unfinished, draw)
    failures = _execute(units, reporter, executor, unfinished)
    if failures:
        left = sum(not is_finished(run.config, base) for run in unfinished)
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise InputError(
            f"{left} of {len(runs)} runs are not finished ({reasons}); fix that and give the same "
            "command again"
        )


def _execute(
    units: Sequence[WorkUnit],
    reporter: ProgressReporter,
    executor: Executor,
    runs: Sequence[StudyRun],
) -> dict[str, str]:
    """Execute the units of `runs`, report each as it ends; return what went wrong, by unit."""
    folders = {run.title: run.config.directory for run in runs}
    failures: dict[str, str] = {}
    done = 0
    with executor, reporter.phase("runs", len(runs)) as bar:
        for finished in run_units(executor, units):
            name = finished.unit.name
            if finished.error is not None:
                failures[name] = _reason(name, finished.error)
                reporter.warn(f"{name}: {failures[name]}")
            if name in folders and not finished.skipped_after:
                done += 1
                if finished.succeeded:
                    _report(reporter, finished, folders[name], f"[{done}/{len(runs)}]")
                bar.update(done, len(runs))
    return failures


def _units(
    plan: StudyPlan, base: Path | None, runs: Sequence[StudyRun], draw: Draw | None
) -> list[WorkUnit]:
    """A unit for what each seed's runs share, then one for each run."""
    shared = {
        seed: WorkUnit(
            f"shared files of seed {seed}",
            prepare_shared,
            (plan.shared(seed), [run.config for run in runs if run.seed == seed], base),
        )
        for seed in dict.fromkeys(run.seed for run in runs)
    }
    return [
        *shared.values(),
        *(
            WorkUnit(
                run.title,
                run_cell,
                (run.config, plan.shared(run.seed), base, draw),
                output=run.config.directory / FINISHED,
                after=(shared[run.seed].name,),
            )
            for run in runs
        ),
    ]


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error).removeprefix(f"{name} ")  # the name is printed before it
    return f"{type(error).__name__}: {error} (see its log.txt)"


def _report(reporter: ProgressReporter, finished: Finished, folder: Path, count: str) -> None:
    accuracy = last_accuracy(folder)
    seconds = f"{finished.seconds:5.0f} s"
    reporter.info(f"  {finished.unit.name:<26} {accuracy:<44} {seconds}   {count}")


def last_accuracy(run: Path) -> str:
    """Targeted and untargeted accuracy of a run's last evaluation, as text."""
    rows = read_rows(run / METRICS).of_kind(EvaluationRow)
    last_step = max((row.step for row in rows), default=0)
    return accuracy_note([row for row in rows if row.step == last_step])
