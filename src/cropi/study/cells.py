"""The work units of a study: what the runs of one seed share, and one run.

Each writes what it prints to a log.txt of its own, because several may run at once.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cropi.config import RunConfig, resolve_model_path
from cropi.curriculum.loop import open_curriculum, run
from cropi.curriculum.run_context import arms_needing, check_settings
from cropi.progress import ProgressReporter
from cropi.prompts.sources import source_hash
from cropi.schema import fingerprint
from cropi.store.cached import FINGERPRINT, read_record
from cropi.store.files import write_json
from cropi.store.lock import exclusive_lock
from cropi.store.metrics import TimingRow, read_rows
from cropi.store.run_directory import RunDirectory

Draw = Callable[[Path], object]
"""What draws a finished run, given its directory; it runs in the run's own process."""
FINISHED = "finished.json"
"""Written last into a run's directory, with the fingerprint of the run."""


def is_finished(config: RunConfig, base: Path | None = None) -> bool:
    """Whether the run of this config is complete and undamaged, and its prompts are the same."""
    record = read_record(config.directory / FINISHED)
    if record.get(FINGERPRINT) != _run_fingerprint(config, base):
        return False
    return RunDirectory(config.directory).ledger.all_intact()


def prepare_shared(config: RunConfig, runs: Sequence[RunConfig], base: Path | None) -> None:
    """Collect what the `runs` of a seed share into the run directory of `config`.

    Raises InputError for a setting of any run that cannot be used, before rollouts are paid for.
    """
    with _logged(config) as reporter:
        for each in runs:
            check_settings(resolve_model_path(each, base), base, reporter)
        with open_curriculum(config, base, reporter, runs):
            pass  # opening a run makes what its arms share


def run_cell(
    config: RunConfig, shared: RunConfig, base: Path | None, draw: Draw | None = None
) -> None:
    """Complete one run, with the shared rollouts where its settings ask for the same ones.

    `draw` writes its page; it is given the run's directory.
    """
    with exclusive_lock(config.directory), _logged(config) as reporter:
        link_shared_files(shared, config)
        directory = run(config, base, reporter)
        if draw is not None:
            draw(directory)
        record = {FINGERPRINT: _run_fingerprint(config, base)}
        write_json(config.directory / FINISHED, record)


def link_shared_files(shared: RunConfig, config: RunConfig) -> None:
    """Give a run that has not begun the files of the `shared` run.

    Rollouts and start policy record what they were made from: a run whose settings differ there
    makes its own. The time that shared rollouts took counts for the run if its strategy uses them.
    """
    target, source = RunDirectory(config.directory), RunDirectory(shared.directory)
    if target.manifest.is_file():
        return
    for name in ("rollouts", "start"):
        if (source.root / name).is_dir():
            shutil.copytree(
                source.root / name, target.root / name, copy_function=_link, dirs_exist_ok=True
            )
    target.root.mkdir(parents=True, exist_ok=True)
    target.ledger.copy(source.ledger, ["rollouts", "start"])
    if not _same_start_policy(shared, config):
        return
    if shared.evaluation == config.evaluation and source.start_evaluation.is_file():
        _link(str(source.start_evaluation), str(target.start_evaluation))
        target.ledger.copy(source.ledger, [source.start_evaluation.name])
    if not target.timings.exists():
        _copy_rollout_timings(source, target, config)


def _same_start_policy(shared: RunConfig, config: RunConfig) -> bool:
    """Whether both have the same start policy and the same rollouts of it."""
    sections = ("model", "prompts", "warmup", "verifiers", "rollouts")
    return shared.training.lora == config.training.lora and all(
        shared.result_settings(name) == config.result_settings(name) for name in sections
    )


def _copy_rollout_timings(source: RunDirectory, target: RunDirectory, config: RunConfig) -> None:
    for row in read_rows(source.timings).of_kind(TimingRow):
        if row.phase == "rollouts" and row.set is not None:
            target.add_timing(replace(row, arms=arms_needing([config], row.set)))


def _link(source: str, target: str) -> str:
    """Hard-link a file, or copy it where hard links are not supported; replaces `target`."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _run_fingerprint(config: RunConfig, base: Path | None) -> str:
    """Fingerprint of everything that determines a run's result."""
    settings = {
        key: value
        for section in RunConfig.model_fields
        if section not in ("name", "out", "compare")
        for key, value in _section_settings(config, section).items()
    }
    return fingerprint(settings, _prompt_file_hashes(config, base))


def _section_settings(config: RunConfig, section: str) -> dict[str, object]:
    value = getattr(config, section)
    return config.result_settings(section) if hasattr(value, "model_dump") else {section: value}


def _prompt_file_hashes(config: RunConfig, base: Path | None) -> list[str]:
    sets = config.prompts
    heldout = [
        source for group in (sets.validation, sets.test) for s in group.values() for source in s
    ]
    sources = [*sets.pool, *heldout, *config.warmup.prompts]
    return [source_hash(s.path, base, s.split) for s in sources if s.path]


@contextmanager
def _logged(config: RunConfig) -> Iterator[ProgressReporter]:
    """Append everything that is printed, and a traceback, to log.txt in the run's directory."""
    config.directory.mkdir(parents=True, exist_ok=True)
    with (
        (config.directory / "log.txt").open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            yield ProgressReporter(Console(file=log, width=160))
        except Exception:
            traceback.print_exc(file=log)
            raise
