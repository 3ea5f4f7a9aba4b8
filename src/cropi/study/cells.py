"""The work of a study, in a process of its own: what a seed shares, and one cell."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cropi.config import RunConfig, resolve_model_path
from cropi.curriculum.check_settings import check_settings
from cropi.curriculum.loop import opened, prepare, train_curriculum
from cropi.curriculum.session import arms_needing
from cropi.curriculum.write_report import write_report
from cropi.progress import ProgressReporter
from cropi.prompts.sources import find_file
from cropi.schema import fingerprint
from cropi.store.files import file_hash, write_json
from cropi.store.lock import exclusive_lock
from cropi.store.metrics import TimingRow, read_rows
from cropi.store.run_directory import RunDirectory

FINISHED = "finished.json"


def is_finished(config: RunConfig, base: Path | None = None) -> bool:
    """Whether the run of this config has been done to its end, from the same prompt files."""
    file = config.directory / FINISHED
    return file.is_file() and _mark(config, base) in file.read_text(encoding="utf-8")


def prepare_shared(config: RunConfig, cells: Sequence[RunConfig], base: Path | None) -> None:
    """Collect what the `cells` of a seed share into the run directory of `config`.

    Raises InputError for a setting of any cell that cannot be used, before rollouts are paid for.
    """
    with _logged(config) as reporter:
        for cell in cells:
            check_settings(resolve_model_path(cell, base), base, reporter)
        with opened(config, base, reporter) as session:
            prepare(session)


def run_cell(config: RunConfig, shared: RunConfig, base: Path | None) -> None:
    """Run one cell to its end, from the rollouts of `shared` where they are its own."""
    with exclusive_lock(config.directory), _logged(config) as reporter:
        adopt(shared, config)
        with opened(config, base, reporter) as session:
            start = prepare(session)
            for name in config.strategies:
                train_curriculum(session, name, start)
            write_report(session)
        write_json(config.directory / FINISHED, {"inputs_fingerprint": _mark(config, base)})


def adopt(shared: RunConfig, config: RunConfig) -> None:
    """Give a cell the shared files, before it begins.

    Rollouts and start policy know what they were made from: a cell whose settings ask for others
    makes its own. What they took counts for the cell if its strategy uses them.
    """
    cell, source = RunDirectory(config.directory, config), RunDirectory(shared.directory, shared)
    if cell.manifest.is_file():
        return
    for name in ("rollouts", "start"):
        if (source.root / name).is_dir():
            shutil.copytree(
                source.root / name, cell.root / name, copy_function=_link, dirs_exist_ok=True
            )
    cell.root.mkdir(parents=True, exist_ok=True)
    if not _start_alike(shared, config):
        return
    if shared.evaluation == config.evaluation and source.start_evaluation.is_file():
        _link(str(source.start_evaluation), str(cell.start_evaluation))
    if not cell.timings.exists():
        _adopt_timings(source, cell)


def _start_alike(shared: RunConfig, config: RunConfig) -> bool:
    """Whether both have the same start policy and the same rollouts of it."""
    sections = ("model", "prompts", "warmup", "verifiers", "rollouts")
    return shared.training.lora == config.training.lora and all(
        shared.result_settings(name) == config.result_settings(name) for name in sections
    )


def _adopt_timings(source: RunDirectory, cell: RunDirectory) -> None:
    for row in read_rows(source.timings).of(TimingRow):
        if row.phase == "rollouts" and row.set is not None:
            cell.add_timing(replace(row, arms=arms_needing(cell.config, row.set)))


def _link(source: str, target: str) -> str:
    """A second name for a file, or a copy where the disk knows no such thing; replaces `target`."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _mark(config: RunConfig, base: Path | None) -> str:
    """What makes a finished cell this very one."""
    settings = {
        key: value
        for section in RunConfig.model_fields
        if section not in ("name", "out", "compare")
        for key, value in _determining(config, section).items()
    }
    return fingerprint(settings, _file_hashes(config, base))


def _determining(config: RunConfig, section: str) -> dict[str, object]:
    value = getattr(config, section)
    return config.result_settings(section) if hasattr(value, "model_dump") else {section: value}


def _file_hashes(config: RunConfig, base: Path | None) -> list[str]:
    """Content of the prompt files."""
    sets = config.prompts
    named = [s for group in (sets.validation, sets.test) for found in group.values() for s in found]
    sources = [*sets.pool, *named, *config.warmup.prompts]
    return [file_hash(find_file(source.path, base)) for source in sources if source.path]


@contextmanager
def _logged(config: RunConfig) -> Iterator[ProgressReporter]:
    """What a run says goes to log.txt in its directory: several may run at once."""
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
